/* Runs one call of the kernels: its arguments come on standard input, and what it wrote goes to
 * standard output. emulated.py writes and reads both. */
#include <stdio.h>
#include <stdlib.h>

#include "decode.h"
#include "prompt_attention.h"

enum { MAX_ARENAS = 8 };

void linear_pack(const Linear *layer, const void *weight, int is_bf16, int threads);
size_t linear_scratch_bytes(const Linear *layer, int rows);
void linear_run(const Linear *layer, const void *states, const void *residual, void *target,
                int rows, int is_bf16, void *scratch, int threads);

static void read_exactly(void *target, size_t size) {
    if (fread(target, 1, size, stdin) != size) exit(1);
}

static void write_all(const void *source, size_t size) {
    if (fwrite(source, 1, size, stdout) != size) exit(1);
}

static void *allocate(size_t size) {
    void *memory = malloc(size ? size : 1);
    if (!memory) exit(1);
    return memory;
}

static int32_t read_int(void) {
    int32_t value;
    read_exactly(&value, sizeof value);
    return value;
}

/* Returns NULL for an array of no bytes. */
static void *read_array(size_t *size) {
    int64_t bytes;
    read_exactly(&bytes, sizeof bytes);
    if (size) *size = (size_t)bytes;
    if (!bytes) return NULL;
    void *array = allocate((size_t)bytes);
    read_exactly(array, (size_t)bytes);
    return array;
}

/* A structure as Python has it, and then the arrays that it points to. */
static Linear read_linear(void) {
    Linear layer;
    read_exactly(&layer, sizeof layer);
    layer.weights = read_array(NULL);
    layer.scales = read_array(NULL);
    layer.sums = read_array(NULL);
    layer.bias = read_array(NULL);
    return layer;
}

static Norm read_norm(void) {
    Norm norm;
    read_exactly(&norm, sizeof norm);
    norm.weight = read_array(NULL);
    norm.bias = read_array(NULL);
    return norm;
}

static Layer read_layer(void) {
    Layer layer;
    layer.gated = read_int();
    layer.attention_norm = read_norm();
    layer.mlp_norm = read_norm();
    layer.qkv = read_linear();
    layer.out = read_linear();
    layer.up = read_linear();
    layer.down = read_linear();
    return layer;
}

static void run_pack(void) {
    Linear layer = read_linear();
    int is_bf16 = read_int(), threads = read_int();
    int64_t sizes[3];
    read_exactly(sizes, sizeof sizes);
    void *weight = read_array(NULL);
    linear_pack(&layer, weight, is_bf16, threads);
    write_all(layer.weights, (size_t)sizes[0]);
    write_all(layer.scales, (size_t)sizes[1]);
    write_all(layer.sums, (size_t)sizes[2]);
}

static void run_linear(void) {
    Linear layer = read_linear();
    int rows = read_int(), is_bf16 = read_int(), threads = read_int();
    void *states = read_array(NULL), *residual = read_array(NULL);
    size_t size = (size_t)rows * (size_t)layer.outputs * (is_bf16 ? 2 : 4);
    void *target = allocate(size), *scratch = allocate(linear_scratch_bytes(&layer, rows));
    linear_run(&layer, states, residual, target, rows, is_bf16, scratch, threads);
    write_all(target, size);
}

static void run_decode(void) {
    Model model;
    read_exactly(&model, sizeof model);
    Layer *layers = allocate((size_t)model.num_layers * sizeof(Layer));
    for (int l = 0; l < model.num_layers; l++) layers[l] = read_layer();
    model.layers = layers;
    model.norm = read_norm();
    model.head = read_linear();
    size_t num_layers = (size_t)model.num_layers, size[MAX_ARENAS];
    int num_arenas = read_int();
    Arena *arenas = allocate((size_t)num_arenas * sizeof(Arena));
    for (int a = 0; a < num_arenas; a++) {
        char **keys = allocate(2 * num_layers * sizeof(char *));
        read_exactly(&arenas[a].row_bytes, sizeof(int64_t));
        read_exactly(&arenas[a].head_bytes, sizeof(int64_t));
        for (size_t i = 0; i < 2 * num_layers; i++) keys[i] = read_array(&size[a]);
        arenas[a].keys = keys;
        arenas[a].values = keys + num_layers;
    }
    Step step = {&model, arenas, NULL, NULL, NULL, NULL, NULL, NULL, read_int(), read_int()};
    int64_t longest = 0;
    step.rows = read_array(NULL);
    for (int row = 0; row < step.num_rows; row++)
        longest = step.rows[row].length > longest ? step.rows[row].length : longest;
    step.cos = read_array(NULL);
    step.sin = read_array(NULL);
    step.states = read_array(NULL);
    size_t logits = (size_t)step.num_rows * (size_t)model.head.outputs * sizeof(float);
    step.logits = allocate(logits);
    step.scratch = allocate(decode_scratch_bytes(&model, step.num_rows, longest, step.threads));
    decode_run(&step);
    write_all(step.logits, logits);
    write_all(step.states, (size_t)step.num_rows * (size_t)model.hidden * sizeof(float));
    for (int a = 0; a < num_arenas; a++)
        for (size_t i = 0; i < 2 * num_layers; i++) write_all(arenas[a].keys[i], size[a]);
}

static void run_attention(void) {
    Attention attention;
    read_exactly(&attention, sizeof attention);
    size_t count = (size_t)attention.num_sequences;
    size_t size = (size_t)(attention.query_heads * attention.head_dim) * (attention.is_bf16 ? 2 : 4);
    Sequence *sequences = allocate(count * sizeof(Sequence));
    for (size_t s = 0; s < count; s++) {
        read_exactly(&sequences[s], sizeof(Sequence));
        sequences[s].queries = read_array(NULL);
        sequences[s].keys = read_array(NULL);
        sequences[s].values = read_array(NULL);
        sequences[s].limits = read_array(NULL);
        sequences[s].target = allocate((size_t)sequences[s].num_queries * size);
    }
    attention.sequences = sequences;
    attention.scratch = allocate(attention_scratch_bytes(&attention));
    attention_run(&attention);
    for (size_t s = 0; s < count; s++)
        write_all(sequences[s].target, (size_t)sequences[s].num_queries * size);
}

int main(void) {
    switch (read_int()) {
        case 0: run_linear(); break;
        case 1: run_decode(); break;
        case 2: run_attention(); break;
        default: run_pack();
    }
    return 0;
}
