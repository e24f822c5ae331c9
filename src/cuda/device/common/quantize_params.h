/* What the host passes to the quantization kernels: plain C structs, shared by both sides, passed by value.
 *
 * Every kernel takes exactly one of these. Pointers are device addresses. Strides count elements of the matrix they
 * belong to. Flags that end in `_vector` say that base and row stride of a matrix are aligned for the kernel's widest
 * access; without them the kernel goes element by element (correct, slow). */
#ifndef DW_CUDA_QUANTIZE_PARAMS_H
#define DW_CUDA_QUANTIZE_PARAMS_H

#include <stdint.h>

#ifdef __CUDACC__
#define DW_CUDA_ALIGNED(bytes) alignas(bytes)
#else
#define DW_CUDA_ALIGNED(bytes) _Alignas(bytes)
#endif

/* Where the scale of block (r, c) of the grid of blocks goes.
 * Codes: codes[r * row_stride + c * col_stride], or the tcgen05 atom when atoms_per_row is not zero. Blocks up to
 * (padded_rows, padded_cols) are written, those outside the matrix as zero.
 * Factors: the same scales as FP32 values 2^(code - 127), for GEMMs that take those (cuBLASLt on Hopper), written up to
 * (factor_rows, factor_cols). Either pointer may be NULL. */
typedef struct dw_cuda_scale {
    uint8_t *codes;
    float *factors;
    int64_t row_stride, col_stride;
    int64_t factor_row_stride, factor_col_stride;
    int32_t atoms_per_row;
    int32_t padded_rows, padded_cols;
    int32_t factor_rows, factor_cols;
} dw_cuda_scale;

/* One quantized result: bytes [rows, cols] of its own orientation. */
typedef struct dw_cuda_quantized {
    uint8_t *data;
    int64_t ld;
    int32_t vector; /* data and ld are multiples of 16 bytes */
    int32_t square; /* a transposed result whose blocks are 128x128 where those of the rows are 1x128 */
    dw_cuda_scale scale;
} dw_cuda_quantized;

/* How a tiled kernel walks its 128x128 tiles: `band` rows of tiles at a time, column by column inside a band, so that
 * neighbours in both directions are in flight together and both outputs are written in long pieces of memory pages. */
typedef struct dw_cuda_raster {
    int32_t tile_rows, tile_cols, band;
} dw_cuda_raster;

/* quantize_row_*, quantize_transposed_*, quantize_both_* */
typedef struct dw_cuda_quantize_params {
    const void *source; /* [rows, cols] */
    int64_t source_ld;
    int32_t rows, cols;
    int32_t source_vector; /* source and its row stride are multiples of 16 bytes */
    uint32_t round_add; /* 0x1FFFFF for rceil, 0 for floor: what is added to amax's bits before its exponent is read */
    dw_cuda_quantized row;        /* grid of the [rows, cols] matrix */
    dw_cuda_quantized transposed; /* grid of the [cols, rows] matrix */
    dw_cuda_raster raster;        /* row kernels: tile_cols alone is used */
} dw_cuda_quantize_params;

/* rmsnorm_quantize_*: h = x + residual (when given), rstd = 1/sqrt(mean(h^2) + eps), y = h * rstd * (weight + offset)
 * rounded to BF16, and y quantized. */
typedef struct dw_cuda_rmsnorm_params {
    const void *x;        /* BF16 [rows, cols], dense rows of x_ld */
    const void *residual; /* BF16, same stride, or NULL */
    void *h;              /* BF16 sum, same stride; NULL without residual */
    const void *weight;   /* [cols], BF16 or FP32 */
    void *y;              /* BF16, same stride, or NULL */
    float *rstd;          /* [rows] */
    int64_t x_ld;
    int32_t rows, cols;
    int32_t source_vector; /* all BF16 matrices and the weight: bases and strides multiples of 16 bytes */
    int32_t weight_is_f32;
    float eps, weight_offset, inverse_cols;
    uint32_t round_add;
    dw_cuda_quantized row;
    dw_cuda_quantized transposed;
    dw_cuda_raster raster; /* tile kernel */
    int32_t stages;        /* row kernel: of the ring of rows in dynamic shared memory, at most 8 */
} dw_cuda_rmsnorm_params;

/* A driver's tensor map. */
typedef struct dw_cuda_map {
    DW_CUDA_ALIGNED(64) uint64_t opaque[16];
} dw_cuda_map;

/* rmsnorm_quantize_panel_* and rmsnorm_quantize_ring_*, on a grid of clusters of at most DW_CUDA_PANEL_RANKS thread
 * blocks: one for every 128 rows, or at most so many. source_vector must be set, and both results wanted. Dynamic
 * shared memory: for a panel a slot of 128x128 elements of x for each tile of a block's slice, DW_CUDA_PANEL_SHARED
 * bytes, and a float for each column of a slice; for a ring DW_CUDA_RING_SLOTS slots and DW_CUDA_RING_SHARED bytes. A
 * ring's blocks share a panel's columns evenly, at most DW_CUDA_RING_TILES tiles each. */
typedef struct dw_cuda_rmsnorm_panel_params {
    dw_cuda_map x_map; /* of x: boxes of 128x128, no swizzle */
    dw_cuda_rmsnorm_params norm;
    int32_t block_tiles; /* panels: tiles of 128 columns in a thread block's slice, at most DW_CUDA_PANEL_TILES */
} dw_cuda_rmsnorm_panel_params;

#define DW_CUDA_PANEL_RANKS 16
#define DW_CUDA_PANEL_TILES 2
#define DW_CUDA_PANEL_SHARED 8736
#define DW_CUDA_RING_TILES 7
#define DW_CUDA_RING_SLOTS 6
#define DW_CUDA_RING_PARTIALS 144 /* ranks times the rows a block owns, at most */
#define DW_CUDA_RING_SHARED 33760
#define DW_CUDA_RING_THREADS 768

/* rmsnorm_backward_bf16, on blocks of threads by groups, at most DW_CUDA_NORM_GROUPS: dx = rstd * (g - h * rstd^2 *
 * mean(g * h)), g = dy * (weight + offset), plus dresidual when given; dweight partial sums [blocks, cols] in FP32, one
 * row per thread block. */
typedef struct dw_cuda_rmsnorm_backward_params {
    const void *dy, *h; /* BF16 [rows, cols] */
    const void *dresidual;
    const void *weight;
    const float *rstd;
    void *dx;
    float *dweight_partial;
    int64_t ld;
    int32_t rows, cols;
    int32_t source_vector;
    int32_t weight_is_f32;
    int32_t group_shared; /* bytes of dynamic shared memory for each group of threads, a multiple of 16 */
    int32_t stages;       /* of its ring of rows, at most 8 */
    float weight_offset, inverse_cols;
} dw_cuda_rmsnorm_backward_params;

#define DW_CUDA_NORM_GROUPS 15 /* each has a named barrier */

/* rmsnorm_dweight_*: sums the partials over blocks in order (the same result every run). */
typedef struct dw_cuda_rmsnorm_dweight_params {
    const float *partial; /* [blocks, cols] */
    void *dweight;        /* [cols], BF16 or FP32 */
    int32_t blocks, cols;
    int32_t dweight_is_f32;
    int32_t accumulate; /* adds to what dweight holds */
} dw_cuda_rmsnorm_dweight_params;

/* Gated activations of [rows, 2 * inner] gate-up matrices. `interleaved`: gate and up alternate along a row; else the
 * first `inner` columns are the gate. Plain: a = silu(g) * u. Clamped: g = min(g, limit), u = clamp(u, -limit, limit),
 * a = g * sigmoid(alpha * g) * (u + 1). */
typedef struct dw_cuda_swiglu_params {
    const void *gate_up; /* BF16 [rows, 2 * inner] */
    const void *dy;      /* backward: BF16 [rows, inner] */
    void *out;           /* forward: a [rows, inner]; backward: d(gate_up) [rows, 2 * inner]; BF16, or NULL */
    int64_t gate_up_ld, dy_ld, out_ld;
    int32_t rows, inner;
    int32_t source_vector; /* every BF16 matrix here: bases and strides multiples of 16 bytes */
    int32_t clamped;
    float alpha, limit;
    uint32_t round_add;
    dw_cuda_quantized row; /* either orientation may have data NULL, not both */
    dw_cuda_quantized transposed;
    dw_cuda_raster raster;
} dw_cuda_swiglu_params;

#endif
