/* Device memory and a stream of Deepwell's own, for self-tests and benchmarks only: training works in the caller's. */
#ifndef DW_CUDA_SCRATCH_H
#define DW_CUDA_SCRATCH_H

#include "cuda/host/driver.h"

typedef struct dw_cuda_scratch {
    dw_cuda_scope scope;
    dw_cu_pointer memory; /* aligned to 256 bytes */
    dw_cu_stream stream;  /* waits for no other */
    int capture_mode;     /* the thread's own, to put back */
} dw_cuda_scratch;

/* Enters `device` and makes both, also while the calling thread or another captures a CUDA graph (the work is no part
 * of it). Close it in the same thread. Errors: those of dw_cuda_enter, OUT_OF_MEMORY, DEVICE. */
dw_status dw_cuda_scratch_open(int device, size_t bytes, dw_cuda_scratch *scratch);

/* Waits for the stream, then gives everything back. */
void dw_cuda_scratch_close(dw_cuda_scratch *scratch);

#endif
