/* Units of 8 BF16 values (16 bytes): taking them apart and storing them. */
#ifndef DW_DEVICE_BF16_UNIT_CUH
#define DW_DEVICE_BF16_UNIT_CUH

#include "common/ptx.cuh"

DW_DEVICE uint32_t unit_word(uint4 v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

DW_DEVICE float low_bf16(uint32_t word) {
    return __uint_as_float(word << 16);
}

DW_DEVICE float high_bf16(uint32_t word) {
    return __uint_as_float(word & 0xFFFF0000u);
}

/* Stores a unit of 8 BF16 values at (row, col) of a [rows, cols] matrix. */
DW_DEVICE void store_bf16_unit(void *matrix, int64_t ld, int row, int col, int rows, int cols, int vector, uint4 v) {
    if (row >= rows || col >= cols) {
        return;
    }
    uint16_t *at = (uint16_t *)matrix + row * ld + col;
    if (vector && col + 8 <= cols) {
        st_global_v4(at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (col + i < cols) {
            at[i] = (uint16_t)(unit_word(v, i / 2) >> 16 * (i & 1));
        }
    }
}

#endif
