/* Attention of one token to its row, for the query heads that share a kv head.
 *
 * Queries are taken up to four at a time, and values 64 at a time, so that sums stay in registers
 * while keys and values are read once. */
#include <math.h>

#include "activations.h"
#include "decode.h"
#include "softmax.h"

enum { MAX_QUERIES = 4, MAX_CHUNKS = 4, MAX_PAIRS = MAX_HEAD_DIM / (2 * LANES) };

/* Values of a query are padded with zeros to pairs of vectors. */
static size_t padded_head(const Model *model) {
    return round_up((size_t)model->head_dim, 2 * LANES);
}

static int heads_per_kv_head(const Model *model) { return model->query_heads / model->kv_heads; }

size_t attend_scratch_floats(const Model *model, int64_t length) {
    size_t queries = (size_t)heads_per_kv_head(model);
    size_t scores = round_up((size_t)length + 1, LANES);
    return (queries + 1) * padded_head(model) + queries * scores;
}

/* Rotates a head's pairs, one value from each half (Su et al. 2021), and scales it. */
static void rotate(const Head *head, const float *values, float scale, float *target) {
    int half = head->model->head_dim / 2;
    f32x16 factor = f32x16_set(scale);
    memset(target, 0, padded_head(head->model) * sizeof(float));
    for (int i = 0; i < half; i += LANES) {
        int count = half - i;
        f32x16 first = f32x16_mul(f32x16_load_part(values + i, count), factor);
        f32x16 second = f32x16_mul(f32x16_load_part(values + half + i, count), factor);
        f32x16 cos = f32x16_load_part(head->cos + i, count);
        f32x16 sin = f32x16_load_part(head->sin + i, count);
        f32x16 rotated = f32x16_sub(f32x16_mul(first, cos), f32x16_mul(second, sin));
        f32x16_store_part(target + i, rotated, count);
        rotated = f32x16_add(f32x16_mul(second, cos), f32x16_mul(first, sin));
        f32x16_store_part(target + half + i, rotated, count);
    }
}

static void append(const Head *head, void *cache, const float *values) {
    int size = head->model->head_dim;
    size_t position = (size_t)head->length * (size_t)size;
    for (int i = 0; i < size; i += LANES)
        store_values(cache, position + (size_t)i, f32x16_load_part(values + i, size - i), size - i,
                     head->model->kv_is_bf16);
}

/* Scores [query][padded length] of `count` queries [query][padded head] with keys of floats. */
static void score_floats(const Head *head, const float *queries, int count, size_t padded_length,
                         float *scores) {
    int size = head->model->head_dim;
    size_t padded = padded_head(head->model);
    const float *key = head->keys;
    for (int64_t t = 0; t <= head->length; t++, key += size)
        for (int q = 0; q < count; q++) {
            f32x16 sum = f32x16_set(0.0f);
            for (int i = 0; i < size; i += LANES)
                sum = f32x16_fma(f32x16_load_part(key + i, size - i),
                                 f32x16_load(queries + (size_t)q * padded + i), sum);
            scores[(size_t)q * padded_length + (size_t)t] = f32x16_sum(sum);
        }
}

/* A query [padded head], as keys of bfloat16 are multiplied with it: 32 values each. */
static void split_query(const float *query, int pairs, bf16_input_pair *split) {
    for (int p = 0; p < pairs; p++) {
        bf16_input values[2 * LANES];
        bf16_inputs_store(values, f32x16_load(query + 2 * LANES * p));
        bf16_inputs_store(values + LANES, f32x16_load(query + 2 * LANES * p + LANES));
        split[p] = bf16_input_pair_load(values);
    }
}

/* Scores of up to 16 keys with one query. */
INLINE f32x16 score_keys(const uint16_t *keys, int count, int size, const bf16_input_pair *query,
                         int pairs) {
    f32x16 sums[LANES];
#pragma GCC unroll 16
    for (int t = 0; t < LANES; t++) {
        sums[t] = f32x16_set(0.0f);
        if (t >= count) continue;
#pragma GCC unroll 4
        for (int p = 0; p < pairs; p++) {
            const uint16_t *key = keys + t * size + 2 * LANES * p;
            bytes64 values = bytes64_load_part(key, 2 * (size - 2 * LANES * p));
            sums[t] = dot_bf16(sums[t], query[p], values);
        }
    }
    return f32x16_sums(sums);
}

INLINE void score_pairs(const Head *head, const float *queries, int count, size_t padded_length,
                        float *scores, int size, int pairs) {
    const uint16_t *keys = head->keys;
    bf16_input_pair split[MAX_QUERIES][MAX_PAIRS];
    for (int q = 0; q < count; q++)
        split_query(queries + (size_t)q * padded_head(head->model), pairs, split[q]);
    int64_t length = head->length + 1, whole = length / LANES * LANES;
    for (int64_t t = 0; t < whole; t += LANES)
        for (int q = 0; q < count; q++)
            f32x16_store(scores + (size_t)q * padded_length + (size_t)t,
                         score_keys(keys + t * size, LANES, size, split[q], pairs));
    if (whole == length) return;
    for (int q = 0; q < count; q++)
        f32x16_store(scores + (size_t)q * padded_length + (size_t)whole,
                     score_keys(keys + whole * size, (int)(length - whole), size, split[q], pairs));
}

/* The same with keys of bfloat16. Makes the usual sizes of heads constants. */
static void score_bf16(const Head *head, const float *queries, int count, size_t padded_length,
                       float *scores) {
    int size = head->model->head_dim;
    switch (size) {
        case 64: score_pairs(head, queries, count, padded_length, scores, 64, 2); break;
        case 128: score_pairs(head, queries, count, padded_length, scores, 128, 4); break;
        default:
            score_pairs(head, queries, count, padded_length, scores, size,
                        (size + 2 * LANES - 1) / (2 * LANES));
    }
}

/* Averages up to 64 values of a head from `first`, weighted by the scores. */
INLINE void average(const Head *head, const float *scores, size_t padded_length, int count,
                    int first, int chunks, const float *totals, float *target, int is_bf16) {
    int size = head->model->head_dim;
    f32x16 sums[MAX_QUERIES][MAX_CHUNKS];
#pragma GCC unroll 4
    for (int q = 0; q < count; q++)
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++) sums[q][c] = f32x16_set(0.0f);
    for (int64_t t = 0; t <= head->length; t++) {
        f32x16 values[MAX_CHUNKS];
        size_t position = (size_t)t * (size_t)size + (size_t)first;
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++)
            values[c] = load_values(head->values, position + (size_t)(c * LANES),
                                    size - first - c * LANES, is_bf16);
#pragma GCC unroll 4
        for (int q = 0; q < count; q++) {
            f32x16 weight = f32x16_set(scores[(size_t)q * padded_length + (size_t)t]);
#pragma GCC unroll 4
            for (int c = 0; c < chunks; c++) sums[q][c] = f32x16_fma(values[c], weight, sums[q][c]);
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < count; q++)
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++) {
            int start = first + c * LANES;
            f32x16_store_part(target + q * size + start,
                              f32x16_div(sums[q][c], f32x16_set(totals[q])), size - start);
        }
}

/* Attends with up to four queries. */
INLINE void attend_queries(const Head *head, const float *queries, int count, float *scores,
                           float *target, int is_bf16) {
    size_t length = (size_t)head->length + 1;
    size_t padded_length = round_up(length, LANES);
    if (is_bf16)
        score_bf16(head, queries, count, padded_length, scores);
    else
        score_floats(head, queries, count, padded_length, scores);
    float totals[MAX_QUERIES];
    for (int q = 0; q < count; q++)
        totals[q] = exponentials(scores + (size_t)q * padded_length, length, padded_length, 1.0f);
    int size = head->model->head_dim, first = 0;
    for (; first + MAX_CHUNKS * LANES <= size; first += MAX_CHUNKS * LANES)
        average(head, scores, padded_length, count, first, MAX_CHUNKS, totals, target, is_bf16);
    for (; first < size; first += LANES)
        average(head, scores, padded_length, count, first, 1, totals, target, is_bf16);
}

/* Makes the number of queries a constant. */
INLINE void attend_count(const Head *head, const float *queries, int count, float *scores,
                         float *target, int is_bf16) {
    switch (count) {
        case 1: attend_queries(head, queries, 1, scores, target, is_bf16); break;
        case 2: attend_queries(head, queries, 2, scores, target, is_bf16); break;
        case 3: attend_queries(head, queries, 3, scores, target, is_bf16); break;
        default: attend_queries(head, queries, 4, scores, target, is_bf16); break;
    }
}

void attend(const Head *head, const float *queries, const float *key, const float *value,
            float *scratch, float *target) {
    const Model *model = head->model;
    size_t padded = padded_head(model);
    int size = model->head_dim, count = heads_per_kv_head(model);
    float *rotated_key = scratch;
    float *rotated = rotated_key + padded;
    float *scores = rotated + (size_t)count * padded;
    rotate(head, key, 1.0f, rotated_key);
    append(head, head->keys, rotated_key);
    append(head, head->values, value);
    float scale = 1.0f / sqrtf((float)size);
    for (int q = 0; q < count; q++)
        rotate(head, queries + q * size, scale, rotated + (size_t)q * padded);
    for (int q = 0; q < count; q += MAX_QUERIES) {
        const float *some = rotated + (size_t)q * padded;
        int some_count = min_int(MAX_QUERIES, count - q);
        if (model->kv_is_bf16)
            attend_count(head, some, some_count, scores, target + q * size, 1);
        else
            attend_count(head, some, some_count, scores, target + q * size, 0);
    }
}
