/* The part of cuBLASLt that Deepwell calls, declared here because the packaged CUDA compiler brings no header for it
 * and the library must build without one. tools/check_cublaslt_header.c compares everything with NVIDIA's cublasLt.h
 * where that is installed. Names are our own, so both can be included together. */
#ifndef DW_CUDA_CUBLASLT_API_H
#define DW_CUDA_CUBLASLT_API_H

#include <stddef.h>
#include <stdint.h>

typedef int dw_lt_result;
typedef void *dw_lt_handle;
typedef void *dw_lt_operation;
typedef void *dw_lt_layout;
typedef void *dw_lt_preference;

enum { DW_LT_SUCCESS = 0, DW_LT_INVALID_VALUE = 7, DW_LT_NOT_SUPPORTED = 15 };

/* cudaDataType_t, cublasComputeType_t, cublasOperation_t. */
enum { DW_LT_F32 = 0, DW_LT_F16 = 2, DW_LT_BF16 = 14, DW_LT_E4M3 = 28, DW_LT_E5M2 = 29 };
enum { DW_LT_COMPUTE_F32 = 68 };
enum { DW_LT_OP_N = 0, DW_LT_OP_T = 1 };

/* Attributes of an operation, each set with a value of the type beside it. */
enum {
    DW_LT_DESC_TRANSPOSE_A = 3,        /* int32_t */
    DW_LT_DESC_TRANSPOSE_B = 4,        /* int32_t */
    DW_LT_DESC_EPILOGUE = 7,           /* uint32_t */
    DW_LT_DESC_BIAS_POINTER = 8,       /* void * */
    DW_LT_DESC_A_SCALE_POINTER = 17,   /* void * */
    DW_LT_DESC_B_SCALE_POINTER = 18,   /* void * */
    DW_LT_DESC_FAST_ACCUMULATION = 25, /* int8_t */
    DW_LT_DESC_BIAS_TYPE = 26,         /* int32_t */
    DW_LT_DESC_A_SCALE_MODE = 31,      /* int32_t; since 12.8 */
    DW_LT_DESC_B_SCALE_MODE = 32       /* int32_t; since 12.8 */
};

enum { DW_LT_EPILOGUE_DEFAULT = 1, DW_LT_EPILOGUE_BIAS = 4 };

enum {
    DW_LT_SCALE_SCALAR_F32 = 0,
    DW_LT_SCALE_VEC32_E8M0 = 2, /* since 12.8 */
    DW_LT_SCALE_VEC128_F32 = 4, /* since 12.9 */
    DW_LT_SCALE_BLK128_F32 = 5  /* since 12.9 */
};

enum {
    DW_LT_PREFERENCE_WORKSPACE = 1,      /* uint64_t: the most bytes it may ask for */
    DW_LT_PREFERENCE_REDUCTION_MASK = 3, /* uint32_t */
    DW_LT_PREFERENCE_ALIGNMENT_A = 5,    /* uint32_t, bytes; then B, C, D */
    DW_LT_PREFERENCE_ALIGNMENT_B = 6,
    DW_LT_PREFERENCE_ALIGNMENT_C = 7,
    DW_LT_PREFERENCE_ALIGNMENT_D = 8
};
enum { DW_LT_REDUCTION_COMPUTE_TYPE = 2 };

typedef struct dw_lt_algorithm {
    uint64_t data[8];
} dw_lt_algorithm;

typedef struct dw_lt_heuristic {
    dw_lt_algorithm algorithm;
    size_t workspace_bytes;
    dw_lt_result state;
    float waves;
    int reserved[4];
} dw_lt_heuristic;

/* X(result type, member, symbol, parameters) */
#define DW_LT_FUNCTIONS(X)                                                                                             \
    X(size_t, get_version, cublasLtGetVersion, (void))                                                                 \
    X(const char *, status_name, cublasLtGetStatusName, (dw_lt_result result))                                         \
    X(dw_lt_result, create, cublasLtCreate, (dw_lt_handle * handle))                                                   \
    X(dw_lt_result, operation_create, cublasLtMatmulDescCreate,                                                        \
      (dw_lt_operation * operation, int compute_type, int scale_type))                                                 \
    X(dw_lt_result, operation_destroy, cublasLtMatmulDescDestroy, (dw_lt_operation operation))                         \
    X(dw_lt_result, operation_set, cublasLtMatmulDescSetAttribute,                                                     \
      (dw_lt_operation operation, int attribute, const void *value, size_t bytes))                                     \
    X(dw_lt_result, layout_create, cublasLtMatrixLayoutCreate,                                                         \
      (dw_lt_layout * layout, int type, uint64_t rows, uint64_t cols, int64_t ld))                                     \
    X(dw_lt_result, layout_destroy, cublasLtMatrixLayoutDestroy, (dw_lt_layout layout))                                \
    X(dw_lt_result, preference_create, cublasLtMatmulPreferenceCreate, (dw_lt_preference * preference))                \
    X(dw_lt_result, preference_destroy, cublasLtMatmulPreferenceDestroy, (dw_lt_preference preference))                \
    X(dw_lt_result, preference_set, cublasLtMatmulPreferenceSetAttribute,                                              \
      (dw_lt_preference preference, int attribute, const void *value, size_t bytes))                                   \
    X(dw_lt_result, heuristic, cublasLtMatmulAlgoGetHeuristic,                                                         \
      (dw_lt_handle handle, dw_lt_operation operation, dw_lt_layout a, dw_lt_layout b, dw_lt_layout c, dw_lt_layout d, \
       dw_lt_preference preference, int requested, dw_lt_heuristic *results, int *returned))                           \
    X(dw_lt_result, matmul, cublasLtMatmul,                                                                            \
      (dw_lt_handle handle, dw_lt_operation operation, const void *alpha, const void *a, dw_lt_layout a_layout,        \
       const void *b, dw_lt_layout b_layout, const void *beta, const void *c, dw_lt_layout c_layout, void *d,          \
       dw_lt_layout d_layout, const dw_lt_algorithm *algorithm, void *workspace, size_t workspace_bytes,               \
       void *stream))

typedef struct dw_cublaslt {
    size_t version; /* 10000 * major + 100 * minor + patch */
#define DW_LT_MEMBER(type, member, symbol, parameters) type(*member) parameters;
    DW_LT_FUNCTIONS(DW_LT_MEMBER)
#undef DW_LT_MEMBER
} dw_cublaslt;

#endif
