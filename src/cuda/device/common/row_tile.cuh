/* Row quantization of 16-byte units that threads hold in registers: the part that quantize_row and the fused norms
 * share.
 *
 * Lane `l` of a warp holds the unit at columns l * unit .. of a run of 32 units, so a block of B columns lies in
 * B / unit neighbouring lanes and its amax is a few butterfly shuffles. */
#ifndef DW_DEVICE_ROW_TILE_CUH
#define DW_DEVICE_ROW_TILE_CUH

#include "common/block_scale.cuh"

/* Columns of a 1xB block. */
DW_DEVICE int block_columns(int block) {
    return block == DW_BLOCK_1X32 ? 32 : 128;
}

/* The unit at (row, col), zeros outside. */
DW_DEVICE uint4 load_unit(const void *matrix, int64_t ld, int row, int col, int rows, int cols, int vector,
                          int source) {
    const int size = source == DW_F32 ? 4 : 2;
    const char *start = (const char *)matrix + row * ld * size;
    if (row >= rows || col >= cols) {
        return make_uint4(0, 0, 0, 0);
    }
    if (vector && col + unit_elements(source) <= cols) {
        return ld_global_no_allocate_v4(start + (int64_t)col * size);
    }
    return load_unit_partial(start, col, cols, source);
}

/* The code of the block that this lane's unit belongs to, known to every lane of the block. */
DW_DEVICE uint32_t row_block_code(uint4 v, int source, int element, int block, uint32_t round_add) {
    const int lanes = block_columns(block) / unit_elements(source);
    uint32_t amax = unit_amax(v, source);
    if (source != DW_F32) {
        amax = max(amax & 0xFFFFu, amax >> 16);
    }
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        amax = max(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
    }
    return scale_code(amax_as_f32(amax, source), round_add, element);
}

/* Converts one unit and stores its 8 (FP32 source: 4) bytes at (row, col). */
DW_DEVICE void store_unit(const dw_cuda_quantized *out, int row, int col, int rows, int cols, uint4 v, float inverse,
                          int source, int element) {
    const int n = unit_elements(source);
    uint32_t low = quantize_quarter(v, 0, inverse, source, element);
    uint32_t high = n == 8 ? quantize_quarter(v, 1, inverse, source, element) : 0;
    if (row >= rows || col >= cols) {
        return;
    }
    uint8_t *at = out->data + row * out->ld + col;
    if (out->vector && col + n <= cols) {
        if (n == 8) {
            st_global_v2(at, low, high);
        } else {
            st_global_u32(at, low);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < n; i++) {
        if (col + i < cols) {
            at[i] = (uint8_t)((i < 4 ? low : high) >> 8 * (i & 3));
        }
    }
}

#endif
