/* quantize_transposed_* and quantize_both_*: both orientations of a matrix from one read; and every orientation of
 * 128x128.
 *
 * Computes, for 1xB blocks, the FP8 matrix with blocks along its rows and the FP8 transpose with blocks along the
 * source's columns (or, for B = 128, one square block a tile), each from the source's own values; for 128x128 blocks
 * one code a square, whose elements serve both.
 *
 * Floor: source bytes + 1 byte an element and orientation; BF16 to both moves 4.02 bytes an element. At the bandwidth
 * of an H200 a multiprocessor has about 28 instruction slots an element for it; this takes about 12 for BF16 (counted
 * in the machine code).
 *
 * Plan: one 128x128 tile a block of 256 threads, 32 (FP32: 64) data registers a thread, held from the only read to the
 * last conversion (square_tile.cuh says who holds what). A block alternates between waiting for its tile and working;
 * three blocks on a multiprocessor interleave, so that about 48 KiB of reads are in flight. Tiles are walked in bands
 * (dw_cuda_raster): rows of the source and rows of the transposed result are both long runs of DRAM pages. */
#ifndef DW_DEVICE_QUANTIZE_TILE_CUH
#define DW_DEVICE_QUANTIZE_TILE_CUH

#include "common/square_tile.cuh"

DW_DEVICE void quantize_square_block(square_tile_shared *s, const dw_cuda_quantize_params *p,
                                     const square_tile_place *at, square_tile_units *t, bool want_row,
                                     bool want_transposed, int source, int element) {
    const int units = source == DW_F32 ? 2 : 1;
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int k = 0; k < units; k++) {
            amax = larger(amax, unit_amax(t->v[i][k], source), source);
        }
    }
    amax = square_amax_partial(s, amax, source);
    __syncthreads();
    const uint32_t code = scale_code(amax_as_f32(square_amax(s, amax), source), p->round_add, element);
    const float inverse = scale_inverse(code);
    if (want_transposed) {
        quantize_tile_columns(s, at, t, inverse, source, element, DW_BLOCK_128X128);
    }
    forget_unpacked(t, source);
    if (want_row) {
        const bool whole = p->row.vector && tile_is_whole(at);
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            store_tile_row(&p->row, at, t, i, inverse, inverse, whole, source, element);
        }
    }
    if (want_transposed) {
        __syncthreads();
        store_tile_columns(s, &p->transposed, at, 0, source);
    }
    if (threadIdx.x == 0) {
        const int r = at->row0 / TILE, c = at->col0 / TILE;
        if (want_row) {
            store_square_scale(&p->row.scale, r, c, p->raster.tile_rows, p->raster.tile_cols, code);
        }
        if (want_transposed) {
            store_square_scale(&p->transposed.scale, c, r, p->raster.tile_cols, p->raster.tile_rows, code);
        }
    }
}

DW_DEVICE void quantize_tile(const dw_cuda_quantize_params *p, bool want_row, bool want_transposed, int source,
                             int element, int block) {
    __shared__ square_tile_shared s;
    int tile_row, tile_col;
    raster_tile(&p->raster, blockIdx.x, &tile_row, &tile_col);
    const square_tile_place at = place_in_tile(tile_row * TILE, tile_col * TILE, p->rows, p->cols);
    square_tile_units t;
    load_tile(&t, &at, p->source, p->source_ld, p->source_vector, source);
    if (block == DW_BLOCK_128X128) {
        quantize_square_block(&s, p, &at, &t, want_row, want_transposed, source, element);
    } else {
        /* A square transposed form alone is the business of the 128x128 kernels. */
        const bool square = want_row && block == DW_BLOCK_1X128 && p->transposed.square;
        quantize_square_tile(&s, &p->row, &p->transposed, &at, &t, p->round_add, want_row, want_transposed, square,
                             source, element, block);
    }
}

#define QUANTIZE_TILE(NAME, BLOCKS_PER_SM, ROW, TRANSPOSED, SOURCE, ELEMENT, BLOCK)                                    \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS_PER_SM)                                          \
        NAME(const __grid_constant__ dw_cuda_quantize_params p) {                                                      \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        quantize_tile(&p, ROW, TRANSPOSED, SOURCE, ELEMENT, BLOCK);                                                    \
    }

/* All kernels of one source and element type. BLOCKS_PER_SM: 3 for 16-bit sources, 2 for FP32 (twice the registers). */
#define QUANTIZE_TILE_SET(BLOCKS_PER_SM, SOURCE_NAME, SOURCE, ELEMENT_NAME, ELEMENT)                                   \
    QUANTIZE_TILE(quantize_transposed_##SOURCE_NAME##_##ELEMENT_NAME##_1x128__sm90, BLOCKS_PER_SM, false, true,        \
                  SOURCE, ELEMENT, DW_BLOCK_1X128)                                                                     \
    QUANTIZE_TILE(quantize_transposed_##SOURCE_NAME##_##ELEMENT_NAME##_1x32__sm90, BLOCKS_PER_SM, false, true, SOURCE, \
                  ELEMENT, DW_BLOCK_1X32)                                                                              \
    QUANTIZE_TILE(quantize_both_##SOURCE_NAME##_##ELEMENT_NAME##_1x128__sm90, BLOCKS_PER_SM, true, true, SOURCE,       \
                  ELEMENT, DW_BLOCK_1X128)                                                                             \
    QUANTIZE_TILE(quantize_both_##SOURCE_NAME##_##ELEMENT_NAME##_1x32__sm90, BLOCKS_PER_SM, true, true, SOURCE,        \
                  ELEMENT, DW_BLOCK_1X32)                                                                              \
    QUANTIZE_TILE(quantize_row_##SOURCE_NAME##_##ELEMENT_NAME##_128x128__sm90, BLOCKS_PER_SM, true, false, SOURCE,     \
                  ELEMENT, DW_BLOCK_128X128)                                                                           \
    QUANTIZE_TILE(quantize_transposed_##SOURCE_NAME##_##ELEMENT_NAME##_128x128__sm90, BLOCKS_PER_SM, false, true,      \
                  SOURCE, ELEMENT, DW_BLOCK_128X128)                                                                   \
    QUANTIZE_TILE(quantize_both_##SOURCE_NAME##_##ELEMENT_NAME##_128x128__sm90, BLOCKS_PER_SM, true, true, SOURCE,     \
                  ELEMENT, DW_BLOCK_128X128)

#endif
