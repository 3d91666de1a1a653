/* Products of a few rows with a few panels of 16 outputs: the inner loops of linear layers.
 *
 * `rows` and `panels` are constants where these functions are called, so that the sums of a tile stay
 * in registers. Every form adds up a row's products in the order of the inputs, whatever the tile:
 * that makes a row's result independent of the other rows. */
#ifndef TILES_H
#define TILES_H

#include "linear.h"

enum { MAX_PANELS = 4, PREFETCH_BYTES = 512 };

typedef struct {
    const Linear *layer;
    const Inputs *inputs;
    size_t panel_inputs; /* that a panel holds */
    size_t depth;        /* the first inputs, which are multiplied; int8 and int4: all */
    int first_row;
    int first_panel;
} Tile;

/* Bytes from `offset` in a panel to what is read PREFETCH_BYTES later: in the same panel or, near its
 * end, in the next tile's. */
INLINE size_t prefetch_distance(size_t offset, size_t panel_bytes, int panels) {
    int is_in_panel = offset + PREFETCH_BYTES < panel_bytes;
    return PREFETCH_BYTES + (is_in_panel ? 0 : (size_t)(panels - 1) * panel_bytes);
}

INLINE void prefetch(const void *weights, size_t distance) {
    __builtin_prefetch((const char *)weights + distance, 0, 3);
}

INLINE const unsigned char *input_row(const Tile *tile, int row) {
    return tile->inputs->values + (size_t)(tile->first_row + row) * tile->inputs->row_bytes;
}

/* f32: [panel][input][16] floats */
INLINE void tile_f32(const Tile *tile, int rows, int panels, f32x16 sums[][TILE_ROWS]) {
    size_t inputs = tile->panel_inputs;
    const float *weights = (const float *)tile->layer->weights +
                           (size_t)tile->first_panel * inputs * LANES;
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) sums[p][m] = f32x16_set(0.0f);
    for (size_t i = 0; i < tile->depth; i++) {
        size_t ahead = prefetch_distance(i * 64, inputs * 64, panels);
        f32x16 w[MAX_PANELS];
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const float *source = weights + ((size_t)p * inputs + i) * LANES;
            w[p] = f32x16_load(source);
            prefetch(source, ahead);
        }
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            f32x16 x = f32x16_set(((const float *)input_row(tile, m))[i]);
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) sums[p][m] = f32x16_fma(w[p], x, sums[p][m]);
        }
    }
}

/* bf16: [panel][pair of inputs][16][2] bfloat16 */
INLINE void tile_bf16(const Tile *tile, int rows, int panels, f32x16 sums[][TILE_ROWS]) {
    size_t pairs = tile->panel_inputs / 2;
    const uint16_t *weights = (const uint16_t *)tile->layer->weights +
                              (size_t)tile->first_panel * pairs * 2 * LANES;
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) sums[p][m] = f32x16_set(0.0f);
    for (size_t i = 0; i < tile->depth / 2; i++) {
        size_t ahead = prefetch_distance(i * 64, pairs * 64, panels);
        bytes64 w[MAX_PANELS];
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const uint16_t *source = weights + ((size_t)p * pairs + i) * 2 * LANES;
            w[p] = bytes64_load(source);
            prefetch(source, ahead);
        }
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            const bf16_input *row = (const bf16_input *)input_row(tile, m);
            bf16_input_pair x = bf16_input_pair_repeat(row + 2 * i);
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) sums[p][m] = dot_bf16(sums[p][m], x, w[p]);
        }
    }
}

/* int8: [panel][four inputs][16][4] bytes */
INLINE void tile_int8(const Tile *tile, int rows, int panels, f32x16 results[][TILE_ROWS]) {
    size_t fours = tile->panel_inputs / 4;
    const int8_t *weights = (const int8_t *)tile->layer->weights +
                            (size_t)tile->first_panel * fours * 4 * LANES;
    i32x16 sums[MAX_PANELS][TILE_ROWS];
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++) {
        /* Inputs are stored above their values: this takes the difference off again. */
        const int32_t *weight_sums = tile->layer->sums + (tile->first_panel + p) * LANES;
        i32x16 start = i32x16_mul(i32x16_load(weight_sums), i32x16_set(-INT8_INPUT_ZERO));
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) sums[p][m] = start;
    }
    for (size_t i = 0; i < fours; i++) {
        size_t ahead = prefetch_distance(i * 64, fours * 64, panels);
        bytes64 w[MAX_PANELS];
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const int8_t *source = weights + ((size_t)p * fours + i) * 4 * LANES;
            w[p] = bytes64_load(source);
            prefetch(source, ahead);
        }
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            bytes64 x = bytes64_repeat(input_row(tile, m) + 4 * i);
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) sums[p][m] = dot_int8(sums[p][m], x, w[p]);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++) {
        const float *scales = (const float *)tile->layer->scales;
        f32x16 scale = f32x16_load(scales + (tile->first_panel + p) * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            f32x16 row_scale = f32x16_set(tile->inputs->scales[tile->first_row + m]);
            results[p][m] = f32x16_mul(f32x16_mul(f32x16_of_i32(sums[p][m]), scale), row_scale);
        }
    }
}

/* int4: [panel][eight inputs][16][4] bytes: the first four inputs in the low nibbles, the next four
 * in the high ones, each 8 above its value */
INLINE void tile_int4(const Tile *tile, int rows, int panels, f32x16 results[][TILE_ROWS]) {
    size_t eights = tile->panel_inputs / 8;
    size_t groups = (size_t)tile->inputs->groups;
    size_t group_eights = (size_t)tile->layer->group / 8;
    const uint8_t *weights = (const uint8_t *)tile->layer->weights +
                             (size_t)tile->first_panel * eights * 4 * LANES;
    const uint16_t *scales = (const uint16_t *)tile->layer->scales +
                             (size_t)tile->first_panel * groups * LANES;
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) results[p][m] = f32x16_set(0.0f);
    for (size_t g = 0; g < groups; g++) {
        i32x16 sums[MAX_PANELS][TILE_ROWS];
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            size_t row = (size_t)(tile->first_row + m);
            i32x16 start = i32x16_set(-tile->inputs->sums[row * groups + g]);
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) sums[p][m] = start;
        }
        for (size_t i = g * group_eights; i < (g + 1) * group_eights; i++) {
            size_t ahead = prefetch_distance(i * 64, eights * 64, panels);
            bytes64 low[MAX_PANELS], high[MAX_PANELS];
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) {
                const uint8_t *source = weights + ((size_t)p * eights + i) * 4 * LANES;
                bytes64 both = bytes64_load(source);
                prefetch(source, ahead);
                low[p] = bytes64_low_nibbles(both);
                high[p] = bytes64_high_nibbles(both);
            }
#pragma GCC unroll 12
            for (int m = 0; m < rows; m++) {
                const unsigned char *row = input_row(tile, m) + 8 * i;
                bytes64 first = bytes64_repeat(row), second = bytes64_repeat(row + 4);
#pragma GCC unroll 4
                for (int p = 0; p < panels; p++) {
                    sums[p][m] = dot_nibbles(sums[p][m], first, low[p]);
                    sums[p][m] = dot_nibbles(sums[p][m], second, high[p]);
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            f32x16 scale = f32x16_load_bf16(scales + ((size_t)p * groups + g) * LANES);
#pragma GCC unroll 12
            for (int m = 0; m < rows; m++)
                results[p][m] = f32x16_fma(f32x16_of_i32(sums[p][m]), scale, results[p][m]);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) {
        f32x16 row_scale = f32x16_set(tile->inputs->scales[tile->first_row + m]);
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) results[p][m] = f32x16_mul(results[p][m], row_scale);
    }
}

INLINE void tile_multiply(const Tile *tile, int form, int rows, int panels,
                          f32x16 results[][TILE_ROWS]) {
    switch (form) {
        case FORM_F32: tile_f32(tile, rows, panels, results); break;
        case FORM_BF16: tile_bf16(tile, rows, panels, results); break;
        case FORM_INT8: tile_int8(tile, rows, panels, results); break;
        default: tile_int4(tile, rows, panels, results); break;
    }
}

/* Panels of a tile, so that its sums fit into the registers. */
INLINE int tile_panels(int rows) {
    int fitting = REGISTER_TILE / rows;
    return fitting >= 4 ? 4 : fitting >= 2 ? 2 : 1;
}

#endif
