/* What the norms that keep tiles of x in shared memory share: slots of 128x128 BF16 elements, filled by tensor copies
 * without a swizzle. */
#ifndef DW_DEVICE_NORM_SLOT_CUH
#define DW_DEVICE_NORM_SLOT_CUH

#include "common/norm.cuh"

#define SLOT_UNITS (TILE * TILE / 8)
#define SLOT_BYTES (SLOT_UNITS * 16)

/* This lane's part of a tile in shared memory, rows of 16 units. */
DW_DEVICE void load_slot(square_tile_units *t, const square_tile_place *at, const uint4 *slot) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = slot[(at->lane_row + i) * 16 + at->lane_unit];
    }
}

/* A tile from its slot: x + residual, where there is one, to h (if this block is the one that writes it) and back to
 * the slot, and the squares onto the sums. Four rows at a time, for the sake of registers. */
DW_DEVICE void gather_tile(float sums[LANE_ROWS], const square_tile_place *at, uint4 *slot,
                           const dw_cuda_rmsnorm_params *p, bool writes_h) {
    const int row = at->row0 + at->lane_row, col = at->col0 + at->lane_unit * 8;
    slot += at->lane_row * 16 + at->lane_unit;
#pragma unroll
    for (int half = 0; half < LANE_ROWS; half += 4) {
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = slot[(half + i) * 16];
        }
        if (p->residual != NULL) {
            uint4 residual[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                residual[i] = load_unit(p->residual, p->x_ld, row + half + i, col, at->rows, at->cols, 1, DW_BF16);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[i] = add_bf16_units(v[i], residual[i]);
                if (writes_h) {
                    store_bf16_unit(p->h, p->x_ld, row + half + i, col, at->rows, at->cols, 1, v[i]);
                }
                slot[(half + i) * 16] = v[i];
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[half + i] = sum_of_squares(v[i], sums[half + i]);
        }
    }
}

/* Of 16 lanes, which hold the same rows. */
DW_DEVICE void sum_over_half_warp(float sums[LANE_ROWS]) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) {
            sums[i] += __shfl_xor_sync(0xFFFFFFFFu, sums[i], distance);
        }
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

#endif
