/* cuBLASLt, opened at run time. */
#ifndef DW_CUDA_CUBLASLT_H
#define DW_CUDA_CUBLASLT_H

#include "core/status.h"
#include "cuda/host/cublaslt_api.h"

/* The library's functions. Looks, in this order, at: the file DEEPWELL_LIBCUBLASLT names; a copy this process has
 * loaded (PyTorch's); the nvidia packages installed beside Deepwell's; the system's. `driver_version` (1000 * major +
 * 10 * minor) keeps it from opening a cuBLASLt that is newer than the driver. A failure is not final: PyTorch may bring
 * a copy later. Errors: UNSUPPORTED, with what was tried. */
dw_status dw_cublaslt_get(int driver_version, const dw_cublaslt **library);

/* DW_OK for success; else DEVICE with the call, what it was about and cuBLASLt's name for the error. */
dw_status dw_cublaslt_check(const dw_cublaslt *library, dw_lt_result result, const char *call, const char *about);

#endif
