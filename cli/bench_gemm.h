/* One matrix kernel on a product it is meant for, measured beside cuBLASLt where that has the form. */
#ifndef CLI_BENCH_GEMM_H
#define CLI_BENCH_GEMM_H

#include "cli.h"

typedef struct bench_product {
    int64_t m, n, k; /* what is grouped is that of all groups together */
    int groups, repetitions;
    double seconds, peer_seconds; /* medians of one launch; the peer's is 0 where it has no such product */
    double peak;                  /* multiplications and additions the tensor cores can do in a second */
} bench_product;

/* `kernel` is a row of the table that multiplies; its operands take at most `mebibytes` each, but for experts'. */
dw_status bench_gemm_run(dw_context *context, const dw_kernel_info *kernel, int device, int64_t mebibytes,
                         bench_product *result);

/* Operations in a second. */
double bench_gemm_rate(const bench_product *product, double seconds);

#endif
