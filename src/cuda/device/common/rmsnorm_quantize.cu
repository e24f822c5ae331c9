/* rmsnorm_quantize_<row|both>_bf16_e4m3_<block>: h = x + residual, y = h * rstd * (weight + offset), y quantized.
 *
 * y is rounded to BF16 once and what is quantized is exactly that BF16 matrix, whether it is stored or not. h, where
 * there is a residual, is rounded to BF16 first, as the residual stream is.
 *
 * Floor: row: 2 bytes read and 1 written an element; both: 2 and 2. With a residual 4 more (residual read, h written).
 *
 * row: one pass. A block takes ROWS rows one after another, a row across all its threads, UNITS units of 16 bytes a
 * thread; rows arrive through a ring in shared memory (row_ring.cuh), several ahead, so the reduction in the middle of
 * a row does not stop the reading. The host chooses threads = columns / 16 (at most 1024, so at most 16384 columns;
 * wider matrices go to the other kernel).
 *
 * both: a column block needs 128 rows of y, and those need rstd of 128 whole rows. Reading x twice from DRAM would cost
 * 6 bytes an element instead of 4; so statistics (a warp a row) run only a few bands of 128 rows ahead of the tiles
 * that consume them, and tiles find x, or h, in the L2. Tasks are taken in order from a counter; a tile waits for the
 * 16 statistics tasks of its band, all of which were taken before it, so the wait always ends. The last block to finish
 * sets the counters back to zero for the next launch. */
#include "common/norm.cuh"
#include "common/row_ring.cuh"

#define UNITS 2
#define ROWS 16
#define MAX_THREADS 1024
#define STATISTICS_TASKS (TILE / TILE_WARPS) /* a band */

DW_DEVICE uint4 normalized_unit(uint4 h, float rstd, const float w[8]) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t x = unit_word(h, i);
        word[i] = cvt_rn_bf16x2_f32(high_bf16(x) * rstd * w[2 * i + 1], low_bf16(x) * rstd * w[2 * i]);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* ---- row
 * ------------------------------------------------------------------------------------------------------------- */

DW_DEVICE void rmsnorm_quantize_row(const dw_cuda_rmsnorm_params *p, int block) {
    __shared__ uint8_t codes[MAX_THREADS * UNITS * 8 / 32 * ROWS];
    __shared__ float partial[2][32];
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, warps = threads / 32;
    const int block_cols = block_columns(block), blocks = (p->cols + block_cols - 1) / block_cols;
    const int row0 = (int)blockIdx.x * ROWS;
    extern __shared__ uint4 dynamic_shared[];
    const row_ring ring =
        make_row_ring((char *)dynamic_shared, p->stages, p->residual != NULL ? 2 : 1, p->cols, p->source_vector);
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
        rmsnorm_quantize_row(&p, BLOCK);                                                                               \
    }

RMSNORM_ROW(rmsnorm_quantize_row_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_ROW(rmsnorm_quantize_row_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)

/* ---- both
 * ------------------------------------------------------------------------------------------------------------ */

typedef struct rmsnorm_shared {
    square_tile_shared tile;
    float rstd[TILE];
    uint32_t ticket[2];
} rmsnorm_shared;

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

/* The tile of y. Waits for the statistics of its rows; what this kernel wrote (h, rstd) is read from the L2, never
 * through the read-only path. */
DW_DEVICE void normalized_tile(square_tile_units *t, rmsnorm_shared *s, const square_tile_place *at,
                               const dw_cuda_rmsnorm_params *p) {
    const uint16_t *matrix = (const uint16_t *)(p->residual != NULL ? p->h : p->x);
    const int col = at->col0 + lane_column(at, 0, DW_BF16);
    const int row0 = at->row0 + at->lane_row;
    const bool whole = p->source_vector && tile_is_whole(at);
    /* x is there from the start: its loads go out before the wait. h is only there after it. */
    if (whole && p->residual == NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            t->v[i][0] = ld_global_nc_no_allocate_v4(matrix + (row0 + i) * p->x_ld + col);
        }
    }
    if (threadIdx.x == 0) {
        while (ld_acquire_gpu_global_u32(p->sync + 2 + at->row0 / TILE) < STATISTICS_TASKS) {
            __nanosleep(64);
        }
    }
    __syncthreads();
    if (whole && p->residual != NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            t->v[i][0] = ld_global_cg_v4(matrix + (row0 + i) * p->x_ld + col);
        }
    } else if (!whole) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (row0 + i < p->rows && col + j < p->cols) {
                    word[j / 2] |= (uint32_t)__ldcg(matrix + (row0 + i) * p->x_ld + col + j) << 16 * (j & 1);
                }
            }
            t->v[i][0] = make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
    if (threadIdx.x < TILE) {
        s->rstd[threadIdx.x] = at->row0 + (int)threadIdx.x < p->rows ? __ldcg(p->rstd + at->row0 + threadIdx.x) : 0.0f;
    }
    float w[8];
    load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, col, p->cols);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = normalized_unit(t->v[i][0], s->rstd[at->lane_row + i], w);
    }
}

DW_DEVICE void rmsnorm_tile(rmsnorm_shared *s, const dw_cuda_rmsnorm_params *p, int tile_row, int tile_col, int block) {
    const square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, p->cols);
    square_tile_units t;
    normalized_tile(&t, s, &at, p);
    if (p->y != NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_bf16_unit(p->y, p->x_ld, at.row0 + at.lane_row + i, at.col0 + lane_column(&at, 0, DW_BF16), at.rows,
                            at.cols, p->source_vector, t.v[i][0]);
        }
    }
    quantize_square_tile(&s->tile, &p->row, &p->transposed, &at, &t, p->round_add, p->row.data != NULL,
                         p->transposed.data != NULL, DW_BF16, DW_E4M3, block);
}

DW_DEVICE void rmsnorm_quantize_both(const dw_cuda_rmsnorm_params *p, int block) {
    __shared__ rmsnorm_shared s;
    const int thread = (int)threadIdx.x;
    const uint32_t bands = (uint32_t)p->raster.tile_rows, lead = (uint32_t)p->lead_bands;
    const uint32_t group = STATISTICS_TASKS + (uint32_t)p->raster.tile_cols;
    const uint32_t tasks = lead * STATISTICS_TASKS + bands * group;
    if (thread == 0) {
        s.ticket[0] = atomicAdd(p->sync, 1u);
    }
    for (uint32_t turn = 0;; turn++) {
        __syncthreads();
        const uint32_t ticket = s.ticket[turn & 1];
        if (ticket >= tasks) {
            break;
        }
        if (thread == 0) {
            s.ticket[~turn & 1] = atomicAdd(p->sync, 1u);
        }
        /* The first `lead` bands' statistics, then by turns a band's statistics and the tiles of the band `lead`
         * before. */
        uint32_t band, inside;
        if (ticket < lead * STATISTICS_TASKS) {
            band = ticket / STATISTICS_TASKS;
            inside = ticket % STATISTICS_TASKS;
        } else {
            band = (ticket - lead * STATISTICS_TASKS) / group;
            inside = (ticket - lead * STATISTICS_TASKS) % group;
            if (inside >= STATISTICS_TASKS) {
                rmsnorm_tile(&s, p, (int)band, (int)(inside - STATISTICS_TASKS), block);
                continue;
            }
            band += lead;
        }
        if (band < bands) {
            row_statistics(p, (int)(band * TILE + inside * TILE_WARPS) + thread / 32);
            __syncthreads();
            if (thread == 0) {
                red_release_gpu_global_add_u32(p->sync + 2 + band, 1);
            }
        }
    }
    if (thread == 0) {
        s.ticket[0] = atomicAdd(p->sync + 1, 1u);
    }
    __syncthreads();
    if (s.ticket[0] == gridDim.x - 1) {
        for (uint32_t i = (uint32_t)thread; i < 2 + bands; i += TILE_THREADS) {
            p->sync[i] = 0;
        }
    }
}

#define RMSNORM_BOTH(NAME, BLOCK)                                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 3)                                                      \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_params p) {                                                       \
        rmsnorm_quantize_both(&p, BLOCK);                                                                              \
    }

RMSNORM_BOTH(rmsnorm_quantize_both_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_BOTH(rmsnorm_quantize_both_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)
