/* The body of rmsnorm_quantize_panel_*: RMSNorm to both quantized forms from one read of x (rmsnorm_quantize.cu says
 * what is computed, and serves rows too wide for this).
 *
 * Floor: 2 bytes read, 2 written for y and 1 for each form an element; with a residual 4 more (residual read, h
 * written).
 *
 * Plan: a cluster of thread blocks owns a panel of 128 whole rows; each block keeps its slice of block_tiles tiles of
 * 128 columns from the only read of x to the last store. Tensor copies bring all of a slice's tiles at once into slots
 * of shared memory, 32 KiB each, so that the bytes in flight do not depend on registers; a kernel that holds a tile
 * has one tile more in registers, where a fourth slot would leave room for only one block on a multiprocessor. Half
 * warps sum the squares of their part of 8 rows and send the sums straight into the shared memory of every block of the
 * cluster, where they count on a barrier: no fence, no block reads what another one has, and nobody can leave too
 * early, since every block waits for all others' sums. Added up in the order of ranks, they give all blocks and every
 * run the same 1 / rms. Then each tile is worked on as in quantize_both; a tile's slot, once in registers, serves as
 * its scratch memory. While one block of a multiprocessor waits for its cluster the others work. */
#ifndef DW_DEVICE_RMSNORM_PANEL_CUH
#define DW_DEVICE_RMSNORM_PANEL_CUH

#include "common/norm.cuh"

#define SLOT_UNITS (TILE * TILE / 8)

/* After the slots in dynamic shared memory. */
typedef struct panel_shared {
    float sums[DW_CUDA_PANEL_RANKS][TILE]; /* of squares, from every block of the cluster */
    float rstd[TILE];
    uint64_t arrived[DW_CUDA_PANEL_SLOTS]; /* a slot's tile */
    uint64_t summed;                       /* all of `sums` */
    alignas(16) float weights[];           /* [block_tiles * TILE] */
} panel_shared;

static_assert(sizeof(panel_shared) == DW_CUDA_PANEL_SHARED, "the host sizes shared memory by it");

/* x + residual of this lane's 8 rows of a tile, also to h. Four rows at a time: beside a held tile there are not
 * registers for more. */
DW_DEVICE void add_residual(square_tile_units *t, const square_tile_place *at, const dw_cuda_rmsnorm_params *p) {
    const int row = at->row0 + at->lane_row, col = at->col0 + at->lane_unit * 8;
#pragma unroll
    for (int half = 0; half < LANE_ROWS; half += 4) {
        uint4 residual[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            residual[i] = load_unit(p->residual, p->x_ld, row + half + i, col, at->rows, at->cols, 1, DW_BF16);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            t->v[half + i][0] = add_bf16_units(t->v[half + i][0], residual[i]);
            store_bf16_unit(p->h, p->x_ld, row + half + i, col, at->rows, at->cols, 1, t->v[half + i][0]);
        }
    }
}

DW_DEVICE void load_slot(square_tile_units *t, const square_tile_place *at, const uint4 *slot) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = slot[(at->lane_row + i) * 16 + at->lane_unit];
    }
}

DW_DEVICE void add_squares(float sums[LANE_ROWS], const square_tile_units *t) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        sums[i] = sum_of_squares(t->v[i][0], sums[i]);
    }
}

DW_DEVICE void store_y(const square_tile_units *t, const square_tile_place *at, const dw_cuda_rmsnorm_params *p) {
    const int col = at->col0 + at->lane_unit * 8, row = at->row0 + at->lane_row;
    if (tile_is_whole(at)) {
        uint16_t *to = (uint16_t *)p->y + row * p->x_ld + col;
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            st_global_v4(to, t->v[i][0]);
            to += p->x_ld;
        }
    } else {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_bf16_unit(p->y, p->x_ld, row + i, col, at->rows, at->cols, 1, t->v[i][0]);
        }
    }
}

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

DW_DEVICE void rmsnorm_quantize_panel(const dw_cuda_rmsnorm_panel_params *panel, bool holds, int block) {
    extern __shared__ __align__(128) uint4 dynamic_shared[];
    const dw_cuda_rmsnorm_params *p = &panel->norm;
    panel_shared *s = (panel_shared *)(dynamic_shared + panel->slots * SLOT_UNITS);
    const uint32_t rank = cluster_ctarank(), ranks = cluster_nctarank();
    const int row0 = (int)(blockIdx.x / ranks) * TILE;
    const int tile0 = (int)rank * panel->block_tiles, held = holds ? 1 : 0;
    const int tiles = min(panel->block_tiles, p->raster.tile_cols - tile0), slots = tiles - held;
    const square_tile_place first = place_in_tile(row0, tile0 * TILE, p->rows, p->cols);

    if (threadIdx.x == 0) {
        for (int i = 0; i < slots; i++) {
            mbarrier_init(&s->arrived[i], 1);
        }
        mbarrier_init(&s->summed, 1);
        fence_mbarrier_init();
        for (int i = 0; i < slots; i++) {
            mbarrier_arrive_expect_tx(&s->arrived[i], SLOT_UNITS * 16);
            cp_async_bulk_tensor_2d_load(shared_address(dynamic_shared + i * SLOT_UNITS), &panel->x_map,
                                         (tile0 + held + i) * TILE, row0, shared_address(&s->arrived[i]));
        }
        mbarrier_arrive_expect_tx(&s->summed, ranks * TILE * 4);
    }
    square_tile_units t, mine;
    square_tile_place at = first;
    if (holds) {
        load_tile(&mine, &at, p->x, p->x_ld, 1, DW_BF16);
    }
    for (int i = (int)threadIdx.x; i * 8 < tiles * TILE; i += TILE_THREADS) {
        float w[8];
        load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, 1, first.col0 + i * 8, p->cols);
        *(float4 *)&s->weights[i * 8] = make_float4(w[0], w[1], w[2], w[3]);
        *(float4 *)&s->weights[i * 8 + 4] = make_float4(w[4], w[5], w[6], w[7]);
    }
    __syncthreads();
    barrier_cluster_arrive_relaxed();

    float sums[LANE_ROWS];
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        sums[i] = 0.0f;
    }
    if (holds) {
        if (p->residual != NULL) {
            add_residual(&mine, &at, p);
        }
        add_squares(sums, &mine);
        forget_unpacked(&mine, DW_BF16);
    }
#pragma unroll 1
    for (int i = 0; i < slots; i++) {
        uint4 *slot = dynamic_shared + i * SLOT_UNITS;
        at.col0 = first.col0 + (held + i) * TILE;
        mbarrier_wait_parity(&s->arrived[i], 0);
        load_slot(&t, &at, slot);
        if (p->residual != NULL) {
            add_residual(&t, &at, p);
#pragma unroll
            for (int k = 0; k < LANE_ROWS; k++) {
                slot[(at.lane_row + k) * 16 + at.lane_unit] = t.v[k][0];
            }
        }
        add_squares(sums, &t);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) {
            sums[i] += __shfl_xor_sync(0xFFFFFFFFu, sums[i], distance);
        }
    }
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
        /* The held tile comes last, with the first slot, long done with, for scratch. */
        const bool last = holds && i == slots;
        uint4 *slot = dynamic_shared + (last ? 0 : i) * SLOT_UNITS;
        const int tile = last ? 0 : held + i;
        at.col0 = first.col0 + tile * TILE;
        if (last) {
            t = mine;
        } else {
            load_slot(&t, &at, slot);
        }
        normalize_tile(&t, &at, s->rstd, s->weights + tile * TILE);
        forget_unpacked(&t, DW_BF16);
        __syncthreads();
        if (p->y != NULL) {
            store_y(&t, &at, p);
        }
        quantize_square_tile((square_tile_shared *)slot, &p->row, &p->transposed, &at, &t, p->round_add, true, true,
                             block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3, block);
    }
}

#define RMSNORM_PANEL(NAME, BLOCKS_PER_SM, HOLDS, BLOCK)                                                               \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS_PER_SM)                                          \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_panel_params p) {                                                 \
        rmsnorm_quantize_panel(&p, HOLDS, BLOCK);                                                                      \
    }

#endif
