/* Rounding values to bytes, with a scale for all of them. */
#ifndef QUANTIZE_H
#define QUANTIZE_H

#include <float.h>

#include "simd.h"

/* Values of one row: `count` floats or bfloat16, from `first` on. */
typedef struct {
    const void *row;
    size_t first;
    int count;
    int is_bf16;
} Values;

/* Returns the scale that maps the values to -127 to 127, NaN if one isn't finite. */
INLINE float scale_of(const Values *values) {
    f32x16 zero = f32x16_set(0.0f), highest = zero, nan_if_not_finite = zero;
    for (int i = 0; i < values->count; i += LANES) {
        f32x16 x = load_values(values->row, values->first + (size_t)i, values->count - i,
                               values->is_bf16);
        highest = f32x16_max(highest, f32x16_max(x, f32x16_sub(zero, x)));
        nan_if_not_finite = f32x16_fma(x, zero, nan_if_not_finite);
    }
    float smallest_scale = FLT_MIN;
    float scale = f32x16_highest(highest) / 127;
    return (scale > smallest_scale ? scale : smallest_scale) + f32x16_sum(nan_if_not_finite);
}

/* Writes `size` bytes, a multiple of 16: the values divided by the scale, and then zeros. All are zeros
 * if the scale is NaN. */
INLINE void quantize(int8_t *target, int size, const Values *values, float scale) {
    int is_finite = scale == scale, count = is_finite ? values->count : 0;
    f32x16 factor = f32x16_set(is_finite ? 1 / scale : 0.0f);
    for (int i = 0; i < size; i += LANES) {
        f32x16 x = f32x16_set(0.0f);
        if (i < count)
            x = load_values(values->row, values->first + (size_t)i, count - i, values->is_bf16);
        f32x16_store_int8(target + i, f32x16_mul(x, factor));
    }
}

#endif
