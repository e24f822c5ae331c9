/* deepwell bench: every CPU kernel of the table against memcpy. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_case.h"
#include "signals.h"

static const char help[] =
    "Usage: deepwell bench [FILTER] [OPTIONS]\n"
    "\n"
    "Measures every available CPU kernel on every source dtype, with E4M3 elements, rceil rounding and row layout.\n"
    "Each line is the median over calls that take turns with memcpy on as many threads, over buffers larger than\n"
    "the caches (a kernel that is far from memory's speed gets a sixteenth of the rows). GB/s count bytes read and\n"
    "written; \"of memcpy\" is the part of memcpy's GB/s in the same loop.\n"
    "FILTER is part of a kernel's name, or a pattern such as 'quantize_row_*__avx2'.\n"
    "\n"
    "Options:\n"
    "  --size MIB   size of the high-precision matrix in MiB (default 64)\n"
    "  --threads N  CPU threads (default: DEEPWELL_THREADS, else all)\n"
    "  --json       print JSON\n"
    "  -h, --help   print this\n";

static bool serves(uint32_t mask, int value) {
    return mask >> value & 1;
}

typedef struct bench_session {
    bench_state bench;
    const char *filter;
    json_t *rows; /* NULL: print text */
    size_t measured, elsewhere;
} bench_session;

static const char *title_of(const bench_case *one, char text[64]) {
    snprintf(text, 64, one->info.operation == DW_OP_DEQUANTIZE ? "%s<-%s %s" : "%s->%s %s", dw_dtype_name(one->high),
             dw_dtype_name(one->spec.element), dw_block_name(one->spec.block));
    return text;
}

static void report(bench_session *session, const bench_case *one, const bench_result *result) {
    double rate = bench_rate(result), copy = bench_copy_rate(&session->bench, result);
    char title[64];
    session->measured++;
    if (!session->rows) {
        printf("%-40s  %-20s  %8.3f ms  %8.2f GB/s  memcpy %8.2f GB/s  %5.2f of memcpy\n", one->info.name,
               title_of(one, title), 1e3 * result->seconds, rate, copy, rate / copy);
        fflush(stdout);
        return;
    }
    json_array_append_new(
        session->rows,
        json_pack("{s:s, s:s, s:s?, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:f, s:f, s:f, s:f}", "kernel",
                  one->info.name, "operation", dw_operation_name(one->info.operation), "orientation",
                  one->info.operation == DW_OP_QUANTIZE ? dw_orientation_name(one->orientation) : NULL, "high",
                  dw_dtype_name(one->high), "element", dw_dtype_name(one->spec.element), "block",
                  dw_block_name(one->spec.block), "rounding", dw_rounding_name(one->spec.rounding), "layout",
                  dw_scale_layout_name(one->spec.layout), "rows", (json_int_t)result->rows, "cols",
                  (json_int_t)result->cols, "bytes", (json_int_t)result->traffic, "repetitions", result->repetitions,
                  "milliseconds", 1e3 * result->seconds, "gb_per_s", rate, "memcpy_gb_per_s", copy,
                  "fraction_of_memcpy", rate / copy));
}

/* The combinations of one kernel with one dtype on the high-precision side. */
static dw_status run_kernel(bench_session *session, bench_case one) {
    for (int block = 0; block < DW_BLOCK_COUNT; block++) {
        for (int orientation = 0; orientation < DW_ORIENT_COUNT; orientation++) {
            bool quantize = one.info.operation == DW_OP_QUANTIZE;
            if (!serves(one.info.blocks, block)) continue;
            if (quantize ? !serves(one.info.orientations, orientation) : orientation != DW_ORIENT_ROW) continue;
            one.spec.block = (dw_block)block;
            one.orientation = (dw_orientation)orientation;
            bench_result result;
            dw_status status = bench_run(&session->bench, &one, &result);
            if (status != DW_OK) return status;
            report(session, &one, &result);
            if (cli_signal()) return DW_ERROR_CANCELLED;
        }
    }
    return DW_OK;
}

static dw_status run_all(bench_session *session) {
    static const dw_dtype highs[] = {DW_BF16, DW_F16, DW_F32};
    dw_context *context = session->bench.context;
    for (size_t h = 0; h < sizeof highs / sizeof highs[0]; h++) {
        for (size_t i = 0; i < dw_kernel_count(context); i++) {
            bench_case one = {.kernel = i, .high = highs[h]};
            dw_status status = dw_kernel_get(context, i, &one.info);
            if (status != DW_OK) return status;
            if (!cli_matches(session->filter, one.info.name) || !one.info.available) continue;
            if (strncmp(one.info.target, "sm", 2) == 0) {
                session->elsewhere += h == 0;
                continue;
            }
            if (!serves(one.info.sources, one.high) || !serves(one.info.elements, DW_E4M3)) continue;
            one.spec = (dw_quantize_spec){.element = DW_E4M3, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
            status = run_kernel(session, one);
            if (status != DW_OK) return status;
        }
    }
    return DW_OK;
}

static int print_json(const bench_session *session) {
    dw_cpu_info cpu = {0};
    if (dw_probe_cpu(&cpu) != DW_OK) return cli_library_error();
    json_t *root = json_pack("{s:s, s:s, s:i, s:I, s:i, s:O}", "version", dw_version(), "device", cpu.model, "threads",
                             dw_context_threads(session->bench.context), "size_bytes", (json_int_t)session->bench.bytes,
                             "buffer_sets", session->bench.set_count, "rows", session->rows);
    if (!root || json_array_size(session->rows) != session->measured) {
        json_decref(root);
        return cli_error("out of memory for the report");
    }
    json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
    return CLI_OK;
}

static int finish(const bench_session *session, dw_status status) {
    if (status == DW_ERROR_CANCELLED) {
        cli_error("interrupted");
        return cli_signal_die();
    }
    if (status != DW_OK) return cli_library_error();
    if (session->elsewhere) cli_note("%zu kernels run on a GPU and are measured by make bench-gpu", session->elsewhere);
    if (session->measured == 0 && session->elsewhere == 0)
        return cli_error("no available kernel's name matches \"%s\"; deepwell info lists them",
                         session->filter ? session->filter : "");
    int code = session->rows ? print_json(session) : CLI_OK;
    return cli_finish(code);
}

int cmd_bench(int argc, const char **argv) {
    char *size_text = NULL, *threads_text = NULL;
    int json = 0;
    const struct poptOption table[] = {
        {"size", '\0', POPT_ARG_STRING, &size_text, 0, NULL, NULL},
        {"threads", '\0', POPT_ARG_STRING, &threads_text, 0, NULL, NULL},
        {"json", '\0', POPT_ARG_NONE, &json, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int64_t size = 0, threads = 0;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = cli_expect_operands(&arguments, 0, 1, "at most one FILTER");
    if (code < 0) code = cli_read_number("--size", size_text, 1, 65536, 64, &size);
    if (code < 0) code = cli_read_number("--threads", threads_text, 1, 1024, 0, &threads);
    if (code < 0) {
        bench_session session = {.filter = arguments.count ? arguments.operands[0] : NULL,
                                 .rows = json ? json_array() : NULL};
        cli_signals_catch();
        dw_status status = bench_start((int)threads, size, &session.bench);
        if (status == DW_OK) status = run_all(&session);
        code = finish(&session, status);
        bench_end(&session.bench);
        json_decref(session.rows);
    }
    cli_arguments_free(&arguments);
    free(size_text);
    free(threads_text);
    return code;
}
