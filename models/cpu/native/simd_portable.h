/* The vectors of GCC and Clang, which turn them into whatever registers the machine has. */
#include <math.h>

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef int8_t bytes64 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

#define REGISTER_TILE 2
#define TILE_ROWS 6
#define INT8_INPUT_ZERO 0

INLINE f32x16 f32x16_load(const float *source) {
    f32x16 a;
    memcpy(&a, source, sizeof a);
    return a;
}
INLINE void f32x16_store(float *target, f32x16 a) { memcpy(target, &a, sizeof a); }
INLINE f32x16 f32x16_set(float value) {
    return (f32x16){value, value, value, value, value, value, value, value,
                    value, value, value, value, value, value, value, value};
}
INLINE f32x16 f32x16_add(f32x16 a, f32x16 b) { return a + b; }
INLINE f32x16 f32x16_sub(f32x16 a, f32x16 b) { return a - b; }
INLINE f32x16 f32x16_mul(f32x16 a, f32x16 b) { return a * b; }
INLINE f32x16 f32x16_div(f32x16 a, f32x16 b) { return a / b; }
/* The lanes of a that are chosen (all bits 1, not 0), and those of b that are not. */
INLINE f32x16 f32x16_choose(i32x16 chosen, f32x16 a, f32x16 b) {
    return (f32x16)((chosen & (i32x16)a) | (~chosen & (i32x16)b));
}
INLINE f32x16 f32x16_max(f32x16 a, f32x16 b) { return f32x16_choose(a > b, a, b); }
INLINE f32x16 f32x16_min(f32x16 a, f32x16 b) { return f32x16_choose(a < b, a, b); }
/* a * b + c, rounded twice: without the instruction, rounding once would be slow */
INLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) { return a * b + c; }
INLINE float f32x16_sum(f32x16 a) {
    float lanes[16];
    f32x16_store(lanes, a);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}
INLINE float f32x16_highest(f32x16 a) {
    float highest = a[0];
    for (int i = 1; i < 16; i++) highest = a[i] > highest ? a[i] : highest;
    return highest;
}
INLINE f32x16 f32x16_round(f32x16 a) {
    for (int i = 0; i < 16; i++) a[i] = rintf(a[i]);
    return a;
}
/* a * 2^power, for whole powers of -126 to 127; a NaN has no integer, and stays a NaN */
INLINE f32x16 f32x16_scale(f32x16 a, f32x16 power) {
    i32x16 exponent = __builtin_convertvector(f32x16_choose(power == power, power, f32x16_set(0)),
                                              i32x16);
    return a * (f32x16)((exponent + 127) << 23);
}

INLINE f32x16 f32x16_load_bf16(const uint16_t *source) {
    u16x16 halves;
    memcpy(&halves, source, sizeof halves);
    return (f32x16)(__builtin_convertvector(halves, u32x16) << 16);
}
/* Rounds to the nearest, ties to even; a NaN stays a NaN. */
INLINE void f32x16_store_bf16(uint16_t *target, f32x16 a) {
    u32x16 bits = (u32x16)a;
    u32x16 rounded = bits + ((bits >> 16) & 1) + 0x7fff;
    u32x16 kept = (u32x16)f32x16_choose(a == a, (f32x16)rounded, (f32x16)(bits | 0x400000));
    u16x16 halves = __builtin_convertvector(kept >> 16, u16x16);
    memcpy(target, &halves, sizeof halves);
}

INLINE i32x16 i32x16_load(const int32_t *source) {
    i32x16 a;
    memcpy(&a, source, sizeof a);
    return a;
}
INLINE i32x16 i32x16_set(int32_t value) {
    return (i32x16){value, value, value, value, value, value, value, value,
                    value, value, value, value, value, value, value, value};
}
INLINE i32x16 i32x16_mul(i32x16 a, i32x16 b) { return a * b; }
INLINE f32x16 f32x16_of_i32(i32x16 a) { return __builtin_convertvector(a, f32x16); }

/* 16 lanes of -127 to 127, rounded to signed bytes. */
INLINE void f32x16_store_int8(int8_t *target, f32x16 a) {
    i8x16 bytes = __builtin_convertvector(f32x16_round(a), i8x16);
    memcpy(target, &bytes, sizeof bytes);
}

INLINE bytes64 bytes64_load(const void *source) {
    bytes64 a;
    memcpy(&a, source, sizeof a);
    return a;
}
/* The same four bytes in every lane of 32 bits. */
INLINE bytes64 bytes64_repeat(const void *four_bytes) {
    int32_t bits;
    memcpy(&bits, four_bytes, sizeof bits);
    return (bytes64)i32x16_set(bits);
}
INLINE bytes64 bytes64_low_nibbles(bytes64 a) { return a & 15; }
INLINE bytes64 bytes64_high_nibbles(bytes64 a) { return (a >> 4) & 15; }
INLINE f32x16 bytes64_even_bf16(bytes64 a) { return (f32x16)((u32x16)a << 16); }
INLINE f32x16 bytes64_odd_bf16(bytes64 a) { return (f32x16)((u32x16)a & 0xffff0000); }

/* Byte `index` of each lane of 32 bits, with its sign. */
INLINE i32x16 bytes64_lane_byte(bytes64 a, int index) {
    return (i32x16)((u32x16)a << (24 - 8 * index)) >> 24;
}
/* Adds to each lane of 32 bits the products of its four bytes, inputs and weights signed. */
INLINE i32x16 dot_int8(i32x16 sum, bytes64 inputs, bytes64 weights) {
    for (int i = 0; i < 4; i++)
        sum += bytes64_lane_byte(inputs, i) * bytes64_lane_byte(weights, i);
    return sum;
}
/* The same for weights of 0 to 15. */
INLINE i32x16 dot_nibbles(i32x16 sum, bytes64 inputs, bytes64 weights) {
    return dot_int8(sum, inputs, weights);
}

#include "simd_bf16.h"
