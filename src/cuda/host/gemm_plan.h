/* What cuBLASLt needs to know once per kind of multiplication: descriptors and the chosen algorithm, kept and found
 * again. */
#ifndef DW_CUDA_GEMM_PLAN_H
#define DW_CUDA_GEMM_PLAN_H

#include "cuda/host/cublaslt.h"
#include "cuda/host/driver.h"
#include "cuda/host/gemm_problem.h"

typedef struct dw_gemm_plan dw_gemm_plan;

/* The plan for `problem` in the scope's context, made if there is none yet. Release it after use: a plan in use is
 * never evicted. Errors: UNSUPPORTED (with the reason), OUT_OF_MEMORY, DEVICE. */
dw_status dw_gemm_plan_get(const dw_cuda_scope *scope, const dw_cublaslt *library, const dw_gemm_problem *problem,
                           dw_gemm_plan **plan);
void dw_gemm_plan_release(dw_gemm_plan *plan);

/* Device memory the algorithm wants, without decoded scales. */
size_t dw_gemm_plan_workspace(const dw_gemm_plan *plan);

/* Multiplies. `a_scale` and `b_scale` are as cuBLASLt reads them. Threads that run one plan at the same time take
 * turns. */
dw_status dw_gemm_plan_run(dw_gemm_plan *plan, const dw_gemm_problem *problem, const void *a_scale, const void *b_scale,
                           void *workspace, size_t workspace_bytes, void *stream);

/* Plans made so far, for tests. */
size_t dw_gemm_plan_made(void);

#endif
