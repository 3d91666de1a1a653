/* A decode step. Between two barriers, each thread works on its share of rows, heads or outputs. */
#include "decode.h"

#include "activations.h"
#include "scratch.h"

/* What the threads of a step share, all in its scratch memory. */
typedef struct {
    float *qkv;      /* [row][outputs of qkv] */
    float *attended; /* [row][query heads * head_dim] */
    float *expanded; /* [row][outputs of up] */
    float *normed;   /* [row][hidden] */
    void *inputs;    /* of the linear layer that is next */
    void *mlp_inputs; /* of a parallel MLP, prepared beside those of qkv */
    float *attention; /* [thread][attend_scratch_floats] */
    size_t attention_floats;
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

/* Divides scratch memory. Returns its size; with `memory` NULL, only that. */
static size_t divide(const Model *model, int rows, int64_t length, int threads, char *memory,
                     Scratch *scratch) {
    size_t used = 0, count = (size_t)rows, dim = (size_t)model->head_dim;
    size_t heads = (size_t)model->query_heads;
    size_t qkv = heads + 2 * (size_t)model->kv_heads;
    size_t inputs = most_inputs_bytes(model, rows);
    scratch->qkv = take(memory, &used, count * qkv * dim * sizeof(float));
    scratch->attended = take(memory, &used, count * heads * dim * sizeof(float));
    scratch->expanded = take(memory, &used, count * (size_t)widest_up(model) * sizeof(float));
    scratch->normed = take(memory, &used, count * (size_t)model->hidden * sizeof(float));
    scratch->inputs = take(memory, &used, inputs);
    scratch->mlp_inputs = take(memory, &used, inputs);
    scratch->attention_floats = round_up(attend_scratch_floats(model, length), LANES);
    scratch->attention =
        take(memory, &used, (size_t)threads * scratch->attention_floats * sizeof(float));
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
    return divide(model, rows, length, threads, NULL, &scratch);
}

/* Norms each row of the member's share, and prepares it for one linear layer or two. */
static void norm_and_prepare(const Step *step, const Scratch *scratch, const Member *member,
                             const Norm *norm, const Linear *linear, const Linear *second) {
    int hidden = step->model->hidden, rows = step->num_rows;
    Inputs inputs = inputs_at(scratch->inputs, linear, rows);
    for (int row = share_begin(member, rows); row < share_end(member, rows); row++) {
        float *normed = scratch->normed + (size_t)row * (size_t)hidden;
        norm_row(norm, step->states + (size_t)row * (size_t)hidden, normed);
        inputs_prepare(&inputs, linear, row, normed, 0);
        if (!second) continue;
        Inputs second_inputs = inputs_at(scratch->mlp_inputs, second, rows);
        inputs_prepare(&second_inputs, second, row, normed, 0);
    }
    team_barrier(member);
}

/* Prepares rows of floats for a linear layer. */
static void prepare(const Step *step, const Scratch *scratch, const Member *member,
                    const Linear *linear, const float *rows) {
    Inputs inputs = inputs_at(scratch->inputs, linear, step->num_rows);
    int end = share_end(member, step->num_rows);
    for (int row = share_begin(member, step->num_rows); row < end; row++)
        inputs_prepare(&inputs, linear, row, rows + (size_t)row * (size_t)linear->inputs, 0);
    team_barrier(member);
}

/* Computes a linear layer of prepared inputs. Adds to `target` if `adds`. */
static void multiply(const Step *step, const Member *member, const Linear *linear, void *memory,
                     float *target, int adds) {
    Inputs inputs = inputs_at(memory, linear, step->num_rows);
    Outputs outputs = {target, adds ? target : NULL, (size_t)linear->outputs, 0};
    linear_share(linear, &inputs, step->num_rows, &outputs, member);
    team_barrier(member);
}

/* Attends with each (row, kv head) of the member's share. */
static void attend_all(const Step *step, const Scratch *scratch, const Member *member, int layer) {
    const Model *model = step->model;
    int dim = model->head_dim, kv_heads = model->kv_heads, heads = model->query_heads;
    int per_kv_head = heads / kv_heads;
    size_t row_floats = (size_t)(heads + 2 * kv_heads) * (size_t)dim;
    int items = step->num_rows * kv_heads;
    float *memory = scratch->attention + (size_t)member->index * scratch->attention_floats;
    for (int item = share_begin(member, items); item < share_end(member, items); item++) {
        int index = item / kv_heads, kv_head = item % kv_heads;
        const Row *row = &step->rows[index];
        const float *qkv = scratch->qkv + (size_t)index * row_floats;
        size_t half = (size_t)index * (size_t)(dim / 2);
        const Arena *arena = &step->arenas[row->arena];
        int64_t offset = row->index * arena->row_bytes + kv_head * arena->head_bytes;
        Head head = {model, step->cos + half, step->sin + half, arena->keys[layer] + offset,
                     arena->values[layer] + offset, row->length};
        float *target = scratch->attended + (size_t)index * (size_t)(heads * dim);
        attend(&head, qkv + kv_head * per_kv_head * dim, qkv + (heads + kv_head) * dim,
               qkv + (heads + kv_heads + kv_head) * dim, memory,
               target + kv_head * per_kv_head * dim);
    }
    team_barrier(member);
}

/* Replaces the gates [width] of a row of gates and values [2 * width] with silu(gate) * value. */
static void gate_row(float *row, int width) {
    for (int i = 0; i < width; i += LANES) {
        int count = width - i;
        f32x16 gates = f32x16_silu(f32x16_load_part(row + i, count));
        f32x16 values = f32x16_load_part(row + width + i, count);
        f32x16_store_part(row + i, f32x16_mul(gates, values), count);
    }
}

/* The product that ends an MLP, of what `up` expanded. */
static void contract(const Step *step, const Scratch *scratch, const Member *member,
                     const Layer *layer) {
    int rows = step->num_rows, width = layer->up.outputs;
    Inputs inputs = inputs_at(scratch->inputs, &layer->down, rows);
    for (int row = share_begin(member, rows); row < share_end(member, rows); row++) {
        float *expanded = scratch->expanded + (size_t)row * (size_t)width;
        if (layer->gated) gate_row(expanded, width / 2);
        inputs_prepare(&inputs, &layer->down, row, expanded, 0);
    }
    team_barrier(member);
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
    divide(model, step->num_rows, longest(step), step->threads, step->scratch, &scratch);
    for (int layer = 0; layer < model->num_layers; layer++)
        run_layer(step, &scratch, member, layer);
    norm_and_prepare(step, &scratch, member, &model->norm, &model->head, NULL);
    multiply(step, member, &model->head, scratch.inputs, step->logits, 0);
}

void decode_run(const Step *step) { team_run(step->threads, run_step, step); }
