/* NEON with the dot product instructions of ARMv8.2. Four registers are 16 lanes. */
#include <arm_neon.h>

typedef struct {
    float32x4_t v[4];
} f32x16;
typedef struct {
    int32x4_t v[4];
} i32x16;
typedef struct {
    int8x16_t v[4];
} bytes64;

#define REGISTER_TILE 6
#define TILE_ROWS 6
#define INT8_INPUT_ZERO 0

INLINE f32x16 f32x16_load(const float *source) {
    return (f32x16){{vld1q_f32(source), vld1q_f32(source + 4), vld1q_f32(source + 8),
                     vld1q_f32(source + 12)}};
}
INLINE void f32x16_store(float *target, f32x16 a) {
    for (int i = 0; i < 4; i++) vst1q_f32(target + 4 * i, a.v[i]);
}
INLINE f32x16 f32x16_set(float value) {
    float32x4_t four = vdupq_n_f32(value);
    return (f32x16){{four, four, four, four}};
}
INLINE f32x16 f32x16_add(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_sub(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_mul(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_div(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vdivq_f32(a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_max(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_min(f32x16 a, f32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
    return a;
}
/* a * b + c */
INLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) {
    for (int i = 0; i < 4; i++) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
INLINE float f32x16_sum(f32x16 a) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3])));
}
INLINE float f32x16_highest(f32x16 a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3])));
}
INLINE f32x16 f32x16_round(f32x16 a) {
    for (int i = 0; i < 4; i++) a.v[i] = vrndnq_f32(a.v[i]);
    return a;
}
/* a * 2^power, for whole powers of -126 to 127 */
INLINE f32x16 f32x16_scale(f32x16 a, f32x16 power) {
    for (int i = 0; i < 4; i++) {
        int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(power.v[i]), vdupq_n_s32(127));
        a.v[i] = vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    }
    return a;
}

INLINE f32x16 f32x16_load_bf16(const uint16_t *source) {
    f32x16 a;
    for (int i = 0; i < 4; i++)
        a.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(source + 4 * i), 16));
    return a;
}
/* Rounds to the nearest, ties to even; a NaN stays a NaN. */
INLINE void f32x16_store_bf16(uint16_t *target, f32x16 a) {
    for (int i = 0; i < 4; i++) {
        uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
        uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
        rounded = vbslq_u32(vceqq_f32(a.v[i], a.v[i]), rounded, nan);
        vst1_u16(target + 4 * i, vshrn_n_u32(rounded, 16));
    }
}

INLINE i32x16 i32x16_load(const int32_t *source) {
    return (i32x16){{vld1q_s32(source), vld1q_s32(source + 4), vld1q_s32(source + 8),
                     vld1q_s32(source + 12)}};
}
INLINE i32x16 i32x16_set(int32_t value) {
    int32x4_t four = vdupq_n_s32(value);
    return (i32x16){{four, four, four, four}};
}
INLINE i32x16 i32x16_mul(i32x16 a, i32x16 b) {
    for (int i = 0; i < 4; i++) a.v[i] = vmulq_s32(a.v[i], b.v[i]);
    return a;
}
INLINE f32x16 f32x16_of_i32(i32x16 a) {
    f32x16 floats;
    for (int i = 0; i < 4; i++) floats.v[i] = vcvtq_f32_s32(a.v[i]);
    return floats;
}

/* 16 lanes of -127 to 127, rounded to signed bytes. */
INLINE void f32x16_store_int8(int8_t *target, f32x16 a) {
    int16x4_t words[4];
    for (int i = 0; i < 4; i++) words[i] = vqmovn_s32(vcvtnq_s32_f32(a.v[i]));
    vst1_s8(target, vqmovn_s16(vcombine_s16(words[0], words[1])));
    vst1_s8(target + 8, vqmovn_s16(vcombine_s16(words[2], words[3])));
}

INLINE bytes64 bytes64_load(const void *source) {
    const int8_t *bytes = source;
    return (bytes64){
        {vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)}};
}
/* The same four bytes in every lane of 32 bits. */
INLINE bytes64 bytes64_repeat(const void *four_bytes) {
    int32_t bits;
    memcpy(&bits, four_bytes, sizeof bits);
    int8x16_t sixteen = vreinterpretq_s8_s32(vdupq_n_s32(bits));
    return (bytes64){{sixteen, sixteen, sixteen, sixteen}};
}
INLINE bytes64 bytes64_low_nibbles(bytes64 a) {
    for (int i = 0; i < 4; i++) a.v[i] = vandq_s8(a.v[i], vdupq_n_s8(15));
    return a;
}
INLINE bytes64 bytes64_high_nibbles(bytes64 a) {
    for (int i = 0; i < 4; i++)
        a.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.v[i]), 4));
    return a;
}
INLINE f32x16 bytes64_even_bf16(bytes64 a) {
    f32x16 floats;
    for (int i = 0; i < 4; i++)
        floats.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_s8(a.v[i]), 16));
    return floats;
}
INLINE f32x16 bytes64_odd_bf16(bytes64 a) {
    const uint32x4_t mask = vdupq_n_u32(0xffff0000);
    f32x16 floats;
    for (int i = 0; i < 4; i++)
        floats.v[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s8(a.v[i]), mask));
    return floats;
}

/* Adds to each lane of 32 bits the products of its four bytes, inputs and weights signed. */
INLINE i32x16 dot_int8(i32x16 sum, bytes64 inputs, bytes64 weights) {
    for (int i = 0; i < 4; i++) sum.v[i] = vdotq_s32(sum.v[i], inputs.v[i], weights.v[i]);
    return sum;
}
/* The same for weights of 0 to 15. */
INLINE i32x16 dot_nibbles(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return dot_int8(sum, inputs, weights);
}

#include "simd_bf16.h"
