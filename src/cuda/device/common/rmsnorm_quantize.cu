/* rmsnorm_quantize_<row|tile>_bf16_e4m3_<block>, rmsnorm_statistics_bf16: h = x + residual, y = h * rstd * (weight +
 * offset), y quantized.
 *
 * y is rounded to BF16 once and what is quantized is exactly that BF16 matrix, whether it is stored or not. h, where
 * there is a residual, is rounded to BF16 first, as the residual stream is.
 *
 * Floor: row: 2 bytes read and 1 written an element; both forms: 2 and 2. With a residual 4 more (residual read, h
 * written).
 *
 * row: one pass. A block takes ROWS rows one after another, a row across all its threads, UNITS units of 16 bytes a
 * thread; rows arrive through a ring in shared memory (row_ring.cuh), several ahead, so the reduction in the middle of
 * a row does not stop the reading. The host chooses threads = columns / 16 (at most 1024, so at most 16384 columns;
 * wider matrices go to the other kernel).
 *
 * tile: a column block needs 128 rows of y, and those need rstd of 128 whole rows. Where those fit into a cluster
 * rmsnorm_panel.cuh or rmsnorm_ring.cuh serves; otherwise the transposed form (and both forms of rows too wide for the
 * row kernel) takes a second kernel that is given rstd: 128x128 tiles as in quantize_both, x or h read a second time, 6
 * bytes an element for both forms. It walks the rows from the last to the first: what the first kernel read last may
 * still be in the L2.
 *
 * statistics: h and rstd alone, a warp a row, for rows too wide for the row kernel. */
#include "common/norm.cuh"
#include "common/row_ring.cuh"

#define UNITS 2
#define ROWS 16
#define MAX_THREADS 1024
#define STATISTICS_WARPS 8

/* ---- row ------------------------------------------------------------------------------------------------------ */

DW_DEVICE void rmsnorm_quantize_row(const dw_cuda_rmsnorm_params *p, int block) {
    __shared__ uint8_t codes[MAX_THREADS * UNITS * 8 / 32 * ROWS];
    __shared__ float partial[2][32];
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, warps = threads / 32;
    const int block_cols = block_columns(block), blocks = (p->cols + block_cols - 1) / block_cols;
    const int row0 = (int)blockIdx.x * ROWS;
    extern __shared__ uint4 dynamic_shared[];
    const row_ring ring = make_row_ring((char *)dynamic_shared, p->stages, p->residual != NULL ? 2 : 1, p->cols,
                                        p->source_vector, thread);
    if (ring.bulk && thread == 0) {
        for (int i = 0; i < ring.stages && row0 + i < p->rows; i++) {
            ring_request(&ring, i, p->x, p->residual, NULL, p->x_ld, row0 + i);
        }
    }
    float w[UNITS][8];
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        load_weights(w[k], p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, (k * threads + thread) * 8,
                     p->cols);
    }
    int stage = 0;
    uint32_t parity = 0;
#pragma unroll 1
    for (int i = 0; i < ROWS; i++) {
        const int row = row0 + i;
        if (ring.bulk && row < p->rows) {
            mbarrier_wait_parity(&ring.full[stage], parity);
        }
        uint4 h[UNITS];
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int col = (k * threads + thread) * 8;
            h[k] = row < p->rows
                       ? ring_unit(&ring, stage, 0, p->x, p->x_ld, row, col, p->rows, p->cols, p->source_vector)
                       : make_uint4(0, 0, 0, 0);
            if (p->residual != NULL && row < p->rows) {
                h[k] = add_bf16_units(h[k], ring_unit(&ring, stage, 1, p->residual, p->x_ld, row, col, p->rows, p->cols,
                                                      p->source_vector));
                store_bf16_unit(p->h, p->x_ld, row, col, p->rows, p->cols, p->source_vector, h[k]);
            }
            sum = sum_of_squares(h[k], sum);
        }
        sum = warp_sum(sum);
        if (thread % 32 == 0) {
            partial[i & 1][thread / 32] = sum;
        }
        __syncthreads();
        if (ring.bulk && thread == 0 && i + ring.stages < ROWS && row + ring.stages < p->rows) {
            ring_request(&ring, stage, p->x, p->residual, NULL, p->x_ld, row + ring.stages);
        }
        if (++stage == ring.stages) {
            stage = 0;
            parity ^= 1;
        }
        sum = warp_sum(thread % 32 < warps ? partial[i & 1][thread % 32] : 0.0f);
        const float rstd = rsqrt_approx_f32(fmaf(sum, p->inverse_cols, p->eps));
        if (thread == 0 && row < p->rows) {
            p->rstd[row] = rstd;
        }
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int col = (k * threads + thread) * 8;
            const uint4 y = normalized_unit(h[k], rstd, w[k]);
            if (p->y != NULL) {
                store_bf16_unit(p->y, p->x_ld, row, col, p->rows, p->cols, p->source_vector, y);
            }
            const uint32_t code = row_block_code(y, DW_BF16, DW_E4M3, block, p->round_add);
            store_unit(&p->row, row, col, p->rows, p->cols, y, scale_inverse(code), DW_BF16, DW_E4M3);
            if (col % block_cols == 0) {
                codes[col / block_cols * ROWS + i] = row < p->rows ? (uint8_t)code : 0;
            }
        }
    }
    __syncthreads();
    const dw_cuda_scale *s = &p->row.scale;
    for (int i = thread; i < ROWS * max(blocks, s->padded_cols); i += threads) {
        const int c = i / ROWS;
        store_scale(s, row0 + i % ROWS, c, c < blocks ? codes[i] : 0);
    }
}

#define RMSNORM_ROW(NAME, BLOCK)                                                                                       \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)                                                       \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_params p) {                                                       \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        rmsnorm_quantize_row(&p, BLOCK);                                                                               \
    }

RMSNORM_ROW(rmsnorm_quantize_row_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_ROW(rmsnorm_quantize_row_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)

/* ---- statistics ----------------------------------------------------------------------------------------------- */

/* One row a warp: h where there is a residual, and rstd. */
DW_DEVICE void row_statistics(const dw_cuda_rmsnorm_params *p, int row) {
    const int lane = (int)threadIdx.x % 32;
    if (row >= p->rows) {
        return;
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int col0 = lane * 8; col0 - lane * 8 < p->cols; col0 += 8 * 256) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            v[k] = load_unit(p->x, p->x_ld, row, col0 + k * 256, p->rows, p->cols, p->source_vector, DW_BF16);
        }
        if (p->residual != NULL) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const int col = col0 + k * 256;
                v[k] = add_bf16_units(
                    v[k], load_unit(p->residual, p->x_ld, row, col, p->rows, p->cols, p->source_vector, DW_BF16));
                store_bf16_unit(p->h, p->x_ld, row, col, p->rows, p->cols, p->source_vector, v[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            sum = sum_of_squares(v[k], sum);
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        p->rstd[row] = rsqrt_approx_f32(fmaf(sum, p->inverse_cols, p->eps));
    }
}

extern "C" __global__ void __launch_bounds__(32 * STATISTICS_WARPS)
    rmsnorm_statistics_bf16__sm90(const __grid_constant__ dw_cuda_rmsnorm_params p) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    row_statistics(&p, (int)(blockIdx.x * STATISTICS_WARPS + threadIdx.x / 32));
}

/* ---- tile ----------------------------------------------------------------------------------------------------- */

DW_DEVICE void rmsnorm_quantize_tile(const dw_cuda_rmsnorm_params *p, int block) {
    __shared__ square_tile_shared s;
    int tile_row, tile_col;
    raster_tile(&p->raster, gridDim.x - 1 - blockIdx.x, &tile_row, &tile_col);
    const square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, p->cols);
    const int col = at.col0 + lane_column(&at, 0, DW_BF16);
    square_tile_units t;
    load_tile(&t, &at, p->residual != NULL ? p->h : p->x, p->x_ld, p->source_vector, DW_BF16);
    float w[8];
    load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, col, p->cols);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int row = at.row0 + at.lane_row + i;
        t.v[i][0] = normalized_unit(t.v[i][0], row < p->rows ? p->rstd[row] : 0.0f, w);
    }
    if (p->y != NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_bf16_unit(p->y, p->x_ld, at.row0 + at.lane_row + i, col, at.rows, at.cols, p->source_vector,
                            t.v[i][0]);
        }
    }
    quantize_square_tile(&s, &p->row, &p->transposed, &at, &t, p->round_add, p->row.data != NULL,
                         p->transposed.data != NULL, block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3,
                         block);
}

#define RMSNORM_TILE(NAME, BLOCK)                                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 3)                                                      \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_params p) {                                                       \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        rmsnorm_quantize_tile(&p, BLOCK);                                                                              \
    }

RMSNORM_TILE(rmsnorm_quantize_tile_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_TILE(rmsnorm_quantize_tile_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)
