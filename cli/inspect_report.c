#include "inspect_report.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "selection.h"

enum { NAME_WIDTH_MAX = 60, SHAPE_TEXT = 96 };

static bool is_scale_name_of_pair(const dw_header *header, const dw_file_tensor *tensor) {
    size_t length = strlen(tensor->name), tail = sizeof DW_SCALE_SUFFIX - 1;
    if (length <= tail || strcmp(tensor->name + length - tail, DW_SCALE_SUFFIX) != 0) return false;
    char *name = strndup(tensor->name, length - tail);
    const dw_file_tensor *data = name ? dw_header_find(header, name) : NULL;
    free(name);
    dw_quantize_spec spec;
    return data && dw_record_infer(data, tensor, &spec);
}

void cli_report_add(cli_report *report, size_t shard, const dw_file_tensor *tensor, bool recorded) {
    const dw_header *header = &report->checkpoint->shards[shard].reader->header;
    cli_report_line *line = &report->lines[report->count++];
    *line = (cli_report_line){.tensor = tensor, .shard = shard, .measurable = cli_is_matrix(tensor)};
    dw_quantize_spec spec;
    if (line->measurable) {
        line->kept = cli_kept_by_default(tensor->name);
    } else if (dw_record_infer(tensor, dw_record_scale_of(header, tensor->name), &spec)) {
        line->quantized = true;
        line->origin = dw_record_find(&report->records[shard], tensor->name);
        line->block = recorded && line->origin ? report->records[shard].spec.block : spec.block;
    } else {
        line->scale = is_scale_name_of_pair(header, tensor);
    }
}

static double sqnr(const dw_quantize_stats *stats) {
    return 10 * log10(stats->signal_power / stats->noise_power);
}

static double underflow(const dw_quantize_stats *stats) {
    return stats->nonzero ? 100.0 * (double)stats->underflowed / (double)stats->nonzero : 0;
}

static void format_shape(const dw_file_tensor *tensor, char text[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(text, SHAPE_TEXT, "[");
    for (int i = 0; i < tensor->rank && at < SHAPE_TEXT; i++)
        at += (size_t)snprintf(text + at, SHAPE_TEXT - at, i ? ", %" PRId64 : "%" PRId64, tensor->shape[i]);
    if (at + 2 > SHAPE_TEXT)
        strcpy(text + SHAPE_TEXT - 5, "...]");
    else
        strcpy(text + at, "]");
}

static void format_costs(const cli_report *report, const cli_report_line *line, char costs[32], char note[160]) {
    costs[0] = note[0] = '\0';
    if (line->quantized)
        snprintf(note, 160, "quantized, block %s%s%s", dw_block_name(line->block), line->origin ? ", was " : "",
                 line->origin ? dw_file_dtype_name(line->origin->source) : "");
    else if (line->scale)
        snprintf(note, 160, "scales");
    else if (line->kept)
        snprintf(note, 160, "kept by default: %s", line->kept);
    if (!report->measured || !line->measurable) return;
    const dw_quantize_stats *stats = &line->stats;
    if (stats->noise_power > 0)
        snprintf(costs, 32, "%7.2f  %8.4f%%", sqnr(stats), underflow(stats));
    else
        snprintf(costs, 32, "%7s  %8.4f%%", stats->signal_power > 0 ? "exact" : "-", underflow(stats));
    size_t length = strlen(note);
    if (stats->nonfinite)
        snprintf(note + length, 160 - length, "%s%" PRId64 " in blocks with NaN or infinity", length ? "; " : "",
                 stats->nonfinite);
    length = strlen(note);
    if (stats->saturated)
        snprintf(note + length, 160 - length, "%s%" PRId64 " saturate", length ? "; " : "", stats->saturated);
}

static void print_line(const cli_report *report, const cli_report_line *line, const char *name, int name_width) {
    char shape[SHAPE_TEXT], size[32], costs[32], note[160];
    format_shape(line->tensor, shape);
    format_costs(report, line, costs, note);
    printf("%-*s  %-11s  %-16s  %10s", name_width, name, dw_file_dtype_name(line->tensor->dtype), shape,
           cli_size(line->tensor->end - line->tensor->begin, size));
    if (report->measured && (costs[0] || note[0])) printf("  %-18s", costs);
    printf("%s%s\n", note[0] ? "  " : "", note);
}

/* What quantize did to the checkpoint; the first shard speaks for all. */
static const dw_record *record_of(const cli_report *report, const dw_header **header) {
    *header = report->checkpoint->count ? &report->checkpoint->shards[0].reader->header : NULL;
    return *header && dw_record_present(*header) ? &report->records[0] : NULL;
}

static uint64_t total_bytes(const cli_report *report) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < report->count; i++)
        bytes += report->lines[i].tensor->end - report->lines[i].tensor->begin;
    return bytes;
}

dw_status cli_report_text(const cli_report *report) {
    const dw_header *header;
    const dw_record *record = record_of(report, &header);
    char size[32];
    int name_width = 4;
    for (size_t i = 0; i < report->count; i++) {
        size_t length = strlen(report->lines[i].tensor->name);
        if (length <= NAME_WIDTH_MAX && (int)length > name_width) name_width = (int)length;
    }
    printf("%-*s  %-11s  %-16s  %10s%s\n", name_width, "NAME", "DTYPE", "SHAPE", "SIZE",
           report->measured ? "  SQNR dB  UNDERFLOW" : "");
    size_t shard = 0;
    for (size_t i = 0; i < report->count; i++) {
        const cli_report_line *line = &report->lines[i];
        if (report->checkpoint->index_name && (i == 0 || line->shard != shard)) {
            shard = line->shard;
            printf("%s:\n", report->checkpoint->shards[shard].name);
        }
        char *name = strdup(line->tensor->name);
        if (!name) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory");
        cli_clean(name);
        print_line(report, line, name, name_width);
        free(name);
    }
    printf("%zu tensors in %zu file%s, %s", report->count, report->checkpoint->count,
           report->checkpoint->count == 1 ? "" : "s", cli_size(total_bytes(report), size));
    if (record)
        printf("; quantized to mxfp8, block %s, rounding %s", dw_block_name(record->spec.block),
               dw_rounding_name(record->spec.rounding));
    else if (report->measured)
        printf("; measured for block %s, rounding %s", dw_block_name(report->spec.block),
               dw_rounding_name(report->spec.rounding));
    putchar('\n');
    return DW_OK;
}

static json_t *measurement_json(const cli_report_line *line) {
    const dw_quantize_stats *stats = &line->stats;
    return json_pack("{s:o, s:f, s:I, s:I, s:I, s:f}", "sqnr_db",
                     stats->noise_power > 0 ? json_real(sqnr(stats)) : json_null(), "underflow_percent",
                     underflow(stats), "nonzero", (json_int_t)stats->nonzero, "saturated", (json_int_t)stats->saturated,
                     "nonfinite", (json_int_t)stats->nonfinite, "amax", stats->amax);
}

static json_t *line_json(const cli_report *report, const cli_report_line *line) {
    json_t *shape = json_array();
    for (int i = 0; i < line->tensor->rank; i++)
        json_array_append_new(shape, json_integer(line->tensor->shape[i]));
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:o, s:I}", "name", line->tensor->name, "file",
                  report->checkpoint->shards[line->shard].name, "dtype", dw_file_dtype_name(line->tensor->dtype),
                  "shape", shape, "bytes", (json_int_t)(line->tensor->end - line->tensor->begin));
    if (line->quantized) {
        json_object_set_new(object, "quantized",
                            json_pack("{s:s, s:s?}", "block", dw_block_name(line->block), "source_dtype",
                                      line->origin ? dw_file_dtype_name(line->origin->source) : NULL));
    }
    if (line->scale) json_object_set_new(object, "scale", json_true());
    if (line->measurable)
        json_object_set_new(object, "kept_by_default", line->kept ? json_string(line->kept) : json_null());
    if (report->measured && line->measurable) json_object_set_new(object, "cost", measurement_json(line));
    return object;
}

dw_status cli_report_json(const cli_report *report) {
    const dw_header *header;
    const dw_record *record = record_of(report, &header);
    json_t *tensors = json_array();
    for (size_t i = 0; i < report->count; i++)
        json_array_append_new(tensors, line_json(report, &report->lines[i]));
    json_t *root =
        json_pack("{s:s, s:I, s:I, s:o}", "path", report->checkpoint->path, "files",
                  (json_int_t)report->checkpoint->count, "bytes", (json_int_t)total_bytes(report), "tensors", tensors);
    if (record)
        json_object_set_new(root, "record",
                            json_pack("{s:s?, s:s, s:s, s:s}", "version",
                                      dw_header_metadata(header, "deepwell.version"), "format", "mxfp8", "block",
                                      dw_block_name(record->spec.block), "rounding",
                                      dw_rounding_name(record->spec.rounding)));
    if (report->measured)
        json_object_set_new(root, "measured_for",
                            json_pack("{s:s, s:s, s:s}", "element", dw_dtype_name(report->spec.element), "block",
                                      dw_block_name(report->spec.block), "rounding",
                                      dw_rounding_name(report->spec.rounding)));
    bool complete = root && json_array_size(tensors) == report->count;
    if (complete) {
        json_dumpf(root, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(root);
    return complete ? DW_OK : dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the report");
}
