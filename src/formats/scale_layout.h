/* Where scale codes lie: shapes, offsets and padding of the three layouts. */
#ifndef DW_FORMATS_SCALE_LAYOUT_H
#define DW_FORMATS_SCALE_LAYOUT_H

#include "deepwell/quantize.h"

/* INVALID_ARGUMENT when some field is no value of its enumeration, UNSUPPORTED for a layout that the block cannot have.
 */
dw_status dw_check_spec(const dw_quantize_spec *spec);

/* The spec of one result on its own: with the block that it has, and no square transposed form to it. */
dw_quantize_spec dw_result_spec(const dw_quantize_spec *spec, bool transposed);

/* Rows and columns of the grid of blocks of a [rows, cols] matrix. */
typedef struct dw_grid {
    int64_t rows, cols;
} dw_grid;
dw_grid dw_block_grid(dw_block block, int64_t rows, int64_t cols);

/* Byte offset of the code of block (r, c) in the dense scale tensor. */
int64_t dw_scale_offset(dw_scale_layout layout, dw_grid grid, int64_t r, int64_t c);

/* Writes zero to every byte of the scale tensor that belongs to no block (and to some that do: call it before the
 * codes are written). */
void dw_scale_zero_padding(dw_scale_layout layout, dw_grid grid, uint8_t *scale);

#endif
