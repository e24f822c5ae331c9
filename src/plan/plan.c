/* Making a plan, and what can be asked of one. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

static const char *const kinds[DW_LAYER_KIND_COUNT] = {"linear",    "output_head", "router",    "experts",
                                                       "embedding", "norm",        "gated_mlp", "attention",
                                                       "loss",      "adapter",     "other"};

const char *dw_layer_kind_name(dw_layer_kind kind) {
    return (unsigned)kind < DW_LAYER_KIND_COUNT ? kinds[kind] : "?";
}

const char *dw_action_name(dw_action action) {
    static const char *const names[DW_ACTION_COUNT] = {"keep", "convert", "fuse", "adapt"};
    return (unsigned)action < DW_ACTION_COUNT ? names[action] : "?";
}

const char *dw_forms_name(dw_forms forms) {
    static const char *const names[] = {"", "row", "transposed", "both"};
    return (unsigned)forms <= DW_FORMS_BOTH ? names[forms] : "?";
}

const char *dw_plan_text(dw_plan *plan, const char *format, ...) {
    char line[768];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0) return NULL;
    size_t kept = (size_t)length < sizeof line ? (size_t)length : sizeof line - 1;
    return dw_arena_copy(&plan->arena, line, kept);
}

static void note(dw_plan *plan, const char *text) {
    if (text && plan->note_count < sizeof plan->notes / sizeof plan->notes[0]) plan->notes[plan->note_count++] = text;
}

static void add_notes(dw_plan *plan) {
    const dw_settings *settings = &plan->settings;
    for (size_t i = 0; i < plan->model->remark_count; i++)
        note(plan, plan->model->remarks[i]);
    if (settings->device == DW_FAMILY_CPU && settings->precision != DW_PRECISION_BF16)
        note(plan, settings->precision == DW_PRECISION_MXFP8
                       ? "On the CPU this emulates the numerics of MXFP8 exactly; it is not a speed-up."
                       : "On the CPU this emulates the numerics of FP8; it is not a speed-up.");
    if (settings->target == DW_FAMILY_HOPPER && settings->options->block_size == 32)
        note(plan, "Blocks of 32 on Hopper are for numerics studies: its tensor cores gain no speed from them.");
    else if (settings->target == DW_FAMILY_HOPPER && settings->device == DW_FAMILY_CPU)
        note(plan,
             "For weight gradients a Hopper GPU quantizes activations in blocks of 128x128, this emulation in 1x128.");
    if (!settings->facts.measured)
        note(plan, dw_plan_text(plan, "Nothing was measured on %s: its predictions rest on the data sheet (%s).",
                                settings->facts.title, settings->facts.source));
}

static dw_status check_model(const dw_model *model) {
    for (size_t i = 0; i < model->layer_count; i++) {
        const dw_layer *layer = &model->layers[i];
        const char *problem = (unsigned)layer->kind >= DW_LAYER_KIND_COUNT        ? "kind is not known"
                              : layer->in_features < 0 || layer->out_features < 0 ? "a dimension is negative"
                              : layer->in_features > DW_PLAN_LARGEST || layer->out_features > DW_PLAN_LARGEST ||
                                      layer->matrices > DW_PLAN_LARGEST
                                  ? "a dimension is more than 2^40"
                              : layer->parameters < 0 || layer->matrices < 0       ? "a count is negative"
                              : !(layer->runs >= 0) || !(layer->tokens_share >= 0) ? "runs or tokens_share is no number"
                              : layer->shares_input >= (int64_t)i ? "shares_input is not an earlier layer"
                              : layer->input_from >= (int64_t)model->layer_count ? "input_from is not a layer"
                                                                                 : NULL;
        if (problem)
            return dw_fail(DW_ERROR_INVALID_ARGUMENT, "layer %zu ('%.200s') of the model: %s", i,
                           dw_or_empty(layer->name), problem);
    }
    return DW_OK;
}

static dw_status decide_all(dw_plan *plan) {
    const dw_model *model = plan->model;
    plan->decisions = calloc(model->layer_count ? model->layer_count : 1, sizeof *plan->decisions);
    if (!plan->decisions) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the plan");
    double total = 0;
    for (size_t i = 0; i < model->layer_count; i++) {
        const dw_layer *layer = &model->layers[i];
        if (dw_layer_is_product(layer)) total += dw_layer_work(layer);
    }
    for (size_t i = 0; i < model->layer_count; i++)
        DW_TRY(dw_decide(plan, i, total));
    add_notes(plan);
    return DW_OK;
}

dw_status dw_plan_create(const dw_model *model, const dw_plan_options *options, dw_plan **plan) {
    if (!model || !options || !plan)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "model, options or plan is NULL; pass all three");
    dw_settings settings;
    DW_TRY(dw_settings_read(options, &settings));
    DW_TRY(check_model(model));
    DW_TRY(dw_patterns_check(model, options));
    dw_plan *made = calloc(1, sizeof *made);
    if (!made) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the plan");
    made->model = model;
    made->settings = settings;
    dw_status status = decide_all(made);
    if (status != DW_OK) {
        dw_plan_destroy(made);
        return status;
    }
    *plan = made;
    return DW_OK;
}

void dw_plan_destroy(dw_plan *plan) {
    if (!plan) return;
    dw_arena_clear(&plan->arena);
    free(plan->decisions);
    free(plan);
}

size_t dw_plan_decision_count(const dw_plan *plan) {
    return plan->model->layer_count;
}

const dw_decision *dw_plan_decision(const dw_plan *plan, size_t index) {
    return index < plan->model->layer_count ? &plan->decisions[index] : NULL;
}

size_t dw_plan_note_count(const dw_plan *plan) {
    return plan->note_count;
}

const char *dw_plan_note(const dw_plan *plan, size_t index) {
    return index < plan->note_count ? plan->notes[index] : NULL;
}

/* AdamW with two states of the weight's type: weight, gradient and states are read, all but the gradient written. */
static void add_optimizer(const dw_plan *plan, dw_plan_summary *summary) {
    double bytes = 0, states = 0;
    for (size_t i = 0; i < plan->model->layer_count; i++) {
        const dw_layer *layer = &plan->model->layers[i];
        if (layer->frozen) continue;
        bytes += 7.0 * (double)layer->parameters * dw_dtype_bytes(layer->dtype);
        states += 2.0 * (double)layer->parameters * dw_dtype_bytes(layer->dtype);
    }
    double ms = 1e3 * bytes / dw_rate_of(&plan->settings.facts, DW_RATE_COPY) / plan->settings.cpu_scale;
    summary->optimizer_ms = ms;
    summary->full_ms += ms;
    summary->planned_ms += ms;
    summary->full_bytes += states < 1e18 ? (int64_t)states : 0;
    summary->planned_bytes += states < 1e18 ? (int64_t)states : 0;
}

/* Memory at its peak: what stays, and the larger of what forward keeps and what backward makes of it, since one goes as
 * the other comes. */
typedef struct memory {
    int64_t stays, saved, gradients;
} memory;

static int64_t peak(const memory *m) {
    return m->stays + (m->saved > m->gradients ? m->saved : m->gradients);
}

static void add_memory(const dw_layer *layer, const dw_cost *cost, bool inference, memory *m) {
    int64_t bytes = layer->parameters < (int64_t)1e14 ? layer->parameters * dw_dtype_bytes(layer->dtype) : 0;
    int64_t gradient = inference || layer->frozen ? 0 : bytes;
    m->stays += cost->weight_bytes - gradient;
    m->saved += cost->saved_bytes;
    m->gradients += gradient;
}

static void add_decision(const dw_decision *d, dw_plan_summary *summary) {
    const dw_cost *planned = dw_planned_cost(d);
    summary->converted += d->action == DW_ACTION_CONVERT;
    summary->kept += d->action == DW_ACTION_KEEP && dw_layer_is_candidate(d->layer);
    summary->fused += d->action == DW_ACTION_FUSE;
    summary->adapted += d->action == DW_ACTION_ADAPT;
    if (d->action == DW_ACTION_CONVERT) {
        summary->converted_parameters += d->layer->parameters;
        summary->flops_share += d->flops_share;
    }
    if (!d->full.known) {
        summary->unpredicted++;
        return;
    }
    summary->full_ms += d->full.forward_ms + d->full.backward_ms;
    summary->planned_ms += planned->forward_ms + planned->backward_ms;
    summary->full_host_ms += d->full.host_ms;
    summary->planned_host_ms += planned->host_ms;
}

void dw_plan_summarize(const dw_plan *plan, dw_plan_summary *summary) {
    const dw_settings *settings = &plan->settings;
    *summary = (dw_plan_summary){.model = dw_or_empty(plan->model->name),
                                 .precision = dw_precision_name(settings->precision),
                                 .target = dw_family_name(settings->target),
                                 .strategy = dw_strategy_name(settings->strategy),
                                 .device = dw_family_name(settings->device),
                                 .block = dw_block_name(settings->block),
                                 .weight_block = dw_block_name(settings->weight_block),
                                 .element = dw_dtype_name(DW_E4M3),
                                 .rounding = dw_rounding_name(DW_ROUND_RCEIL),
                                 .facts = &settings->facts,
                                 .tokens = settings->tokens,
                                 .sequence = settings->sequence,
                                 .parameters = plan->model->parameters};
    if (settings->options->wish_count) summary->strategy = "mapping";
    memory full = {0}, planned = {0};
    for (size_t i = 0; i < plan->model->layer_count; i++) {
        const dw_decision *d = &plan->decisions[i];
        add_decision(d, summary);
        if (!d->full.known) continue;
        add_memory(d->layer, &d->full, settings->inference, &full);
        add_memory(d->layer, dw_planned_cost(d), settings->inference, &planned);
    }
    summary->full_bytes = peak(&full);
    summary->planned_bytes = peak(&planned);
    if (!settings->inference) add_optimizer(plan, summary);
}

dw_status dw_plan_expect_conversion(const dw_plan *plan) {
    enum { SHOWN = 3 };
    const dw_model *model = plan->model;
    size_t candidates = 0;
    char listed[600] = "";
    for (size_t i = 0; i < model->layer_count; i++) {
        const dw_decision *d = &plan->decisions[i];
        if (d->action == DW_ACTION_CONVERT) return DW_OK;
        if (d->action != DW_ACTION_KEEP || !dw_layer_is_candidate(d->layer)) continue;
        size_t length = strlen(listed);
        if (candidates++ < SHOWN)
            snprintf(listed + length, sizeof listed - length, "%s%.60s: %.110s", length ? "; " : "",
                     *dw_or_empty(d->layer->name) ? d->layer->name : "(the model)", d->reason);
    }
    if (candidates == 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "nothing to convert: %.100s has no nn.Linear and no type with a registered kernel; use "
                       "deepwell.register_kernel for another module type",
                       dw_or_empty(model->name));
    char more[40] = "";
    if (candidates > SHOWN) snprintf(more, sizeof more, "; and %zu more", candidates - SHOWN);
    return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                   "nothing to convert: all %zu candidate layers of %.100s are kept (%s%s); widen skip, only or "
                   "strategy, or use the model as it is",
                   candidates, dw_or_empty(model->name), listed, more);
}
