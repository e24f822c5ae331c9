/* The project's own grouped BF16 kernels for Hopper: which one runs, and the launch. */
#ifndef DW_CUDA_GEMM_BF16_H
#define DW_CUDA_GEMM_BF16_H

#include "cuda/host/gemm_sm90.h"

/* What all of them have in common, as in src/cuda/device/sm90/gemm_bf16.cuh: the tile of a block, and its stages of the
 * reduction. */
enum { DW_GEMM_BF16_TILE_M = 128, DW_GEMM_BF16_TILE_N = 256, DW_GEMM_BF16_BLOCK_K = 64, DW_GEMM_BF16_STAGES = 4 };

/* What the choice of a kernel depends on: the extents as in dw_gemm_sm90_shape. */
typedef struct dw_gemm_bf16_shape {
    int64_t m, n, k;
    int64_t groups;
    dw_gemm_grouping grouping;
    bool b_across; /* B lies with the reduction from row to row; along K both operands do */
    bool out_f32;  /* else BF16 */
} dw_gemm_bf16_shape;

/* Parameters of a kernel: its row in src/registry/kernels.inc. */
typedef struct dw_gemm_bf16_row {
    const char *name;
    dw_gemm_grouping grouping;
    bool b_across, pair, out_f32;
} dw_gemm_bf16_row;

size_t dw_gemm_bf16_count(void);
const dw_gemm_bf16_row *dw_gemm_bf16_get(size_t index);

/* Dynamic shared memory of a kernel, in bytes, as its source lays it out. */
uint32_t dw_gemm_bf16_shared_bytes(const dw_gemm_bf16_row *row);

/* Bytes of workspace of which it makes use, to deal its tiles; 0: none. Pure. */
size_t dw_gemm_bf16_workspace(const dw_gemm_bf16_row *row);

/* Whether the kernel is for the shape's formats. Pure. */
bool dw_gemm_bf16_serves(const dw_gemm_bf16_row *row, const dw_gemm_bf16_shape *shape);

/* The kernel with the least predicted time on a GPU of `multiprocessors`; its index, or -1 when none has these formats.
 * `proofs`, of these kernels, leaves out those that failed their self-test (proof.h; NULL: none). Pure. */
int dw_gemm_bf16_choose(const dw_gemm_bf16_shape *shape, int multiprocessors, const atomic_uchar *proofs);

/* A tensor of dw_grouped_gemm, whatever its type: on the device, of this rank and sensible extents, and, unless it is
 * empty, with data aligned to 16 bytes. */
dw_status dw_grouped_gemm_check_tensor(const dw_tensor *t, const char *name, int device, int rank);

/* dw_grouped_gemm of BF16 operands, with the kernel chosen among those that have not failed, proved on the device at
 * its first use; UNSUPPORTED when all of these formats have failed. */
dw_status dw_grouped_gemm_bf16(const dw_grouped_gemm_args *args, void *stream);

/* dw_grouped_gemm_workspace_size of BF16 operands. */
dw_status dw_grouped_gemm_bf16_workspace_size(const dw_grouped_gemm_args *args, size_t *bytes);

/* dw_grouped_gemm_bf16 with exactly this kernel, proved or not, on so many multiprocessors (0: all there are): for
 * self-tests and benchmarks. */
dw_status dw_grouped_gemm_bf16_with_row(int row, int multiprocessors, const dw_grouped_gemm_args *args, void *stream);

#endif
