/* swiglu_backward_quantize_<halves|interleaved>_bf16_e4m3_<block>: the gradient of the gate-up matrix from the gradient
 * of the activation, quantized in either or both orientations.
 *
 * Floor, per element of the activation: 2 bytes of dy and 4 of gate-up read, 2 written an orientation (4 more where the
 * BF16 gradient is wanted): 10 bytes for both.
 *
 * Plan: halves (`inner` must be a multiple of 128, so that no block of the gradient spans gate and up): a block takes a
 * 128x128 tile of the activation, so two tiles of the gradient. Gate's stays in registers; up's
 * waits in shared memory, each lane its own units (32 KiB, no barrier), and is quantized second. Interleaved: a block
 * takes 128x64 of the activation, which is one 128x128 tile of the gradient. Loads go in batches of BATCH rows, 3 (2)
 * independent loads a row. */
#include "common/gated_tile.cuh"

#define BATCH 2

typedef struct backward_shared {
    square_tile_shared tile;
    uint4 up[LANE_ROWS][TILE_THREADS];
} backward_shared;

/* Gate's units into `t`, up's into `up`. */
DW_DEVICE void backward_tile_halves(square_tile_units *t, uint4 up[LANE_ROWS][TILE_THREADS],
                                    const square_tile_place *at, const dw_cuda_swiglu_params *p, bool clamped) {
    const gate_form form = {p->alpha, p->limit};
    const bool whole = p->source_vector && tile_is_whole(at);
    const int col = at->col0 + lane_column(at, 0, DW_BF16);
    const int row0 = at->row0 + at->lane_row;
    const uint16_t *gate_up = (const uint16_t *)p->gate_up + row0 * p->gate_up_ld;
    const uint16_t *dys = (const uint16_t *)p->dy + row0 * p->dy_ld;
#pragma unroll
    for (int batch = 0; batch < LANE_ROWS; batch += BATCH) {
        uint4 g[BATCH], u[BATCH], dy[BATCH];
        if (whole) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                g[i] = ld_global_no_allocate_v4(gate_up + (batch + i) * p->gate_up_ld + col);
                u[i] = ld_global_no_allocate_v4(gate_up + (batch + i) * p->gate_up_ld + p->inner + col);
                dy[i] = ld_global_no_allocate_v4(dys + (batch + i) * p->dy_ld + col);
            }
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int end = row0 + batch + i < p->rows ? p->inner : 0;
                g[i] = load_unit_partial(gate_up + (batch + i) * p->gate_up_ld, col, end, DW_BF16);
                u[i] = load_unit_partial(gate_up + (batch + i) * p->gate_up_ld + p->inner, col, end, DW_BF16);
                dy[i] = load_unit_partial(dys + (batch + i) * p->dy_ld, col, end, DW_BF16);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            uint32_t gates[4], ups[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t gw = unit_word(g[i], j), uw = unit_word(u[i], j), dw = unit_word(dy[i], j);
                float dg0, du0, dg1, du1;
                gated_backward(form, clamped, low_bf16(gw), low_bf16(uw), low_bf16(dw), &dg0, &du0);
                gated_backward(form, clamped, high_bf16(gw), high_bf16(uw), high_bf16(dw), &dg1, &du1);
                gates[j] = cvt_rn_bf16x2_f32(dg1, dg0);
                ups[j] = cvt_rn_bf16x2_f32(du1, du0);
            }
            t->v[batch + i][0] = make_uint4(gates[0], gates[1], gates[2], gates[3]);
            up[batch + i][threadIdx.x] = make_uint4(ups[0], ups[1], ups[2], ups[3]);
        }
    }
}

/* A tile of the gradient whose columns alternate gate and up; `at` places it in the [rows, 2 * inner] matrix. */
DW_DEVICE void backward_tile_interleaved(square_tile_units *t, const square_tile_place *at,
                                         const dw_cuda_swiglu_params *p, bool clamped) {
    const gate_form form = {p->alpha, p->limit};
    const bool whole = p->source_vector && tile_is_whole(at);
    const int col = at->col0 + lane_column(at, 0, DW_BF16);
    const int row0 = at->row0 + at->lane_row;
    const uint16_t *gate_up = (const uint16_t *)p->gate_up + row0 * p->gate_up_ld;
    const uint16_t *dys = (const uint16_t *)p->dy + row0 * p->dy_ld;
#pragma unroll
    for (int batch = 0; batch < LANE_ROWS; batch += BATCH) {
        uint4 gu[BATCH];
        uint2 dy[BATCH];
        if (whole) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                gu[i] = ld_global_no_allocate_v4(gate_up + (batch + i) * p->gate_up_ld + col);
                dy[i] = ld_global_no_allocate_v2(dys + (batch + i) * p->dy_ld + col / 2);
            }
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int end = row0 + batch + i < p->rows ? p->inner : 0;
                gu[i] = load_unit_partial(gate_up + (batch + i) * p->gate_up_ld, col, 2 * end, DW_BF16);
                const uint4 d = load_unit_partial(dys + (batch + i) * p->dy_ld, col / 2, end, DW_BF16);
                dy[i] = make_uint2(d.x, d.y);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            uint32_t word[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t pair = unit_word(gu[i], j), dw = j < 2 ? dy[i].x : dy[i].y;
                float dg, du;
                gated_backward(form, clamped, low_bf16(pair), high_bf16(pair),
                               j % 2 == 0 ? low_bf16(dw) : high_bf16(dw), &dg, &du);
                word[j] = cvt_rn_bf16x2_f32(du, dg);
            }
            t->v[batch + i][0] = make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
}

/* One tile of the gradient, as BF16 where wanted, and quantized. */
DW_DEVICE void finish_tile(square_tile_shared *s, const dw_cuda_swiglu_params *p, const square_tile_place *at,
                           square_tile_units *t, int block) {
    if (p->out != NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_bf16_unit(p->out, p->out_ld, at->row0 + at->lane_row + i, at->col0 + lane_column(at, 0, DW_BF16),
                            at->rows, at->cols, p->source_vector, t->v[i][0]);
        }
    }
    quantize_square_tile(s, &p->row, &p->transposed, at, t, p->round_add, p->row.data != NULL,
                         p->transposed.data != NULL, false, DW_BF16, DW_E4M3, block);
}

DW_DEVICE void swiglu_backward_halves(const dw_cuda_swiglu_params *p, int block) {
    extern __shared__ uint4 dynamic_shared[];
    backward_shared *s = (backward_shared *)dynamic_shared;
    int tile_row, tile_col;
    raster_tile(&p->raster, blockIdx.x, &tile_row, &tile_col);
    square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, 2 * p->inner);
    square_tile_units t;
    if (p->clamped) {
        backward_tile_halves(&t, s->up, &at, p, true);
    } else {
        backward_tile_halves(&t, s->up, &at, p, false);
    }
    finish_tile(&s->tile, p, &at, &t, block);
    __syncthreads();
    at.col0 += p->inner;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t.v[i][0] = s->up[i][threadIdx.x];
    }
    finish_tile(&s->tile, p, &at, &t, block);
}

DW_DEVICE void swiglu_backward_interleaved(const dw_cuda_swiglu_params *p, int block) {
    extern __shared__ uint4 dynamic_shared[];
    square_tile_shared *s = (square_tile_shared *)dynamic_shared;
    int tile_row, tile_col;
    raster_tile(&p->raster, blockIdx.x, &tile_row, &tile_col);
    const square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, 2 * p->inner);
    square_tile_units t;
    if (p->clamped) {
        backward_tile_interleaved(&t, &at, p, true);
    } else {
        backward_tile_interleaved(&t, &at, p, false);
    }
    finish_tile(s, p, &at, &t, block);
}

#define SWIGLU_BACKWARD(NAME, BODY, BLOCK)                                                                             \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 3)                                                      \
        NAME(const __grid_constant__ dw_cuda_swiglu_params p) {                                                        \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        BODY(&p, BLOCK);                                                                                               \
    }

SWIGLU_BACKWARD(swiglu_backward_quantize_halves_bf16_e4m3_1x128__sm90, swiglu_backward_halves, DW_BLOCK_1X128)
SWIGLU_BACKWARD(swiglu_backward_quantize_halves_bf16_e4m3_1x32__sm90, swiglu_backward_halves, DW_BLOCK_1X32)
SWIGLU_BACKWARD(swiglu_backward_quantize_interleaved_bf16_e4m3_1x128__sm90, swiglu_backward_interleaved, DW_BLOCK_1X128)
SWIGLU_BACKWARD(swiglu_backward_quantize_interleaved_bf16_e4m3_1x32__sm90, swiglu_backward_interleaved, DW_BLOCK_1X32)
