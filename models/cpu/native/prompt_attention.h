/* Attention of many tokens: a prompt's to the cache, or a picture's patches to each other. */
#ifndef PROMPT_ATTENTION_H
#define PROMPT_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

/* models/cpu/library.py mirrors this. Strides count values, floats or bfloat16. */
typedef struct {
    const void *queries, *keys, *values; /* [token][head][head_dim] */
    void *target;                        /* [query][query head][head_dim], without gaps */
    const int32_t *limits; /* [query]: it attends to as many keys, the first ones; NULL: to all */
    int64_t query_stride, query_head_stride;
    int64_t key_stride, key_head_stride;
    int64_t value_stride, value_head_stride;
    int32_t num_queries, num_keys;
} Sequence;

typedef struct {
    const Sequence *sequences;
    void *scratch;
    int32_t num_sequences;
    int32_t query_heads, kv_heads, head_dim; /* head_dim is even */
    int32_t is_bf16;
    int32_t threads;
} Attention;

/* Bytes of scratch that `attention_run` needs. */
size_t attention_scratch_bytes(const Attention *attention);
void attention_run(const Attention *attention);

#endif
