#include "formats/quantized.h"

#include "core/status.h"
#include "formats/scale_layout.h"

dw_status dw_check_device(const dw_tensor *tensor, const char *name, const dw_tensor *first) {
    if (tensor->device_type != DW_DEVICE_CPU && tensor->device_type != DW_DEVICE_CUDA)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has device type %d; expected 1 (CPU) or 2 (CUDA)", name,
                       (int)tensor->device_type);
    if (tensor->device_type != first->device_type ||
        (tensor->device_type == DW_DEVICE_CUDA && tensor->device_id != first->device_id))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s is on another device than the other tensors; move it there",
                       name);
    return DW_OK;
}

/* FP32 scales exactly as dw_gemm reads them: [R, C] with strides (1, R) for 1x128 and (C rounded up to 4, 1) for
 * 128x128; the stride of an extent of one does not matter. */
static dw_status check_factors(const dw_tensor *scale, const dw_quantize_spec *spec, const char *name, int64_t rows,
                               int64_t cols, dw_view *view) {
    if (scale->device_type != DW_DEVICE_CUDA || spec->block == DW_BLOCK_1X32)
        return dw_fail(
            DW_ERROR_UNSUPPORTED,
            "%s has dtype f32, which only quantization on a GPU with block 1x128 or 128x128 writes; pass e8m0", name);
    const dw_grid grid = dw_block_grid(spec->block, rows, cols);
    if (scale->rank != 2 || scale->shape[0] != grid.rows || scale->shape[1] != grid.cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s must have shape [%lld, %lld], one f32 scale a block", name,
                       (long long)grid.rows, (long long)grid.cols);
    const bool square = spec->block == DW_BLOCK_128X128;
    const int64_t strides[2] = {square ? (grid.cols + 3) / 4 * 4 : 1, square ? 1 : grid.rows};
    for (int i = 0; i < 2; i++)
        if (scale->shape[i] > 1 && scale->strides[i] != strides[i])
            return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                           "%s has stride %lld in dimension %d; f32 scales of block %s need %lld", name,
                           (long long)scale->strides[i], i, dw_block_name(spec->block), (long long)strides[i]);
    if (!scale->data && grid.rows && grid.cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s.data is NULL; pass memory for [%lld, %lld] scales", name,
                       (long long)grid.rows, (long long)grid.cols);
    *view = (dw_view){.data = scale->data,
                      .rows = square ? grid.rows : grid.cols,
                      .cols = square ? strides[0] : grid.rows,
                      .ld = square ? strides[0] : grid.rows,
                      .element_size = 4,
                      .name = name};
    return DW_OK;
}

dw_status dw_check_quantized(const dw_quantized *quantized, const dw_quantize_spec *spec, const char *const names[2],
                             const dw_tensor *first, bool factors, dw_quantized_view *view) {
    DW_TRY(dw_check_matrix(&quantized->data, names[0], &view->data));
    DW_TRY(dw_check_device(&quantized->data, names[0], first));
    DW_TRY(dw_check_device(&quantized->scale, names[1], first));
    if (quantized->data.dtype != spec->element)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has dtype %s; spec.element asks for %s", names[0],
                       dw_dtype_name(quantized->data.dtype), dw_dtype_name(spec->element));
    if (quantized->scale.dtype == DW_F32 && factors)
        return check_factors(&quantized->scale, spec, names[1], view->data.rows, view->data.cols, &view->scale);
    DW_TRY(dw_check_matrix(&quantized->scale, names[1], &view->scale));
    if (quantized->scale.dtype != DW_E8M0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has dtype %s; expected e8m0", names[1],
                       dw_dtype_name(quantized->scale.dtype));
    int64_t shape[2];
    DW_TRY(dw_scale_shape(spec, view->data.rows, view->data.cols, shape));
    DW_TRY(dw_check_extents(&view->scale, shape[0], shape[1]));
    if (view->scale.ld != view->scale.cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has row stride %lld; scales must be dense (%lld)", names[1],
                       (long long)view->scale.ld, (long long)view->scale.cols);
    return DW_OK;
}
