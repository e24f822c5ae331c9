/* Compares src/cuda/host/cublaslt_api.h with NVIDIA's cublasLt.h at compile time. On a machine with the CUDA toolkit:
 *
 *     cc -std=c17 -Wall -Wextra -Werror -fsyntax-only -Isrc -I/usr/local/cuda/include tools/check_cublaslt_header.c
 *
 * Silence means they agree. Needs the header of cuBLASLt 12.9 or later. */
#include <cublasLt.h>

#include "cuda/host/cublaslt_api.h"

#define SAME(ours, theirs) _Static_assert((long long)(ours) == (long long)(theirs), #ours " differs from " #theirs)
#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #ours " and " #theirs " differ in size")
#define SAME_OFFSET(ours, a, theirs, b)                                                                                \
    _Static_assert(offsetof(ours, a) == offsetof(theirs, b), #ours "." #a " lies elsewhere than " #theirs "." #b)

SAME(DW_LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(DW_LT_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(DW_LT_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(DW_LT_F32, CUDA_R_32F);
SAME(DW_LT_F16, CUDA_R_16F);
SAME(DW_LT_BF16, CUDA_R_16BF);
SAME(DW_LT_E4M3, CUDA_R_8F_E4M3);
SAME(DW_LT_E5M2, CUDA_R_8F_E5M2);
SAME(DW_LT_COMPUTE_F32, CUBLAS_COMPUTE_32F);
SAME(DW_LT_OP_N, CUBLAS_OP_N);
SAME(DW_LT_OP_T, CUBLAS_OP_T);
SAME(DW_LT_DESC_TRANSPOSE_A, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(DW_LT_DESC_TRANSPOSE_B, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(DW_LT_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(DW_LT_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(DW_LT_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
SAME(DW_LT_DESC_B_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
SAME(DW_LT_DESC_FAST_ACCUMULATION, CUBLASLT_MATMUL_DESC_FAST_ACCUM);
SAME(DW_LT_DESC_BIAS_TYPE, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(DW_LT_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
SAME(DW_LT_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
SAME(DW_LT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_DEFAULT);
SAME(DW_LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(DW_LT_SCALE_SCALAR_F32, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F);
SAME(DW_LT_SCALE_VEC32_E8M0, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0);
SAME(DW_LT_SCALE_VEC128_F32, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
SAME(DW_LT_SCALE_BLK128_F32, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
SAME(DW_LT_PREFERENCE_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(DW_LT_PREFERENCE_REDUCTION_MASK, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(DW_LT_PREFERENCE_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(DW_LT_PREFERENCE_ALIGNMENT_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(DW_LT_PREFERENCE_ALIGNMENT_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(DW_LT_PREFERENCE_ALIGNMENT_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(DW_LT_REDUCTION_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);

SAME_SIZE(dw_lt_result, cublasStatus_t);
SAME_SIZE(dw_lt_handle, cublasLtHandle_t);
SAME_SIZE(dw_lt_operation, cublasLtMatmulDesc_t);
SAME_SIZE(dw_lt_layout, cublasLtMatrixLayout_t);
SAME_SIZE(dw_lt_preference, cublasLtMatmulPreference_t);
SAME_SIZE(int, cublasComputeType_t);
SAME_SIZE(int, cudaDataType);
SAME_SIZE(int, cublasLtMatmulDescAttributes_t);
SAME_SIZE(int, cublasLtMatmulPreferenceAttributes_t);
SAME_SIZE(dw_lt_algorithm, cublasLtMatmulAlgo_t);
SAME_SIZE(dw_lt_heuristic, cublasLtMatmulHeuristicResult_t);
SAME_OFFSET(dw_lt_heuristic, algorithm, cublasLtMatmulHeuristicResult_t, algo);
SAME_OFFSET(dw_lt_heuristic, workspace_bytes, cublasLtMatmulHeuristicResult_t, workspaceSize);
SAME_OFFSET(dw_lt_heuristic, state, cublasLtMatmulHeuristicResult_t, state);
SAME_OFFSET(dw_lt_heuristic, waves, cublasLtMatmulHeuristicResult_t, wavesCount);

/* The order, number and kind of parameters: each call compiles only if NVIDIA's prototype takes what ours does.
 * Enumerations pass as int; the opaque handles and records, checked for size above, are converted. */
void check_calls(const dw_cublaslt *lt, cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                 cublasLtMatrixLayout_t layout, cublasLtMatmulPreference_t preference,
                 cublasLtMatmulHeuristicResult_t *result, int *count, void *pointer, size_t size, cudaStream_t stream);
void check_calls(const dw_cublaslt *lt, cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                 cublasLtMatrixLayout_t layout, cublasLtMatmulPreference_t preference,
                 cublasLtMatmulHeuristicResult_t *result, int *count, void *pointer, size_t size, cudaStream_t stream) {
    dw_lt_heuristic *ours = (dw_lt_heuristic *)pointer;
#define BOTH(member, theirs, arguments, our_arguments)                                                                 \
    (void)theirs arguments;                                                                                            \
    (void)lt->member our_arguments
    BOTH(get_version, cublasLtGetVersion, (), ());
    BOTH(status_name, cublasLtGetStatusName, (CUBLAS_STATUS_SUCCESS), (0));
    BOTH(create, cublasLtCreate, (&handle), ((dw_lt_handle *)pointer));
    BOTH(operation_create, cublasLtMatmulDescCreate, (&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
         ((dw_lt_operation *)pointer, 0, 0));
    BOTH(operation_destroy, cublasLtMatmulDescDestroy, (operation), (operation));
    BOTH(operation_set, cublasLtMatmulDescSetAttribute, (operation, CUBLASLT_MATMUL_DESC_TRANSA, pointer, size),
         (operation, 0, pointer, size));
    BOTH(layout_create, cublasLtMatrixLayoutCreate, (&layout, CUDA_R_32F, (uint64_t)1, (uint64_t)1, (int64_t)1),
         ((dw_lt_layout *)pointer, 0, (uint64_t)1, (uint64_t)1, (int64_t)1));
    BOTH(layout_destroy, cublasLtMatrixLayoutDestroy, (layout), (layout));
    BOTH(preference_create, cublasLtMatmulPreferenceCreate, (&preference), ((dw_lt_preference *)pointer));
    BOTH(preference_destroy, cublasLtMatmulPreferenceDestroy, (preference), (preference));
    BOTH(preference_set, cublasLtMatmulPreferenceSetAttribute,
         (preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, pointer, size), (preference, 0, pointer, size));
    BOTH(heuristic, cublasLtMatmulAlgoGetHeuristic,
         (handle, operation, layout, layout, layout, layout, preference, 1, result, count),
         (handle, operation, layout, layout, layout, layout, preference, 1, ours, count));
    BOTH(matmul, cublasLtMatmul,
         (handle, operation, pointer, pointer, layout, pointer, layout, pointer, pointer, layout, pointer, layout,
          &result->algo, pointer, size, stream),
         (handle, operation, pointer, pointer, layout, pointer, layout, pointer, pointer, layout, pointer, layout,
          &ours->algorithm, pointer, size, stream));
#undef BOTH
}
