/* rmsnorm_quantize_panel_bf16_e4m3_<block>: RMSNorm to both quantized forms from one read (see rmsnorm_quantize.cu for
 * what is computed and for rows too wide for this).
 *
 * Floor: 2 bytes read and 2 written an element; with a residual 4 more (residual read, h written).
 *
 * Plan: a cluster of thread blocks owns a panel of 128 whole rows. Each block keeps its slice, `block_tiles` tiles of
 * 128 columns, in shared memory: brought by bulk copies, a row of the slice each, or through registers where there is a
 * residual to add or where rows are not aligned. Each block sums the squares of its part of every row; the blocks read
 * each other's 128 sums through distributed shared memory, in rank order, so that all of them and every run get the
 * same rstd. Then a block works through its tiles as quantize_both does. The host keeps slices small enough for two
 * blocks on a multiprocessor, so that one reads while the other works. */
#include "common/norm.cuh"

typedef struct panel_shared {
    square_tile_shared tile;
    float sums[TILE]; /* of squares of this block's part of each row; the cluster reads them */
    float rstd[TILE];
    uint64_t full;
} panel_shared;

DW_DEVICE void rmsnorm_quantize_panel(const dw_cuda_rmsnorm_params *p, int block) {
    extern __shared__ uint4 dynamic_shared[];
    panel_shared *s = (panel_shared *)dynamic_shared;
    uint4 *slice = dynamic_shared + sizeof(panel_shared) / 16; /* [TILE][block_tiles * 16] units */
    const int thread = (int)threadIdx.x, half_lane = thread % 16;
    const uint32_t rank = cluster_ctarank(), ranks = cluster_nctarank();
    const int row0 = (int)(blockIdx.x / ranks) * TILE;
    const int tiles = p->block_tiles, units = tiles * 16;
    const int col0 = (int)rank * tiles * TILE;
    const int rows = min(TILE, p->rows - row0), cols = max(0, min(tiles * TILE, p->cols - col0));
    const int lane_row = thread / 16 * LANE_ROWS;
    const bool bulk = p->residual == NULL && p->source_vector && cols % 8 == 0;

    if (bulk) {
        if (thread == 0) {
            mbarrier_init(&s->full, 1);
            fence_mbarrier_init();
            mbarrier_arrive_expect_tx(&s->full, (uint32_t)(rows * cols * 2));
        }
        __syncthreads();
        if (thread < rows && cols > 0) {
            cp_async_bulk_shared_global(slice + thread * units,
                                        (const uint16_t *)p->x + (row0 + thread) * p->x_ld + col0, (uint32_t)cols * 2,
                                        &s->full);
        }
        mbarrier_wait_parity(&s->full, 0);
    }
    /* Sums of squares: a half warp takes its 8 rows, a unit a lane and tile; where nothing came in bulk it also loads.
     */
#pragma unroll 2
    for (int i = 0; i < LANE_ROWS; i++) {
        const int row = row0 + lane_row + i;
        float sum = 0.0f;
        for (int t = 0; t < tiles; t++) {
            const int col = col0 + t * TILE + half_lane * 8;
            uint4 *at = slice + (lane_row + i) * units + t * 16 + half_lane;
            uint4 v = make_uint4(0, 0, 0, 0);
            if (!bulk) {
                v = load_unit(p->x, p->x_ld, row, col, p->rows, p->cols, p->source_vector, DW_BF16);
                if (p->residual != NULL) {
                    v = add_bf16_units(
                        v, load_unit(p->residual, p->x_ld, row, col, p->rows, p->cols, p->source_vector, DW_BF16));
                    store_bf16_unit(p->h, p->x_ld, row, col, p->rows, p->cols, p->source_vector, v);
                }
                *at = v;
            } else if (row < p->rows && col < p->cols) {
                v = *at;
            }
            sum = sum_of_squares(v, sum);
        }
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
        }
        if (half_lane == 0) {
            s->sums[lane_row + i] = sum;
        }
    }
    barrier_cluster_arrive();
    barrier_cluster_wait();
    if (thread < TILE) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < ranks; i++) {
            sum += ld_shared_cluster_f32(&s->sums[thread], i);
        }
        const float rstd = rsqrt_approx_f32(fmaf(sum, p->inverse_cols, p->eps));
        s->rstd[thread] = rstd;
        if (rank == 0 && thread < rows) {
            p->rstd[row0 + thread] = rstd;
        }
    }
    /* Nobody may leave while others still read his sums: the other half of this barrier is at the end. */
    barrier_cluster_arrive();
    __syncthreads();
#pragma unroll 1
    for (int t = 0; t < tiles && col0 + t * TILE < p->raster.tile_cols * TILE; t++) {
        const square_tile_place at = place_in_tile(row0, col0 + t * TILE, p->rows, p->cols);
        const int col = at.col0 + half_lane * 8;
        float w[8];
        load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, col, p->cols);
        square_tile_units v;
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            const uint4 h = slice[(lane_row + i) * units + t * 16 + half_lane];
            v.v[i][0] = lane_row + i < rows && col < p->cols ? normalized_unit(h, s->rstd[lane_row + i], w)
                                                             : make_uint4(0, 0, 0, 0);
        }
        if (p->y != NULL) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
                store_bf16_unit(p->y, p->x_ld, row0 + lane_row + i, col, p->rows, p->cols, p->source_vector, v.v[i][0]);
            }
        }
        quantize_square_tile(&s->tile, &p->row, &p->transposed, &at, &v, p->round_add, p->row.data != NULL,
                             p->transposed.data != NULL, block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16,
                             DW_E4M3, block);
        __syncthreads();
    }
    barrier_cluster_wait();
}

#define RMSNORM_PANEL(NAME, BLOCK)                                                                                     \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)                                                      \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_params p) {                                                       \
        rmsnorm_quantize_panel(&p, BLOCK);                                                                             \
    }

RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)
