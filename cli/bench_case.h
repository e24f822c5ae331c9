/* One kernel on one combination of formats, measured against memcpy in the same loop. */
#ifndef CLI_BENCH_CASE_H
#define CLI_BENCH_CASE_H

#include "core/thread_pool.h"

#include "cli.h"

/* Memory to work on: several sets, used in turn, so that nothing is left in the caches from the call before. */
typedef struct bench_set {
    uint8_t *source;   /* `bytes`: the high-precision matrix */
    uint8_t *data[2];  /* row and transposed elements */
    uint8_t *scale[2]; /* their scales */
    uint8_t *copy;     /* `bytes`: where memcpy writes */
} bench_set;

enum { BENCH_SETS_MAX = 16, BENCH_COLS = 4096 };

typedef struct bench_state {
    dw_context *context;
    dw_thread_pool *pool; /* for memcpy, with as many threads as the context */
    size_t bytes;         /* of the high-precision matrix */
    int set_count;
    bench_set sets[BENCH_SETS_MAX];
    dw_dtype filled; /* what the sources hold; DW_DTYPE_COUNT at the start */
} bench_state;

typedef struct bench_case {
    size_t kernel;
    dw_kernel_info info;
    dw_orientation orientation; /* of a quantization */
    dw_dtype high;
    dw_quantize_spec spec;
} bench_case;

typedef struct bench_result {
    int64_t rows, cols;
    uint64_t traffic; /* bytes read and written by the kernel */
    int repetitions;
    double seconds, copy_seconds; /* medians; the copy reads and writes 2 * bytes */
} bench_result;

/* Allocates sets of `mebibytes` each; `threads` 0 is the default. */
dw_status bench_start(int threads, int64_t mebibytes, bench_state *bench);
void bench_end(bench_state *bench);

dw_status bench_run(bench_state *bench, const bench_case *one, bench_result *result);

/* Parts that measuring on a GPU shares. */

/* Random signs and mantissas with exponents from 2^-7 to 1, like weights: no zeros, subnormals or NaN. */
void bench_pattern(uint8_t *bytes, size_t size, dw_dtype dtype);

/* Runs the kernel on a set of this GPU and stream; -1 and NULL for the CPU. */
dw_status bench_call(dw_context *context, const bench_case *one, const bench_set *set, int64_t rows, int gpu,
                     void *stream);

/* Bytes that the kernel reads and writes. */
dw_status bench_traffic(const bench_case *one, int64_t rows, uint64_t *traffic);

double bench_median(double *values, int count); /* sorts them */

/* GB/s, both counting bytes read and written. */
double bench_rate(const bench_result *result);
double bench_copy_rate(size_t bytes, const bench_result *result);

#endif
