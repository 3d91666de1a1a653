/* Vectors of 16 lanes, whatever the width of the machine's registers.
 *
 * Every kernel is written once, on the types and functions of this header:
 *
 *   f32x16   16 floats        i32x16   16 32-bit integers        bytes64   64 bytes
 *
 * One of the four headers below defines them. A type of 16 lanes is one register with AVX-512, two
 * with AVX2 and four with NEON, so that all of them read the same packed weights.
 *
 * `f32x16_max(a, b)` and `f32x16_min(a, b)` return b if either is NaN. REGISTER_TILE is the number of
 * accumulators of 16 lanes that fit into the registers beside a few operands. INT8_INPUT_ZERO is the
 * byte that stands for 0 in the inputs of `dot_int8`: some instructions multiply unsigned inputs.
 */
#ifndef SIMD_H
#define SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

#define LANES 16

/* bfloat16 is the upper half of a float. */
INLINE float float_of_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The first `count` of 16 lanes; the others are 0. */
INLINE f32x16 f32x16_load_part(const float *source, int count) {
    if (count >= LANES) return f32x16_load(source);
    float lanes[LANES] = {0};
    memcpy(lanes, source, (size_t)count * sizeof(float));
    return f32x16_load(lanes);
}

INLINE void f32x16_store_part(float *target, f32x16 value, int count) {
    if (count >= LANES) {
        f32x16_store(target, value);
        return;
    }
    float lanes[LANES];
    f32x16_store(lanes, value);
    memcpy(target, lanes, (size_t)count * sizeof(float));
}

INLINE f32x16 f32x16_load_bf16_part(const uint16_t *source, int count) {
    if (count >= LANES) return f32x16_load_bf16(source);
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, source, (size_t)count * sizeof(uint16_t));
    return f32x16_load_bf16(lanes);
}

INLINE void f32x16_store_bf16_part(uint16_t *target, f32x16 value, int count) {
    if (count >= LANES) {
        f32x16_store_bf16(target, value);
        return;
    }
    uint16_t lanes[LANES];
    f32x16_store_bf16(lanes, value);
    memcpy(target, lanes, (size_t)count * sizeof(uint16_t));
}

/* The first `count` of 64 bytes; the others are 0. */
INLINE bytes64 bytes64_load_part(const void *source, int count) {
    if (count >= 64) return bytes64_load(source);
    char bytes[64] = {0};
    memcpy(bytes, source, (size_t)count);
    return bytes64_load(bytes);
}

#ifndef HAS_TRANSPOSED_SUMS
/* The sum of each of 16 vectors. */
INLINE f32x16 f32x16_sums(const f32x16 *vectors) {
    float sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = f32x16_sum(vectors[i]);
    return f32x16_load(sums);
}
#endif

/* Values that are floats or bfloat16: what a tensor of either type holds. */
INLINE f32x16 load_values(const void *source, size_t index, int count, int is_bf16) {
    if (is_bf16) return f32x16_load_bf16_part((const uint16_t *)source + index, count);
    return f32x16_load_part((const float *)source + index, count);
}

INLINE void store_values(void *target, size_t index, f32x16 value, int count, int is_bf16) {
    if (is_bf16)
        f32x16_store_bf16_part((uint16_t *)target + index, value, count);
    else
        f32x16_store_part((float *)target + index, value, count);
}

INLINE int min_int(int a, int b) { return a < b ? a : b; }

#endif
