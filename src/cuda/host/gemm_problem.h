/* From dw_gemm_args to what cuBLASLt is told: pure functions, no device needed.
 *
 * cuBLASLt thinks in columns. D[M, N] row by row is D^T[N, M] column by column, so its first operand is our B (stored
 * [N, K] by rows = K x N by columns, transposed), its second our A (K x M, not transposed), and its m, n, k are N, M,
 * K. */
#ifndef DW_CUDA_GEMM_PROBLEM_H
#define DW_CUDA_GEMM_PROBLEM_H

#include "core/status.h"
#include "cuda/device/common/scale_decode_params.h"
#include "deepwell/cuda.h"

typedef struct dw_gemm_side {
    int32_t type;       /* DW_LT_... */
    int32_t scale_mode; /* DW_LT_SCALE_...; DW_LT_SCALE_SCALAR_F32 also when unscaled */
    int64_t ld;         /* elements */
    uint32_t alignment; /* of the address, a power of two up to 256 */
    const void *data;
    const void *scale; /* as cuBLASLt reads it; NULL while it is still to be decoded, or for none */
    bool decode;       /* the scale is E8M0 that `job` turns into FP32 in the workspace, `scale_offset` bytes in */
    size_t scale_offset;
    dw_scale_decode_job job; /* `scales` not yet set */
} dw_gemm_side;

typedef struct dw_gemm_problem {
    int device;
    int64_t m, n, k; /* as the caller says it: D is m x n */
    dw_gemm_side a, b;
    int32_t d_type;
    int64_t d_ld;
    uint32_t d_alignment;
    void *d;
    int32_t bias_type;
    const void *bias; /* NULL: none */
    dw_gemm_scaling a_scaling, b_scaling;
    bool has_bias, accumulate, fast_accumulation;
    size_t decode_bytes; /* workspace for decoded scales, a multiple of 256 */
} dw_gemm_problem;

/* Checks the arguments and fills `problem`. `with_pointers`: addresses must be set; otherwise NULL means unknown.
 * Errors: INVALID_ARGUMENT, UNSUPPORTED. */
dw_status dw_gemm_prepare(const dw_gemm_args *args, bool with_pointers, dw_gemm_problem *problem);

/* Whether a GPU of this compute capability with this cuBLASLt has the scaling: UNSUPPORTED with the reason if not. */
dw_status dw_gemm_available(const dw_gemm_problem *problem, int compute_major, int compute_minor, size_t version);

/* "8192x4096x4096 (MxNxK), e4m3 1x128 · e4m3 128x128 -> bf16 + bias" for messages. */
void dw_gemm_describe(const dw_gemm_problem *problem, char *text, size_t capacity);

const char *dw_gemm_scaling_name(dw_gemm_scaling scaling);

/* INVALID_ARGUMENT, in the name of `who`, for a workspace of these bytes that is not there or not aligned to 256. */
dw_status dw_gemm_check_workspace(const char *who, const void *workspace, size_t bytes);

#endif
