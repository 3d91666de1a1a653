/* AVX-512 with VNNI, and with BF16 if the compiler's target has it. */
#include <immintrin.h>

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __m512i bytes64;

#define REGISTER_TILE 24
#define TILE_ROWS 12
#define INT8_INPUT_ZERO 128

INLINE f32x16 f32x16_load(const float *source) { return _mm512_loadu_ps(source); }
INLINE void f32x16_store(float *target, f32x16 a) { _mm512_storeu_ps(target, a); }
INLINE f32x16 f32x16_set(float value) { return _mm512_set1_ps(value); }
INLINE f32x16 f32x16_add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
INLINE f32x16 f32x16_sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
INLINE f32x16 f32x16_mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
INLINE f32x16 f32x16_div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
INLINE f32x16 f32x16_max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
INLINE f32x16 f32x16_min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
/* a * b + c */
INLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float f32x16_sum(f32x16 a) { return _mm512_reduce_add_ps(a); }
/* The sum of each of 16 vectors: neighbors are interleaved and added, four times. */
#define HAS_TRANSPOSED_SUMS 1
INLINE f32x16 f32x16_sums(const f32x16 *vectors) {
    f32x16 a[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(vectors[2 * i], vectors[2 * i + 1]),
                             _mm512_unpackhi_ps(vectors[2 * i], vectors[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d first = _mm512_castps_pd(a[2 * i]), second = _mm512_castps_pd(a[2 * i + 1]);
        a[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    }
#pragma GCC unroll 2
    for (int count = 2; count; count /= 2)
#pragma GCC unroll 2
        for (int i = 0; i < count; i++)
            a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
    return a[0];
}
INLINE float f32x16_highest(f32x16 a) { return _mm512_reduce_max_ps(a); }
INLINE f32x16 f32x16_round(f32x16 a) { return _mm512_roundscale_ps(a, 0); }
/* a * 2^power, for whole powers */
INLINE f32x16 f32x16_scale(f32x16 a, f32x16 power) { return _mm512_scalef_ps(a, power); }

INLINE f32x16 f32x16_load_bf16(const uint16_t *source) {
    __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

/* Rounds to the nearest, ties to even; a NaN stays a NaN. */
INLINE void f32x16_store_bf16(uint16_t *target, f32x16 a) {
    __m512i bits = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_storeu_si256((__m256i *)target, halves);
}

INLINE i32x16 i32x16_load(const int32_t *source) { return _mm512_loadu_si512(source); }
INLINE i32x16 i32x16_set(int32_t value) { return _mm512_set1_epi32(value); }
INLINE i32x16 i32x16_mul(i32x16 a, i32x16 b) { return _mm512_mullo_epi32(a, b); }
INLINE f32x16 f32x16_of_i32(i32x16 a) { return _mm512_cvtepi32_ps(a); }

/* 16 lanes of -127 to 127, rounded to signed bytes. */
INLINE void f32x16_store_int8(int8_t *target, f32x16 a) {
    _mm_storeu_si128((__m128i *)target, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}

INLINE bytes64 bytes64_load(const void *source) { return _mm512_loadu_si512(source); }
/* The same four bytes in every lane of 32 bits. */
INLINE bytes64 bytes64_repeat(const void *four_bytes) {
    int32_t bits;
    memcpy(&bits, four_bytes, sizeof bits);
    return _mm512_set1_epi32(bits);
}
INLINE bytes64 bytes64_low_nibbles(bytes64 a) {
    return _mm512_and_si512(a, _mm512_set1_epi8(15));
}
INLINE bytes64 bytes64_high_nibbles(bytes64 a) {
    return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
}

/* Adds to each lane of 32 bits the products of its four bytes: inputs 0 to 255, weights signed. */
INLINE i32x16 dot_int8(i32x16 sum, bytes64 inputs, bytes64 weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
    return sum;
}
/* The same for signed inputs and weights of 0 to 15. */
INLINE i32x16 dot_nibbles(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return dot_int8(sum, weights, inputs);
}

#ifdef __AVX512BF16__
/* Inputs of bfloat16 products are rounded to bfloat16: two of them are multiplied at a time. */
typedef uint16_t bf16_input;
typedef bytes64 bf16_input_pair;
/* Values below 2^-126 become 0, as which `dot_bf16` would take them. */
INLINE void bf16_inputs_store(bf16_input *target, f32x16 a) {
    _mm256_storeu_si256((__m256i *)target, (__m256i)_mm512_cvtneps_pbh(a));
}
/* The same pair in every lane. */
INLINE bf16_input_pair bf16_input_pair_repeat(const bf16_input *pair) {
    return bytes64_repeat(pair);
}
/* 32 inputs, two in each lane. */
INLINE bf16_input_pair bf16_input_pair_load(const bf16_input *inputs) {
    return bytes64_load(inputs);
}
/* Adds to each lane the products of its two bfloat16 weights. */
INLINE f32x16 dot_bf16(f32x16 sum, bf16_input_pair inputs, bytes64 weights) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)inputs);
}
#else
INLINE f32x16 bytes64_even_bf16(bytes64 a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
}
INLINE f32x16 bytes64_odd_bf16(bytes64 a) {
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xffff0000)));
}
#include "simd_bf16.h"
#endif
