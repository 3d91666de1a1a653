/* AVX2 with FMA, and with AVX-VNNI if the compiler's target has it. Two registers are 16 lanes. */
#include <immintrin.h>

typedef struct {
    __m256 v[2];
} f32x16;
typedef struct {
    __m256i v[2];
} i32x16;
typedef i32x16 bytes64;

#define REGISTER_TILE 6
#define TILE_ROWS 6

INLINE f32x16 f32x16_load(const float *source) {
    return (f32x16){{_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}};
}
INLINE void f32x16_store(float *target, f32x16 a) {
    _mm256_storeu_ps(target, a.v[0]);
    _mm256_storeu_ps(target + 8, a.v[1]);
}
INLINE f32x16 f32x16_set(float value) {
    return (f32x16){{_mm256_set1_ps(value), _mm256_set1_ps(value)}};
}
INLINE f32x16 f32x16_add(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_sub(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_mul(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_div(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_max(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_min(f32x16 a, f32x16 b) {
    return (f32x16){{_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])}};
}
/* a * b + c */
INLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) {
    return (f32x16){
        {_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
INLINE float f32x16_sum(f32x16 a) {
    __m256 eight = _mm256_add_ps(a.v[0], a.v[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float f32x16_highest(f32x16 a) {
    __m256 eight = _mm256_max_ps(a.v[0], a.v[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE f32x16 f32x16_round(f32x16 a) {
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return (f32x16){{_mm256_round_ps(a.v[0], nearest), _mm256_round_ps(a.v[1], nearest)}};
}
INLINE __m256 scale_by_power(__m256 a, __m256 power) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
/* a * 2^power, for whole powers of -126 to 127 */
INLINE f32x16 f32x16_scale(f32x16 a, f32x16 power) {
    return (f32x16){{scale_by_power(a.v[0], power.v[0]), scale_by_power(a.v[1], power.v[1])}};
}

INLINE __m256 load_eight_bf16(const uint16_t *source) {
    __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)source));
    return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
}
INLINE f32x16 f32x16_load_bf16(const uint16_t *source) {
    return (f32x16){{load_eight_bf16(source), load_eight_bf16(source + 8)}};
}
/* Returns the bfloat16 in the upper halves: rounded to the nearest, ties to even; NaN stays NaN. */
INLINE __m256i round_to_bf16(__m256 a) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16);
}
INLINE void f32x16_store_bf16(uint16_t *target, f32x16 a) {
    __m256i packed = _mm256_packus_epi32(round_to_bf16(a.v[0]), round_to_bf16(a.v[1]));
    _mm256_storeu_si256((__m256i *)target, _mm256_permute4x64_epi64(packed, 0xd8));
}

INLINE i32x16 i32x16_load(const int32_t *source) {
    const __m256i *halves = (const __m256i *)source;
    return (i32x16){{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
}
INLINE i32x16 i32x16_set(int32_t value) {
    return (i32x16){{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}};
}
INLINE i32x16 i32x16_mul(i32x16 a, i32x16 b) {
    return (i32x16){{_mm256_mullo_epi32(a.v[0], b.v[0]), _mm256_mullo_epi32(a.v[1], b.v[1])}};
}
INLINE f32x16 f32x16_of_i32(i32x16 a) {
    return (f32x16){{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}};
}

/* 16 lanes of -127 to 127, rounded to signed bytes. */
INLINE void f32x16_store_int8(int8_t *target, f32x16 a) {
    __m256i low = _mm256_cvtps_epi32(a.v[0]), high = _mm256_cvtps_epi32(a.v[1]);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)target, bytes);
}

INLINE bytes64 bytes64_load(const void *source) { return i32x16_load((const int32_t *)source); }
/* The same four bytes in every lane of 32 bits. */
INLINE bytes64 bytes64_repeat(const void *four_bytes) {
    int32_t bits;
    memcpy(&bits, four_bytes, sizeof bits);
    return i32x16_set(bits);
}
INLINE bytes64 bytes64_low_nibbles(bytes64 a) {
    const __m256i mask = _mm256_set1_epi8(15);
    return (bytes64){{_mm256_and_si256(a.v[0], mask), _mm256_and_si256(a.v[1], mask)}};
}
INLINE bytes64 bytes64_high_nibbles(bytes64 a) {
    return bytes64_low_nibbles(
        (bytes64){{_mm256_srli_epi16(a.v[0], 4), _mm256_srli_epi16(a.v[1], 4)}});
}
INLINE f32x16 bytes64_even_bf16(bytes64 a) {
    return (f32x16){{_mm256_castsi256_ps(_mm256_slli_epi32(a.v[0], 16)),
                     _mm256_castsi256_ps(_mm256_slli_epi32(a.v[1], 16))}};
}
INLINE f32x16 bytes64_odd_bf16(bytes64 a) {
    const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    return (f32x16){{_mm256_castsi256_ps(_mm256_and_si256(a.v[0], mask)),
                     _mm256_castsi256_ps(_mm256_and_si256(a.v[1], mask))}};
}

#ifdef __AVXVNNI__
#define INT8_INPUT_ZERO 128
/* Adds to each lane of 32 bits the products of its four bytes: inputs 0 to 255, weights signed. */
INLINE i32x16 dot_int8(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return (i32x16){{_mm256_dpbusd_avx_epi32(sum.v[0], inputs.v[0], weights.v[0]),
                     _mm256_dpbusd_avx_epi32(sum.v[1], inputs.v[1], weights.v[1])}};
}
/* The same for signed inputs and weights of 0 to 15. */
INLINE i32x16 dot_nibbles(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return dot_int8(sum, weights, inputs);
}
#else
#define INT8_INPUT_ZERO 0
/* Pairs of products are added in 16 bits: they must not exceed 32,767. */
INLINE __m256i dot_bytes(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* Adds to each lane of 32 bits the products of its four bytes, inputs and weights of -127 to 127. */
INLINE i32x16 dot_int8(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return (i32x16){{dot_bytes(sum.v[0], _mm256_abs_epi8(weights.v[0]),
                               _mm256_sign_epi8(inputs.v[0], weights.v[0])),
                     dot_bytes(sum.v[1], _mm256_abs_epi8(weights.v[1]),
                               _mm256_sign_epi8(inputs.v[1], weights.v[1]))}};
}
/* The same for weights of 0 to 15. */
INLINE i32x16 dot_nibbles(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return (i32x16){{dot_bytes(sum.v[0], weights.v[0], inputs.v[0]),
                     dot_bytes(sum.v[1], weights.v[1], inputs.v[1])}};
}
#endif

#include "simd_bf16.h"
