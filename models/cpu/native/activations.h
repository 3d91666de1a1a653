/* Exponentials, and the activations of the models' MLPs. */
#ifndef ACTIVATIONS_H
#define ACTIVATIONS_H

#include "simd.h"

/* e^a within 2 units in the last place, for -87 to 88; values outside are taken as the nearest of
 * these. e^a = 2^n * e^r, where r is at most ln(2) / 2 from 0: e^r by its Taylor polynomial. NaN
 * stays NaN. */
INLINE f32x16 f32x16_exp(f32x16 a) {
    a = f32x16_min(f32x16_set(88.0f), f32x16_max(f32x16_set(-87.0f), a));
    f32x16 n = f32x16_round(f32x16_mul(a, f32x16_set(1.44269504f)));
    /* ln(2) in two parts, so that n * ln(2) is exact enough. */
    f32x16 r = f32x16_fma(n, f32x16_set(-0.693359375f), a);
    r = f32x16_fma(n, f32x16_set(2.12194440e-4f), r);
    f32x16 sum = f32x16_set(1.0f / 5040);
    sum = f32x16_fma(sum, r, f32x16_set(1.0f / 720));
    sum = f32x16_fma(sum, r, f32x16_set(1.0f / 120));
    sum = f32x16_fma(sum, r, f32x16_set(1.0f / 24));
    sum = f32x16_fma(sum, r, f32x16_set(1.0f / 6));
    sum = f32x16_fma(sum, r, f32x16_set(0.5f));
    sum = f32x16_fma(sum, r, f32x16_set(1.0f));
    sum = f32x16_fma(sum, r, f32x16_set(1.0f));
    return f32x16_scale(sum, n);
}

/* a / (1 + e^-b) */
INLINE f32x16 f32x16_mul_sigmoid(f32x16 a, f32x16 b) {
    f32x16 denominator = f32x16_exp(f32x16_sub(f32x16_set(0.0f), b));
    return f32x16_div(a, f32x16_add(f32x16_set(1.0f), denominator));
}

INLINE f32x16 f32x16_silu(f32x16 a) { return f32x16_mul_sigmoid(a, a); }

/* GELU by its tanh approximation: a * (1 + tanh(u)) / 2, which is a / (1 + e^-2u), for
 * u = sqrt(2 / pi) * (a + 0.044715 a^3). */
INLINE f32x16 f32x16_gelu(f32x16 a) {
    f32x16 cubic = f32x16_fma(f32x16_mul(a, a), f32x16_set(0.044715f), f32x16_set(1.0f));
    f32x16 u = f32x16_mul(f32x16_mul(a, cubic), f32x16_set(0.7978845608f));
    return f32x16_mul_sigmoid(a, f32x16_add(u, u));
}

#endif
