/* The numerators of a softmax, and their sum. */
#ifndef SOFTMAX_H
#define SOFTMAX_H

#include <math.h>

#include "activations.h"

/* Turns the first `count` scores into e^(scale * (score - highest)), and those up to `padded_count`, a
 * multiple of 16, into 0. Returns their sum. */
INLINE float exponentials(float *scores, size_t count, size_t padded_count, float scale) {
    for (size_t t = count; t < padded_count; t++) scores[t] = -INFINITY;
    f32x16 highest = f32x16_load(scores);
    for (size_t t = LANES; t < padded_count; t += LANES)
        highest = f32x16_max(highest, f32x16_load(scores + t));
    f32x16 peak = f32x16_set(f32x16_highest(highest)), factor = f32x16_set(scale);
    f32x16 sum = f32x16_set(0.0f);
    for (size_t t = 0; t < padded_count; t += LANES) {
        f32x16 distance = f32x16_sub(f32x16_load(scores + t), peak);
        f32x16 power = f32x16_exp(f32x16_mul(distance, factor));
        f32x16_store(scores + t, power);
        sum = f32x16_add(sum, power);
    }
    for (size_t t = count; t < padded_count; t++) scores[t] = 0.0f;
    return f32x16_sum(sum);
}

#endif
