/* A plan in words: the cells of its table, the sentences under it, and the aligned text. */
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

const char *const dw_plan_headings[DW_PLAN_COLUMNS] = {"layer",  "type",  "size",   "action",  "precision",
                                                       "blocks", "FLOPs", "ms now", "ms then", "why"};
const bool dw_plan_numeric[DW_PLAN_COLUMNS] = {[6] = true, [7] = true, [8] = true};

static void milliseconds(const dw_cost *cost, dw_text *text) {
    if (cost->known) dw_text_printf(text, "%.3f", cost->forward_ms + cost->backward_ms);
}

void dw_explain_cell(const dw_decision *d, int column, dw_text *text) {
    const dw_layer *layer = d->layer;
    switch (column) {
    case 0: dw_text_puts(text, *dw_or_empty(layer->name) ? layer->name : "(the model)"); break;
    case 1: dw_text_puts(text, dw_or_empty(layer->type)); break;
    case 2:
        if (layer->in_features == 0) break;
        if (dw_layer_matrices(layer) > 1) dw_text_printf(text, "%lld x ", (long long)dw_layer_matrices(layer));
        dw_text_printf(text, "%lld", (long long)layer->in_features);
        if (layer->out_features) dw_text_printf(text, " -> %lld", (long long)layer->out_features);
        break;
    case 3: dw_text_puts(text, dw_action_name(d->action)); break;
    case 4: dw_text_puts(text, d->precision); break;
    case 5:
        if (*d->block) dw_text_printf(text, "%s, %s", d->block, d->weight_block);
        break;
    case 6:
        if (d->flops_share > 0) dw_text_printf(text, "%.1f%%", 100 * d->flops_share);
        break;
    case 7: milliseconds(&d->full, text); break;
    case 8: milliseconds(dw_planned_cost(d), text); break;
    default: dw_text_puts(text, d->reason); break;
    }
}

/* Width in characters; control characters become '?', so that a name cannot break the lines. */
static size_t clean(char *text, size_t length) {
    size_t width = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) text[i] = '?';
        if ((c & 0xC0) != 0x80) width++;
    }
    return width;
}

/* A text out of a file or a model. */
static void puts_clean(dw_text *text, const char *string) {
    size_t begin = text->length;
    dw_text_puts(text, string);
    if (!text->failed) clean(text->bytes + begin, text->length - begin);
}

/* ---- the sentences ---- */

static void count_types(const dw_plan *plan, dw_action action, const char *intro, dw_text *text) {
    size_t count = plan->model->layer_count;
    bool first = true;
    for (size_t i = 0; i < count; i++) {
        const dw_decision *d = &plan->decisions[i];
        if (d->action != action) continue;
        const char *type = dw_or_empty(d->layer->type);
        size_t before = 0, all = 0;
        for (size_t j = 0; j < count; j++) {
            const dw_decision *other = &plan->decisions[j];
            bool same = other->action == action && strcmp(dw_or_empty(other->layer->type), type) == 0;
            all += same;
            before += same && j < i;
        }
        if (before) continue;
        dw_text_printf(text, "%s%zu x %s", first ? intro : ", ", all, type);
        first = false;
    }
    if (!first) dw_text_puts(text, ".\n");
}

static void predictions(const dw_plan_summary *s, dw_text *text) {
    char tokens[32];
    if (s->full_ms <= s->optimizer_ms || s->planned_ms <= 0) return;
    dw_text_printf(text,
                   "Predicted for %s tokens a pass on %s%s: %.4g ms -> %.4g ms (%.2fx) and %.4g GiB -> %.4g GiB at the "
                   "peak, for the "
                   "listed layers",
                   dw_grouped_digits(s->tokens, tokens), s->facts->title, s->facts->measured ? "" : " (not measured)",
                   s->full_ms, s->planned_ms, s->full_ms / s->planned_ms, (double)s->full_bytes / (1 << 30),
                   (double)s->planned_bytes / (1 << 30));
    if (s->optimizer_ms > 0) dw_text_printf(text, " and an AdamW step (%.3g ms)", s->optimizer_ms);
    dw_text_puts(text, "; what else the model computes is in neither.\n");
    if (s->planned_host_ms > s->planned_ms)
        dw_text_printf(text,
                       "The host needs %.3g ms for these layers, more than the device: use larger batches, CUDA graphs "
                       "or torch.compile.\n",
                       s->planned_host_ms);
}

void dw_explain_summary(const dw_plan *plan, dw_text *text) {
    dw_plan_summary s;
    dw_plan_summarize(plan, &s);
    char number[32];
    puts_clean(text, s.model);
    dw_text_printf(text, ": %zu of %zu layers converted to %s", s.converted, s.converted + s.kept, s.precision);
    if (plan->settings.precision != DW_PRECISION_BF16)
        dw_text_printf(text, " (E4M3, %s scales, blocks %s, weights %s)",
                       plan->settings.precision == DW_PRECISION_FP8 ? "FP32" : s.rounding, s.block, s.weight_block);
    dw_text_printf(text, ", %zu left alone.\n", s.kept);
    double share = s.parameters > 0 ? 100.0 * (double)s.converted_parameters / (double)s.parameters : 0;
    dw_text_printf(text,
                   "%.1f%% of the linear layers' FLOPs and %.1f%% of the %s parameters are in converted layers; target "
                   "%s.\n",
                   100 * s.flops_share, share, dw_grouped_digits(s.parameters, number), s.target);
    count_types(plan, DW_ACTION_FUSE, "Fused with the quantization around them: ", text);
    count_types(plan, DW_ACTION_ADAPT, "Called in their fastest form: ", text);
    predictions(&s, text);
    for (size_t i = 0; i < plan->note_count; i++) {
        puts_clean(text, plan->notes[i]);
        dw_text_puts(text, "\n");
    }
}

/* ---- the table ---- */

typedef struct cell {
    size_t begin, length, width;
} cell;

static void pad(dw_text *text, size_t count) {
    while (count--)
        dw_text_append(text, " ", 1);
}

static void write_line(const dw_text *content, const cell *cells, const size_t *widths, dw_text *text) {
    size_t gap = 0; /* spaces that are owed: none at the end of a line */
    for (int column = 0; column < DW_PLAN_COLUMNS; column++) {
        const cell *c = &cells[column];
        size_t missing = widths[column] - c->width, before = dw_plan_numeric[column] ? missing : 0;
        if (c->length) {
            pad(text, gap + before);
            dw_text_append(text, content->bytes + c->begin, c->length);
            gap = missing - before + 2;
        } else {
            gap += widths[column] + 2;
        }
    }
    dw_text_append(text, "\n", 1);
}

static void render(const dw_plan *plan, size_t line, dw_text *content, cell *cells, size_t *widths) {
    for (int column = 0; column < DW_PLAN_COLUMNS; column++) {
        cell *c = &cells[column];
        c->begin = content->length;
        if (line == 0)
            dw_text_puts(content, dw_plan_headings[column]);
        else
            dw_explain_cell(&plan->decisions[line - 1], column, content);
        if (content->failed) return;
        c->length = content->length - c->begin;
        c->width = c->length ? clean(content->bytes + c->begin, c->length) : 0;
        if (c->width > widths[column]) widths[column] = c->width;
    }
}

void dw_explain_text(const dw_plan *plan, dw_text *text) {
    size_t lines = plan->model->layer_count + 1, widths[DW_PLAN_COLUMNS] = {0};
    cell *cells = calloc(lines * DW_PLAN_COLUMNS, sizeof *cells);
    dw_text content = {0};
    for (size_t i = 0; cells && i < lines; i++)
        render(plan, i, &content, &cells[i * DW_PLAN_COLUMNS], widths);
    if (!cells || content.failed)
        text->failed = true;
    else
        for (size_t i = 0; i < lines; i++)
            write_line(&content, &cells[i * DW_PLAN_COLUMNS], widths, text);
    free(cells);
    dw_text_free(&content);
    dw_text_append(text, "\n", 1);
    dw_explain_summary(plan, text);
}

dw_status dw_plan_explain(const dw_plan *plan, dw_plan_format format, char **text) {
    static void (*const writers[DW_PLAN_FORMAT_COUNT])(const dw_plan *, dw_text *) = {dw_explain_text, dw_explain_json,
                                                                                      dw_explain_html};
    if (!plan || !text || (unsigned)format >= DW_PLAN_FORMAT_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "expected a plan, a format from 0 to 2 and the address of a text");
    dw_text written = {0};
    writers[format](plan, &written);
    dw_text_append(&written, "", 1);
    if (written.failed) {
        dw_text_free(&written);
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the text of the plan");
    }
    *text = written.bytes;
    return DW_OK;
}

void dw_plan_text_free(char *text) {
    free(text);
}
