/* A plan for programs. docs/plan.md has the schema; "schema" grows when a key changes its meaning or goes. */
#include <math.h>
#include <string.h>

#include "plan/plan.h"

/* `"key": ` with what separates it from the member before. */
static void key(dw_text *text, const char *name) {
    char last = text->length ? text->bytes[text->length - 1] : '{';
    dw_text_puts(text, last == '{' || last == '[' ? "" : ", ");
    dw_text_quote(text, name);
    dw_text_puts(text, ": ");
}

static void string(dw_text *text, const char *name, const char *value) {
    key(text, name);
    dw_text_quote(text, dw_or_empty(value));
}

static void number(dw_text *text, const char *name, double value) {
    key(text, name);
    if (isfinite(value))
        dw_text_printf(text, "%.17g", value);
    else
        dw_text_puts(text, "null");
}

static void integer(dw_text *text, const char *name, int64_t value) {
    key(text, name);
    dw_text_printf(text, "%lld", (long long)value);
}

static void boolean(dw_text *text, const char *name, bool value) {
    key(text, name);
    dw_text_puts(text, value ? "true" : "false");
}

static void strings(dw_text *text, const char *name, const char *const *values, size_t count) {
    key(text, name);
    dw_text_puts(text, "[");
    for (size_t i = 0; i < count; i++) {
        if (i) dw_text_puts(text, ", ");
        dw_text_quote(text, values[i]);
    }
    dw_text_puts(text, "]");
}

static void cost(dw_text *text, const char *name, const dw_cost *c) {
    key(text, name);
    if (!c->known) {
        dw_text_puts(text, "null");
        return;
    }
    dw_text_puts(text, "{");
    number(text, "forward_ms", c->forward_ms);
    number(text, "backward_ms", c->backward_ms);
    number(text, "quantize_ms", c->quantize_ms);
    number(text, "host_ms", c->host_ms);
    number(text, "alone_ms", c->alone_ms);
    integer(text, "weight_bytes", c->weight_bytes);
    integer(text, "saved_bytes", c->saved_bytes);
    dw_text_puts(text, "}");
}

static void layer_keys(dw_text *text, const dw_layer *layer) {
    string(text, "name", layer->name);
    string(text, "kind", layer->type);
    string(text, "role", dw_layer_kind_name(layer->kind));
    integer(text, "in_features", layer->in_features);
    integer(text, "out_features", layer->out_features);
    integer(text, "matrices", dw_layer_matrices(layer));
    integer(text, "parameters", layer->parameters);
    string(text, "dtype", layer->dtype);
    number(text, "runs", dw_layer_runs(layer));
    boolean(text, "frozen", layer->frozen);
    boolean(text, "transposed", layer->transposed);
    key(text, "shares_input");
    dw_text_printf(text, layer->shares_input < 0 ? "null" : "%lld", (long long)layer->shares_input);
    key(text, "input_from");
    dw_text_printf(text, layer->input_from < 0 ? "null" : "%lld", (long long)layer->input_from);
}

static void decision(dw_text *text, const dw_decision *d) {
    dw_text_puts(text, "{");
    layer_keys(text, d->layer);
    string(text, "action", dw_action_name(d->action));
    string(text, "reason", d->reason);
    string(text, "precision", d->precision);
    string(text, "block", d->block);
    string(text, "weight_block", d->weight_block);
    string(text, "kernel", d->kernel);
    string(text, "input_forms", dw_forms_name(d->input_forms));
    string(text, "gradient_forms", dw_forms_name(d->gradient_forms));
    string(text, "weight_forms", dw_forms_name(d->weight_forms));
    number(text, "flops_share", d->flops_share);
    boolean(text, "measured", d->measured);
    cost(text, "full", &d->full);
    cost(text, "candidate", &d->candidate);
    key(text, "tile");
    if (d->tile.rows)
        dw_text_printf(
            text, "{\"rows\": %d, \"cols\": %d, \"depth\": %d, \"stages\": %d, \"accumulators\": %d, \"ctas\": %d}",
            d->tile.rows, d->tile.cols, d->tile.depth, d->tile.stages, d->tile.accumulators, d->tile.ctas);
    else
        dw_text_puts(text, "null");
    dw_text_puts(text, "}");
}

static void wanted(dw_text *text, const dw_plan *plan, const dw_plan_summary *s) {
    const dw_plan_options *options = plan->settings.options;
    string(text, "model", s->model);
    string(text, "precision", s->precision);
    string(text, "target", s->target);
    string(text, "strategy", s->strategy);
    string(text, "device", s->device);
    key(text, "forced");
    dw_text_puts(text, "[");
    for (size_t i = 0; i < options->wish_count; i++) {
        dw_text_puts(text, i ? ", [" : "[");
        dw_text_quote(text, options->wishes[i].pattern);
        dw_text_puts(text, ", ");
        dw_text_quote(text, options->wishes[i].decision);
        dw_text_puts(text, "]");
    }
    dw_text_puts(text, "]");
    key(text, "block_size");
    dw_text_printf(text, options->block_size ? "%d" : "null", options->block_size);
    strings(text, "skip", options->skip, options->skip_count);
    strings(text, "only", options->only, options->only_count);
    boolean(text, "inference", options->inference);
    key(text, "recipe");
    dw_text_puts(text, "{");
    string(text, "element", s->element);
    string(text, "rounding", s->rounding);
    string(text, "activation_block", s->block);
    string(text, "weight_block", s->weight_block);
    dw_text_puts(text, "}");
}

static void predicted(dw_text *text, const dw_plan_summary *s) {
    key(text, "predicted");
    dw_text_puts(text, "{");
    string(text, "gpu", s->facts->name);
    string(text, "title", s->facts->title);
    string(text, "source", s->facts->source);
    boolean(text, "measured", s->facts->measured);
    integer(text, "tokens", s->tokens);
    integer(text, "sequence", s->sequence);
    number(text, "full_ms", s->full_ms);
    number(text, "planned_ms", s->planned_ms);
    number(text, "optimizer_ms", s->optimizer_ms);
    number(text, "full_host_ms", s->full_host_ms);
    number(text, "planned_host_ms", s->planned_host_ms);
    integer(text, "full_bytes", s->full_bytes);
    integer(text, "planned_bytes", s->planned_bytes);
    integer(text, "layers_without", (int64_t)s->unpredicted);
    dw_text_puts(text, "}");
}

void dw_explain_json(const dw_plan *plan, dw_text *text) {
    dw_plan_summary s;
    dw_plan_summarize(plan, &s);
    dw_text_puts(text, "{");
    string(text, "schema", "deepwell.plan/1");
    wanted(text, plan, &s);
    integer(text, "parameters", s.parameters);
    integer(text, "converted", (int64_t)s.converted);
    integer(text, "kept", (int64_t)s.kept);
    integer(text, "fused", (int64_t)s.fused);
    integer(text, "adapted", (int64_t)s.adapted);
    number(text, "flops_share", s.flops_share);
    predicted(text, &s);
    strings(text, "notes", plan->notes, plan->note_count);
    key(text, "decisions");
    dw_text_puts(text, "[\n");
    for (size_t i = 0; i < plan->model->layer_count; i++) {
        dw_text_puts(text, i ? ",\n" : "");
        decision(text, &plan->decisions[i]);
    }
    dw_text_puts(text, "\n]}\n");
}
