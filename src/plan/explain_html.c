/* A plan as one page: summary, a table that sorts when a heading is clicked, bars of time and memory. It loads nothing;
 * every text that comes from the model is escaped. */
#include <string.h>

#include "plan/plan.h"

static const char style[] =
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:#1c2330;"
    "background:#fff}table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;"
    "padding:.3rem .6rem;border-bottom:1px solid #dde3ea;vertical-align:top}th{cursor:pointer;white-space:nowrap}"
    "td.number{text-align:right;font-variant-numeric:tabular-nums}td:first-child{font-family:ui-monospace,monospace}"
    "tr.keep td{color:#68707d}.bars{width:8rem}.bar{height:.45rem;margin:.2rem 0;background:#9aa7b6}"
    ".bar.then{background:#1b7f4d}@media(prefers-color-scheme:dark){body{background:#12161c;color:#dce3ec}"
    "th,td{border-color:#2b333d}tr.keep td{color:#8a94a3}.bar{background:#5b6776}.bar.then{background:#3fb27f}}";

/* Sorts by the data-value of the clicked column's cells, numbers as numbers; a second click turns the order round. */
static const char script[] =
    "for(const head of document.querySelectorAll('th'))head.addEventListener('click',()=>{"
    "const body=document.querySelector('tbody'),column=head.cellIndex,down=head.dataset.down!=='1';"
    "head.dataset.down=down?'1':'0';const value=row=>row.cells[column].dataset.value??row.cells[column].textContent;"
    "const order=(a,b)=>{const x=value(a),y=value(b);"
    "return x!==''&&y!==''&&!isNaN(x)&&!isNaN(y)?x-y:x.localeCompare(y)};"
    "[...body.rows].sort((a,b)=>down?order(a,b):order(b,a)).forEach(row=>body.append(row))});";

static void escape(dw_text *text, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        switch (bytes[i]) {
        case '&': dw_text_puts(text, "&amp;"); break;
        case '<': dw_text_puts(text, "&lt;"); break;
        case '>': dw_text_puts(text, "&gt;"); break;
        case '"': dw_text_puts(text, "&quot;"); break;
        case '\'': dw_text_puts(text, "&#39;"); break;
        default:
            /* No page may hold other control characters than white space. */
            if ((unsigned char)bytes[i] < 0x20 && !strchr("\t\n\r", bytes[i]))
                dw_text_puts(text, "?");
            else
                dw_text_append(text, &bytes[i], 1);
        }
    }
}

typedef struct pair {
    double now, then;
} pair;

static pair times_of(const dw_decision *d) {
    const dw_cost *then = dw_planned_cost(d);
    return (pair){d->full.forward_ms + d->full.backward_ms, then->forward_ms + then->backward_ms};
}

static pair bytes_of(const dw_decision *d) {
    const dw_cost *then = dw_planned_cost(d);
    return (pair){(double)(d->full.weight_bytes + d->full.saved_bytes),
                  (double)(then->weight_bytes + then->saved_bytes)};
}

static double largest(const dw_plan *plan, pair (*of)(const dw_decision *)) {
    double most = 0;
    for (size_t i = 0; i < plan->model->layer_count; i++) {
        pair p = of(&plan->decisions[i]);
        most = p.now > most ? p.now : most;
        most = p.then > most ? p.then : most;
    }
    return most;
}

static void bars(dw_text *text, bool known, pair p, double most, const char *what) {
    if (!known || most <= 0) {
        dw_text_puts(text, "<td data-value=\"\"></td>");
        return;
    }
    dw_text_printf(text,
                   "<td data-value=\"%.6g\"><div class=\"bars\" title=\"%s\"><div class=\"bar\" style=\"width:%.2f%%\">"
                   "</div><div class=\"bar then\" style=\"width:%.2f%%\"></div></div></td>",
                   p.then, what, 100 * p.now / most, 100 * p.then / most);
}

static void row(const dw_decision *d, double most_ms, double most_bytes, dw_text *text) {
    dw_text_printf(text, "<tr class=\"%s\">", dw_action_name(d->action));
    dw_text scratch = {0};
    for (int column = 0; column < DW_PLAN_COLUMNS; column++) {
        scratch.length = 0;
        dw_explain_cell(d, column, &scratch);
        dw_text_puts(text, "<td");
        if (dw_plan_numeric[column]) dw_text_puts(text, " class=\"number\"");
        if (column == 2) dw_text_printf(text, " data-value=\"%.17g\"", dw_layer_weights(d->layer));
        if (column == 6) dw_text_printf(text, " data-value=\"%.17g\"", d->flops_share);
        dw_text_puts(text, ">");
        if (scratch.length) escape(text, scratch.bytes, scratch.length);
        dw_text_puts(text, "</td>");
    }
    text->failed |= scratch.failed;
    dw_text_free(&scratch);
    bars(text, d->full.known, times_of(d), most_ms, "time: now above, then below");
    bars(text, d->full.known, bytes_of(d), most_bytes, "memory: now above, then below");
    dw_text_puts(text, "</tr>\n");
}

void dw_explain_html(const dw_plan *plan, dw_text *text) {
    const char *model = dw_or_empty(plan->model->name);
    dw_text_puts(text, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Deepwell plan for ");
    escape(text, model, strlen(model));
    dw_text_printf(text, "</title><style>%s</style></head>\n<body><h1>Deepwell plan for ", style);
    escape(text, model, strlen(model));
    dw_text_puts(text, "</h1>\n");
    dw_text sentences = {0};
    dw_explain_summary(plan, &sentences);
    size_t begin = 0;
    for (size_t i = 0; i < sentences.length; i++) {
        if (sentences.bytes[i] != '\n') continue;
        dw_text_puts(text, "<p>");
        escape(text, sentences.bytes + begin, i - begin);
        dw_text_puts(text, "</p>\n");
        begin = i + 1;
    }
    text->failed |= sentences.failed;
    dw_text_free(&sentences);
    dw_text_puts(text, "<table><thead><tr>");
    for (int column = 0; column < DW_PLAN_COLUMNS; column++)
        dw_text_printf(text, "<th>%s</th>", dw_plan_headings[column]);
    dw_text_puts(text, "<th>time</th><th>memory</th></tr></thead>\n<tbody>\n");
    double most_ms = largest(plan, times_of), most_bytes = largest(plan, bytes_of);
    for (size_t i = 0; i < plan->model->layer_count; i++)
        row(&plan->decisions[i], most_ms, most_bytes, text);
    dw_text_printf(text, "</tbody></table><script>%s</script></body></html>\n", script);
}
