/* Which row of the table serves a request, and why the others do not. */
#include <stdarg.h>
#include <stdio.h>

#include "core/status.h"
#include "cuda/host/quantize_launch.h"
#include "formats/scale_layout.h"
#include "registry/table.h"

static bool has(uint32_t mask, int value) {
    return mask >> value & 1;
}

const char *dw_row_mismatch(const dw_kernel_row *row, const dw_request *request) {
    const dw_kernel_info *info = &row->info;
    if (row->device_type != request->device_type) return "the device type";
    if (!has(info->orientations, request->orientation)) return "the orientation";
    if (!has(info->blocks, request->spec.block)) return "the block";
    if (!has(info->sources, request->source))
        return info->operation == DW_OP_QUANTIZE ? "the source type" : "the target type";
    if (!has(info->elements, request->spec.element)) return "the element type";
    if (info->operation == DW_OP_QUANTIZE && !has(info->roundings, request->spec.rounding)) return "the rounding";
    if (!has(info->layouts, request->spec.layout)) return "the scale layout";
    if (request->spec.transposed_square && row->device_type == DW_DEVICE_CPU) return "the square transposed form";
    if (row->device_type == DW_DEVICE_CUDA && !dw_cuda_device_takes(request->device_id, info->target))
        return "this GPU";
    size_t wanted = info->alignment ? (size_t)info->alignment : dw_dtype_size(request->source);
    if (request->alignment && (size_t)request->alignment < wanted) return "the alignment";
    return "";
}

static const dw_kernel_row *best_of(const dw_context *context, const dw_kernel_row *rows, size_t count,
                                    const dw_request *request) {
    const dw_kernel_row *best = NULL;
    for (size_t i = 0; i < count; i++) {
        const dw_kernel_row *row = &rows[i];
        if (row->info.operation != request->operation || *dw_row_mismatch(row, request) ||
            *dw_row_reason(context, row) || dw_row_refuted(row, request))
            continue;
        if (!best || row->info.priority >= best->info.priority) best = row;
    }
    return best;
}

const dw_kernel_row *dw_find_row(const dw_context *context, const dw_request *request) {
    return dw_better_from_outside(context, request, dw_find_table_row(context, request));
}

const dw_kernel_row *dw_find_table_row(const dw_context *context, const dw_request *request) {
    return best_of(context, dw_kernel_table, dw_kernel_table_size, request);
}

const dw_kernel_row *dw_choose_row(dw_context *context, const dw_kernel_row *rows, size_t count,
                                   const dw_request *request) {
    const dw_kernel_row *row;
    do
        row = best_of(context, rows, count, request);
    while (row && !dw_row_prove(context, row, request));
    if (rows != dw_kernel_table) return row;
    const dw_kernel_row *better;
    do
        better = dw_better_from_outside(context, request, row);
    while (better && !dw_row_prove(context, better, request));
    return better;
}

static void append(char **at, size_t *left, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char **at, size_t *left, const char *format, ...) {
    if (*left == 0) return;
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(*at, *left, format, arguments);
    va_end(arguments);
    size_t written = wanted < 0 ? 0 : (size_t)wanted < *left ? (size_t)wanted : *left - 1;
    *at += written;
    *left -= written;
}

static void explain(const dw_context *context, const dw_request *request, const dw_kernel_row *chosen, char *text,
                    size_t capacity) {
    if (capacity) *text = 0;
    for (size_t i = 0; i < dw_row_count(); i++) {
        const dw_kernel_row *row = dw_row_at(i);
        if (row->info.operation != request->operation) continue;
        const char *mismatch = dw_row_mismatch(row, request), *reason = dw_row_reason(context, row);
        if (row == chosen)
            append(&text, &capacity, "chosen   %s: highest priority of those that serve this (%d)\n", row->info.name,
                   row->info.priority);
        else if (*mismatch)
            append(&text, &capacity, "rejected %s: does not serve %s\n", row->info.name, mismatch);
        else if (!*reason && dw_row_refuted(row, request))
            append(&text, &capacity, "rejected %s: failed its self-test on this GPU\n", row->info.name);
        else if (*reason)
            append(&text, &capacity, "rejected %s: not available: %s\n", row->info.name, reason);
        else
            append(&text, &capacity, "rejected %s: priority %d is not the highest\n", row->info.name,
                   row->info.priority);
    }
}

static dw_status check_request(const dw_request *request) {
    if (request->operation != DW_OP_QUANTIZE && request->operation != DW_OP_DEQUANTIZE)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "request.operation is %d; expected quantize or dequantize (0 or 1)",
                       (int)request->operation);
    if ((unsigned)request->orientation >= DW_ORIENT_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "request.orientation is %d; expected row, transposed or both (0 to 2)",
                       (int)request->orientation);
    if (request->source != DW_F32 && request->source != DW_F16 && request->source != DW_BF16)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "request.source is %s (%d); expected f32, f16 or bf16",
                       dw_dtype_name(request->source), (int)request->source);
    if (request->alignment < 0 || (request->alignment & (request->alignment - 1)))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "request.alignment is %d; expected a power of two, or 0 for 256",
                       (int)request->alignment);
    if (request->device_type != DW_DEVICE_CPU && request->device_type != DW_DEVICE_CUDA)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "request.device_type is %d; expected 1 (CPU) or 2 (CUDA)",
                       (int)request->device_type);
    int64_t shape[2];
    return dw_scale_shape(&request->spec, request->rows, request->cols, shape);
}

dw_status dw_dispatch(const dw_context *context, const dw_request *request, size_t *index, char *explanation,
                      size_t capacity) {
    if (!context || !request || !index)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context, request or index is NULL; pass all three");
    dw_status status = check_request(request);
    if (status == DW_ERROR_INVALID_ARGUMENT) return status;
    const dw_kernel_row *row = status == DW_OK ? dw_find_row(context, request) : NULL;
    if (explanation) explain(context, request, row, explanation, capacity);
    if (status != DW_OK) return status;
    if (!row) return dw_no_row(request);
    for (*index = 0; dw_row_at(*index) != row;)
        ++*index;
    return DW_OK;
}

dw_status dw_no_row(const dw_request *request) {
    if (request->device_type == DW_DEVICE_CUDA)
        return dw_fail(
            DW_ERROR_UNSUPPORTED,
            "no CUDA kernel in this build and on this machine can %s (%s, block %s, scale layout %s); move the "
            "tensors to the CPU, or see dw_dispatch for each kernel's reason",
            dw_operation_name(request->operation), dw_orientation_name(request->orientation),
            dw_block_name(request->spec.block), dw_scale_layout_name(request->spec.layout));
    return dw_fail(DW_ERROR_UNSUPPORTED,
                   "no CPU kernel can %s (%s, block %s, scale layout %s); see dw_dispatch for each kernel's reason",
                   dw_operation_name(request->operation), dw_orientation_name(request->orientation),
                   dw_block_name(request->spec.block), dw_scale_layout_name(request->spec.layout));
}
