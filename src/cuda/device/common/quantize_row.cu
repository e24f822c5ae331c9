/* quantize_row_<source>_<element>_<block>: 1x32 and 1x128 blocks along the rows of a matrix.
 *
 * Computes, per block of B neighbouring columns, the E8M0 code of its largest magnitude and its FP8 elements.
 *
 * Floor: source bytes + 1 byte an element + 1/B for the codes; BF16 in 1x128 moves 3.01 bytes an element and needs
 * about 5 instructions an element, a quarter of what the multiprocessor can issue in the time memory takes. So the plan
 * serves only memory: no staging, many independent 16-byte loads.
 *
 * Plan: a block of 256 threads takes ROWS rows of 64 units (16 bytes each; 512 BF16 or 256 FP32 columns). A unit column
 * is one thread's for the whole tile; four rows go at a time, so a thread issues ROWS / 4 loads before it uses the
 * first. Stores are 8 bytes a lane, 256 contiguous bytes a warp. Codes collect in shared memory and leave in runs along
 * whichever direction the layout keeps contiguous: a byte stored alone costs the L2 a whole 32-byte sector. */
#include "common/row_tile.cuh"

#define THREADS 256
#define UNITS 64 /* across a tile */
#define ROWS_AT_ONCE (THREADS / UNITS)
#define ROWS 16

DW_DEVICE void quantize_row(const dw_cuda_quantize_params *p, int source, int element, int block) {
    const int unit = unit_elements(source);
    const int tile_cols = UNITS * unit;
    const int block_cols = block_columns(block);
    const int blocks = tile_cols / block_cols; /* along a tile's row */
    __shared__ uint8_t codes[UNITS * 8 / 32 * ROWS];

    const int thread = (int)threadIdx.x;
    const int tile_row = (int)(blockIdx.x / (uint32_t)p->raster.tile_cols);
    const int tile_col = (int)(blockIdx.x % (uint32_t)p->raster.tile_cols);
    const int row0 = tile_row * ROWS + thread / UNITS;
    const int col0 = tile_col * tile_cols;
    const int col = col0 + thread % UNITS * unit;

    uint4 v[ROWS / ROWS_AT_ONCE];
    if (p->source_vector && row0 + ROWS - ROWS_AT_ONCE < p->rows && col0 + tile_cols <= p->cols) {
        const char *from = (const char *)p->source + (row0 * p->source_ld + col) * (16 / unit);
#pragma unroll
        for (int i = 0; i < ROWS / ROWS_AT_ONCE; i++) {
            v[i] = ld_global_no_allocate_v4(from + i * ROWS_AT_ONCE * p->source_ld * (16 / unit));
        }
    } else {
#pragma unroll
        for (int i = 0; i < ROWS / ROWS_AT_ONCE; i++) {
            v[i] = load_unit(p->source, p->source_ld, row0 + i * ROWS_AT_ONCE, col, p->rows, p->cols, p->source_vector,
                             source);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS / ROWS_AT_ONCE; i++) {
        uint32_t code = row_block_code(v[i], source, element, block, p->round_add);
        store_unit(&p->row, row0 + i * ROWS_AT_ONCE, col, p->rows, p->cols, v[i], scale_inverse(code), source, element);
        if ((col - col0) % block_cols == 0) {
            codes[(col - col0) / block_cols * ROWS + i * ROWS_AT_ONCE + thread / UNITS] = (uint8_t)code;
        }
    }
    __syncthreads();
    store_scales(&p->row.scale, codes, ROWS, blocks, tile_row * ROWS, tile_col * blocks, thread, THREADS);
}

#define QUANTIZE_ROW(NAME, SOURCE, ELEMENT, BLOCK)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 6) NAME(const __grid_constant__ dw_cuda_quantize_params p) { \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        quantize_row(&p, SOURCE, ELEMENT, BLOCK);                                                                      \
    }

QUANTIZE_ROW(quantize_row_bf16_e4m3_1x128__sm90, DW_BF16, DW_E4M3, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_bf16_e4m3_1x32__sm90, DW_BF16, DW_E4M3, DW_BLOCK_1X32)
QUANTIZE_ROW(quantize_row_bf16_e5m2_1x128__sm90, DW_BF16, DW_E5M2, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_bf16_e5m2_1x32__sm90, DW_BF16, DW_E5M2, DW_BLOCK_1X32)
QUANTIZE_ROW(quantize_row_f16_e4m3_1x128__sm90, DW_F16, DW_E4M3, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_f16_e4m3_1x32__sm90, DW_F16, DW_E4M3, DW_BLOCK_1X32)
QUANTIZE_ROW(quantize_row_f16_e5m2_1x128__sm90, DW_F16, DW_E5M2, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_f16_e5m2_1x32__sm90, DW_F16, DW_E5M2, DW_BLOCK_1X32)
QUANTIZE_ROW(quantize_row_f32_e4m3_1x128__sm90, DW_F32, DW_E4M3, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_f32_e4m3_1x32__sm90, DW_F32, DW_E4M3, DW_BLOCK_1X32)
QUANTIZE_ROW(quantize_row_f32_e5m2_1x128__sm90, DW_F32, DW_E5M2, DW_BLOCK_1X128)
QUANTIZE_ROW(quantize_row_f32_e5m2_1x32__sm90, DW_F32, DW_E5M2, DW_BLOCK_1X32)
