/* One kernel of a GPU on one combination of formats, measured against a device copy in the same run. */
#ifndef CLI_BENCH_GPU_H
#define CLI_BENCH_GPU_H

#include "bench_case.h"
#include "cuda/host/scratch.h"

typedef struct bench_gpu {
    dw_cuda_scratch scratch;
    bool open;
    int device;
    size_t bytes; /* of the high-precision matrix */
    int set_count;
    bench_set sets[BENCH_SETS_MAX]; /* addresses on the device */
    dw_cu_event begin, end;
    dw_dtype filled;
} bench_gpu;

/* Allocates sets of `mebibytes` each on `device`, so many that they do not fit its L2. */
dw_status bench_gpu_start(int device, int64_t mebibytes, bench_gpu *gpu);
/* Safe to call on a bench_gpu of zeros, and after a failed start. */
void bench_gpu_end(bench_gpu *gpu);

/* Windows of launches over the sets in turn, interleaved with windows of copies; times are of one launch. */
dw_status bench_gpu_run(bench_gpu *gpu, dw_context *context, const bench_case *one, bench_result *result);

#endif
