/* swiglu_quantize_<halves|interleaved>_bf16_e4m3_<block>: a = act(gate) * up, quantized in either or both orientations.
 *
 * Floor: 4 bytes read an element of `a` (gate and up), 1 written an orientation (2 more where the BF16 result is
 * wanted). Two special-function instructions an element (exponential, reciprocal) take 40% of their unit at an H200's
 * bandwidth.
 *
 * Plan: as quantize_both (one 128x128 tile of `a` a block, square_tile.cuh), with the tile computed instead of loaded:
 * a lane reads gate and up of its 8 rows in two batches of 4 rows, 8 independent 16-byte loads each, and keeps only the
 * packed BF16 result. Interleaved input puts a lane's 8 gates and 8 ups into 32 consecutive bytes, read as two 16-byte
 * halves through L1. Stores are streaming: 1 to 4% faster (docs/measured-facts.md). */
#define DW_STORE_HINT ".cs"
#include "common/gated_tile.cuh"

#define BATCH 4

DW_DEVICE uint4 gated_unit_halves(gate_form form, bool clamped, uint4 g, uint4 u) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t gi = unit_word(g, i), ui = unit_word(u, i);
        word[i] = cvt_rn_bf16x2_f32(gated(form, clamped, high_bf16(gi), high_bf16(ui)),
                                    gated(form, clamped, low_bf16(gi), low_bf16(ui)));
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DW_DEVICE uint4 gated_unit_interleaved(gate_form form, bool clamped, uint4 first, uint4 second) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a = unit_word(i < 2 ? first : second, 2 * i % 4), b = unit_word(i < 2 ? first : second, 2 * i % 4 + 1);
        word[i] = cvt_rn_bf16x2_f32(gated(form, clamped, low_bf16(b), high_bf16(b)),
                                    gated(form, clamped, low_bf16(a), high_bf16(a)));
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DW_DEVICE void swiglu_tile(square_tile_units *t, const square_tile_place *at, const dw_cuda_swiglu_params *p,
                           bool interleaved, bool clamped) {
    const gate_form form = {p->alpha, p->limit};
    const bool whole = p->source_vector && tile_is_whole(at) && (interleaved || p->inner % 8 == 0);
    const int col = at->col0 + lane_column(at, 0, DW_BF16);
    const int first_col = interleaved ? 2 * col : col, second_col = interleaved ? 2 * col + 8 : p->inner + col;
    const int end = interleaved ? 2 * p->inner : p->inner;
    const uint16_t *from = (const uint16_t *)p->gate_up + (at->row0 + at->lane_row) * p->gate_up_ld;
#pragma unroll
    for (int batch = 0; batch < LANE_ROWS; batch += BATCH) {
        uint4 first[BATCH], second[BATCH];
        if (whole) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const uint16_t *row = from + (batch + i) * p->gate_up_ld;
                first[i] = interleaved ? ld_global_v4(row + first_col) : ld_global_no_allocate_v4(row + first_col);
                second[i] = interleaved ? ld_global_v4(row + second_col) : ld_global_no_allocate_v4(row + second_col);
            }
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const bool inside = at->row0 + at->lane_row + batch + i < at->rows;
                const uint16_t *row = from + (batch + i) * p->gate_up_ld;
                first[i] = load_unit_partial(row, first_col, inside ? end : 0, DW_BF16);
                second[i] = interleaved ? load_unit_partial(row, second_col, inside ? end : 0, DW_BF16)
                                        : load_unit_partial(row + p->inner, col, inside ? end : 0, DW_BF16);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            t->v[batch + i][0] = interleaved ? gated_unit_interleaved(form, clamped, first[i], second[i])
                                             : gated_unit_halves(form, clamped, first[i], second[i]);
        }
    }
}

DW_DEVICE void swiglu_quantize(const dw_cuda_swiglu_params *p, bool interleaved, int block) {
    __shared__ square_tile_shared s;
    int tile_row, tile_col;
    raster_tile(&p->raster, blockIdx.x, &tile_row, &tile_col);
    const square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, p->inner);
    square_tile_units t;
    if (p->clamped) {
        swiglu_tile(&t, &at, p, interleaved, true);
    } else {
        swiglu_tile(&t, &at, p, interleaved, false);
    }
    if (p->out != NULL) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_bf16_unit(p->out, p->out_ld, at.row0 + at.lane_row + i, at.col0 + lane_column(&at, 0, DW_BF16),
                            at.rows, at.cols, p->source_vector, t.v[i][0]);
        }
    }
    quantize_square_tile(&s, &p->row, &p->transposed, &at, &t, p->round_add, p->row.data != NULL,
                         p->transposed.data != NULL, block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3,
                         block);
}

#define SWIGLU_QUANTIZE(NAME, INTERLEAVED, BLOCK)                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 3)                                                      \
        NAME(const __grid_constant__ dw_cuda_swiglu_params p) {                                                        \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        swiglu_quantize(&p, INTERLEAVED, BLOCK);                                                                       \
    }

SWIGLU_QUANTIZE(swiglu_quantize_halves_bf16_e4m3_1x128__sm90, false, DW_BLOCK_1X128)
SWIGLU_QUANTIZE(swiglu_quantize_halves_bf16_e4m3_1x32__sm90, false, DW_BLOCK_1X32)
SWIGLU_QUANTIZE(swiglu_quantize_interleaved_bf16_e4m3_1x128__sm90, true, DW_BLOCK_1X128)
SWIGLU_QUANTIZE(swiglu_quantize_interleaved_bf16_e4m3_1x32__sm90, true, DW_BLOCK_1X32)
