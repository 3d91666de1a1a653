/* A decode step: one token of each row through all layers of a text model.
 *
 * models/cpu/library.py mirrors these structures. */
#ifndef DECODE_H
#define DECODE_H

#include "linear.h"

enum { MAX_HEAD_DIM = 256 };

typedef struct {
    const float *weight;
    const float *bias; /* NULL for an RMS norm, which doesn't subtract the mean either */
    float eps;
    int32_t size;
} Norm;

typedef struct {
    Norm attention_norm;
    Norm mlp_norm; /* weight NULL: attention and MLP read the same norm, in parallel */
    Linear qkv, out, up, down;
    int32_t gated; /* whether `up` holds a SwiGLU's gates and then its values */
    int32_t unused;
} Layer;

typedef struct {
    const Layer *layers;
    Norm norm;
    Linear head;
    int32_t num_layers;
    int32_t hidden;
    int32_t query_heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t kv_is_bf16;
} Model;

/* Keys and values of one arena: [2][row][kv head][position][head_dim] of floats or bfloat16. */
typedef struct {
    char *const *keys; /* of row 0, in each layer */
    char *const *values;
    int64_t row_bytes; /* from one row to the next */
    int64_t head_bytes;
} Arena;

typedef struct {
    int32_t arena;
    int32_t index; /* in its arena */
    int64_t length; /* tokens before this one */
} Row;

typedef struct {
    const Model *model;
    const Arena *arenas;
    const Row *rows;
    const float *cos, *sin; /* [row][head_dim / 2] */
    float *states;          /* [row][hidden]: the embedded tokens; then the last layer's output */
    float *logits;          /* [row][vocabulary] */
    void *scratch;
    int32_t num_rows;
    int32_t threads;
} Step;

/* Bytes of scratch that a step of `rows` rows needs, the longest of which has `length` tokens. */
size_t decode_scratch_bytes(const Model *model, int rows, int64_t length, int threads);
void decode_run(const Step *step);

/* norm.c */
void norm_row(const Norm *norm, const float *row, float *target);

/* attention.c */
typedef struct {
    const Model *model;
    const float *cos, *sin; /* [head_dim / 2] */
    void *keys, *values;    /* [position][head_dim], of one kv head */
    int64_t length;
} Head;

/* Floats of scratch for `attend`. */
size_t attend_scratch_floats(const Model *model, int64_t length);
/* Appends a kv head's key and value, and attends with the query heads that share it.
 *
 * `queries` [query heads of this kv head][head_dim], `key` and `value` [head_dim] are not rotated
 * yet. Writes `target` [query heads of this kv head][head_dim]. */
void attend(const Head *head, const float *queries, const float *key, const float *value,
            float *scratch, float *target);

#endif
