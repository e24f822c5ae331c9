/* The CUDA driver, opened at run time, and the contexts work runs in. */
#ifndef DW_CUDA_DRIVER_H
#define DW_CUDA_DRIVER_H

#include <stdbool.h>

#include "core/status.h"
#include "cuda/host/driver_api.h"

/* The driver's functions, opened on the first call (thread-safe; the outcome, good or bad, stands for the process).
 * Opens the file DEEPWELL_LIBCUDA names, else libcuda.so.1, which is the copy PyTorch uses. Errors: UNSUPPORTED when
 * there is no driver or it is too old, DEVICE when it refuses to start or the process is a fork of one that used CUDA.
 */
dw_status dw_cuda_driver_get(const dw_cuda_driver **driver);

/* DW_OK for success; else DEVICE, with the call, what it was about (a formatted text), and the driver's own words. */
dw_status dw_cuda_check(const dw_cuda_driver *driver, dw_cu_result result, const char *call, const char *about, ...)
    __attribute__((format(printf, 4, 5)));

/* A stretch of code that runs in a context of `device`. */
typedef struct dw_cuda_scope {
    const dw_cuda_driver *driver;
    int device;
    uint64_t context_id; /* unique over the life of the process, also when a context's address is used again */
    bool pushed;
} dw_cuda_scope;

/* Makes a context of `device` current: the thread's own if it has one on that device, else the device's primary
 * context, retained once per process and device. Leave every scope that was entered, in the same thread; leaving
 * restores what was current before. Errors: those of dw_cuda_driver_get, INVALID_ARGUMENT for a device that is not
 * there, DEVICE. */
dw_status dw_cuda_enter(int device, dw_cuda_scope *scope);
void dw_cuda_leave(dw_cuda_scope *scope);

#endif
