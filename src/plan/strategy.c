/* What happens to each layer, and why: one predicate for each reason, the first that speaks decides. */
#include <stdio.h>
#include <string.h>

#include "plan/plan.h"

enum { SMALLEST_EXTENT = 32, HOPPER_MULTIPLE = 16, BLACKWELL_MULTIPLE = 32 };

/* The smallest layer for which FP8 was measured to win on Hopper, forward and backward of it alone (4096 x 1024, on an
 * H100, 2026-11-23; bench/results/h100/linear.json). 2048 x 2048 has as many weights and loses. */
static const int64_t hopper_smallest_wide = 4096, hopper_smallest_weight = (int64_t)4096 * 1024;

/* Where the time of the two precisions crosses is looked for up to this many times as many tokens, or rows and columns.
 */
enum { CROSSOVER_TOKENS = 64, CROSSOVER_SIZE = 32 };

typedef struct question {
    dw_plan *plan;
    const dw_layer *layer;
    const dw_plan_wish *wish;
    dw_decision *decision;
    dw_sample *sample;
} question;

const char *dw_grouped_digits(int64_t number, char buffer[32]) {
    char plain[24];
    int length = snprintf(plain, sizeof plain, "%lld", (long long)number), at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && plain[i - 1] != '-' && (length - i) % 3 == 0) buffer[at++] = ',';
        buffer[at++] = plain[i];
    }
    buffer[at] = '\0';
    return buffer;
}

/* ---- where it would win ---- */

static bool wins_at(const question *q, double tokens_factor, double size_factor) {
    dw_settings settings = q->plan->settings;
    dw_layer layer = *q->layer;
    settings.tokens = (int64_t)((double)settings.tokens * tokens_factor);
    layer.in_features = (int64_t)((double)layer.in_features * size_factor);
    layer.out_features = (int64_t)((double)layer.out_features * size_factor);
    dw_cost full = dw_cost_full(&layer, &settings);
    dw_cost candidate = dw_cost_candidate(&layer, &settings, (dw_neighbours){0});
    return dw_cost_wins(&full, &candidate);
}

/* The smallest factor, up to `most`, at which it wins; 0 when there is none. */
static double crossover(const question *q, bool by_tokens, double most) {
    double low = 1, high = 1;
    do {
        low = high;
        high *= 2;
        if (high > most) return 0;
    } while (!(by_tokens ? wins_at(q, high, 1) : wins_at(q, 1, high)));
    for (int i = 0; i < 12; i++) {
        double middle = (low + high) / 2;
        if (by_tokens ? wins_at(q, middle, 1) : wins_at(q, 1, middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* "; it would win from about ...": what had to grow for FP8 to win. */
static const char *find_crossover(const question *q) {
    char first[32], second[32];
    double factor = crossover(q, true, CROSSOVER_TOKENS);
    if (factor > 0) {
        int64_t tokens = (int64_t)((double)q->plan->settings.tokens * factor + 127) / 128 * 128;
        return dw_plan_text(q->plan, "; it would win from about %s tokens", dw_grouped_digits(tokens, first));
    }
    factor = crossover(q, false, CROSSOVER_SIZE);
    if (factor == 0) return "; it would win at no size";
    int64_t in = (int64_t)((double)q->layer->in_features * factor + 127) / 128 * 128;
    int64_t out = (int64_t)((double)q->layer->out_features * factor + 127) / 128 * 128;
    return dw_plan_text(q->plan, "; a layer of its shape would win from about %s -> %s", dw_grouped_digits(in, first),
                        dw_grouped_digits(out, second));
}

static const char *crossover_text(const question *q) {
    if (!q->sample->crossover) q->sample->crossover = find_crossover(q);
    return q->sample->crossover;
}

/* "0.434 ms converted against 0.331 ms at 8,192 tokens on h100" */
static const char *comparison(const question *q) {
    const dw_decision *d = q->decision;
    char tokens[32];
    return dw_plan_text(q->plan, "%.3g ms converted against %.3g ms at %s tokens on %s", d->candidate.alone_ms,
                        d->full.alone_ms, dw_grouped_digits(q->plan->settings.tokens, tokens),
                        q->plan->settings.facts.name);
}

/* ---- reasons to keep; "" when there is none, NULL when memory is out ---- */

static const char *keep_by_wish(const question *q) {
    const dw_plan_options *options = q->plan->settings.options;
    const char *name = dw_or_empty(q->layer->name);
    if (q->wish && strcmp(q->wish->decision, "keep") == 0) return "the strategy says keep";
    if (dw_first_match(options->skip, options->skip_count, name)) return "named in skip";
    if (options->only_count && !dw_first_match(options->only, options->only_count, name)) return "not named in only";
    return "";
}

static const char *keep_by_kind(const question *q) {
    static const char *const stays[DW_LAYER_KIND_COUNT] = {
        [DW_LAYER_EMBEDDING] = "embedding: a table that is looked up, not multiplied",
        [DW_LAYER_NORM] = "norm: stays in high precision",
        [DW_LAYER_GATED_MLP] = "activation: stays in high precision",
        [DW_LAYER_ATTENTION] = "attention: scores and values stay in high precision",
        [DW_LAYER_LOSS] = "loss: stays in high precision",
    };
    const dw_layer *layer = q->layer;
    const char *shown = dw_or_empty(layer->kind_reason);
    if (!dw_layer_is_product(layer) && dw_layer_is_own(layer)) {
        if (layer->kind != DW_LAYER_OTHER && stays[layer->kind]) return stays[layer->kind];
        return *shown ? shown : "not a part that is known: left alone";
    }
    if (q->wish) return "";
    if (layer->kind == DW_LAYER_OUTPUT_HEAD)
        return dw_plan_text(q->plan, "output head (%s): stays in high precision", shown);
    if (layer->kind == DW_LAYER_ROUTER) return dw_plan_text(q->plan, "router (%s): stays in high precision", shown);
    if (layer->kind == DW_LAYER_ADAPTER)
        return dw_plan_text(q->plan, "low-rank adapter (%s): stays in high precision", shown);
    if (layer->kind != DW_LAYER_EXPERTS) return "";
    if (q->plan->settings.strategy == DW_STRATEGY_DENSE) return "the strategy mxfp8_dense leaves experts alone";
    if (q->plan->settings.strategy == DW_STRATEGY_AUTO && q->plan->settings.device == DW_FAMILY_HOPPER)
        return "experts: this version's grouped FP8 products are in the C library only, no module runs them yet; "
               "strategy "
               "mxfp8_moe plans them converted";
    return "";
}

static const char *keep_by_extent(const question *q) {
    const dw_layer *layer = q->layer;
    dw_family device = q->plan->settings.device;
    int64_t smallest = layer->in_features < layer->out_features ? layer->in_features : layer->out_features;
    if (smallest < SMALLEST_EXTENT)
        return dw_plan_text(q->plan, "too small: a dimension of %lld is less than one block of %d", (long long)smallest,
                            SMALLEST_EXTENT);
    if (device == DW_FAMILY_CPU) return "";
    if (layer->transposed)
        return "its weight is stored [in_features, out_features]; FP8 products on this device take the transpose";
    int multiple = device == DW_FAMILY_HOPPER ? HOPPER_MULTIPLE : BLACKWELL_MULTIPLE;
    const int64_t extents[] = {layer->in_features, layer->out_features};
    for (int i = 0; i < 2; i++)
        if (extents[i] % multiple)
            return dw_plan_text(q->plan, "%s %lld is not a multiple of %d, which FP8 products on %s need",
                                i ? "out_features" : "in_features", (long long)extents[i], multiple,
                                device == DW_FAMILY_HOPPER ? "Hopper" : "Blackwell");
    return "";
}

/* Never slower: a layer is converted where it was measured or is predicted to win, and on Hopper only from the size
 * that was measured. */
static const char *keep_by_time(const question *q) {
    const dw_decision *d = q->decision;
    const dw_layer *layer = q->layer;
    if (q->wish || q->plan->settings.device == DW_FAMILY_CPU || !d->candidate.known || !d->full.known) return "";
    bool wins = dw_cost_wins(&d->full, &d->candidate);
    if (d->measured) {
        if (wins) return "";
        const char *times = comparison(q);
        return times ? dw_plan_text(q->plan, "measured to lose: %s", times) : NULL;
    }
    int64_t wide = layer->in_features > layer->out_features ? layer->in_features : layer->out_features;
    bool unproven = q->plan->settings.device == DW_FAMILY_HOPPER && layer->kind == DW_LAYER_LINEAR &&
                    (wide < hopper_smallest_wide ||
                     (double)layer->in_features * (double)layer->out_features < (double)hopper_smallest_weight);
    if (wins && !unproven) return "";
    const char *times = comparison(q), *end = wins ? "" : crossover_text(q);
    char weights[32];
    if (!times || !end) return NULL;
    if (unproven)
        return dw_plan_text(q->plan,
                            "may lose: FP8 was measured to win on Hopper from %lld in one dimension and %s weights; "
                            "predicted %s%s",
                            (long long)hopper_smallest_wide, dw_grouped_digits(hopper_smallest_weight, weights), times,
                            end);
    return dw_plan_text(q->plan, "predicted to lose: %s%s", times, end);
}

static const char *reason_to_keep(const question *q) {
    const dw_layer *layer = q->layer;
    const dw_settings *settings = &q->plan->settings;
    if (*dw_or_empty(layer->obstacle)) return layer->obstacle;
    const char *reason = keep_by_wish(q);
    if (*reason) return reason;
    if (dw_layer_is_product(layer) && settings->precision == DW_PRECISION_BF16)
        return "precision bf16 quantizes nothing";
    if ((dw_layer_is_product(layer) || !dw_layer_is_own(layer)) && !dw_dtype_converts(layer->dtype))
        return dw_plan_text(q->plan, "its weight is %s; float32, float16 and bfloat16 are converted",
                            dw_or_empty(layer->dtype));
    reason = keep_by_kind(q);
    if (!reason || *reason || !dw_layer_is_own(layer)) return reason;
    reason = keep_by_extent(q);
    if (!reason || *reason) return reason;
    reason = keep_by_time(q);
    q->decision->by_time = reason && *reason;
    return reason;
}

/* Where the emulation differs from the GPU (see the plan's note), it is not called exact. */
static const char *emulation(const question *q) {
    const dw_settings *settings = &q->plan->settings;
    if (settings->target == DW_FAMILY_CPU) return "emulated exactly";
    bool differs = settings->target == DW_FAMILY_HOPPER && settings->block == DW_BLOCK_1X128 && !settings->inference &&
                   !q->layer->frozen;
    return dw_plan_text(q->plan, differs ? "emulates %s, but for the weight gradient's blocks" : "emulates %s exactly",
                        dw_family_name(settings->target));
}

static const char *reason_to_convert(const question *q) {
    const dw_settings *settings = &q->plan->settings;
    if (!dw_layer_is_own(q->layer)) return dw_plan_text(q->plan, "runs the registered kernel %s", q->layer->kernel);
    if (q->wish) return dw_plan_text(q->plan, "the strategy says %s", dw_precision_name(settings->precision));
    if (settings->device == DW_FAMILY_CPU) return emulation(q);
    if (q->decision->measured) {
        const char *times = comparison(q);
        return times ? dw_plan_text(q->plan, "measured to win: %s", times) : NULL;
    }
    if (settings->device == DW_FAMILY_HOPPER) return "FP8 products on this GPU";
    return "block-scaled FP8 products, predicted to win";
}

/* ---- one decision ---- */

static dw_neighbours look_around(const dw_plan *plan, const dw_layer *layer, size_t index) {
    dw_neighbours around = {0};
    if (layer->input_from >= 0) around.input_fused = *dw_or_empty(plan->model->layers[layer->input_from].fused);
    if (layer->shares_input < 0) return around;
    for (size_t i = (size_t)layer->shares_input; i < index; i++) {
        const dw_layer *other = plan->decisions[i].layer;
        bool sharing = i == (size_t)layer->shares_input || other->shares_input == layer->shares_input;
        around.input_quantized |= sharing && plan->decisions[i].action == DW_ACTION_CONVERT;
    }
    return around;
}

static bool same_cost(const dw_layer *a, const dw_layer *b) {
    return a->kind == b->kind && a->in_features == b->in_features && a->out_features == b->out_features &&
           a->matrices == b->matrices && a->tokens_share == b->tokens_share && a->runs == b->runs &&
           a->parameters == b->parameters && a->frozen == b->frozen && a->no_input_gradient == b->no_input_gradient &&
           (a->shares_input < 0) == (b->shares_input < 0) && dw_layer_is_own(a) == dw_layer_is_own(b) &&
           dw_layer_is_reported(a) == dw_layer_is_reported(b) &&
           strcmp(dw_or_empty(a->dtype), dw_or_empty(b->dtype)) == 0;
}

static dw_sample *sample_of(dw_plan *plan, const dw_layer *layer, dw_neighbours around) {
    size_t count = plan->sample_count < DW_PLAN_SAMPLES ? plan->sample_count : DW_PLAN_SAMPLES;
    for (size_t i = 0; i < count; i++) {
        dw_sample *known = &plan->samples[i];
        if (known->neighbours.input_quantized == around.input_quantized &&
            known->neighbours.input_fused == around.input_fused && same_cost(known->layer, layer))
            return known;
    }
    dw_sample *made = &plan->samples[plan->sample_count++ % DW_PLAN_SAMPLES];
    *made = (dw_sample){.layer = layer,
                        .neighbours = around,
                        .full = dw_cost_full(layer, &plan->settings),
                        .candidate = dw_cost_candidate(layer, &plan->settings, around)};
    return made;
}

static void use_measurement(dw_decision *decision, const dw_settings *settings) {
    const dw_layer *layer = decision->layer;
    if (!dw_layer_is_product(layer) || dw_layer_matrices(layer) != 1 || !dw_layer_is_own(layer)) return;
    for (size_t i = 0; i < settings->options->measurement_count; i++) {
        const dw_measurement *m = &settings->options->measurements[i];
        if (m->tokens != settings->tokens || m->in_features != layer->in_features ||
            m->out_features != layer->out_features)
            continue;
        double times[] = {m->full_ms * dw_layer_runs(layer), m->candidate_ms * dw_layer_runs(layer)};
        dw_cost *costs[] = {&decision->full, &decision->candidate};
        for (int way = 0; way < 2; way++) {
            double device = costs[way]->forward_ms + costs[way]->backward_ms;
            double factor = device > 0 ? times[way] / device : 0;
            costs[way]->forward_ms *= factor;
            costs[way]->backward_ms *= factor;
            costs[way]->quantize_ms *= factor;
            costs[way]->alone_ms = times[way];
            costs[way]->known = true;
        }
        decision->measured = true;
        return;
    }
}

static dw_status decide_converted(question *q) {
    dw_decision *d = q->decision;
    const dw_settings *settings = &q->plan->settings;
    d->action = DW_ACTION_CONVERT;
    d->precision = dw_precision_name(settings->precision);
    d->kernel = dw_layer_is_own(q->layer) ? "deepwell" : q->layer->kernel;
    d->reason = reason_to_convert(q);
    if (d->reason && *dw_or_empty(q->layer->note))
        d->reason = dw_plan_text(q->plan, "%s; %s", d->reason, q->layer->note);
    if (!d->reason) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the plan");
    if (!dw_layer_is_own(q->layer)) return DW_OK;
    d->block = dw_block_name(settings->block);
    d->weight_block = dw_block_name(settings->weight_block);
    dw_choose_forms(q->layer, settings, &d->input_forms, &d->gradient_forms, &d->weight_forms);
    double tokens = dw_layer_rows(q->layer, settings), most = (double)DW_PLAN_LARGEST;
    int64_t rows = (int64_t)(tokens < most ? tokens : most);
    if (settings->facts.tmem_columns && rows > 0)
        DW_TRY(dw_mma_tile_choose(rows, q->layer->out_features, &settings->facts, &d->tile));
    return DW_OK;
}

/* What whoever described the model decided. A loss is no module: no pattern names it. */
static bool report(const question *q) {
    const dw_layer *layer = q->layer;
    if (!dw_layer_is_reported(layer) || (layer->kind != DW_LAYER_LOSS && *keep_by_wish(q))) return false;
    bool fused = *dw_or_empty(layer->fused);
    q->decision->action = fused ? DW_ACTION_FUSE : DW_ACTION_ADAPT;
    q->decision->reason = fused ? layer->fused : layer->adapted;
    q->decision->kernel = "deepwell";
    return true;
}

dw_status dw_decide(dw_plan *plan, size_t index, double total_work) {
    const dw_layer *layer = &plan->model->layers[index];
    dw_decision *d = &plan->decisions[index];
    const dw_settings *settings = &plan->settings;
    *d = (dw_decision){.layer = layer,
                       .action = DW_ACTION_KEEP,
                       .precision = dw_or_empty(layer->dtype),
                       .block = "",
                       .weight_block = "",
                       .kernel = ""};
    question q = {plan, layer, dw_first_wish(settings->options, dw_or_empty(layer->name)), d, NULL};
    if (dw_layer_is_product(layer) && total_work > 0) {
        d->flops_share = dw_layer_work(layer) / total_work;
    }
    q.sample = sample_of(plan, layer, look_around(plan, layer, index));
    d->full = q.sample->full;
    d->candidate = q.sample->candidate;
    use_measurement(d, settings);
    if (report(&q)) return DW_OK;
    d->reason = reason_to_keep(&q);
    if (!d->reason) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the plan");
    return *d->reason ? DW_OK : decide_converted(&q);
}
