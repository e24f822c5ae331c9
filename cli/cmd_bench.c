/* deepwell bench: every kernel of the table against memcpy, or against a copy on the GPU it runs on; matrix kernels
 * against the tensor cores' peak and cuBLASLt. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_case.h"
#include "bench_gemm.h"
#include "bench_gpu.h"
#include "signals.h"

static const char help[] =
    "Usage: deepwell bench [FILTER] [OPTIONS]\n"
    "\n"
    "Measures every available kernel on every source dtype, with E4M3 elements, rceil rounding and row layout. Each\n"
    "line is the median over calls that take turns with memcpy on as many threads, over buffers larger than the\n"
    "caches (a CPU kernel that is far from memory's speed gets a sixteenth of the rows). Kernels of a GPU take turns\n"
    "with a copy in its memory. GB/s count bytes read and written; \"of memcpy\", \"of copy\" is the part of the\n"
    "copy's GB/s in the same loop. Matrix kernels run a product that they are meant for, over operands larger than "
    "the\n"
    "cache, in turn with cuBLASLt where that has it; \"of peak\" is the part of what the tensor cores could do at the\n"
    "highest clock.\n"
    "FILTER is part of a kernel's name, or a pattern such as 'quantize_row_*__avx2'.\n"
    "\n"
    "Options:\n"
    "  --size MIB   size of the high-precision matrix in MiB (default 64, on a GPU 256); limits a product's operands\n"
    "  --threads N  CPU threads (default: DEEPWELL_THREADS, else all)\n"
    "  --gpu N      the GPU to use (default: the first that the kernel is for)\n"
    "  --json       print JSON\n"
    "  -h, --help   print this\n";

static bool serves(uint32_t mask, int value) {
    return mask >> value & 1;
}

typedef struct bench_session {
    bench_state bench;
    const char *filter;
    json_t *rows; /* NULL: print text */
    size_t measured;
    int64_t gpu_chosen, gpu_mebibytes; /* -1: any */
    bench_gpu gpu;                     /* the one in use */
} bench_session;

static const char *title_of(const bench_case *one, char text[64]) {
    snprintf(text, 64, one->info.operation == DW_OP_DEQUANTIZE ? "%s<-%s %s" : "%s->%s %s", dw_dtype_name(one->high),
             dw_dtype_name(one->spec.element), dw_block_name(one->spec.block));
    return text;
}

/* `copy_name`: what the kernel took turns with, in `bytes` read and as many written. */
static void report(bench_session *session, const bench_case *one, const bench_result *result, const char *copy_name,
                   size_t bytes) {
    double rate = bench_rate(result), copy = bench_copy_rate(bytes, result);
    char title[64];
    session->measured++;
    if (!session->rows) {
        printf("%-40s  %-20s  %8.3f ms  %8.2f GB/s  %s %8.2f GB/s  %5.2f of %s\n", one->info.name, title_of(one, title),
               1e3 * result->seconds, rate, copy_name, copy, rate / copy, copy_name);
        fflush(stdout);
        return;
    }
    char copy_key[32], fraction_key[32];
    snprintf(copy_key, sizeof copy_key, "%s_gb_per_s", copy_name);
    snprintf(fraction_key, sizeof fraction_key, "fraction_of_%s", copy_name);
    json_array_append_new(
        session->rows,
        json_pack("{s:s, s:s, s:s?, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:f, s:f, s:f, s:f}", "kernel",
                  one->info.name, "operation", dw_operation_name(one->info.operation), "orientation",
                  one->info.operation == DW_OP_QUANTIZE ? dw_orientation_name(one->orientation) : NULL, "high",
                  dw_dtype_name(one->high), "element", dw_dtype_name(one->spec.element), "block",
                  dw_block_name(one->spec.block), "rounding", dw_rounding_name(one->spec.rounding), "layout",
                  dw_scale_layout_name(one->spec.layout), "rows", (json_int_t)result->rows, "cols",
                  (json_int_t)result->cols, "bytes", (json_int_t)result->traffic, "repetitions", result->repetitions,
                  "milliseconds", 1e3 * result->seconds, "gb_per_s", rate, copy_key, copy, fraction_key, rate / copy));
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
            const bool on_gpu = session->gpu.open;
            dw_status status = on_gpu ? bench_gpu_run(&session->gpu, session->bench.context, &one, &result)
                                      : bench_run(&session->bench, &one, &result);
            if (status != DW_OK) return status;
            report(session, &one, &result, on_gpu ? "copy" : "memcpy",
                   on_gpu ? session->gpu.bytes : session->bench.bytes);
            if (cli_signal()) return DW_ERROR_CANCELLED;
        }
    }
    return DW_OK;
}

static void report_product(bench_session *session, const dw_kernel_info *info, const bench_product *p) {
    const double rate = 1e-12 * bench_gemm_rate(p, p->seconds), peak = 1e-12 * p->peak;
    const double peer = p->peer_seconds > 0 ? 1e-12 * bench_gemm_rate(p, p->peer_seconds) : 0;
    session->measured++;
    if (session->rows) {
        json_t *row =
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:i, s:i, s:f, s:f, s:f, s:f}", "kernel", info->name, "operation",
                      dw_operation_name(info->operation), "m", (json_int_t)p->m, "n", (json_int_t)p->n, "k",
                      (json_int_t)p->k, "groups", p->groups, "repetitions", p->repetitions, "milliseconds",
                      1e3 * p->seconds, "tflop_per_s", rate, "peak_tflop_per_s", peak, "fraction_of_peak", rate / peak);
        if (peer > 0) json_object_set_new(row, "cublaslt_tflop_per_s", json_real(peer));
        json_array_append_new(session->rows, row);
        return;
    }
    char title[128], groups[32] = "";
    if (p->groups > 1) snprintf(groups, sizeof groups, ", %d groups", p->groups);
    snprintf(title, sizeof title, "%lldx%lldx%lld%s", (long long)p->m, (long long)p->n, (long long)p->k, groups);
    printf("%-62s  %-28s  %8.3f ms  %8.1f TFLOP/s  %5.2f of peak", info->name, title, 1e3 * p->seconds, rate,
           rate / peak);
    if (peer > 0) printf("  cuBLASLt %8.1f TFLOP/s  %5.2f of it", peer, rate / peer);
    putchar('\n');
    fflush(stdout);
}

/* Opens the GPU that kernels of this target are to run on, and closes another one; `here` is false when the user chose
 * a GPU of another kind. */
static dw_status choose_device(bench_session *session, const char *target, bool *here) {
    const bool on_gpu = cli_is_gpu_target(target);
    const int device = on_gpu ? cli_find_gpu(target, session->gpu_chosen) : -1;
    *here = !on_gpu || device >= 0;
    if (session->gpu.open && session->gpu.device == device) return DW_OK;
    bench_gpu_end(&session->gpu);
    return device >= 0 ? bench_gpu_start(device, session->gpu_mebibytes, &session->gpu) : DW_OK;
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
            if (one.info.operation == DW_OP_GEMM) continue;
            if (!serves(one.info.sources, one.high) || !serves(one.info.elements, DW_E4M3)) continue;
            bool here = true;
            status = choose_device(session, one.info.target, &here);
            if (status != DW_OK) return status;
            if (!here) continue;
            one.spec = (dw_quantize_spec){.element = DW_E4M3, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
            status = run_kernel(session, one);
            if (status != DW_OK) return status;
        }
    }
    return DW_OK;
}

static dw_status run_products(bench_session *session) {
    dw_context *context = session->bench.context;
    bench_gpu_end(&session->gpu); /* its memory is wanted */
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info info;
        dw_status status = dw_kernel_get(context, i, &info);
        if (status != DW_OK) return status;
        if (info.operation != DW_OP_GEMM || !cli_matches(session->filter, info.name) || !info.available) continue;
        const int device = cli_find_gpu(info.target, session->gpu_chosen);
        if (device < 0) continue;
        bench_product product;
        status = bench_gemm_run(context, &info, device, session->gpu_mebibytes, &product);
        if (status != DW_OK) return status;
        report_product(session, &info, &product);
        if (cli_signal()) return DW_ERROR_CANCELLED;
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
    if (session->measured == 0)
        return cli_error("no available kernel's name matches \"%s\"; deepwell info lists them",
                         session->filter ? session->filter : "");
    int code = session->rows ? print_json(session) : CLI_OK;
    return cli_finish(code);
}

int cmd_bench(int argc, const char **argv) {
    char *size_text = NULL, *threads_text = NULL, *gpu_text = NULL;
    int json = 0;
    const struct poptOption table[] = {
        {"size", '\0', POPT_ARG_STRING, &size_text, 0, NULL, NULL},
        {"threads", '\0', POPT_ARG_STRING, &threads_text, 0, NULL, NULL},
        {"gpu", '\0', POPT_ARG_STRING, &gpu_text, 0, NULL, NULL},
        {"json", '\0', POPT_ARG_NONE, &json, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int64_t size = 0, gpu_size = 0, threads = 0, gpu = -1;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = cli_expect_operands(&arguments, 0, 1, "at most one FILTER");
    if (code < 0) code = cli_read_number("--size", size_text, 1, 65536, 64, &size);
    if (code < 0) code = cli_read_number("--size", size_text, 1, 65536, 256, &gpu_size);
    if (code < 0) code = cli_read_gpu(gpu_text, &gpu);
    if (code < 0) code = cli_read_number("--threads", threads_text, 1, 1024, 0, &threads);
    if (code < 0) {
        bench_session session = {.filter = arguments.count ? arguments.operands[0] : NULL,
                                 .rows = json ? json_array() : NULL,
                                 .gpu_chosen = gpu,
                                 .gpu_mebibytes = gpu_size};
        cli_signals_catch();
        dw_status status = bench_start((int)threads, size, &session.bench);
        if (status == DW_OK) status = run_all(&session);
        if (status == DW_OK) status = run_products(&session);
        code = finish(&session, status);
        bench_gpu_end(&session.gpu);
        bench_end(&session.bench);
        json_decref(session.rows);
    }
    cli_arguments_free(&arguments);
    free(size_text);
    free(threads_text);
    free(gpu_text);
    return code;
}
