/* Arguments of the Hopper block-scaled matrix kernels, passed by value; the host fills them (gemm_sm90.c). */
#ifndef DW_DEVICE_SM90_GEMM_PARAMS_H
#define DW_DEVICE_SM90_GEMM_PARAMS_H

#include <stdint.h>

#ifdef __CUDACC__
#define DW_ALIGNED_128 alignas(128)
#else
#define DW_ALIGNED_128 _Alignas(128)
#endif

/* Stages whose scales come at once; fewer where B has vectors too, for the sake of shared memory. */
#define DW_GEMM_SCALE_BATCH(b_vector) ((b_vector) ? 4 : 8)

/* Bytes for a batch's scales of square blocks, one FP32 number for each stage and chunk of columns. */
#define DW_GEMM_SQUARE_SCALE_BYTES 128

/* Boxes of A's scales for a tile: its rows, or, where tiles begin in any row, 16 bytes more, since a copy begins at a
 * multiple of 16 bytes; in two parts where that is more than the 256 rows a box may have. */
#define DW_GEMM_SCALE_PARTS(tile_m, any_row) ((any_row) && (tile_m) > 240 ? 2 : 1)
#define DW_GEMM_SCALE_ROWS(tile_m, any_row, scale_bytes)                                                               \
    ((tile_m) / DW_GEMM_SCALE_PARTS(tile_m, any_row) + ((any_row) ? 16 / (scale_bytes) : 0))

/* Workspace of a product in groups along K: how many tiles have been dealt, and the ticket of the launch they are of.
 * In kernels that split tiles it comes behind their parts. */
#define DW_GEMM_DEAL_BYTES 16

/* Shared memory of such a kernel: which groups have tiles, in order, if they are no more than so many, and zeros. */
#define DW_GEMM_ORDERED_GROUPS 512
#define DW_GEMM_DEAL_SHARED(zeros_bytes) (2 * DW_GEMM_ORDERED_GROUPS + (zeros_bytes))
#define DW_GEMM_ZEROS_BYTES 4096
#define DW_GEMM_BF16_ZEROS_BYTES 1792 /* all that there is room for */

/* A driver's tensor map. */
typedef struct dw_gemm_sm90_map {
    DW_ALIGNED_128 uint64_t opaque[16];
} dw_gemm_sm90_map;

typedef struct dw_gemm_sm90_params {
    dw_gemm_sm90_map a, b; /* bytes; boxes of 128 columns by the rows one copy loads */
    dw_gemm_sm90_map d;    /* BF16; box 64 columns by 64 rows */
    /* Of 1x128 blocks, [k blocks, rows], contiguous along the operand's rows: boxes of DW_GEMM_SCALE_ROWS
     * (of B: a tile's) rows by DW_GEMM_SCALE_BATCH k blocks. B's is of vectors alone. */
    dw_gemm_sm90_map a_scale_map, b_scale_map;
    const void *b_scale; /* 128x128 blocks: element (block row, k block) lies at the two steps */
    int64_t b_scale_row_step, b_scale_k_step;
    void *out; /* D's first element */
    int64_t out_ld;
    const void *bias;    /* [n] BF16, or NULL */
    const int32_t *ends; /* grouped: where each group ends, along M or along K; the first starts at 0 */
    int32_t groups;
    int32_t m, n, k; /* of one product; what is grouped: of all together */
    int32_t band;    /* rows of tiles walked before the next column of tiles */
    int32_t accumulate;
    void *workspace; /* of a kernel that splits tiles DW_GEMM_PART_BYTES for each block (gemm_split.h), of one for
                        groups along K DW_GEMM_DEAL_BYTES after that; or NULL: tiles are neither split nor dealt */
    uint64_t ticket; /* of this launch's sums, or tiles, there: random and odd, so that no two launches' are the same */
} dw_gemm_sm90_params;

#endif
