/* The project's own matrix kernels for Hopper: which one runs, and the launch. */
#ifndef DW_CUDA_GEMM_SM90_H
#define DW_CUDA_GEMM_SM90_H

#include <stdatomic.h>

#include "cuda/host/driver.h"
#include "cuda/host/gemm_problem.h"

typedef enum dw_gemm_grouping {
    DW_GEMM_GROUPED_NONE = 0,
    DW_GEMM_GROUPED_M = 1,
    DW_GEMM_GROUPED_K = 2
} dw_gemm_grouping;

/* What the choice of a kernel depends on. m, n, k are those of one product: grouped along M, m is that of all groups
 * together; grouped along K, k is. */
typedef struct dw_gemm_sm90_shape {
    int64_t m, n, k;
    int64_t groups; /* 1 when not grouped */
    dw_gemm_grouping grouping;
    bool scale_f32; /* else E8M0 */
    bool b_vector;  /* B has 1x128 blocks, else 128x128 */
    bool out_f32;   /* else BF16 */
} dw_gemm_sm90_shape;

/* The operand that two neighbouring blocks share. */
enum { DW_GEMM_SHARES_NOTHING = 0, DW_GEMM_SHARES_A = 1, DW_GEMM_SHARES_B = 2 };

/* Parameters of a kernel: its row in src/registry/kernels.inc. */
typedef struct dw_gemm_sm90_row {
    const char *name;
    int tile_m, tile_n, chunk_n, warpgroups, k_split, stages, multicast;
    bool scale_f32, b_vector, out_f32;
    int store_buffers;
    dw_gemm_grouping grouping;
    bool splits; /* tiles that fill no wave along the reduction */
} dw_gemm_sm90_row;

/* Which kernel, and how many rows of its tiles are walked together. */
typedef struct dw_gemm_sm90_choice {
    int row, band;
} dw_gemm_sm90_choice;

size_t dw_gemm_sm90_count(void);
const dw_gemm_sm90_row *dw_gemm_sm90_get(size_t index);

/* Dynamic shared memory of a kernel, in bytes, as its source lays it out. */
uint32_t dw_gemm_sm90_shared_bytes(const dw_gemm_sm90_row *row);

/* Whether the kernel is for the shape's formats. Pure, as are the next two: the band where nothing was measured, and
 * how many rows of tiles (of a group, grouped along M) a shape has. */
bool dw_gemm_sm90_serves(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape);
int dw_gemm_sm90_band(const dw_gemm_sm90_row *row);
int64_t dw_gemm_sm90_tile_rows(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape);

/* Bytes of workspace with which the kernel shares out what does not fill a wave of its tiles (gemm_params.h); 0 where
 * it does not split tiles, or none of this shape. Of groups only the device knows, so that any shape needs it. Along K
 * tiles are dealt with it, too. Pure. */
size_t dw_gemm_sm90_workspace(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape, int multiprocessors);

/* The kernel with the least predicted time for the shape on a GPU of `multiprocessors`, where the caller has so many
 * bytes of workspace; its index, or -1 when none has these formats. `proofs` leaves out those that failed their
 * self-test (proof.h; NULL: none). Pure. */
int dw_gemm_sm90_choose(const dw_gemm_sm90_shape *shape, int multiprocessors, size_t workspace,
                        const atomic_uchar *proofs);

/* The kernel to run on the scope's device: the one measured for the shape (gemm_tuning.h), unless that wants more than
 * these bytes of workspace, else the one chosen among those that have not failed, proved there at its first use; row -1
 * when none of these formats is left. Or, when it is not negative, `forced`, unproved: UNSUPPORTED if that is for other
 * formats. */
dw_status dw_gemm_sm90_pick(const dw_cuda_scope *scope, const dw_gemm_sm90_shape *shape, int multiprocessors,
                            size_t workspace, int forced, dw_gemm_sm90_choice *choice);

/* Why these kernels cannot take the product, in words, or "" when they can. Pure; `problem` is that of `args`. */
const char *dw_gemm_sm90_refusal(const dw_gemm_args *args, const dw_gemm_problem *problem);

/* Facts of the scope's device that the choice needs, asked once. */
dw_status dw_gemm_sm90_device(const dw_cuda_scope *scope, int *capability, int *multiprocessors);

/* Operands as the kernels see them, for whoever describes a product otherwise (grouped). */
typedef struct dw_gemm_sm90_call {
    dw_gemm_sm90_shape shape;
    const void *a, *b, *a_scale, *b_scale, *bias, *ends;
    void *d;
    int64_t a_rows, a_cols, a_ld; /* the whole matrices the copy engine reads and writes */
    int64_t b_rows, b_cols, b_ld;
    int64_t d_rows, d_ld;
    int64_t a_scale_ld, b_scale_ld, b_scale_row_step, b_scale_k_step;
    bool accumulate;
    void *workspace; /* device memory, or NULL: for split or dealt tiles, where it has dw_gemm_sm90_workspace bytes */
    size_t workspace_bytes;
} dw_gemm_sm90_call;

/* Those of a product that `dw_gemm_sm90_refusal` has nothing against. Pure. */
dw_gemm_sm90_call dw_gemm_sm90_call_of(const dw_gemm_args *args, const dw_gemm_problem *problem);

/* An odd number that, but for a chance of 2^-63, no other launch has and does not lie in fresh memory. */
uint64_t dw_gemm_next_ticket(void);

/* Multiplies with a kernel that serves the shape, on so many multiprocessors at most. */
dw_status dw_gemm_sm90_launch(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call,
                              const dw_gemm_sm90_choice *choice, int multiprocessors, void *stream);

/* dw_gemm and dw_grouped_gemm with exactly this kernel, proved or not, on so many multiprocessors (0: all there are):
 * for self-tests and benchmarks. */
dw_status dw_gemm_with_row(int row, int multiprocessors, const dw_gemm_args *args, void *stream);
dw_status dw_grouped_gemm_with_row(int row, int multiprocessors, const dw_grouped_gemm_args *args, void *stream);

#endif
