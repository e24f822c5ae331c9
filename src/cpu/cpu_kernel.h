/* The contract between the CPU drivers and the kernels of each instruction set (src/cpu/ref, avx2, avx512).
 *
 * A driver validates a request, splits the matrix into tiles and calls the row's kernel for each, on several threads. A
 * kernel is a pure function over one tile: no allocation, no failure, no state. */
#ifndef DW_CPU_KERNEL_H
#define DW_CPU_KERNEL_H

#include "deepwell/quantize.h"

/* Where a scale byte of block (r, c) of the grid goes: base + r * row_stride + c * col_stride, or the tcgen05 formula.
 * Filled by the driver from spec.layout, so kernels only call dw_scale_at. */
typedef struct dw_scale_map {
    uint8_t *base;
    int64_t row_stride, col_stride;
    int64_t atoms_per_row; /* tcgen05: ceil(C / 4); 0 for the strided layouts */
} dw_scale_map;

static inline uint8_t *dw_scale_at(const dw_scale_map *map, int64_t r, int64_t c) {
    if (map->atoms_per_row) {
        int64_t atom = (r / 128) * map->atoms_per_row + c / 4;
        return map->base + atom * 512 + (r % 32) * 16 + ((r / 32) % 4) * 4 + c % 4;
    }
    return map->base + r * map->row_stride + c * map->col_stride;
}

/* One quantization, shared by its tiles. Padding of the scale tensors is zeroed by the driver. */
typedef struct dw_quantize_job {
    const void *source; /* [rows, cols], source_ld elements between rows */
    int64_t source_ld, rows, cols;
    dw_dtype source_dtype;
    dw_dtype element;
    dw_block block;
    dw_rounding rounding;
    uint8_t *row_data; /* [rows, cols] or NULL */
    int64_t row_ld;
    dw_scale_map row_scale; /* grid of the [rows, cols] matrix */
    uint8_t *col_data;      /* [cols, rows] or NULL */
    int64_t col_ld;
    dw_scale_map col_scale; /* grid of the [cols, rows] matrix: block (c, r / B) */
    /* GPU rows only: FP32 scales in the place of codes, laid out as dw_gemm reads them; else NULL. */
    float *row_factors, *col_factors;
} dw_quantize_job;

/* A tile: rows [row0, row1), cols [col0, col1). row0 and col0 are multiples of 128; row1 and col1 are too, or the
 * matrix's own end. */
typedef struct dw_tile {
    int64_t row0, row1, col0, col1;
} dw_tile;

typedef void (*dw_quantize_kernel)(const dw_quantize_job *job, const dw_tile *tile);

typedef struct dw_dequantize_job {
    const uint8_t *data; /* [rows, cols] */
    int64_t data_ld, rows, cols;
    dw_dtype element;
    dw_block block;
    dw_scale_map scale;
    void *target;
    int64_t target_ld;
    dw_dtype target_dtype;
} dw_dequantize_job;

typedef void (*dw_dequantize_kernel)(const dw_dequantize_job *job, const dw_tile *tile);

#endif
