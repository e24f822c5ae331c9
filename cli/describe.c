#include "describe.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "core/text.h"
#include "io/record.h"

static dw_status no_memory(void) {
    return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the description of the model");
}

/* ---- names ---- */

static const char *leaf_of(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static bool ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

static bool is_one_of(const char *text, const char *const *list) {
    for (; *list; list++)
        if (strcmp(text, *list) == 0) return true;
    return false;
}

/* Whether a part of the path is a number, as in layers.0.mlp. */
static bool in_numbered_block(const char *name) {
    for (const char *part = name; part; part = strchr(part, '.') ? strchr(part, '.') + 1 : NULL)
        if (isdigit((unsigned char)*part) && part[strspn(part, "0123456789")] == '.') return true;
    return false;
}

/* Runs of digits as numbers, so that layer 2 comes before layer 10. */
static int compare_natural(const char *a, const char *b) {
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            a += strspn(a, "0");
            b += strspn(b, "0");
            size_t left = strspn(a, "0123456789"), right = strspn(b, "0123456789");
            int order = left != right ? (left < right ? -1 : 1) : strncmp(a, b, left);
            if (order) return order;
            a += left;
            b += right;
        } else if (*a != *b) {
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        } else {
            a++;
            b++;
        }
    }
    return (unsigned char)*a - (unsigned char)*b;
}

static int compare_layers(const void *a, const void *b) {
    return compare_natural(((const dw_layer *)a)->name, ((const dw_layer *)b)->name);
}

static const char *dtype_of(dw_file_dtype dtype, dw_arena *arena) {
    switch (dtype) {
    case DW_FILE_F32: return "float32";
    case DW_FILE_F16: return "float16";
    case DW_FILE_BF16: return "bfloat16";
    case DW_FILE_F64: return "float64";
    default: {
        const char *name = dw_file_dtype_name(dtype);
        return dw_arena_copy(arena, name, strlen(name));
    }
    }
}

/* ---- layers ---- */

static dw_layer *add_layer(cli_described *d, dw_layer layer) {
    if (d->count == d->room) {
        size_t room = d->room ? d->room * 2 : 256;
        dw_layer *grown = realloc(d->layers, room * sizeof *grown);
        if (!grown) return NULL;
        d->layers = grown;
        d->room = room;
    }
    layer.shares_input = layer.input_from = -1;
    d->layers[d->count] = layer;
    return &d->layers[d->count++];
}

/* What a module is, by its name and the shape of its weight. */
static const char *const heads[] = {"lm_head", "embed_out", "output", "head", NULL};
static const char *const tables[] = {
    "embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "tok_embeddings", "position_embeddings", NULL};
static const char *const routers[] = {"gate", "router", "shared_expert_gate", "wg", NULL};

static void classify_matrix(const cli_described *d, dw_layer *layer, int64_t rows) {
    const dw_model_config *config = &d->config;
    const char *leaf = leaf_of(layer->name);
    bool vocabulary = config->vocabulary ? rows == config->vocabulary : false, block = in_numbered_block(layer->name);
    layer->type = "linear";
    layer->kind = DW_LAYER_LINEAR;
    if (is_one_of(leaf, tables) || (vocabulary && strstr(leaf, "emb"))) {
        layer->kind = DW_LAYER_EMBEDDING;
        layer->type = "embedding";
        layer->in_features = layer->in_features < layer->out_features ? layer->in_features : layer->out_features;
        layer->out_features = 0;
    } else if (!block && (vocabulary || is_one_of(leaf, heads))) {
        layer->kind = DW_LAYER_OUTPUT_HEAD;
        layer->kind_reason = vocabulary ? "as wide as the vocabulary" : "by its name";
    } else if (strstr(layer->name, "lora_")) {
        layer->kind = DW_LAYER_ADAPTER;
        layer->kind_reason = "named lora";
    } else if (is_one_of(leaf, routers) && (rows == 1 || rows == config->experts || strcmp(leaf, "router") == 0)) {
        layer->kind = DW_LAYER_ROUTER;
        layer->kind_reason = rows == 1 ? "a gate of one output" : "as wide as there are experts";
    } else if (!block) {
        layer->kind = DW_LAYER_OTHER;
        layer->type = "matrix";
    }
}

static double share_of(const cli_described *d, int64_t experts) {
    if (d->config.experts_of_a_token <= 0 || experts <= 0 || d->config.experts_of_a_token > experts) return 1;
    return (double)d->config.experts_of_a_token / (double)experts;
}

/* [experts, a, b]: the side that is as wide as the model is the input of gate and up, the output of down. */
static void classify_stack(const cli_described *d, const dw_file_tensor *tensor, dw_layer *layer) {
    bool down = strstr(leaf_of(layer->name), "down") != NULL;
    int64_t a = tensor->shape[1], b = tensor->shape[2], hidden = d->config.hidden;
    if (!strstr(layer->name, "experts") || (hidden != a && hidden != b)) return;
    int64_t other = hidden == a ? b : a;
    layer->kind = DW_LAYER_EXPERTS;
    layer->type = "experts";
    layer->in_features = down ? other : hidden;
    layer->out_features = down ? hidden : other;
    layer->transposed = layer->in_features == a && layer->in_features != b;
    layer->matrices = tensor->shape[0];
    layer->tokens_share = share_of(d, layer->matrices);
}

static bool is_norm(const char *name) {
    const char *leaf = leaf_of(name);
    return strstr(leaf, "norm") || strncmp(leaf, "ln_", 3) == 0 || strcmp(leaf, "ln_f") == 0;
}

/* The layer that a tensor makes; kind OTHER when it is not recognized. */
static dw_layer read_tensor(cli_described *d, const dw_file_tensor *tensor, const char *name) {
    dw_layer layer = {.name = name,
                      .type = "tensor",
                      .kind = DW_LAYER_OTHER,
                      .parameters = 1,
                      .dtype = dtype_of(tensor->dtype, &d->arena)};
    for (int i = 0; i < tensor->rank; i++)
        layer.parameters *= tensor->shape[i];
    bool weight = ends_with(tensor->name, ".weight");
    if (tensor->rank == 3) classify_stack(d, tensor, &layer);
    if (tensor->rank == 1 && weight && is_norm(name)) {
        layer.kind = DW_LAYER_NORM;
        layer.type = d->config.layer_norms ? "LayerNorm" : "RMSNorm";
        layer.in_features = tensor->shape[0];
        if (d->fuses && d->config.known && !d->config.layer_norms && strcmp(layer.dtype, "bfloat16") == 0)
            layer.fused = "one pass, which also quantizes its output where converted layers read it";
    }
    if (tensor->rank == 2 && weight) {
        layer.transposed = d->config.transposed && in_numbered_block(name);
        layer.out_features = tensor->shape[layer.transposed ? 1 : 0];
        layer.in_features = tensor->shape[layer.transposed ? 0 : 1];
        classify_matrix(d, &layer, tensor->shape[0]);
    }
    return layer;
}

/* "layers.0.mlp.experts.7.up_proj" becomes "layers.0.mlp.experts.*.up_proj": its fellows are one layer. */
static const char *expert_stack_name(cli_described *d, const char *module) {
    const char *mark = strstr(module, ".experts.");
    if (!mark) return NULL;
    const char *number = mark + strlen(".experts."), *rest = number + strspn(number, "0123456789");
    if (rest == number || *rest != '.') return NULL;
    size_t head = (size_t)(number - module), tail = strlen(rest);
    char *name = dw_arena_take(&d->arena, head + 1 + tail + 1);
    if (!name) return NULL;
    memcpy(name, module, head);
    name[head] = '*';
    memcpy(name + head + 1, rest, tail + 1);
    return name;
}

static dw_status add_tensor(cli_described *d, const dw_file_tensor *tensor) {
    static const char *const parts[] = {"_scale", "_scale_inv", ".bias", "inv_freq", "_bias", NULL};
    if (tensor->rank == 0) return DW_OK;
    for (const char *const *part = parts; *part; part++)
        if (ends_with(tensor->name, *part)) return DW_OK; /* parts of other layers */
    const char *name = tensor->name;
    if (ends_with(name, ".weight")) {
        name = dw_arena_copy(&d->arena, name, strlen(name) - strlen(".weight"));
        if (!name) return no_memory();
    }
    dw_layer layer = read_tensor(d, tensor, name);
    if (!layer.dtype) return no_memory();
    const char *stack = layer.kind == DW_LAYER_LINEAR ? expert_stack_name(d, name) : NULL;
    if (stack) {
        layer.name = stack;
        layer.type = "experts";
        layer.kind = DW_LAYER_EXPERTS;
    }
    return add_layer(d, layer) ? DW_OK : no_memory();
}

/* Layers of one name (experts, one by one in the file) become one of several matrices. The layers are sorted. */
static void merge_experts(cli_described *d) {
    size_t kept = 0;
    for (size_t i = 0; i < d->count; i++) {
        dw_layer *last = kept ? &d->layers[kept - 1] : NULL, *layer = &d->layers[i];
        if (last && last->kind == DW_LAYER_EXPERTS && strcmp(last->name, layer->name) == 0 &&
            last->in_features == layer->in_features && last->out_features == layer->out_features) {
            last->matrices = (last->matrices ? last->matrices : 1) + 1;
            last->parameters += layer->parameters;
            last->tokens_share = share_of(d, last->matrices);
        } else {
            d->layers[kept++] = *layer;
        }
    }
    d->count = kept;
}

/* ---- what belongs together; only in families that are known ---- */

static bool same_parent(const char *a, const char *b) {
    size_t length = (size_t)(leaf_of(a) - a);
    return length == (size_t)(leaf_of(b) - b) && strncmp(a, b, length) == 0;
}

static dw_layer *sibling(cli_described *d, const dw_layer *layer, const char *const *leaves) {
    size_t index = (size_t)(layer - d->layers), reach = 16;
    size_t first = index > reach ? index - reach : 0, end = index + reach < d->count ? index + reach : d->count;
    for (size_t i = first; i < end; i++)
        if (same_parent(d->layers[i].name, layer->name) && is_one_of(leaf_of(d->layers[i].name), leaves))
            return &d->layers[i];
    return NULL;
}

/* Which layers read the same tensor: query, key and value; gate and up. The first one in the list leads. */
static void link_inputs(cli_described *d) {
    static const char *const groups[][4] = {
        {"q_proj", "k_proj", "v_proj", NULL}, {"gate_proj", "up_proj", NULL}, {"w1", "w3", NULL}};
    for (size_t i = 0; i < d->count; i++)
        for (size_t g = 0; g < sizeof groups / sizeof groups[0]; g++) {
            if (!is_one_of(leaf_of(d->layers[i].name), groups[g])) continue;
            const dw_layer *first = &d->layers[i];
            for (const char *const *leaf = groups[g]; *leaf; leaf++) {
                const dw_layer *other = sibling(d, &d->layers[i], (const char *const[]){*leaf, NULL});
                if (other && other < first) first = other;
            }
            if (first < &d->layers[i]) d->layers[i].shares_input = first - d->layers;
        }
}

/* The module that a layer stands in, as the name of what it computes there. */
static const char *parent_name(cli_described *d, const dw_layer *layer, const char *suffix) {
    const char *leaf = leaf_of(layer->name);
    size_t length = leaf > layer->name ? (size_t)(leaf - layer->name) - 1 : 0, tail = strlen(suffix);
    char *name = dw_arena_take(&d->arena, length + tail + 1);
    if (!name) return NULL;
    memcpy(name, layer->name, length);
    memcpy(name + length, suffix, tail + 1);
    return name;
}

/* Attention and gated activations have no weights: they stand beside the layers that feed them. */
static dw_status add_weightless(cli_described *d) {
    static const char *const outputs[] = {"o_proj", NULL}, *const gates[] = {"gate_proj", "w1", NULL},
                             *const ups[] = {"up_proj", "w3", NULL}, *const pairs[] = {"gate_up_proj", NULL};
    size_t count = d->count; /* those added below are not looked at */
    for (size_t i = 0; i < count; i++) {
        dw_layer layer = {.dtype = d->layers[i].dtype, .matrices = 1}, of = d->layers[i];
        if (of.kind != DW_LAYER_LINEAR && of.kind != DW_LAYER_EXPERTS) continue;
        bool pair = is_one_of(leaf_of(of.name), pairs);
        if (is_one_of(leaf_of(of.name), outputs)) {
            layer.kind = DW_LAYER_ATTENTION;
            layer.type = "attention";
            layer.name = parent_name(d, &of, ".attention");
            layer.in_features = of.in_features;
        } else if (pair || (is_one_of(leaf_of(of.name), gates) && sibling(d, &d->layers[i], ups))) {
            bool plain = of.kind == DW_LAYER_LINEAR && !pair && strcmp(of.dtype, "bfloat16") == 0;
            layer.kind = DW_LAYER_GATED_MLP;
            layer.type = "gated MLP";
            layer.name = parent_name(d, &of, ".activation");
            layer.in_features = of.out_features / (pair ? 2 : 1);
            layer.matrices = of.matrices ? of.matrices : 1;
            layer.tokens_share = of.tokens_share;
            if (d->fuses && plain) layer.fused = "activation and its gradient are quantized as they are computed";
        } else {
            continue;
        }
        if (!layer.name || !add_layer(d, layer)) return no_memory();
    }
    return DW_OK;
}

/* The head that shares the embedding's weight has no tensor of its own; the loss has none either. */
static dw_status add_end(cli_described *d) {
    const dw_layer *head = NULL, *table = NULL;
    for (size_t i = 0; i < d->count; i++) {
        if (d->layers[i].kind == DW_LAYER_OUTPUT_HEAD) head = &d->layers[i];
        const dw_layer *layer = &d->layers[i];
        if (layer->kind == DW_LAYER_EMBEDDING && layer->in_features > 0 && d->config.vocabulary &&
            layer->parameters / layer->in_features == d->config.vocabulary)
            table = layer;
    }
    int64_t classes = head ? head->out_features : d->config.vocabulary;
    if (!head && table) {
        dw_layer tied = {.name = "lm_head",
                         .type = "linear",
                         .kind = DW_LAYER_OUTPUT_HEAD,
                         .kind_reason = "its weight is the embedding's",
                         .in_features = table->in_features,
                         .out_features = classes,
                         .dtype = table->dtype};
        if (!add_layer(d, tied)) return no_memory();
    } else if (!head) {
        return DW_OK;
    }
    dw_layer loss = {.name = "loss",
                     .type = "cross-entropy",
                     .kind = DW_LAYER_LOSS,
                     .in_features = classes,
                     .dtype = d->layers[0].dtype};
    if (d->fuses) loss.fused = "reads the logits in their own type, once each way";
    return add_layer(d, loss) ? DW_OK : no_memory();
}

/* Whose output a layer reads: down_proj the activation's, the first projections of a block its norms'. */
static void link_outputs(cli_described *d) {
    static const char *const downs[] = {"down_proj", "w2", NULL};
    static const struct {
        const char *reader, *norm;
    } pairs[] = {{".self_attn.q_proj", ".input_layernorm"}, {".mlp.gate_proj", ".post_attention_layernorm"}};
    for (size_t i = 0; i < d->count; i++) {
        dw_layer *layer = &d->layers[i];
        if (is_one_of(leaf_of(layer->name), downs)) {
            const dw_layer *maker = sibling(d, layer, (const char *const[]){"activation", NULL});
            if (maker) layer->input_from = maker - d->layers;
        }
        for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++) {
            if (!ends_with(layer->name, pairs[p].reader)) continue;
            size_t block = strlen(layer->name) - strlen(pairs[p].reader);
            for (size_t k = i > 24 ? i - 24 : 0; k < d->count && k < i + 24; k++)
                if (strncmp(d->layers[k].name, layer->name, block) == 0 &&
                    strcmp(d->layers[k].name + block, pairs[p].norm) == 0)
                    layer->input_from = (int64_t)k;
        }
    }
}

/* ---- remarks ---- */

static dw_status remark(cli_described *d, dw_text *text) {
    const char *copy = text->failed ? NULL : dw_arena_copy(&d->arena, text->bytes, text->length);
    dw_text_free(text);
    if (!copy) return no_memory();
    if (d->remark_count < sizeof d->remarks / sizeof d->remarks[0]) d->remarks[d->remark_count++] = copy;
    return DW_OK;
}

/* The name with every number as N. */
static void generalize(const char *name, char *pattern, size_t capacity) {
    size_t at = 0;
    while (*name && at + 2 < capacity) {
        size_t digits = strspn(name, "0123456789");
        pattern[at++] = digits ? 'N' : *name;
        name += digits ? digits : 1;
    }
    pattern[at] = '\0';
}

/* The parts that were not recognized, a name for each kind of them. */
static dw_status name_unknown(cli_described *d) {
    enum { SHOWN = 12, LONGEST = 160 };
    char patterns[SHOWN][LONGEST];
    size_t counts[SHOWN] = {0}, kinds = 0, more = 0;
    for (size_t i = 0; i < d->count; i++) {
        if (d->layers[i].kind != DW_LAYER_OTHER) continue;
        char pattern[LONGEST];
        generalize(d->layers[i].name, pattern, sizeof pattern);
        size_t k = 0;
        while (k < kinds && strcmp(patterns[k], pattern) != 0)
            k++;
        if (k == SHOWN) {
            more++;
            continue;
        }
        if (k == kinds) memcpy(patterns[kinds++], pattern, sizeof pattern);
        counts[k]++;
    }
    if (kinds == 0) return DW_OK;
    dw_text text = {0};
    dw_text_puts(&text, "Not recognized and left alone: ");
    for (size_t k = 0; k < kinds; k++) {
        dw_text_printf(&text, "%s%s", k ? ", " : "", patterns[k]);
        if (counts[k] > 1) dw_text_printf(&text, " (%zu)", counts[k]);
    }
    if (more) dw_text_printf(&text, ", and %zu more", more);
    dw_text_puts(&text, ".");
    return remark(d, &text);
}

static dw_status add_remarks(cli_described *d) {
    dw_text text = {0};
    const dw_model_config *config = &d->config;
    if (!config->known) {
        if (!config->present)
            dw_text_puts(&text, "There is no config.json beside the checkpoint");
        else if (!*config->family)
            dw_text_puts(&text, "config.json names no model_type");
        else
            dw_text_printf(&text, "The family %s is not known", config->family);
        dw_text_puts(&text, ": matrices inside numbered blocks are taken for linear layers of [out, in]; who shares an "
                            "input, attention and activations are not guessed, so they are in no prediction.");
        DW_TRY(remark(d, &text));
    }
    bool experts = false, attention = false;
    for (size_t i = 0; i < d->count; i++) {
        experts |= d->layers[i].kind == DW_LAYER_EXPERTS;
        attention |= d->layers[i].kind == DW_LAYER_ATTENTION;
    }
    if (config->known && !attention) {
        text = (dw_text){0};
        dw_text_puts(&text,
                     "Where this family attends is not read from its tensors, so attention is in no prediction.");
        DW_TRY(remark(d, &text));
    }
    if (experts && config->experts_of_a_token == 0) {
        text = (dw_text){0};
        dw_text_puts(&text, "How many experts a token goes to is not told: predictions send it to all of them.");
        DW_TRY(remark(d, &text));
    }
    return name_unknown(d);
}

/* ---- the whole ---- */

static dw_status finish(cli_described *d, const cli_checkpoint *checkpoint) {
    if (d->count == 0) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s: holds no weights", checkpoint->path);
    d->names = malloc(d->count * sizeof *d->names);
    if (!d->names) return no_memory();
    for (size_t i = 0; i < d->count; i++) {
        d->names[i] = d->layers[i].name;
        d->model.parameters += d->layers[i].parameters;
    }
    d->model.name = *d->config.family ? d->config.family : "checkpoint";
    d->model.layers = d->layers;
    d->model.layer_count = d->count;
    d->model.names = d->names;
    d->model.name_count = d->count;
    d->model.remarks = d->remarks;
    d->model.remark_count = d->remark_count;
    return DW_OK;
}

dw_status cli_describe(const cli_checkpoint *checkpoint, bool fuses, cli_described *described) {
    *described = (cli_described){.fuses = fuses};
    DW_TRY(dw_model_config_read(checkpoint->folder, &described->config));
    for (size_t i = 0; i < checkpoint->count; i++) {
        const dw_header *header = &checkpoint->shards[i].reader->header;
        for (size_t k = 0; k < header->tensor_count; k++)
            if (cli_checkpoint_lists(checkpoint, header->tensors[k].name))
                DW_TRY(add_tensor(described, &header->tensors[k]));
    }
    if (described->count) qsort(described->layers, described->count, sizeof *described->layers, compare_layers);
    merge_experts(described);
    if (described->config.known) {
        DW_TRY(add_weightless(described));
        qsort(described->layers, described->count, sizeof *described->layers, compare_layers);
        DW_TRY(add_end(described));
        link_inputs(described);
        link_outputs(described);
    }
    DW_TRY(add_remarks(described));
    return finish(described, checkpoint);
}

void cli_described_clear(cli_described *described) {
    free(described->layers);
    free(described->names);
    dw_arena_clear(&described->arena);
    *described = (cli_described){0};
}
