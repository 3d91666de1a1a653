/* Linear layers with packed weights. docs/cpu.md describes the layouts.
 *
 * Weights are packed in panels of 16 outputs, padded with zeros to whole panels, and to a multiple of
 * INPUT_STEP inputs. */
#ifndef LINEAR_H
#define LINEAR_H

#include "simd.h"
#include "team.h"

enum { FORM_F32, FORM_BF16, FORM_INT8, FORM_INT4 };
enum { ACTIVATION_NONE, ACTIVATION_GELU };
enum { INPUT_STEP = 64 };

/* models/cpu/library.py mirrors this. */
typedef struct {
    void *weights;
    void *scales;  /* int8: floats [outputs]; int4: bfloat16 [panel][group][16] */
    int32_t *sums; /* int8: the sum of each output's weights */
    const float *bias;   /* NULL if there is none */
    int32_t form;
    int32_t activation;
    int32_t outputs;
    int32_t inputs;
    int32_t group; /* int4: inputs that share a scale, 32 or 64 */
    int32_t unused;
} Linear;

/* Rows of a layer's inputs, in the form that its weights are multiplied with. */
typedef struct {
    unsigned char *values; /* [row][padded inputs] */
    size_t row_bytes;
    float *scales;  /* int8 and int4: of each row */
    int32_t *sums;  /* int4: of each row's groups, times 8 */
    int groups;
} Inputs;

/* Where a layer's outputs go: floats or bfloat16 [row][stride]. */
typedef struct {
    void *target;
    const void *residual; /* added to the outputs; may be the target; NULL for none */
    size_t stride;
    int is_bf16;
} Outputs;

static inline size_t round_up(size_t count, size_t step) { return (count + step - 1) / step * step; }
static inline size_t padded_inputs(const Linear *layer) {
    return round_up((size_t)layer->inputs, INPUT_STEP);
}
static inline int panel_count(const Linear *layer) { return (layer->outputs + LANES - 1) / LANES; }
/* Bytes of a panel's weights. */
static inline size_t panel_size(const Linear *layer) {
    static const size_t bits[] = {[FORM_F32] = 32, [FORM_BF16] = 16, [FORM_INT8] = 8, [FORM_INT4] = 4};
    return LANES * padded_inputs(layer) * bits[layer->form] / 8;
}

/* Bytes that the inputs of `rows` rows take. */
size_t inputs_bytes(const Linear *layer, int rows);
Inputs inputs_at(void *memory, const Linear *layer, int rows);

/* Converts row `index`, from floats or bfloat16. A row with a NaN or an infinity gives NaN in every
 * output of a quantized layer. */
void inputs_prepare(const Inputs *inputs, const Linear *layer, int index, const void *row,
                    int is_bf16);

/* Computes the outputs that a member claims, for all rows. A row's result doesn't depend on the other
 * rows. */
void linear_share(const Linear *layer, const Inputs *inputs, int rows, const Outputs *outputs,
                  const Member *member);

#endif
