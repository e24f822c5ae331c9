/* The public operations: check the arguments, find the row, run it. */
#include "core/status.h"
#include "core/tensor.h"
#include "cpu/drive.h"
#include "cuda/host/driver.h"
#include "formats/quantized.h"
#include "formats/scale_layout.h"
#include "registry/table.h"

static dw_status check_float(const dw_tensor *tensor, const char *name) {
    if (tensor->dtype == DW_F32 || tensor->dtype == DW_F16 || tensor->dtype == DW_BF16) return DW_OK;
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has dtype %s; expected f32, f16 or bf16", name,
                   dw_dtype_name(tensor->dtype));
}

static dw_status choose_row(dw_context *context, const dw_request *request, const dw_kernel_row **row) {
    if (!*row) {
        *row = dw_choose_row(context, dw_kernel_table, dw_kernel_table_size, request);
        return *row ? DW_OK : dw_no_row(request);
    }
    const dw_kernel_info *info = &(*row)->info;
    const char *reason = dw_row_reason(context, *row);
    if (*reason) return dw_fail(DW_ERROR_UNSUPPORTED, "kernel %s is not available: %s", info->name, reason);
    const char *mismatch = info->operation != request->operation ? "the operation" : dw_row_mismatch(*row, request);
    if (*mismatch)
        return dw_fail(DW_ERROR_UNSUPPORTED, "kernel %s does not serve %s of this call; choose another", info->name,
                       mismatch);
    return DW_OK;
}

/* The largest power of two, up to 256, that the address and the distance of rows are multiples of. */
static int32_t alignment_of(const dw_view *view, dw_dtype dtype) {
    uintptr_t bits = (uintptr_t)view->data | 256u;
    if (view->rows > 1) bits |= (uintptr_t)view->ld * dw_dtype_size(dtype);
    return (int32_t)(bits & -bits);
}

static dw_status check_stream(const dw_tensor *tensor, const void *stream) {
    if (tensor->device_type == DW_DEVICE_CPU && stream)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "stream is not NULL, but the tensors are on the CPU; pass NULL");
    return DW_OK;
}

/* A kernel from outside; for a GPU in the context of the tensors' device, where the library's own are launched. */
static dw_status quantize_outside(const dw_plugin_kernel *kernel, const dw_quantize_spec *spec, const dw_tensor *source,
                                  const dw_quantized *by_row, const dw_quantized *transposed, void *stream) {
    if (kernel->device_type == DW_DEVICE_CPU)
        return kernel->quantize(kernel->state, spec, source, by_row, transposed, stream);
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(source->device_id, &scope));
    dw_status status = kernel->quantize(kernel->state, spec, source, by_row, transposed, stream);
    dw_cuda_leave(&scope);
    return status;
}

dw_status dw_quantize_with_row(dw_context *context, const dw_kernel_row *row, const dw_quantize_spec *spec,
                               const dw_tensor *source, const dw_quantized *by_row, const dw_quantized *transposed,
                               void *stream) {
    static const char *const row_names[2] = {"row.data", "row.scale"};
    static const char *const transposed_names[2] = {"transposed.data", "transposed.scale"};
    if (!context) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context is NULL; create one with dw_context_create");
    if (!by_row && !transposed)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "row and transposed are both NULL; pass at least one output");
    DW_TRY(dw_check_spec(spec));
    const dw_quantize_spec specs[2] = {dw_result_spec(spec, false), dw_result_spec(spec, true)};
    if (!by_row || !transposed) spec = &specs[by_row ? 0 : 1];
    dw_view from;
    DW_TRY(dw_check_matrix(source, "source", &from));
    DW_TRY(check_float(source, "source"));
    DW_TRY(dw_check_device(source, "source", source));
    DW_TRY(check_stream(source, stream));

    dw_view views[5] = {from};
    int count = 1;
    dw_quantize_job job = {.source = from.data,
                           .source_ld = from.ld,
                           .rows = from.rows,
                           .cols = from.cols,
                           .source_dtype = source->dtype,
                           .element = spec->element,
                           .block = spec->block,
                           .rounding = spec->rounding};
    if (by_row) {
        dw_quantized_view view;
        DW_TRY(dw_check_quantized(by_row, &specs[0], row_names, source, true, &view));
        DW_TRY(dw_check_extents(&view.data, from.rows, from.cols));
        job.row_data = view.data.data;
        job.row_ld = view.data.ld;
        if (by_row->scale.dtype == DW_F32)
            job.row_factors = view.scale.data;
        else
            job.row_scale = dw_make_scale_map(&specs[0], from.rows, from.cols, view.scale.data);
        views[count++] = view.data;
        views[count++] = view.scale;
    }
    if (transposed) {
        dw_quantized_view view;
        DW_TRY(dw_check_quantized(transposed, &specs[1], transposed_names, source, true, &view));
        DW_TRY(dw_check_extents(&view.data, from.cols, from.rows));
        job.col_data = view.data.data;
        job.col_ld = view.data.ld;
        if (transposed->scale.dtype == DW_F32)
            job.col_factors = view.scale.data;
        else
            job.col_scale = dw_make_scale_map(&specs[1], from.cols, from.rows, view.scale.data);
        views[count++] = view.data;
        views[count++] = view.scale;
    }
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++)
            DW_TRY(dw_check_disjoint(&views[i], &views[j]));
    if (spec->transposed_square && source->device_type == DW_DEVICE_CPU && !row) {
        /* Two blocks, two kernels: one for each result. */
        DW_TRY(dw_quantize_with_row(context, NULL, spec, source, by_row, NULL, NULL));
        return dw_quantize_with_row(context, NULL, spec, source, NULL, transposed, NULL);
    }

    dw_request request = {.operation = DW_OP_QUANTIZE,
                          .orientation = !transposed ? DW_ORIENT_ROW
                                         : by_row    ? DW_ORIENT_BOTH
                                                     : DW_ORIENT_TRANSPOSED,
                          .source = source->dtype,
                          .spec = *spec,
                          .rows = from.rows,
                          .cols = from.cols,
                          .device_type = source->device_type,
                          .device_id = source->device_id,
                          .alignment = alignment_of(&from, source->dtype)};
    DW_TRY(choose_row(context, &request, &row));
    if (row->plugin) return quantize_outside(row->plugin, spec, source, by_row, transposed, stream);
    if (row->device_type != DW_DEVICE_CPU) return row->entry.launch_quantize(context, &request, &job, stream);
    dw_cpu_quantize(context, row->entry.cpu_quantize, spec->layout, &job);
    return DW_OK;
}

dw_status dw_dequantize_with_row(dw_context *context, const dw_kernel_row *row, const dw_quantize_spec *spec,
                                 const dw_quantized *source, const dw_tensor *target, void *stream) {
    static const char *const names[2] = {"source.data", "source.scale"};
    if (!context) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context is NULL; create one with dw_context_create");
    if (!source) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "source is NULL; pass a dw_quantized");
    DW_TRY(dw_check_spec(spec));
    dw_view to;
    DW_TRY(dw_check_matrix(target, "target", &to));
    DW_TRY(check_float(target, "target"));
    DW_TRY(dw_check_device(target, "target", target));
    DW_TRY(check_stream(target, stream));
    dw_quantized_view from;
    DW_TRY(dw_check_quantized(source, spec, names, target, false, &from));
    DW_TRY(dw_check_extents(&from.data, to.rows, to.cols));
    DW_TRY(dw_check_disjoint(&from.data, &to));
    DW_TRY(dw_check_disjoint(&from.scale, &to));

    dw_request request = {.operation = DW_OP_DEQUANTIZE,
                          .orientation = DW_ORIENT_ROW,
                          .source = target->dtype,
                          .spec = *spec,
                          .rows = to.rows,
                          .cols = to.cols,
                          .device_type = target->device_type,
                          .device_id = target->device_id,
                          .alignment = alignment_of(&to, target->dtype)};
    DW_TRY(choose_row(context, &request, &row));
    if (row->plugin) return row->plugin->dequantize(row->plugin->state, spec, source, target, stream);
    dw_dequantize_job job = {.data = from.data.data,
                             .data_ld = from.data.ld,
                             .rows = to.rows,
                             .cols = to.cols,
                             .element = spec->element,
                             .block = spec->block,
                             .scale = dw_make_scale_map(spec, to.rows, to.cols, from.scale.data),
                             .target = to.data,
                             .target_ld = to.ld,
                             .target_dtype = target->dtype};
    if (row->device_type != DW_DEVICE_CPU) return row->entry.launch_dequantize(context, &request, &job, stream);
    dw_cpu_dequantize(context, row->entry.cpu_dequantize, &job);
    return DW_OK;
}

dw_status dw_quantize(dw_context *context, const dw_quantize_spec *spec, const dw_tensor *source,
                      const dw_quantized *row, const dw_quantized *transposed, void *stream) {
    return dw_quantize_with_row(context, NULL, spec, source, row, transposed, stream);
}

dw_status dw_dequantize(dw_context *context, const dw_quantize_spec *spec, const dw_quantized *source,
                        const dw_tensor *target, void *stream) {
    return dw_dequantize_with_row(context, NULL, spec, source, target, stream);
}

dw_status dw_quantize_measure(dw_context *context, const dw_quantize_spec *spec, const dw_tensor *source,
                              dw_quantize_stats *stats) {
    if (!context || !stats) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or stats is NULL; pass both");
    DW_TRY(dw_check_spec(spec));
    dw_view from;
    DW_TRY(dw_check_matrix(source, "source", &from));
    DW_TRY(check_float(source, "source"));
    DW_TRY(dw_check_device(source, "source", source));
    if (source->device_type != DW_DEVICE_CPU)
        return dw_fail(DW_ERROR_UNSUPPORTED, "statistics are computed on the CPU only; move source there");
    dw_request request = {.operation = DW_OP_QUANTIZE,
                          .orientation = DW_ORIENT_ROW,
                          .source = source->dtype,
                          .spec = {.element = spec->element, .block = spec->block, .rounding = spec->rounding},
                          .rows = from.rows,
                          .cols = from.cols,
                          .device_type = DW_DEVICE_CPU};
    const dw_kernel_row *row = dw_find_table_row(context, &request); /* kernels from outside write no statistics */
    if (!row) return dw_no_row(&request);
    dw_quantize_job job = {.source = from.data,
                           .source_ld = from.ld,
                           .rows = from.rows,
                           .cols = from.cols,
                           .source_dtype = source->dtype,
                           .element = spec->element,
                           .block = spec->block,
                           .rounding = spec->rounding};
    return dw_cpu_measure(context, row->entry.cpu_quantize, &job, stats);
}

static dw_status find_row(size_t kernel, const dw_kernel_row **row) {
    *row = dw_row_at(kernel);
    if (*row) return DW_OK;
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel index %zu is out of range; expected less than %zu", kernel,
                   dw_row_count());
}

dw_status dw_quantize_with(dw_context *context, size_t kernel, const dw_quantize_spec *spec, const dw_tensor *source,
                           const dw_quantized *row, const dw_quantized *transposed, void *stream) {
    const dw_kernel_row *with = NULL;
    DW_TRY(find_row(kernel, &with));
    return dw_quantize_with_row(context, with, spec, source, row, transposed, stream);
}

dw_status dw_dequantize_with(dw_context *context, size_t kernel, const dw_quantize_spec *spec,
                             const dw_quantized *source, const dw_tensor *target, void *stream) {
    const dw_kernel_row *with = NULL;
    DW_TRY(find_row(kernel, &with));
    return dw_dequantize_with_row(context, with, spec, source, target, stream);
}

dw_status dw_kernel_selftest_cuda(dw_context *context, size_t kernel, uint64_t seed, int device, void *workspace,
                                  size_t workspace_bytes, void *stream, dw_selftest_result *result) {
    if (!context || !result) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or result is NULL; pass both");
    const dw_kernel_row *row = NULL;
    DW_TRY(find_row(kernel, &row));
    if (!workspace || (uintptr_t)workspace % 16 || workspace_bytes < dw_kernel_selftest_workspace())
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "workspace has %zu bytes at %p; expected %zu bytes of device memory, 16-byte aligned",
                       workspace_bytes, workspace, dw_kernel_selftest_workspace());
    return dw_row_selftest_cuda(context, row, NULL, seed, &(dw_selftest_device){device, workspace, stream}, result);
}

dw_status dw_kernel_selftest(dw_context *context, size_t kernel, uint64_t seed, dw_selftest_result *result) {
    if (!context || !result) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or result is NULL; pass both");
    const dw_kernel_row *row = NULL;
    DW_TRY(find_row(kernel, &row));
    return dw_row_selftest(context, row, seed, result);
}
