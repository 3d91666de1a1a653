/* Layer norms, with and without mean and bias. */
#include <math.h>

#include "decode.h"

static float mean(const Norm *norm, const float *row) {
    f32x16 sum = f32x16_set(0.0f);
    for (int i = 0; i < norm->size; i += LANES)
        sum = f32x16_add(sum, f32x16_load_part(row + i, norm->size - i));
    return f32x16_sum(sum) / (float)norm->size;
}

/* The mean of the squared distances from `center`. */
static float variance(const Norm *norm, const float *row, float center) {
    f32x16 sum = f32x16_set(0.0f);
    int whole = norm->size / LANES * LANES;
    for (int i = 0; i < whole; i += LANES) {
        f32x16 distance = f32x16_sub(f32x16_load(row + i), f32x16_set(center));
        sum = f32x16_fma(distance, distance, sum);
    }
    float total = f32x16_sum(sum);
    for (int i = whole; i < norm->size; i++) total += (row[i] - center) * (row[i] - center);
    return total / (float)norm->size;
}

void norm_row(const Norm *norm, const float *row, float *target) {
    float center = norm->bias ? mean(norm, row) : 0.0f;
    float scale = 1.0f / sqrtf(variance(norm, row, center) + norm->eps);
    for (int i = 0; i < norm->size; i += LANES) {
        int count = norm->size - i;
        f32x16 values = f32x16_sub(f32x16_load_part(row + i, count), f32x16_set(center));
        values = f32x16_mul(f32x16_mul(values, f32x16_set(scale)),
                            f32x16_load_part(norm->weight + i, count));
        if (norm->bias) values = f32x16_add(values, f32x16_load_part(norm->bias + i, count));
        f32x16_store_part(target + i, values, count);
    }
}
