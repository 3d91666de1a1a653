/* Attention of many tokens.
 *
 * For each head, keys and values are packed like the weights of two linear layers: one maps a query to
 * its scores, the other maps scores to a sum of values. So the tiles of tiles.h multiply them. The
 * scores of one block of queries stay in a core's cache. */
#include "prompt_attention.h"

#include "scratch.h"
#include "softmax.h"
#include "tiles.h"

/* A thread's scratch memory. */
typedef struct {
    void *keys;   /* [panel of 16 keys][pair of values][16][2], or [panel][value][16] floats */
    void *values; /* the same with keys for values, and values for keys */
    void *queries; /* [TILE_ROWS][head_dim], as keys are multiplied with them */
    float *scores; /* [TILE_ROWS][padded keys]; then sums of values [TILE_ROWS][padded head_dim] */
    void *weights; /* [TILE_ROWS][padded keys], as values are multiplied with them */
} Scratch;

/* Queries of one kv head: token by token, and of each the query heads that share the kv head. */
typedef struct {
    const Attention *attention;
    const Sequence *sequence;
    const Scratch *scratch;
    int kv_head;
    int num_keys; /* that are packed */
} Head;

/* TILE_ROWS inputs, and the packed keys or values that they are multiplied with. */
typedef struct {
    const void *weights;
    unsigned char *inputs;
    size_t row_bytes;
    size_t panel_inputs, depth; /* see Tile */
} Product;

INLINE size_t padded_keys(int count) { return round_up((size_t)count, LANES); }

static int group_size(const Attention *attention) {
    return attention->query_heads / attention->kv_heads;
}

static int block_count(const Attention *attention, const Sequence *sequence) {
    return (sequence->num_queries * group_size(attention) + TILE_ROWS - 1) / TILE_ROWS;
}

static size_t divide(const Attention *attention, char *memory, Scratch *scratch) {
    int most_keys = 0;
    for (int s = 0; s < attention->num_sequences; s++)
        most_keys = most_keys > attention->sequences[s].num_keys ? most_keys
                                                                 : attention->sequences[s].num_keys;
    size_t keys = padded_keys(most_keys), dim = (size_t)attention->head_dim, used = 0;
    size_t most_of_both = keys > round_up(dim, LANES) ? keys : round_up(dim, LANES);
    size_t value = attention->is_bf16 ? sizeof(uint16_t) : sizeof(float);
    size_t input = attention->is_bf16 ? sizeof(bf16_input) : sizeof(float);
    scratch->keys = take(memory, &used, keys * dim * value);
    scratch->values = take(memory, &used, keys * round_up(dim, LANES) * value);
    scratch->queries = take(memory, &used, TILE_ROWS * round_up(dim, LANES) * input);
    scratch->scores = take(memory, &used, TILE_ROWS * most_of_both * sizeof(float));
    scratch->weights = take(memory, &used, TILE_ROWS * keys * input);
    return used;
}

/* Keys [key][head_dim] become a layer's weights, keys being its outputs. Two bfloat16 values, or one
 * float, are a unit of 32 bits. */
static void pack_keys(const Head *head, const char *keys, size_t key_bytes, size_t value_bytes) {
    uint32_t *target = head->scratch->keys;
    size_t units = (size_t)head->attention->head_dim * value_bytes / sizeof(uint32_t);
    for (int first = 0; first < head->num_keys; first += LANES, target += units * LANES) {
        int count = min_int(LANES, head->num_keys - first);
        if (count < LANES) memset(target, 0, units * LANES * sizeof(uint32_t));
        for (int lane = 0; lane < count; lane++) {
            const char *key = keys + (size_t)(first + lane) * key_bytes;
            for (size_t u = 0; u < units; u++)
                memcpy(target + u * LANES + lane, key + u * sizeof(uint32_t), sizeof(uint32_t));
        }
    }
}

/* Values [key][head_dim] become a layer's weights, keys being its inputs. */
static void pack_floats(const Head *head, const char *values, size_t row_bytes) {
    float *target = head->scratch->values;
    int dim = head->attention->head_dim, padded = (int)padded_keys(head->num_keys);
    for (int first = 0; first < dim; first += LANES)
        for (int key = 0; key < padded; key++, target += LANES) {
            f32x16 lanes = f32x16_set(0.0f);
            if (key < head->num_keys)
                lanes = f32x16_load_part((const float *)(values + (size_t)key * row_bytes) + first,
                                         dim - first);
            f32x16_store(target, lanes);
        }
}

/* The same with pairs of keys. */
static void pack_pairs(const Head *head, const char *values, size_t row_bytes) {
    uint16_t *target = head->scratch->values;
    int dim = head->attention->head_dim, padded = (int)padded_keys(head->num_keys);
    for (int first = 0; first < dim; first += LANES)
        for (int key = 0; key < padded; key += 2, target += 2 * LANES) {
            uint16_t pair[2][LANES] = {{0}};
            size_t bytes = (size_t)min_int(LANES, dim - first) * sizeof(uint16_t);
            for (int k = 0; k < 2 && key + k < head->num_keys; k++) {
                const char *source = values + (size_t)(key + k) * row_bytes;
                memcpy(pair[k], source + (size_t)first * sizeof(uint16_t), bytes);
            }
            for (int lane = 0; lane < LANES; lane++) {
                target[2 * lane] = pair[0][lane];
                target[2 * lane + 1] = pair[1][lane];
            }
        }
}

static void pack_head(const Head *head) {
    const Sequence *sequence = head->sequence;
    int is_bf16 = head->attention->is_bf16;
    size_t size = is_bf16 ? sizeof(uint16_t) : sizeof(float);
    const char *keys = sequence->keys, *values = sequence->values;
    keys += (size_t)(head->kv_head * sequence->key_head_stride) * size;
    values += (size_t)(head->kv_head * sequence->value_head_stride) * size;
    pack_keys(head, keys, (size_t)sequence->key_stride * size, size);
    if (is_bf16)
        pack_pairs(head, values, (size_t)sequence->value_stride * size);
    else
        pack_floats(head, values, (size_t)sequence->value_stride * size);
}

/* Converts floats or bfloat16 into inputs of products: `count` of them, and zeros up to `padded`. */
INLINE void store_inputs(void *inputs, const void *source, size_t first, int count, int padded,
                         int source_is_bf16, int form) {
    for (int i = 0; i < padded; i += LANES) {
        f32x16 values = f32x16_set(0.0f);
        if (i < count) values = load_values(source, first + (size_t)i, count - i, source_is_bf16);
        if (form == FORM_BF16)
            bf16_inputs_store((bf16_input *)inputs + i, values);
        else
            f32x16_store((float *)inputs + i, values);
    }
}

/* Multiplies TILE_ROWS inputs with panels of packed keys or values. Writes [row][stride] floats. */
INLINE void multiply(const Product *product, int form, int panels, float *target, size_t stride) {
    Linear layer = {.weights = product->weights};
    Inputs inputs = {.values = product->inputs, .row_bytes = product->row_bytes};
    Tile tile = {&layer, &inputs, product->panel_inputs, product->depth, 0, 0};
    int step = tile_panels(TILE_ROWS);
    while (tile.first_panel < panels) {
        f32x16 sums[MAX_PANELS][TILE_ROWS];
        int count = tile.first_panel + step <= panels ? step : 1;
        if (count == step)
            tile_multiply(&tile, form, TILE_ROWS, step, sums);
        else
            tile_multiply(&tile, form, TILE_ROWS, 1, sums);
        for (int p = 0; p < count; p++, tile.first_panel++)
            for (int row = 0; row < TILE_ROWS; row++)
                f32x16_store(target + (size_t)row * stride + (size_t)tile.first_panel * LANES,
                             sums[p][row]);
    }
}

/* The keys that a query attends to. */
INLINE int key_limit(const Sequence *sequence, int query) {
    return sequence->limits ? sequence->limits[query] : sequence->num_keys;
}

/* Attends with up to TILE_ROWS queries from `first` on. */
INLINE void attend_block(const Head *head, int first, int form) {
    const Attention *attention = head->attention;
    const Sequence *sequence = head->sequence;
    const Scratch *scratch = head->scratch;
    int group = group_size(attention), dim = attention->head_dim, is_bf16 = form == FORM_BF16;
    int rows = min_int(TILE_ROWS, sequence->num_queries * group - first);
    size_t padded_dim = round_up((size_t)dim, LANES);
    size_t input = is_bf16 ? sizeof(bf16_input) : sizeof(float);
    int longest = 0;
    for (int row = 0; row < TILE_ROWS; row++) {
        /* Rows behind the last query repeat it: they are computed, and dropped. */
        int index = first + min_int(row, rows - 1), query = index / group;
        int query_head = head->kv_head * group + index % group;
        size_t source = (size_t)(query * sequence->query_stride +
                                 query_head * sequence->query_head_stride);
        store_inputs((char *)scratch->queries + (size_t)row * padded_dim * input,
                     sequence->queries, source, dim, (int)padded_dim, is_bf16, form);
        int limit = key_limit(sequence, query);
        longest = longest > limit ? longest : limit;
    }
    size_t keys = padded_keys(longest);
    Product scores = {scratch->keys, scratch->queries, padded_dim * input, (size_t)dim, (size_t)dim};
    multiply(&scores, form, (int)(keys / LANES), scratch->scores, keys);
    float totals[TILE_ROWS], scale = 1.0f / sqrtf((float)dim);
    for (int row = 0; row < TILE_ROWS; row++) {
        int query = (first + min_int(row, rows - 1)) / group;
        float *row_scores = scratch->scores + (size_t)row * keys;
        totals[row] = exponentials(row_scores, (size_t)key_limit(sequence, query), keys, scale);
        store_inputs((char *)scratch->weights + (size_t)row * keys * input, row_scores, 0,
                     (int)keys, (int)keys, 0, form);
    }
    Product sums = {scratch->values, scratch->weights, keys * input, padded_keys(head->num_keys),
                    keys};
    multiply(&sums, form, (int)(padded_dim / LANES), scratch->scores, padded_dim);
    for (int row = 0; row < rows; row++) {
        int index = first + row, query_head = head->kv_head * group + index % group;
        size_t target = (size_t)(index / group * attention->query_heads + query_head) * (size_t)dim;
        f32x16 total = f32x16_set(totals[row]);
        for (int i = 0; i < dim; i += LANES) {
            f32x16 sum = f32x16_load(scratch->scores + (size_t)row * padded_dim + i);
            store_values(sequence->target, target + (size_t)i, f32x16_div(sum, total), dim - i,
                         is_bf16);
        }
    }
}

/* Attends with blocks `first` to `last` of a kv head. */
static void attend_blocks(Head *head, int first, int last) {
    const Sequence *sequence = head->sequence;
    int group = group_size(head->attention);
    head->num_keys = 0;
    for (int row = first * TILE_ROWS; row < last * TILE_ROWS; row++) {
        int query = row / group;
        if (query >= sequence->num_queries) break;
        int limit = key_limit(sequence, query);
        head->num_keys = head->num_keys > limit ? head->num_keys : limit;
    }
    pack_head(head);
    for (int block = first; block < last; block++) {
        if (head->attention->is_bf16)
            attend_block(head, block * TILE_ROWS, FORM_BF16);
        else
            attend_block(head, block * TILE_ROWS, FORM_F32);
    }
}

static int block_total(const Attention *attention) {
    int total = 0;
    for (int s = 0; s < attention->num_sequences; s++)
        total += attention->kv_heads * block_count(attention, &attention->sequences[s]);
    return total;
}

/* Attends with a range of the blocks of all heads of all sequences: a few runs of one head's blocks. */
static void attend_range(const Attention *attention, const Scratch *scratch, Range range) {
    int before = 0;
    for (int s = 0; s < attention->num_sequences; s++) {
        const Sequence *sequence = &attention->sequences[s];
        int blocks = block_count(attention, sequence), items = attention->kv_heads * blocks;
        int end = min_int(range.end - before, items);
        for (int item = range.first > before ? range.first - before : 0; item < end;) {
            Head head = {attention, sequence, scratch, item / blocks, 0};
            int stop = min_int(end, (head.kv_head + 1) * blocks);
            attend_blocks(&head, item % blocks, stop - head.kv_head * blocks);
            item = stop;
        }
        before += items;
    }
}

/* The smallest claim: with fewer blocks, packing keys and values takes longer than attention. */
enum { MIN_BLOCKS = 8 };

static void attend_claims(const Member *member, const void *task) {
    const Attention *attention = task;
    Scratch scratch;
    size_t size = divide(attention, NULL, &scratch);
    divide(attention, (char *)attention->scratch + (size_t)member->index * size, &scratch);
    int total = block_total(attention);
    for (;;) {
        Range claim = team_claim(member, total, MIN_BLOCKS);
        if (claim.first == claim.end) return;
        attend_range(attention, &scratch, claim);
    }
}

size_t attention_scratch_bytes(const Attention *attention) {
    Scratch scratch;
    return (size_t)attention->threads * divide(attention, NULL, &scratch);
}

void attention_run(const Attention *attention) {
    team_run(attention->threads, attend_claims, attention);
}
