/* What a layer costs, as it is and converted. Times are bytes and operations over the rates of evidence.c. */
#include <string.h>

#include "plan/plan.h"

bool dw_layer_is_product(const dw_layer *layer) {
    return layer->kind == DW_LAYER_LINEAR || layer->kind == DW_LAYER_OUTPUT_HEAD || layer->kind == DW_LAYER_ROUTER ||
           layer->kind == DW_LAYER_EXPERTS || layer->kind == DW_LAYER_ADAPTER;
}

bool dw_layer_is_own(const dw_layer *layer) {
    return !*dw_or_empty(layer->kernel);
}

bool dw_layer_is_candidate(const dw_layer *layer) {
    return dw_layer_is_product(layer) || !dw_layer_is_own(layer) || dw_layer_is_reported(layer);
}

bool dw_layer_is_reported(const dw_layer *layer) {
    return *dw_or_empty(layer->fused) || *dw_or_empty(layer->adapted);
}

double dw_layer_work(const dw_layer *layer) {
    double share = layer->tokens_share > 0 ? layer->tokens_share : 1;
    return dw_layer_weights(layer) * share * dw_layer_runs(layer);
}

double dw_layer_rows(const dw_layer *layer, const dw_settings *settings) {
    double share = layer->tokens_share > 0 ? layer->tokens_share : 1;
    return (double)settings->tokens * share * dw_layer_runs(layer);
}

double dw_layer_weights(const dw_layer *layer) {
    return (double)layer->in_features * (double)layer->out_features * (double)dw_layer_matrices(layer);
}

static const struct {
    const char *name;
    int bytes;
} dtypes[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float64", 8}, {"int8", 1}, {"uint8", 1}};

int dw_dtype_bytes(const char *dtype) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dw_or_empty(dtype), dtypes[i].name) == 0) return dtypes[i].bytes;
    return 4;
}

bool dw_dtype_converts(const char *dtype) {
    for (size_t i = 0; i < 3; i++)
        if (strcmp(dw_or_empty(dtype), dtypes[i].name) == 0) return true;
    return false;
}

void dw_choose_forms(const dw_layer *layer, const dw_settings *settings, dw_forms *input, dw_forms *gradient,
                     dw_forms *weight) {
    bool data = !settings->inference && !layer->no_input_gradient, own = !settings->inference && !layer->frozen;
    /* Row-wise for the product whose reduction runs along the rows, transposed for the one that runs across. */
    *input = own ? DW_FORMS_BOTH : DW_FORMS_ROW;
    *weight = data ? DW_FORMS_BOTH : DW_FORMS_ROW;
    *gradient = (dw_forms)((data ? DW_FORMS_ROW : 0) | (own ? DW_FORMS_TRANSPOSED : 0));
}

static int form_count(dw_forms forms) {
    return (forms & DW_FORMS_ROW ? 1 : 0) + (forms & DW_FORMS_TRANSPOSED ? 1 : 0);
}

/* ms to write FP8 forms of that many elements; `read` bytes of each are read for it. On the CPU each form is decoded
 * again, into FP32. */
static double quantize_ms(const dw_settings *settings, double elements, int read, dw_forms forms) {
    int count = form_count(forms);
    if (count == 0 || elements <= 0) return 0;
    const dw_device_facts *facts = &settings->facts;
    double rate = dw_rate_of(facts, count == 2 ? DW_RATE_QUANTIZE_BOTH : DW_RATE_QUANTIZE_ONE);
    double ms = 1e3 * elements * (read + count) / rate;
    if (settings->target == DW_FAMILY_CPU) ms += 5e3 * elements * count / dw_rate_of(facts, DW_RATE_DECODE);
    return ms / settings->cpu_scale;
}

static dw_products products(const dw_layer *layer, const dw_settings *settings, dw_format format) {
    dw_products ms =
        dw_products_ms(&settings->facts, format, dw_layer_rows(layer, settings), (double)layer->out_features,
                       (double)layer->in_features, (double)dw_layer_matrices(layer));
    ms.forward /= settings->cpu_scale;
    ms.data = settings->inference || layer->no_input_gradient ? 0 : ms.data / settings->cpu_scale;
    ms.weight = settings->inference || layer->frozen ? 0 : ms.weight / settings->cpu_scale;
    return ms;
}

static void close_cost(dw_cost *cost, const dw_settings *settings, dw_format format, double runs, bool known) {
    double part = settings->inference ? 1.0 / 3 : 1; /* of the host's work, which was measured for both directions */
    cost->host_ms = part * runs * dw_evidence_value(&settings->facts, DW_EVIDENCE_HOST, format);
    double device = cost->forward_ms + cost->backward_ms;
    cost->alone_ms = device > cost->host_ms ? device : cost->host_ms;
    cost->known = known;
}

/* Elements of the input of all matrices together, once for each time it runs. */
static double input_elements(const dw_layer *layer, const dw_settings *settings) {
    return dw_layer_rows(layer, settings) * (double)dw_layer_matrices(layer) * (double)layer->in_features;
}

/* Bytes as a whole number; what is absurd stays within what sums can hold. */
static int64_t whole(double bytes) {
    return bytes < 1e15 ? (int64_t)bytes : (int64_t)1e15;
}

static int64_t weight_bytes(const dw_layer *layer, const dw_settings *settings) {
    int copies = 1 + (settings->inference || layer->frozen ? 0 : 1); /* the weight and its gradient */
    return whole((double)layer->parameters * copies * dw_dtype_bytes(layer->dtype));
}

static dw_cost product_full(const dw_layer *layer, const dw_settings *settings) {
    dw_cost cost = {.weight_bytes = weight_bytes(layer, settings)};
    dw_products ms = products(layer, settings, DW_FORMAT_FULL);
    cost.forward_ms = ms.forward;
    cost.backward_ms = ms.data + ms.weight;
    if (!settings->inference && !layer->frozen && layer->shares_input < 0)
        cost.saved_bytes = whole(input_elements(layer, settings) * dw_dtype_bytes(layer->dtype));
    close_cost(&cost, settings, DW_FORMAT_FULL, dw_layer_runs(layer), ms.forward > 0);
    return cost;
}

static int64_t with_scales(double elements, const dw_settings *settings, int forms) {
    int block = settings->block == DW_BLOCK_1X32 ? 32 : 128, scale = settings->target == DW_FAMILY_HOPPER ? 4 : 1;
    return whole(elements * forms * (1 + (double)scale / block));
}

static dw_cost product_candidate(const dw_layer *layer, const dw_settings *settings, dw_neighbours neighbours) {
    dw_cost cost = {.weight_bytes = weight_bytes(layer, settings)};
    dw_forms input, gradient, weight;
    dw_choose_forms(layer, settings, &input, &gradient, &weight);
    double inputs = input_elements(layer, settings), weights = dw_layer_weights(layer);
    double outputs = inputs / (double)layer->in_features * (double)layer->out_features;
    int bytes = dw_dtype_bytes(layer->dtype);
    dw_products ms = products(layer, settings, DW_FORMAT_QUANTIZED);
    double x =
        neighbours.input_quantized ? 0 : quantize_ms(settings, inputs, neighbours.input_fused ? 0 : bytes, input);
    double w = quantize_ms(settings, weights, bytes, weight), dy = quantize_ms(settings, outputs, bytes, gradient);
    cost.quantize_ms = x + w + dy;
    cost.forward_ms = ms.forward + x + w;
    cost.backward_ms = ms.data + ms.weight + dy;
    cost.weight_bytes += with_scales(weights, settings, form_count(weight));
    if (!settings->inference && !layer->frozen && !neighbours.input_quantized)
        cost.saved_bytes = with_scales(inputs, settings, 1); /* its transposed form, in place of the input */
    close_cost(&cost, settings, DW_FORMAT_QUANTIZED, dw_layer_runs(layer), ms.forward > 0);
    return cost;
}

/* ---- what is bound by memory ----
 *
 * Bytes read and written for an element, forward and backward, and bytes kept in between: `plain` as frameworks compose
 * it from elementwise kernels over BF16, with FP32 inside (an RMSNorm of transformers: cast 2+4, square 4+4, mean 4,
 * product 4+4, cast 4+2, weight 2+2; backward about twice that; it keeps the FP32 input and both BF16 factors), `fused`
 * as the library's kernels move it. */
typedef struct traffic {
    double forward, backward, kept;
} traffic;

static const struct {
    dw_layer_kind kind;
    traffic plain, fused;
    dw_rate rates[2];
} streams[] = {
    {DW_LAYER_NORM, {32, 64, 8}, {6, 6, 2}, {DW_RATE_NORM, DW_RATE_NORM_BACKWARD}},
    {DW_LAYER_GATED_MLP, {10, 22, 6}, {6, 10, 4}, {DW_RATE_GATED, DW_RATE_GATED_BACKWARD}},
    {DW_LAYER_LOSS, {18, 14, 10}, {2, 4, 2}, {DW_RATE_LOSS, DW_RATE_LOSS_BACKWARD}},
    {DW_LAYER_EMBEDDING, {4, 4, 0}, {4, 4, 0}, {DW_RATE_COPY, DW_RATE_COPY}},
};

static dw_cost memory_bound(const dw_layer *layer, const dw_settings *settings, bool fused) {
    dw_cost cost = {.weight_bytes = weight_bytes(layer, settings)};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        if (streams[i].kind != layer->kind) continue;
        const traffic *bytes = fused ? &streams[i].fused : &streams[i].plain;
        double forward = dw_rate_of(&settings->facts, fused ? streams[i].rates[0] : DW_RATE_COPY);
        double backward = dw_rate_of(&settings->facts, fused ? streams[i].rates[1] : DW_RATE_COPY);
        double elements = input_elements(layer, settings);
        cost.forward_ms = 1e3 * elements * bytes->forward / forward / settings->cpu_scale;
        cost.alone_ms = cost.forward_ms;
        cost.known = layer->in_features > 0;
        if (settings->inference) continue;
        cost.backward_ms = 1e3 * elements * bytes->backward / backward / settings->cpu_scale;
        cost.saved_bytes = whole(elements * bytes->kept);
        cost.alone_ms += cost.backward_ms;
    }
    return cost;
}

/* Causal: each token looks at half of its sequence. Backward takes two and a half times as many operations. */
static dw_cost attention(const dw_layer *layer, const dw_settings *settings) {
    double rate = 1e12 * dw_evidence_value(&settings->facts, DW_EVIDENCE_ATTENTION, DW_FORMAT_FULL);
    dw_cost cost = {0};
    if (rate == 0 || layer->in_features == 0) return cost;
    double flops = 2.0 * dw_layer_rows(layer, settings) * (double)settings->sequence * (double)layer->in_features;
    cost.forward_ms = 1e3 * flops / rate;
    cost.backward_ms = settings->inference ? 0 : 2.5e3 * flops / rate;
    if (!settings->inference) cost.saved_bytes = whole(input_elements(layer, settings) * 2 * 2);
    cost.alone_ms = cost.forward_ms + cost.backward_ms;
    cost.known = true;
    return cost;
}

dw_cost dw_cost_full(const dw_layer *layer, const dw_settings *settings) {
    if (layer->kind == DW_LAYER_ATTENTION) return attention(layer, settings);
    if (!dw_layer_is_product(layer)) return memory_bound(layer, settings, false);
    if (layer->in_features <= 0 || layer->out_features <= 0) return (dw_cost){0};
    return product_full(layer, settings);
}

dw_cost dw_cost_candidate(const dw_layer *layer, const dw_settings *settings, dw_neighbours neighbours) {
    if (!dw_layer_is_product(layer))
        return *dw_or_empty(layer->fused) ? memory_bound(layer, settings, true) : (dw_cost){0};
    if (layer->in_features <= 0 || layer->out_features <= 0 || !dw_layer_is_own(layer) ||
        settings->precision == DW_PRECISION_BF16)
        return (dw_cost){0};
    return product_candidate(layer, settings, neighbours);
}
