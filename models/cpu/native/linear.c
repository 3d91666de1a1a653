/* Linear layers: tiles of rows and panels, and what happens to their results. */
#include "linear.h"

#include "activations.h"
#include "tiles.h"

INLINE void finish(const Tile *tile, const Outputs *outputs, int rows, int panels,
                   f32x16 results[][TILE_ROWS]) {
    for (int p = 0; p < panels; p++) {
        int first = (tile->first_panel + p) * LANES;
        int count = min_int(LANES, tile->layer->outputs - first);
        for (int m = 0; m < rows; m++) {
            f32x16 value = results[p][m];
            if (tile->layer->bias)
                value = f32x16_add(value, f32x16_load_part(tile->layer->bias + first, count));
            if (tile->layer->activation == ACTIVATION_GELU) value = f32x16_gelu(value);
            size_t index = (size_t)(tile->first_row + m) * outputs->stride + (size_t)first;
            if (outputs->residual)
                value = f32x16_add(value, load_values(outputs->residual, index, count,
                                                      outputs->is_bf16));
            store_values(outputs->target, index, value, count, outputs->is_bf16);
        }
    }
}

INLINE void run_tile(const Tile *tile, const Outputs *outputs, int form, int rows, int panels) {
    f32x16 results[MAX_PANELS][TILE_ROWS];
    tile_multiply(tile, form, rows, panels, results);
    finish(tile, outputs, rows, panels, results);
}

/* One panel at a time at the end of a share. */
INLINE void run_panels(Tile *tile, const Outputs *outputs, int form, int rows, int end_panel) {
    int panels = tile_panels(rows);
    if (tile->first_panel + panels <= end_panel) {
        run_tile(tile, outputs, form, rows, panels);
        return;
    }
    for (int first = tile->first_panel; first < end_panel; first++) {
        tile->first_panel = first;
        run_tile(tile, outputs, form, rows, 1);
    }
}

/* Makes the number of rows a constant. */
INLINE void run_rows(Tile *tile, const Outputs *outputs, int form, int rows, int end_panel) {
    switch (rows) {
        case 1: run_panels(tile, outputs, form, 1, end_panel); break;
        case 2: run_panels(tile, outputs, form, 2, end_panel); break;
        case 3: run_panels(tile, outputs, form, 3, end_panel); break;
        case 4: run_panels(tile, outputs, form, 4, end_panel); break;
        case 5: run_panels(tile, outputs, form, 5, end_panel); break;
        case 6: run_panels(tile, outputs, form, 6, end_panel); break;
#if TILE_ROWS > 6
        case 7: run_panels(tile, outputs, form, 7, end_panel); break;
        case 8: run_panels(tile, outputs, form, 8, end_panel); break;
        case 9: run_panels(tile, outputs, form, 9, end_panel); break;
        case 10: run_panels(tile, outputs, form, 10, end_panel); break;
        case 11: run_panels(tile, outputs, form, 11, end_panel); break;
        case 12: run_panels(tile, outputs, form, 12, end_panel); break;
#endif
        default: break;
    }
}

/* Rows below which a panel alone is multiplied about as fast as several. */
enum { SINGLE_PANEL_ROWS = 5 };

/* Weights are read once, if they stay in a core's cache while tile after tile of rows uses them. */
INLINE void run_share(const Linear *layer, const Inputs *inputs, int rows, const Outputs *outputs,
                      const Member *member, int form) {
    size_t depth = padded_inputs(layer);
    int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    int step = tile_panels((rows + tiles - 1) / tiles), smallest = rows < SINGLE_PANEL_ROWS ? 1 : step;
    for (;;) {
        Range claim = team_claim(member, panel_count(layer), smallest);
        if (claim.first == claim.end) return;
        for (int panel = claim.first; panel < claim.end; panel += step) {
            int end_panel = min_int(panel + step, claim.end);
            for (int t = 0; t < tiles; t++) {
                int first = rows * t / tiles;
                Tile tile = {layer, inputs, depth, depth, first, panel};
                run_rows(&tile, outputs, form, rows * (t + 1) / tiles - first, end_panel);
            }
        }
    }
}

/* Makes the form a constant. */
void linear_share(const Linear *layer, const Inputs *inputs, int rows, const Outputs *outputs,
                  const Member *member) {
    switch (layer->form) {
        case FORM_F32: run_share(layer, inputs, rows, outputs, member, FORM_F32); break;
        case FORM_BF16: run_share(layer, inputs, rows, outputs, member, FORM_BF16); break;
        case FORM_INT8: run_share(layer, inputs, rows, outputs, member, FORM_INT8); break;
        default: run_share(layer, inputs, rows, outputs, member, FORM_INT4); break;
    }
}

typedef struct {
    const Linear *layer;
    const Inputs *inputs;
    const Outputs *outputs;
    const void *states;
    int rows;
} Call;

static void run_call(const Member *member, const void *task) {
    const Call *call = task;
    size_t row_bytes = (size_t)call->layer->inputs * (call->outputs->is_bf16 ? 2 : 4);
    int end = share_end(member, call->rows);
    for (int row = share_begin(member, call->rows); row < end; row++)
        inputs_prepare(call->inputs, call->layer, row,
                       (const char *)call->states + (size_t)row * row_bytes,
                       call->outputs->is_bf16);
    team_barrier(member);
    linear_share(call->layer, call->inputs, call->rows, call->outputs, member);
}

/* Bytes of memory that `linear_run` needs beside its arguments. */
size_t linear_scratch_bytes(const Linear *layer, int rows) { return inputs_bytes(layer, rows); }

/* Maps states [rows][inputs] to target [rows][outputs], all floats or all bfloat16. `residual` is
 * NULL or has the target's shape. */
void linear_run(const Linear *layer, const void *states, const void *residual, void *target,
                int rows, int is_bf16, void *scratch, int threads) {
    if (rows == 0) return;
    Inputs inputs = inputs_at(scratch, layer, rows);
    Outputs outputs = {target, residual, (size_t)layer->outputs, is_bf16};
    Call call = {layer, &inputs, &outputs, states, rows};
    team_run(threads, run_call, &call);
}
