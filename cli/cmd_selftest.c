/* deepwell selftest: every row of the kernel table against the scalar reference, on this machine. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "cli.h"
#include "cuda/host/scratch.h"

static const char help[] =
    "Usage: deepwell selftest [FILTER] [OPTIONS]\n"
    "\n"
    "Runs every available kernel, this machine's GPU's too, against the scalar reference: all formats that it serves,\n"
    "edge shapes, random and adversarial data. Matrix kernels run against sums in double precision: integers must be\n"
    "exact, random numbers within what the tensor core's arithmetic costs. FILTER is part of a kernel's name, or a\n"
    "pattern such as 'quantize_*__avx2'.\n"
    "\n"
    "Options:\n"
    "  --gpu N     the GPU to use (default: the first that the kernel is for)\n"
    "  --seed N    seed of the random data (default: a new one each time, printed)\n"
    "  -h, --help  print this\n"
    "\n"
    "Exit code: 1 when any kernel differs from the reference.\n";

typedef struct outcomes {
    int passed, failed, absent;
} outcomes;

typedef struct choices {
    uint64_t seed;
    int64_t gpu; /* -1: any */
} choices;

static dw_status test_on_gpu(dw_context *context, size_t index, uint64_t seed, int gpu, dw_selftest_result *result) {
    const size_t bytes = dw_kernel_selftest_workspace();
    dw_cuda_scratch scratch;
    dw_status status = dw_cuda_scratch_open(gpu, bytes, &scratch);
    if (status != DW_OK) return status;
    void *workspace = (void *)(uintptr_t)scratch.memory;
    status = dw_kernel_selftest_cuda(context, index, seed, gpu, workspace, bytes, scratch.stream, result);
    dw_cuda_scratch_close(&scratch);
    return status;
}

static int run_row(dw_context *context, size_t index, const dw_kernel_info *info, const choices *chosen,
                   outcomes *tally) {
    const bool on_gpu = cli_is_gpu_target(info->target);
    const int gpu = on_gpu && info->available ? cli_find_gpu(info->target, chosen->gpu) : -1;
    if (!info->available || (on_gpu && gpu < 0)) {
        tally->absent++;
        printf("%-40s  not available: %s\n", info->name,
               info->available ? "the GPU that --gpu chose is of another kind" : info->reason);
        return -1;
    }
    dw_selftest_result result = {0};
    double started = cli_seconds();
    dw_status status = gpu >= 0 ? test_on_gpu(context, index, chosen->seed, gpu, &result)
                                : dw_kernel_selftest(context, index, chosen->seed, &result);
    double seconds = cli_seconds() - started;
    if (status == DW_OK) {
        tally->passed++;
        printf("%-40s  %8" PRId64 " cases  %6.2f s  ok\n", info->name, result.cases, seconds);
    } else if (status == DW_ERROR_SELFTEST) {
        tally->failed++;
        printf("%-40s  %8" PRId64 " cases  %6.2f s  FAILED: %" PRId64 " %s differ, first: %s\n", info->name,
               result.cases, seconds, result.mismatches, info->operation == DW_OP_GEMM ? "elements" : "bytes",
               result.first_mismatch);
    } else {
        return cli_library_error();
    }
    fflush(stdout);
    return -1;
}

static int run_rows(dw_context *context, const char *filter, const choices *chosen) {
    outcomes tally = {0};
    printf("seed %" PRIu64 ", %s, %d threads\n", chosen->seed, dw_context_isa(context), dw_context_threads(context));
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info info;
        if (dw_kernel_get(context, i, &info) != DW_OK) return cli_library_error();
        if (!cli_matches(filter, info.name)) continue;
        int code = run_row(context, i, &info, chosen, &tally);
        if (code >= 0) return code;
    }
    if (tally.passed + tally.failed + tally.absent == 0)
        return cli_error("no kernel's name matches \"%s\"; deepwell info lists them", filter ? filter : "");
    printf("%d passed, %d failed, %d not available\n", tally.passed, tally.failed, tally.absent);
    if (tally.failed) {
        cli_finish(CLI_FAILED);
        return cli_error("%d kernel%s differ from the reference (seed %" PRIu64 ")", tally.failed,
                         tally.failed == 1 ? "" : "s", chosen->seed);
    }
    return cli_finish(CLI_OK);
}

static int run(const cli_arguments *arguments, const char *seed_text, const char *gpu_text) {
    uint64_t fresh = 0;
    choices chosen;
    if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh) return cli_error("no random seed; give --seed");
    int64_t seed;
    int code = cli_expect_operands(arguments, 0, 1, "at most one FILTER");
    if (code < 0) code = cli_read_number("--seed", seed_text, 0, INT64_MAX, (int64_t)(fresh >> 33), &seed);
    if (code < 0) code = cli_read_gpu(gpu_text, &chosen.gpu);
    if (code >= 0) return code;
    chosen.seed = (uint64_t)seed;
    dw_context *context;
    if (dw_context_create(NULL, &context) != DW_OK) return cli_library_error();
    code = run_rows(context, arguments->count ? arguments->operands[0] : NULL, &chosen);
    dw_context_destroy(context);
    return code;
}

int cmd_selftest(int argc, const char **argv) {
    char *seed = NULL, *gpu = NULL;
    const struct poptOption table[] = {
        {"gpu", '\0', POPT_ARG_STRING, &gpu, 0, NULL, NULL},
        {"seed", '\0', POPT_ARG_STRING, &seed, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = run(&arguments, seed, gpu);
    cli_arguments_free(&arguments);
    free(seed);
    free(gpu);
    return code;
}
