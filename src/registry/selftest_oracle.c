#include "registry/selftest_oracle.h"

#include <string.h>

#include "formats/decode.h"
#include "formats/scale_layout.h"

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void dw_expect_quantized(const dw_quantize_spec *spec, const void *source, dw_dtype dtype, int64_t source_ld,
                         int64_t rows, int64_t cols, bool transposed, uint8_t *data, uint8_t *scale) {
    dw_fp8_format format = dw_fp8(spec->element);
    int64_t out_rows = transposed ? cols : rows, out_cols = transposed ? rows : cols;
    int64_t down = transposed ? 1 : source_ld, across = transposed ? source_ld : 1;
    int64_t block_rows = dw_block_rows(spec->block), block_cols = dw_block_cols(spec->block);
    dw_grid grid = dw_block_grid(spec->block, out_rows, out_cols);
    int64_t shape[2] = {0, 0};
    dw_scale_shape(spec, out_rows, out_cols, shape);
    memset(scale, 0, (size_t)(shape[0] * shape[1]));
    for (int64_t br = 0; br < grid.rows; br++) {
        for (int64_t bc = 0; bc < grid.cols; bc++) {
            int64_t r1 = smaller((br + 1) * block_rows, out_rows), c1 = smaller((bc + 1) * block_cols, out_cols);
            uint32_t amax = 0;
            for (int64_t r = br * block_rows; r < r1; r++)
                for (int64_t c = bc * block_cols; c < c1; c++) {
                    uint32_t magnitude = dw_load_f32_bits(source, dtype, r * down + c * across) & 0x7FFFFFFF;
                    amax = magnitude > amax ? magnitude : amax;
                }
            uint8_t code = dw_scale_code(format, spec->rounding, amax);
            scale[dw_scale_offset(spec->layout, grid, br, bc)] = code;
            for (int64_t r = br * block_rows; r < r1; r++)
                for (int64_t c = bc * block_cols; c < c1; c++) {
                    uint32_t bits = dw_load_f32_bits(source, dtype, r * down + c * across);
                    data[r * out_cols + c] =
                        code == DW_SCALE_NAN ? DW_FP8_NAN : dw_fp8_encode(format, bits, code - DW_SCALE_BIAS);
                }
        }
    }
}

void dw_expect_dequantized(const dw_quantize_spec *spec, const uint8_t *data, int64_t data_ld, const uint8_t *scale,
                           int64_t rows, int64_t cols, dw_dtype dtype, void *target) {
    dw_fp8_format format = dw_fp8(spec->element);
    dw_grid grid = dw_block_grid(spec->block, rows, cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            int64_t at =
                dw_scale_offset(spec->layout, grid, r / dw_block_rows(spec->block), c / dw_block_cols(spec->block));
            dw_store_bits(target, dtype, r * cols + c,
                          dw_decode(format, data[r * data_ld + c], scale[at], dw_float(dtype)));
        }
}
