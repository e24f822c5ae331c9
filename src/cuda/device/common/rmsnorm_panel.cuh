/* The body of rmsnorm_quantize_panel_*: RMSNorm to both quantized forms from one read of x, rows of up to 4096 columns
 * (rmsnorm_quantize.cu says what is computed; rmsnorm_ring.cuh takes wider rows).
 *
 * Floor: 2 bytes read, 2 written for y and 1 for each form an element; with a residual 4 more (residual read, h
 * written).
 *
 * Plan: a cluster of thread blocks owns a panel of 128 whole rows; each block keeps its slice of block_tiles tiles of
 * 128 columns from the only read of x to the last store. Tensor copies bring all of a slice's tiles at once into slots
 * of shared memory, 32 KiB each, so that the bytes in flight do not depend on registers. Half warps sum the squares of
 * their part of 8 rows and send the sums straight into the shared memory of every block of the cluster, where they
 * count on a barrier: no fence, no block reads what another one has, and nobody can leave too early, since every block
 * waits for all others' sums. Added up in the order of ranks, they give all blocks and every run the same 1 / rms. Then
 * each tile is worked on as in quantize_both; a tile's slot, once in registers, serves as its scratch memory. While one
 * block of a multiprocessor waits for its cluster the others work. */
#ifndef DW_DEVICE_RMSNORM_PANEL_CUH
#define DW_DEVICE_RMSNORM_PANEL_CUH

#include "common/norm_slot.cuh"

/* After the slots in dynamic shared memory. */
typedef struct panel_shared {
    float sums[DW_CUDA_PANEL_RANKS][TILE]; /* of squares, from every block of the cluster */
    float rstd[TILE];
    uint64_t arrived[DW_CUDA_PANEL_TILES]; /* a slot's tile */
    uint64_t summed;                       /* all of `sums` */
    alignas(16) float weights[];           /* [block_tiles * TILE] */
} panel_shared;

static_assert(sizeof(panel_shared) == DW_CUDA_PANEL_SHARED, "the host sizes shared memory by it");

/* y of this lane's part of a tile, in place. */
DW_DEVICE void normalize_tile(square_tile_units *t, const square_tile_place *at, const float *rstd,
                              const float *weights) {
    const float4 a = *(const float4 *)(weights + at->lane_unit * 8);
    const float4 b = *(const float4 *)(weights + at->lane_unit * 8 + 4);
    const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = normalized_unit(t->v[i][0], rstd[at->lane_row + i], w);
    }
}

DW_DEVICE void rmsnorm_quantize_panel(const dw_cuda_rmsnorm_panel_params *panel, int block) {
    extern __shared__ __align__(128) uint4 dynamic_shared[];
    const dw_cuda_rmsnorm_params *p = &panel->norm;
    panel_shared *s = (panel_shared *)(dynamic_shared + panel->block_tiles * SLOT_UNITS);
    const uint32_t rank = cluster_ctarank(), ranks = cluster_nctarank();
    const int row0 = (int)(blockIdx.x / ranks) * TILE, tile0 = (int)rank * panel->block_tiles;
    const int tiles = min(panel->block_tiles, p->raster.tile_cols - tile0);
    square_tile_place at = place_in_tile(row0, tile0 * TILE, p->rows, p->cols);

    if (threadIdx.x == 0) {
        for (int i = 0; i < tiles; i++) {
            mbarrier_init(&s->arrived[i], 1);
        }
        mbarrier_init(&s->summed, 1);
        fence_mbarrier_init();
        for (int i = 0; i < tiles; i++) {
            mbarrier_arrive_expect_tx(&s->arrived[i], SLOT_BYTES);
            cp_async_bulk_tensor_2d_load(shared_address(dynamic_shared + i * SLOT_UNITS), &panel->x_map,
                                         (tile0 + i) * TILE, row0, shared_address(&s->arrived[i]));
        }
        mbarrier_arrive_expect_tx(&s->summed, ranks * TILE * 4);
    }
    for (int i = (int)threadIdx.x; i * 8 < tiles * TILE; i += TILE_THREADS) {
        float w[8];
        load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, 1, tile0 * TILE + i * 8, p->cols);
        *(float4 *)&s->weights[i * 8] = make_float4(w[0], w[1], w[2], w[3]);
        *(float4 *)&s->weights[i * 8 + 4] = make_float4(w[4], w[5], w[6], w[7]);
    }
    __syncthreads();
    barrier_cluster_arrive_relaxed();

    square_tile_units t;
    float sums[LANE_ROWS] = {0.0f};
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
        at.col0 = (tile0 + i) * TILE;
        mbarrier_wait_parity(&s->arrived[i], 0);
        gather_tile(sums, &at, dynamic_shared + i * SLOT_UNITS, p, true);
    }
    sum_over_half_warp(sums);
    barrier_cluster_wait(); /* every block's barrier is ready by now */
    if (at.lane_unit < (int)ranks) {
        float *to = &s->sums[rank][at.lane_row];
        st_async_v4(to, &s->summed, (uint32_t)at.lane_unit, make_float4(sums[0], sums[1], sums[2], sums[3]));
        st_async_v4(to + 4, &s->summed, (uint32_t)at.lane_unit, make_float4(sums[4], sums[5], sums[6], sums[7]));
    }
    mbarrier_wait_parity(&s->summed, 0);
    /* A half warp needs 1 / rms of its own 8 rows alone. */
    const int row = at.lane_row + at.lane_unit % 8;
    float sum = 0.0f;
    for (int i = 0; i < (int)ranks; i++) {
        sum += s->sums[i][row];
    }
    const float rstd = row0 + row < p->rows ? rsqrt_approx_f32(fmaf(sum, p->inverse_cols, p->eps)) : 0.0f;
    s->rstd[row] = rstd;
    if (rank == 0 && at.lane_unit < 8 && row0 + row < p->rows) {
        p->rstd[row0 + row] = rstd;
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
        uint4 *slot = dynamic_shared + i * SLOT_UNITS;
        at.col0 = (tile0 + i) * TILE;
        load_slot(&t, &at, slot);
        normalize_tile(&t, &at, s->rstd, s->weights + i * TILE);
        forget_unpacked(&t, DW_BF16);
        __syncthreads();
        if (p->y != NULL) {
            store_y(&t, &at, p);
        }
        quantize_square_tile((square_tile_shared *)slot, &p->row, &p->transposed, &at, &t, p->round_add, true, true,
                             block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3, block);
    }
}

#define RMSNORM_PANEL(NAME, BLOCKS_PER_SM, BLOCK)                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS_PER_SM)                                          \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_panel_params p) {                                                 \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        rmsnorm_quantize_panel(&p, BLOCK);                                                                             \
    }

#endif
