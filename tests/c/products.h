/* Products of the Hopper matrix kernels for tests in which nothing multiplies: every operand is the same few bytes. */
#ifndef DW_TESTS_PRODUCTS_H
#define DW_TESTS_PRODUCTS_H

#include "registry/proof.h"
#include "support.h"

static char memory[4096] __attribute__((aligned(256)));

static inline dw_tensor view(dw_dtype dtype, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    dw_tensor t = dw_matrix(memory, dtype, rows, cols);
    t.device_type = DW_DEVICE_CUDA;
    t.strides[0] = row_stride;
    t.strides[1] = col_stride;
    return t;
}

static inline dw_gemm_args product(int64_t m, int64_t n, int64_t k) {
    int64_t across = (k + 127) / 128, padded = (across + 3) / 4 * 4;
    return (dw_gemm_args){.a = {view(DW_E4M3, m, k, k, 1), DW_GEMM_1X128, view(DW_F32, m, across, 1, m), DW_SCALE_ROW},
                          .b = {view(DW_E4M3, n, k, k, 1), DW_GEMM_128X128,
                                view(DW_F32, (n + 127) / 128, across, padded, 1), DW_SCALE_ROW},
                          .d = view(DW_BF16, m, n, n, 1)};
}

static inline dw_grouped_gemm_args grouped(dw_group_axis axis, int64_t groups, int64_t m, int64_t n, int64_t k) {
    int64_t across = (k + 127) / 128, padded = (across + 3) / 4 * 4;
    bool along_m = axis == DW_GROUP_M;
    dw_grouped_gemm_args args = {
        .a = {view(DW_E4M3, m, k, k, 1), DW_GEMM_1X128, view(DW_F32, m, across, 1, m), DW_SCALE_ROW},
        .b = {view(DW_E4M3, n, k, k, 1), DW_GEMM_128X128,
              view(DW_F32, (n + 127) / 128 * (along_m ? groups : 1), across, padded, 1), DW_SCALE_ROW},
        .d = view(DW_BF16, m, n, n, 1),
        .ends = (const int32_t *)memory,
        .groups = groups,
        .axis = axis};
    dw_tensor *stack = along_m ? &args.b.data : &args.d;
    int64_t rows = stack->shape[0], cols = stack->shape[1];
    stack->rank = 3;
    stack->shape[0] = groups;
    stack->shape[1] = rows;
    stack->shape[2] = cols;
    stack->strides[0] = rows * cols;
    stack->strides[1] = cols;
    stack->strides[2] = 1;
    return args;
}

/* Says that a kernel passed its self-test on the first two GPUs, which no kernel of the stand-in would, or failed it.
 */
static inline void set_proof(size_t row, unsigned char state) {
    for (int device = 0; device < 2; device++)
        atomic_store((atomic_uchar *)dw_gemm_proofs(device) + row, state);
}

#endif
