/* deepwell tune: which matrix kernels are the fastest for a layer's products, measured and remembered. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "core/status.h"
#include "cuda/host/scratch.h"

static const char help[] =
    "Usage: deepwell tune TOKENS OUT IN [OPTIONS]\n"
    "\n"
    "Measures every Hopper matrix kernel on the three products of a linear layer of OUT x IN: forward, data gradient\n"
    "and weight gradient, of E4M3 operands with FP32 block scales as layers use them. The fastest is remembered for\n"
    "products of just that size, on GPUs of that kind, with this driver and build. Where nothing was measured a\n"
    "prediction chooses.\n"
    "\n"
    "Options:\n"
    "  --groups G     of G experts, each of OUT x IN, with TOKENS in all\n"
    "  --only WHICH   forward, data or weight: this product alone\n"
    "  --result TYPE  bf16 (default) or f32\n"
    "  --gpu N        the GPU to use (default: the first that kernels are for)\n"
    "  -h, --help     print this\n"
    "\n"
    "Environment:\n"
    "  DEEPWELL_TUNING  off, or the folder of the file in place of $XDG_CACHE_HOME/deepwell (~/.cache/deepwell)\n";

enum { ALIGNMENT = 256, PATTERN_BYTES = 1 << 20 };

typedef struct tuning {
    dw_context *context;
    int gpu;
    int64_t tokens, out, in, groups; /* groups: 0 for a dense layer */
    dw_dtype result;
} tuning;

/* One product: D[m, n] = A[m, k] B[n, k]^T. */
typedef struct product {
    const char *name;
    int64_t m, n, k;
    dw_group_axis axis;
} product;

static size_t take(size_t *offset, int64_t bytes) {
    size_t at = *offset;
    *offset += ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static int64_t blocks_of(int64_t extent) {
    return (extent + 127) / 128;
}

/* Where things lie in the device memory. */
typedef struct places {
    size_t a, b, ends, a_scale, b_scale, d, flush, total;
    int64_t a_scales, b_scales, flush_bytes;
} places;

static places lay_out(const tuning *t, const product *p, int64_t l2_bytes) {
    const bool along_m = t->groups && p->axis == DW_GROUP_M, along_k = t->groups && p->axis == DW_GROUP_K;
    places at = {.flush_bytes = 2 * l2_bytes};
    at.a_scales = p->m * blocks_of(p->k);
    at.b_scales = blocks_of(p->n) * ((blocks_of(p->k) + 3) / 4 * 4) * (along_m ? t->groups : 1);
    at.a = take(&at.total, p->m * p->k);
    at.b = take(&at.total, p->n * p->k * (along_m ? t->groups : 1));
    at.a_scale = take(&at.total, 4 * at.a_scales);
    at.b_scale = take(&at.total, 4 * at.b_scales);
    at.ends = take(&at.total, 4 * t->groups);
    at.d = take(&at.total, p->m * p->n * (int64_t)dw_dtype_size(t->result) * (along_k ? t->groups : 1));
    at.flush = take(&at.total, at.flush_bytes);
    return at;
}

/* Random E4M3 elements, none of them NaN, and scales of one; equal groups, in whole blocks of 128. */
static dw_status fill(const tuning *t, const product *p, const places *at, dw_cuda_scratch *scratch) {
    const dw_cuda_driver *driver = scratch->scope.driver;
    uint8_t *elements = malloc(PATTERN_BYTES);
    float *ones = malloc(PATTERN_BYTES);
    int32_t *ends = malloc(sizeof *ends * (size_t)(t->groups + 1));
    dw_status status = elements && ones && ends ? DW_OK : dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for a pattern");
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (size_t i = 0; status == DW_OK && i < PATTERN_BYTES; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        elements[i] = (uint8_t)(state >> 56) & 0xBF; /* below 2 */
        if (i < PATTERN_BYTES / sizeof *ones) ones[i] = 1.0f;
    }
    for (int64_t g = 0; status == DW_OK && g < t->groups; g++) {
        int64_t extent = p->axis == DW_GROUP_M ? p->m : p->k;
        ends[g] = (int32_t)(extent / 128 * (g + 1) / t->groups * 128);
    }
    const struct {
        const void *pattern;
        size_t begin, end;
    } parts[] = {{elements, at->a, at->a_scale}, {ones, at->a_scale, at->ends}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (size_t to = parts[i].begin; status == DW_OK && to < parts[i].end; to += PATTERN_BYTES) {
            size_t left = parts[i].end - to, bytes = left < PATTERN_BYTES ? left : PATTERN_BYTES;
            status = dw_cuda_check(
                driver, driver->copy_to_device(scratch->memory + to, parts[i].pattern, bytes, scratch->stream),
                "cuMemcpyHtoDAsync", "GPU %d", t->gpu);
        }
    if (status == DW_OK && t->groups)
        status = dw_cuda_check(
            driver,
            driver->copy_to_device(scratch->memory + at->ends, ends, sizeof *ends * (size_t)t->groups, scratch->stream),
            "cuMemcpyHtoDAsync", "GPU %d", t->gpu);
    if (status == DW_OK)
        status =
            dw_cuda_check(driver, driver->stream_synchronize(scratch->stream), "cuStreamSynchronize", "GPU %d", t->gpu);
    free(elements);
    free(ones);
    free(ends);
    return status;
}

static dw_tensor view(const tuning *t, void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t row_stride,
                      int64_t col_stride) {
    dw_tensor tensor = dw_matrix(data, dtype, rows, cols);
    tensor.device_type = DW_DEVICE_CUDA;
    tensor.device_id = t->gpu;
    tensor.strides[0] = row_stride;
    tensor.strides[1] = col_stride;
    return tensor;
}

static dw_tensor stack_of(dw_tensor matrix, int64_t groups) {
    dw_tensor stack = matrix;
    stack.rank = 3;
    stack.shape[0] = groups;
    stack.strides[0] = matrix.shape[0] * matrix.shape[1];
    for (int i = 0; i < 2; i++) {
        stack.shape[i + 1] = matrix.shape[i];
        stack.strides[i + 1] = matrix.strides[i];
    }
    return stack;
}

static dw_status measure(const tuning *t, const product *p, const places *at, const dw_cuda_scratch *scratch,
                         dw_gemm_tuned *tuned) {
    char *base = (char *)(uintptr_t)scratch->memory;
    const int64_t across = blocks_of(p->k), padded = (across + 3) / 4 * 4;
    const int64_t grids = t->groups && p->axis == DW_GROUP_M ? t->groups : 1; /* of B, one below the other */
    const dw_gemm_operand a = {.data = view(t, base + at->a, DW_E4M3, p->m, p->k, p->k, 1),
                               .scaling = DW_GEMM_1X128,
                               .scale = view(t, base + at->a_scale, DW_F32, p->m, across, 1, p->m)};
    const dw_gemm_operand b = {.data = view(t, base + at->b, DW_E4M3, p->n, p->k, p->k, 1),
                               .scaling = DW_GEMM_128X128,
                               .scale =
                                   view(t, base + at->b_scale, DW_F32, grids * blocks_of(p->n), across, padded, 1)};
    const dw_tensor d = view(t, base + at->d, t->result, p->m, p->n, p->n, 1);
    if (!t->groups) {
        const dw_gemm_args args = {
            .a = a, .b = b, .d = d, .workspace = base + at->flush, .workspace_bytes = (size_t)at->flush_bytes};
        return dw_gemm_tune(t->context, &args, scratch->stream, tuned);
    }
    dw_grouped_gemm_args args = {.a = a,
                                 .b = b,
                                 .d = d,
                                 .ends = (const int32_t *)(base + at->ends),
                                 .groups = t->groups,
                                 .axis = p->axis,
                                 .workspace = base + at->flush,
                                 .workspace_bytes = (size_t)at->flush_bytes};
    dw_tensor *stack = p->axis == DW_GROUP_M ? &args.b.data : &args.d;
    *stack = stack_of(*stack, t->groups);
    return dw_grouped_gemm_tune(t->context, &args, scratch->stream, tuned);
}

static dw_status tune(const tuning *t, const product *p, dw_gemm_tuned *tuned) {
    dw_cuda_device_info info;
    dw_cuda_scratch scratch;
    DW_TRY(dw_cuda_device_get(t->gpu, &info));
    const places at = lay_out(t, p, info.l2_bytes);
    DW_TRY(dw_cuda_scratch_open(t->gpu, at.total, &scratch));
    dw_status status = fill(t, p, &at, &scratch);
    if (status == DW_OK) status = measure(t, p, &at, &scratch, tuned);
    dw_cuda_scratch_close(&scratch);
    return status;
}

static void report(const product *p, const dw_gemm_tuned *tuned) {
    double operations = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    char sizes[80];
    snprintf(sizes, sizeof sizes, "%" PRId64 " x %" PRId64 " x %" PRId64, p->m, p->n, p->k);
    printf("%-15s  %-22s  %8.3f ms  %7.1f TFLOP/s  %s, band %d", p->name, sizes, 1e3 * tuned->seconds,
           operations / tuned->seconds / 1e12, tuned->kernel, tuned->band);
    if (strcmp(tuned->kernel, tuned->predicted) != 0 || tuned->band != tuned->predicted_band)
        printf(" (predicted: %s, band %d, %.3f ms)", tuned->predicted, tuned->predicted_band,
               1e3 * tuned->predicted_seconds);
    printf("\n");
    fflush(stdout);
}

static int run_products(const tuning *t, const char *only) {
    const product products[] = {{"forward", t->tokens, t->out, t->in, DW_GROUP_M},
                                {"data gradient", t->tokens, t->in, t->out, DW_GROUP_M},
                                {"weight gradient", t->out, t->in, t->tokens, DW_GROUP_K}};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        dw_gemm_tuned tuned;
        if (only && strncmp(products[i].name, only, strlen(only)) != 0) continue;
        if (tune(t, &products[i], &tuned) != DW_OK) return cli_library_error();
        report(&products[i], &tuned);
    }
    return cli_finish(CLI_OK);
}

static int read_result(const char *text, dw_dtype *result) {
    *result = DW_BF16;
    if (!text || strcmp(text, "bf16") == 0) return -1;
    *result = DW_F32;
    return strcmp(text, "f32") == 0 ? -1 : cli_usage("--result: \"%s\" is not bf16 or f32", text);
}

static int read_only(const char *text) {
    static const char *const names[] = {"forward", "data", "weight"};
    for (size_t i = 0; text && i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) return -1;
    return text ? cli_usage("--only: \"%s\" is not forward, data or weight", text) : -1;
}

static void keep_note(const char *text, void *data) {
    (void)data;
    cli_note("%s", text);
}

static int run(const cli_arguments *arguments, const char *groups, const char *only, const char *result,
               const char *gpu) {
    enum { MOST = INT32_MAX };
    tuning t = {0};
    int64_t chosen = -1;
    int code = cli_expect_operands(arguments, 3, 3, "TOKENS OUT IN");
    if (code < 0) code = cli_read_number("TOKENS", arguments->operands[0], 1, MOST, 0, &t.tokens);
    if (code < 0) code = cli_read_number("OUT", arguments->operands[1], 1, MOST, 0, &t.out);
    if (code < 0) code = cli_read_number("IN", arguments->operands[2], 1, MOST, 0, &t.in);
    if (code < 0) code = cli_read_number("--groups", groups, 1, 65536, 0, &t.groups);
    if (code < 0) code = read_only(only);
    if (code < 0) code = read_result(result, &t.result);
    if (code < 0) code = cli_read_gpu(gpu, &chosen);
    if (code >= 0) return code;
    t.gpu = cli_find_gpu("sm90", chosen);
    if (t.gpu < 0) return cli_error("no GPU here that the Hopper matrix kernels are for; deepwell info lists the GPUs");
    if (dw_context_create(NULL, &t.context) != DW_OK) return cli_library_error();
    dw_set_warning_handler(keep_note, NULL);
    code = run_products(&t, only);
    dw_context_destroy(t.context);
    return code;
}

int cmd_tune(int argc, const char **argv) {
    char *groups = NULL, *only = NULL, *result = NULL, *gpu = NULL;
    const struct poptOption table[] = {
        {"groups", '\0', POPT_ARG_STRING, &groups, 0, NULL, NULL},
        {"only", '\0', POPT_ARG_STRING, &only, 0, NULL, NULL},
        {"result", '\0', POPT_ARG_STRING, &result, 0, NULL, NULL},
        {"gpu", '\0', POPT_ARG_STRING, &gpu, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = run(&arguments, groups, only, result, gpu);
    cli_arguments_free(&arguments);
    free(groups);
    free(only);
    free(result);
    free(gpu);
    return code;
}
