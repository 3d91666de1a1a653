/* Packs weights in the layouts of docs/cpu.md.
 *
 * In every form, a panel is [word][output], and a word is 4 bytes: one float, two bfloat16, four
 * bytes, or eight times 4 bits. So a block of rows is rounded first, and its words are transposed. */
#include "linear.h"
#include "quantize.h"

enum { BLOCK_BYTES = INPUT_STEP * sizeof(float) };

typedef struct {
    const Linear *layer;
    const void *weight; /* [outputs][inputs] */
    int is_bf16;
} Packing;

/* The rows of a panel at INPUT_STEP inputs. */
typedef struct {
    union {
        uint32_t words[BLOCK_BYTES / 4];
        int8_t bytes[BLOCK_BYTES];
    } rows[LANES];
} Block;

/* The values of an output from input `first` on; none beyond the weight's edges. */
static Values values_of(const Packing *packing, int output, int first, int most) {
    const Linear *layer = packing->layer;
    int count = output < layer->outputs ? layer->inputs - first : 0;
    size_t index = (size_t)output * (size_t)layer->inputs + (size_t)first;
    return (Values){packing->weight, index, min_int(count > 0 ? count : 0, most), packing->is_bf16};
}

static void write_words(uint32_t *target, const Block *block, int words) {
    for (int word = 0; word < words; word++)
        for (int lane = 0; lane < LANES; lane++)
            target[word * LANES + lane] = block->rows[lane].words[word];
}

static void pack_as_is(const Packing *packing, int panel, uint32_t *target) {
    int size = packing->is_bf16 ? 2 : 4, words = INPUT_STEP * size / 4;
    Block block;
    for (int first = 0; first < packing->layer->inputs; first += INPUT_STEP) {
        for (int lane = 0; lane < LANES; lane++) {
            Values values = values_of(packing, panel * LANES + lane, first, INPUT_STEP);
            memset(block.rows[lane].bytes, 0, BLOCK_BYTES);
            memcpy(block.rows[lane].bytes, (const char *)values.row + values.first * (size_t)size,
                   (size_t)values.count * (size_t)size);
        }
        write_words(target, &block, words);
        target += words * LANES;
    }
}

static void pack_int8(const Packing *packing, int panel, uint32_t *target) {
    const Linear *layer = packing->layer;
    float *scales = (float *)layer->scales + panel * LANES;
    int32_t *sums = layer->sums + panel * LANES;
    for (int lane = 0; lane < LANES; lane++) {
        Values row = values_of(packing, panel * LANES + lane, 0, layer->inputs);
        scales[lane] = scale_of(&row);
        sums[lane] = 0;
    }
    Block block;
    for (int first = 0; first < layer->inputs; first += INPUT_STEP) {
        for (int lane = 0; lane < LANES; lane++) {
            Values values = values_of(packing, panel * LANES + lane, first, INPUT_STEP);
            int8_t *bytes = block.rows[lane].bytes;
            quantize(bytes, INPUT_STEP, &values, scales[lane]);
            for (int i = 0; i < INPUT_STEP; i++) sums[lane] += bytes[i];
        }
        write_words(target, &block, INPUT_STEP / 4);
        target += INPUT_STEP / 4 * LANES;
    }
}

/* Returns the scale of a group, as bfloat16 holds it. It maps the value that is farthest from 0 to -8:
 * four bits have one more value on that side. */
static float int4_scale(const float *group, int count) {
    float lowest = group[0], highest = group[0], nan_if_not_finite = 0.0f;
    for (int i = 0; i < count; i++) {
        lowest = group[i] < lowest ? group[i] : lowest;
        highest = group[i] > highest ? group[i] : highest;
        nan_if_not_finite += group[i] * 0.0f;
    }
    float lanes[LANES] = {(-lowest > highest ? lowest : highest) / -8 + nan_if_not_finite};
    uint16_t halves[LANES];
    f32x16_store_bf16(halves, f32x16_load(lanes));
    float scale = float_of_bf16(halves[0]);
    return scale == 0.0f ? 1.0f : scale;
}

/* Writes a value of 0 to 15 for each of a group, 8 standing for 0. */
static void round_group(int8_t *target, const float *group, int count, float scale) {
    f32x16 divisor = f32x16_set(scale), seven = f32x16_set(7.0f), lowest = f32x16_set(-8.0f);
    int is_finite = scale == scale;
    for (int i = 0; i < count; i += LANES) {
        f32x16 values = is_finite ? f32x16_load(group + i) : f32x16_set(0.0f);
        f32x16 rounded = f32x16_round(f32x16_div(values, is_finite ? divisor : f32x16_set(1.0f)));
        rounded = f32x16_max(f32x16_min(rounded, seven), lowest);
        f32x16_store_int8(target + i, f32x16_add(rounded, f32x16_set(8.0f)));
    }
}

/* Puts the second four of eight values into the high halves of the first four's bytes. */
static void join_nibbles(int8_t *target, const int8_t *values, int count) {
    for (int i = 0; i < count; i += 8)
        for (int j = 0; j < 4; j++)
            target[i / 2 + j] = (int8_t)(values[i + j] | values[i + 4 + j] << 4);
}

static void pack_int4(const Packing *packing, int panel, uint32_t *target) {
    const Linear *layer = packing->layer;
    int group = layer->group;
    size_t groups = padded_inputs(layer) / (size_t)group;
    uint16_t *scales = (uint16_t *)layer->scales + (size_t)panel * groups * LANES;
    Block block;
    for (int first = 0; first < (int)padded_inputs(layer); first += group) {
        float lane_scales[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            Values values = values_of(packing, panel * LANES + lane, first, group);
            float floats[INPUT_STEP] = {0};
            int8_t rounded[INPUT_STEP];
            for (int i = 0; i < values.count; i += LANES)
                f32x16_store_part(floats + i,
                                  load_values(values.row, values.first + (size_t)i,
                                              values.count - i, values.is_bf16),
                                  values.count - i);
            lane_scales[lane] = int4_scale(floats, group);
            round_group(rounded, floats, group, lane_scales[lane]);
            join_nibbles(block.rows[lane].bytes, rounded, group);
        }
        f32x16_store_bf16(scales + (size_t)(first / group) * LANES, f32x16_load(lane_scales));
        write_words(target, &block, group / 8);
        target += group / 8 * LANES;
    }
}

static void pack_share(const Member *member, const void *task) {
    const Packing *packing = task;
    const Linear *layer = packing->layer;
    int panels = panel_count(layer);
    size_t panel_words = panel_size(layer) / sizeof(uint32_t);
    for (;;) {
        Range claim = team_claim_one(member, panels);
        if (claim.first == claim.end) return;
        uint32_t *target = (uint32_t *)layer->weights + (size_t)claim.first * panel_words;
        switch (layer->form) {
            case FORM_INT8: pack_int8(packing, claim.first, target); break;
            case FORM_INT4: pack_int4(packing, claim.first, target); break;
            default: pack_as_is(packing, claim.first, target); break;
        }
    }
}

/* Writes the layer's weights, scales and sums. `weight` has floats or bfloat16 [outputs][inputs]. A row
 * of a quantized weight that has a NaN or an infinity gives NaN. */
void linear_pack(const Linear *layer, const void *weight, int is_bf16, int threads) {
    Packing packing = {layer, weight, is_bf16};
    team_run(threads, pack_share, &packing);
}
