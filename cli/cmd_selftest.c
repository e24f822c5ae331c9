/* deepwell selftest: every row of the kernel table against the scalar reference, on this machine. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "cli.h"

static const char help[] =
    "Usage: deepwell selftest [FILTER] [OPTIONS]\n"
    "\n"
    "Runs every available kernel against the scalar reference: all formats that it serves, edge shapes, random and\n"
    "adversarial data. FILTER is part of a kernel's name, or a pattern such as 'quantize_*__avx2'.\n"
    "\n"
    "Options:\n"
    "  --seed N    seed of the random data (default: a new one each time, printed)\n"
    "  -h, --help  print this\n"
    "\n"
    "Exit code: 1 when any kernel differs from the reference.\n";

typedef struct outcomes {
    int passed, failed, absent;
} outcomes;

static int run_row(dw_context *context, size_t index, const dw_kernel_info *info, uint64_t seed, outcomes *tally) {
    if (!info->available) {
        tally->absent++;
        printf("%-40s  not available: %s\n", info->name, info->reason);
        return -1;
    }
    dw_selftest_result result = {0};
    double started = cli_seconds();
    dw_status status = dw_kernel_selftest(context, index, seed, &result);
    double seconds = cli_seconds() - started;
    if (status == DW_OK) {
        tally->passed++;
        printf("%-40s  %8" PRId64 " cases  %6.2f s  ok\n", info->name, result.cases, seconds);
    } else if (status == DW_ERROR_SELFTEST) {
        tally->failed++;
        printf("%-40s  %8" PRId64 " cases  %6.2f s  FAILED: %" PRId64 " bytes differ, first: %s\n", info->name,
               result.cases, seconds, result.mismatches, result.first_mismatch);
    } else {
        return cli_library_error();
    }
    fflush(stdout);
    return -1;
}

static int run_rows(dw_context *context, const char *filter, uint64_t seed) {
    outcomes tally = {0};
    printf("seed %" PRIu64 ", %s, %d threads\n", seed, dw_context_isa(context), dw_context_threads(context));
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info info;
        if (dw_kernel_get(context, i, &info) != DW_OK) return cli_library_error();
        if (!cli_matches(filter, info.name)) continue;
        int code = run_row(context, i, &info, seed, &tally);
        if (code >= 0) return code;
    }
    if (tally.passed + tally.failed + tally.absent == 0)
        return cli_error("no kernel's name matches \"%s\"; deepwell info lists them", filter ? filter : "");
    printf("%d passed, %d failed, %d not available\n", tally.passed, tally.failed, tally.absent);
    if (tally.failed) {
        cli_finish(CLI_FAILED);
        return cli_error("%d kernel%s differ from the reference (seed %" PRIu64 ")", tally.failed,
                         tally.failed == 1 ? "" : "s", seed);
    }
    return cli_finish(CLI_OK);
}

static int run(const cli_arguments *arguments, const char *seed_text) {
    uint64_t fresh = 0;
    if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh) return cli_error("no random seed; give --seed");
    int64_t seed;
    int code = cli_expect_operands(arguments, 0, 1, "at most one FILTER");
    if (code < 0) code = cli_read_number("--seed", seed_text, 0, INT64_MAX, (int64_t)(fresh >> 33), &seed);
    if (code >= 0) return code;
    dw_context *context;
    if (dw_context_create(NULL, &context) != DW_OK) return cli_library_error();
    code = run_rows(context, arguments->count ? arguments->operands[0] : NULL, (uint64_t)seed);
    dw_context_destroy(context);
    return code;
}

int cmd_selftest(int argc, const char **argv) {
    char *seed = NULL;
    const struct poptOption table[] = {
        {"seed", '\0', POPT_ARG_STRING, &seed, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = run(&arguments, seed);
    cli_arguments_free(&arguments);
    free(seed);
    return code;
}
