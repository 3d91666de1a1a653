/* A decode step. Between two barriers, threads divide rows, heads or outputs.
 *
 * A row or two are normed and prepared by every thread for itself: that takes less time than to divide
 * the work and to wait for each other. */
#include "decode.h"

#include "activations.h"
#include "scratch.h"

/* Rows up to which every thread prepares all. */
enum { FEW_ROWS = 2 };

/* A step's scratch memory, as one thread sees it. With few rows, prepared inputs are its own. */
typedef struct {
    float *qkv;       /* [row][outputs of qkv] */
    float *attended;  /* [row][query heads * head_dim] */
    float *expanded;  /* [row][outputs of up] */
    float *row;       /* one row, normed or gated; the thread's own */
    void *inputs;     /* of the linear layer that is next */
    void *mlp_inputs; /* of a parallel MLP, prepared beside those of qkv */
    float *attention; /* [attend_scratch_floats], the thread's own */
} Scratch;

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

static int widest_up(const Model *model) {
    int widest = 0;
    for (int l = 0; l < model->num_layers; l++)
        widest = model->layers[l].up.outputs > widest ? model->layers[l].up.outputs : widest;
    return widest;
}

static size_t most_inputs_bytes(const Model *model, int rows) {
    size_t most = inputs_bytes(&model->head, rows);
    for (int l = 0; l < model->num_layers; l++) {
        const Layer *layer = &model->layers[l];
        most = max_size(most, inputs_bytes(&layer->qkv, rows));
        most = max_size(most, inputs_bytes(&layer->out, rows));
        most = max_size(most, inputs_bytes(&layer->up, rows));
        most = max_size(most, inputs_bytes(&layer->down, rows));
    }
    return most;
}

/* Takes `bytes` for each of `copies`. Returns the one at `index`. */
static void *take_copy(char *memory, size_t *used, size_t bytes, int copies, int index) {
    size_t size = round_up(bytes, 64);
    return (char *)take(memory, used, size * (size_t)copies) + size * (size_t)index;
}

/* Divides scratch memory for the thread `index`. Returns its size; with `memory` NULL, only that. */
static size_t divide(const Model *model, int rows, int64_t length, int threads, int index,
                     char *memory, Scratch *scratch) {
    size_t used = 0, count = (size_t)rows, dim = (size_t)model->head_dim;
    size_t heads = (size_t)model->query_heads, hidden = (size_t)model->hidden;
    size_t qkv = heads + 2 * (size_t)model->kv_heads, up = (size_t)widest_up(model);
    size_t inputs = most_inputs_bytes(model, rows);
    int copies = rows <= FEW_ROWS ? threads : 1, copy = rows <= FEW_ROWS ? index : 0;
    scratch->qkv = take(memory, &used, count * qkv * dim * sizeof(float));
    scratch->attended = take(memory, &used, count * heads * dim * sizeof(float));
    scratch->expanded = take(memory, &used, count * up * sizeof(float));
    scratch->row = take_copy(memory, &used, max_size(hidden, up) * sizeof(float), threads, index);
    scratch->inputs = take_copy(memory, &used, inputs, copies, copy);
    scratch->mlp_inputs = take_copy(memory, &used, inputs, copies, copy);
    scratch->attention = take_copy(
        memory, &used, attend_scratch_floats(model, length) * sizeof(float), threads, index);
    return used;
}

static int64_t longest(const Step *step) {
    int64_t length = 0;
    for (int row = 0; row < step->num_rows; row++)
        length = step->rows[row].length > length ? step->rows[row].length : length;
    return length;
}

size_t decode_scratch_bytes(const Model *model, int rows, int64_t length, int threads) {
    Scratch scratch;
    return divide(model, rows, length, threads, 0, NULL, &scratch);
}

/* The rows that a member prepares. */
static Range rows_to_prepare(const Step *step, const Member *member) {
    if (step->num_rows <= FEW_ROWS) return (Range){0, step->num_rows};
    return (Range){share_begin(member, step->num_rows), share_end(member, step->num_rows)};
}

/* Waits until all rows are prepared. */
static void finish_preparing(const Step *step, const Member *member) {
    if (step->num_rows > FEW_ROWS) team_barrier(member);
}

/* Norms rows, and prepares them for one linear layer or two. */
static void norm_and_prepare(const Step *step, const Scratch *scratch, const Member *member,
                             const Norm *norm, const Linear *linear, const Linear *second) {
    Range rows = rows_to_prepare(step, member);
    Inputs inputs = inputs_at(scratch->inputs, linear, step->num_rows);
    for (int row = rows.first; row < rows.end; row++) {
        norm_row(norm, step->states + (size_t)row * (size_t)step->model->hidden, scratch->row);
        inputs_prepare(&inputs, linear, row, scratch->row, 0);
        if (!second) continue;
        Inputs second_inputs = inputs_at(scratch->mlp_inputs, second, step->num_rows);
        inputs_prepare(&second_inputs, second, row, scratch->row, 0);
    }
    finish_preparing(step, member);
}

/* Prepares rows of floats for a linear layer. */
static void prepare(const Step *step, const Scratch *scratch, const Member *member,
                    const Linear *linear, const float *floats) {
    Range rows = rows_to_prepare(step, member);
    Inputs inputs = inputs_at(scratch->inputs, linear, step->num_rows);
    for (int row = rows.first; row < rows.end; row++)
        inputs_prepare(&inputs, linear, row, floats + (size_t)row * (size_t)linear->inputs, 0);
    finish_preparing(step, member);
}

/* Computes a linear layer of prepared inputs. Adds to `target` if `adds`. */
static void multiply(const Step *step, const Member *member, const Linear *linear, void *memory,
                     float *target, int adds) {
    Inputs inputs = inputs_at(memory, linear, step->num_rows);
    Outputs outputs = {target, adds ? target : NULL, (size_t)linear->outputs, 0};
    linear_share(linear, &inputs, step->num_rows, &outputs, member);
    team_barrier(member);
}

/* Attends with one kv head of a row, and the query heads that share it. */
static void attend_head(const Step *step, const Scratch *scratch, int layer, int index,
                        int kv_head) {
    const Model *model = step->model;
    int dim = model->head_dim, kv_heads = model->kv_heads, heads = model->query_heads;
    int per_kv_head = heads / kv_heads;
    const Row *row = &step->rows[index];
    const float *qkv = scratch->qkv + (size_t)index * (size_t)(heads + 2 * kv_heads) * (size_t)dim;
    size_t half = (size_t)index * (size_t)(dim / 2);
    const Arena *arena = &step->arenas[row->arena];
    int64_t offset = row->index * arena->row_bytes + kv_head * arena->head_bytes;
    Head head = {model, step->cos + half, step->sin + half, arena->keys[layer] + offset,
                 arena->values[layer] + offset, row->length};
    float *target = scratch->attended + (size_t)index * (size_t)(heads * dim);
    attend(&head, qkv + kv_head * per_kv_head * dim, qkv + (heads + kv_head) * dim,
           qkv + (heads + kv_heads + kv_head) * dim, scratch->attention,
           target + kv_head * per_kv_head * dim);
}

/* Rows may be of very different lengths: members claim their heads one by one. */
static void attend_all(const Step *step, const Scratch *scratch, const Member *member, int layer) {
    int kv_heads = step->model->kv_heads, count = step->num_rows * kv_heads;
    for (;;) {
        Range claim = team_claim_one(member, count);
        if (claim.first == claim.end) break;
        attend_head(step, scratch, layer, claim.first / kv_heads, claim.first % kv_heads);
    }
    team_barrier(member);
}

/* silu(gate) * value, of gates [width] and then values [width]. */
static void gate_row(const float *row, int width, float *target) {
    for (int i = 0; i < width; i += LANES) {
        int count = width - i;
        f32x16 gates = f32x16_silu(f32x16_load_part(row + i, count));
        f32x16 values = f32x16_load_part(row + width + i, count);
        f32x16_store_part(target + i, f32x16_mul(gates, values), count);
    }
}

/* Gates rows, and prepares them for a linear layer. */
static void gate_and_prepare(const Step *step, const Scratch *scratch, const Member *member,
                             const Linear *linear) {
    Range rows = rows_to_prepare(step, member);
    Inputs inputs = inputs_at(scratch->inputs, linear, step->num_rows);
    int width = linear->inputs;
    for (int row = rows.first; row < rows.end; row++) {
        gate_row(scratch->expanded + (size_t)row * 2 * (size_t)width, width, scratch->row);
        inputs_prepare(&inputs, linear, row, scratch->row, 0);
    }
    finish_preparing(step, member);
}

/* The product that ends an MLP, of what `up` expanded. */
static void contract(const Step *step, const Scratch *scratch, const Member *member,
                     const Layer *layer) {
    if (layer->gated)
        gate_and_prepare(step, scratch, member, &layer->down);
    else
        prepare(step, scratch, member, &layer->down, scratch->expanded);
    multiply(step, member, &layer->down, scratch->inputs, step->states, 1);
}

static void run_layer(const Step *step, const Scratch *scratch, const Member *member, int index) {
    const Layer *layer = &step->model->layers[index];
    int is_parallel = layer->mlp_norm.weight == NULL;
    norm_and_prepare(step, scratch, member, &layer->attention_norm, &layer->qkv,
                     is_parallel ? &layer->up : NULL);
    multiply(step, member, &layer->qkv, scratch->inputs, scratch->qkv, 0);
    attend_all(step, scratch, member, index);
    prepare(step, scratch, member, &layer->out, scratch->attended);
    multiply(step, member, &layer->out, scratch->inputs, step->states, 1);
    if (!is_parallel)
        norm_and_prepare(step, scratch, member, &layer->mlp_norm, &layer->up, NULL);
    multiply(step, member, &layer->up, is_parallel ? scratch->mlp_inputs : scratch->inputs,
             scratch->expanded, 0);
    contract(step, scratch, member, layer);
}

static void run_step(const Member *member, const void *task) {
    const Step *step = task;
    const Model *model = step->model;
    Scratch scratch;
    divide(model, step->num_rows, longest(step), step->threads, member->index, step->scratch,
           &scratch);
    for (int layer = 0; layer < model->num_layers; layer++)
        run_layer(step, &scratch, member, layer);
    norm_and_prepare(step, &scratch, member, &model->norm, &model->head, NULL);
    multiply(step, member, &model->head, scratch.inputs, step->logits, 0);
}

void decode_run(const Step *step) { team_run(step->threads, run_step, step); }
