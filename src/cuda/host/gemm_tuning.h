/* Which Hopper matrix kernel was measured to be the fastest for a shape: remembered in the process and in a file for
 * each kind of GPU (cache_file.h), which is read at the first product on a device. DEEPWELL_TUNING=off neither reads
 * nor writes it; an absolute path there is the folder it lies in. */
#ifndef DW_CUDA_GEMM_TUNING_H
#define DW_CUDA_GEMM_TUNING_H

#include "cuda/host/gemm_sm90.h"

/* What was measured for this shape, and nothing like it, on the device. False when nothing was. Takes no lock. */
bool dw_gemm_tuning_find(int device, const dw_gemm_sm90_shape *shape, dw_gemm_sm90_choice *choice);

/* UNSUPPORTED when DEEPWELL_TUNING is off, INVALID_ARGUMENT when it is nonsense. */
dw_status dw_gemm_tuning_allowed(void);

/* Remembers a choice, for this process and in the file; false when the file could not be written, which a warning then
 * says. `seconds`, `predicted_seconds`: of the choice and of dw_gemm_sm90_choose's. Errors: OUT_OF_MEMORY, also when
 * more shapes were tuned than are kept. */
dw_status dw_gemm_tuning_keep(int device, const dw_gemm_sm90_shape *shape, const dw_gemm_sm90_choice *choice,
                              double seconds, double predicted_seconds, bool *remembered);

/* Forgets what this process knows; the file stays. For tests: no other thread may be in a product. */
void dw_gemm_tuning_forget(void);

/* Measures what the candidates take for a product and remembers the fastest: dw_gemm_tune without its checks. The
 * call's workspace is written before every measured product, so that it finds nothing in the L2 cache. */
dw_status dw_gemm_sm90_tune(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call, int multiprocessors,
                            void *stream, dw_gemm_tuned *tuned);

#endif
