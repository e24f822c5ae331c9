#include "formats/scale_layout.h"

#include <string.h>

#include "core/status.h"
#include "formats/block_scale.h"

dw_status dw_check_spec(const dw_quantize_spec *spec) {
    if (!spec) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "spec is NULL; pass a dw_quantize_spec");
    if (spec->element != DW_E4M3 && spec->element != DW_E5M2)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "spec.element is %s (%d); expected e4m3 or e5m2",
                       dw_dtype_name(spec->element), (int)spec->element);
    if ((unsigned)spec->block >= DW_BLOCK_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "spec.block is %d; expected 1x32, 1x128 or 128x128 (0 to 2)",
                       (int)spec->block);
    if ((unsigned)spec->rounding >= DW_ROUND_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "spec.rounding is %d; expected rceil or floor (0 or 1)",
                       (int)spec->rounding);
    if ((unsigned)spec->layout >= DW_SCALE_LAYOUT_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "spec.layout is %d; expected row, mn_major or tcgen05 (0 to 2)",
                       (int)spec->layout);
    if (spec->layout == DW_SCALE_TCGEN05 && spec->block != DW_BLOCK_1X32)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "scale layout tcgen05 exists for block 1x32 only, not %s; use row or mn_major",
                       dw_block_name(spec->block));
    if (spec->transposed_square && spec->block != DW_BLOCK_1X128)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "spec.transposed_square is set with block %s; it goes with block 1x128 only",
                       dw_block_name(spec->block));
    return DW_OK;
}

dw_quantize_spec dw_result_spec(const dw_quantize_spec *spec, bool transposed) {
    dw_quantize_spec result = *spec;
    if (transposed && spec->transposed_square) result.block = DW_BLOCK_128X128;
    result.transposed_square = false;
    return result;
}

dw_grid dw_block_grid(dw_block block, int64_t rows, int64_t cols) {
    return (dw_grid){dw_ceil_div(rows, dw_block_rows(block)), dw_ceil_div(cols, dw_block_cols(block))};
}

dw_status dw_scale_shape(const dw_quantize_spec *spec, int64_t rows, int64_t cols, int64_t shape[2]) {
    DW_TRY(dw_check_spec(spec));
    if (!shape) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "shape is NULL; pass an array of two extents");
    if (rows < 0 || cols < 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "matrix extents [%lld, %lld] are negative; expected 0 or more",
                       (long long)rows, (long long)cols);
    /* Far beyond any memory, and low enough that no layout's arithmetic overflows. */
    int64_t bytes;
    if (__builtin_mul_overflow(rows, cols, &bytes) || bytes > INT64_MAX / 1024 || rows > INT64_MAX / 1024 ||
        cols > INT64_MAX / 1024)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "matrix extents [%lld, %lld] are too large; expected fewer than 2^53 elements", (long long)rows,
                       (long long)cols);
    dw_grid grid = dw_block_grid(spec->block, rows, cols);
    switch (spec->layout) {
    case DW_SCALE_MN_MAJOR:
        shape[0] = grid.cols;
        shape[1] = dw_ceil_div(grid.rows, 16) * 16;
        break;
    case DW_SCALE_TCGEN05:
        shape[0] = dw_ceil_div(grid.rows, 128) * dw_ceil_div(grid.cols, 4);
        shape[1] = 512;
        break;
    default:
        shape[0] = grid.rows;
        shape[1] = grid.cols;
        break;
    }
    return DW_OK;
}

int64_t dw_scale_offset(dw_scale_layout layout, dw_grid grid, int64_t r, int64_t c) {
    switch (layout) {
    case DW_SCALE_MN_MAJOR: return c * (dw_ceil_div(grid.rows, 16) * 16) + r;
    case DW_SCALE_TCGEN05:
        return ((r / 128) * dw_ceil_div(grid.cols, 4) + c / 4) * 512 + (r % 32) * 16 + ((r / 32) % 4) * 4 + c % 4;
    default: return r * grid.cols + c;
    }
}

void dw_scale_zero_padding(dw_scale_layout layout, dw_grid grid, uint8_t *scale) {
    if (layout == DW_SCALE_MN_MAJOR) {
        int64_t padded = dw_ceil_div(grid.rows, 16) * 16;
        if (padded == grid.rows) return;
        for (int64_t c = 0; c < grid.cols; c++)
            memset(scale + c * padded + grid.rows, 0, (size_t)(padded - grid.rows));
    } else if (layout == DW_SCALE_TCGEN05) {
        /* Whole atoms at the lower and right edge; the kernel then fills in their blocks. */
        int64_t down = dw_ceil_div(grid.rows, 128), across = dw_ceil_div(grid.cols, 4);
        if (grid.rows % 128) memset(scale + (down - 1) * across * 512, 0, (size_t)(across * 512));
        if (grid.cols % 4)
            for (int64_t i = 0; i < down; i++)
                memset(scale + ((i + 1) * across - 1) * 512, 0, 512);
    }
}
