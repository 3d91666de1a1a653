/* Inputs of linear layers, in the form that their weights are multiplied with. */
#include "linear.h"
#include "quantize.h"

static size_t value_bytes(const Linear *layer) {
    switch (layer->form) {
        case FORM_F32: return sizeof(float);
        case FORM_BF16: return sizeof(bf16_input);
        default: return 1;
    }
}

static int group_count(const Linear *layer) {
    return layer->form == FORM_INT4 ? (int)(padded_inputs(layer) / (size_t)layer->group) : 0;
}

size_t inputs_bytes(const Linear *layer, int rows) {
    size_t row = padded_inputs(layer) * value_bytes(layer);
    size_t numbers = (1 + (size_t)group_count(layer)) * 4;
    return (size_t)rows * (row + numbers) + INPUT_STEP;
}

Inputs inputs_at(void *memory, const Linear *layer, int rows) {
    Inputs inputs;
    inputs.values = memory;
    inputs.row_bytes = padded_inputs(layer) * value_bytes(layer);
    inputs.scales = (float *)(inputs.values + (size_t)rows * inputs.row_bytes);
    inputs.sums = (int32_t *)(inputs.scales + rows);
    inputs.groups = group_count(layer);
    return inputs;
}

static void copy_floats(float *target, const Linear *layer, const void *row, int is_bf16) {
    size_t padded = padded_inputs(layer);
    for (size_t i = 0; i < padded; i += LANES) {
        int count = layer->inputs - (int)i;
        f32x16 values = count > 0 ? load_values(row, i, count, is_bf16) : f32x16_set(0.0f);
        f32x16_store(target + i, values);
    }
}

static void copy_bf16(bf16_input *target, const Linear *layer, const void *row, int is_bf16) {
    size_t padded = padded_inputs(layer);
    for (size_t i = 0; i < padded; i += LANES) {
        int count = layer->inputs - (int)i;
        f32x16 values = count > 0 ? load_values(row, i, count, is_bf16) : f32x16_set(0.0f);
        bf16_inputs_store(target + i, values);
    }
}

/* Adds INT8_INPUT_ZERO, the sign bit, to each byte. */
static void add_zero(int8_t *values, size_t count) {
    for (size_t i = 0; i < count; i++) values[i] = (int8_t)(values[i] ^ INT8_INPUT_ZERO);
}

/* Sums each group, times the 8 that weights of 4 bits are stored above their values. */
static void sum_groups(int32_t *sums, const Linear *layer, const int8_t *values, int groups) {
    for (int g = 0; g < groups; g++) {
        int32_t sum = 0;
        for (int i = 0; i < layer->group; i++) sum += values[g * layer->group + i];
        sums[g] = 8 * sum;
    }
}

void inputs_prepare(const Inputs *inputs, const Linear *layer, int index, const void *row,
                    int is_bf16) {
    void *target = inputs->values + (size_t)index * inputs->row_bytes;
    if (layer->form == FORM_BF16) {
        copy_bf16(target, layer, row, is_bf16);
        return;
    }
    if (layer->form == FORM_F32) {
        copy_floats(target, layer, row, is_bf16);
        return;
    }
    Values values = {row, 0, layer->inputs, is_bf16};
    float scale = scale_of(&values);
    inputs->scales[index] = scale;
    quantize(target, (int)padded_inputs(layer), &values, scale);
    if (layer->form == FORM_INT8 && INT8_INPUT_ZERO) add_zero(target, padded_inputs(layer));
    if (layer->form == FORM_INT4)
        sum_groups(inputs->sums + (size_t)index * (size_t)inputs->groups, layer, target,
                   inputs->groups);
}
