/* Products with bfloat16 weights on machines that multiply floats only: the weights are widened, and
 * the inputs stay floats. */
#ifndef SIMD_BF16_H
#define SIMD_BF16_H

typedef float bf16_input;
typedef struct {
    f32x16 even, odd;
} bf16_input_pair;

INLINE void bf16_inputs_store(bf16_input *target, f32x16 a) { f32x16_store(target, a); }
/* The same pair in every lane. */
INLINE bf16_input_pair bf16_input_pair_repeat(const bf16_input *pair) {
    return (bf16_input_pair){f32x16_set(pair[0]), f32x16_set(pair[1])};
}

/* 32 inputs, two in each lane. */
INLINE bf16_input_pair bf16_input_pair_load(const bf16_input *inputs) {
    float even[16], odd[16];
    for (int i = 0; i < 16; i++) {
        even[i] = inputs[2 * i];
        odd[i] = inputs[2 * i + 1];
    }
    return (bf16_input_pair){f32x16_load(even), f32x16_load(odd)};
}
/* Adds to each lane the products of its two bfloat16 weights. */
INLINE f32x16 dot_bf16(f32x16 sum, bf16_input_pair inputs, bytes64 weights) {
    sum = f32x16_fma(bytes64_even_bf16(weights), inputs.even, sum);
    return f32x16_fma(bytes64_odd_bf16(weights), inputs.odd, sum);
}

#endif
