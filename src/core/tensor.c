#include "core/tensor.h"

#include "core/status.h"

dw_status dw_check_matrix(const dw_tensor *tensor, const char *name, dw_view *view) {
    if (!tensor) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s is NULL; pass a dw_tensor", name);
    int64_t size = (int64_t)dw_dtype_size(tensor->dtype);
    if (size == 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has dtype %d, which is no dw_dtype", name, (int)tensor->dtype);
    if (tensor->rank != 2)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has rank %d; expected a matrix (flatten the leading dimensions)",
                       name, (int)tensor->rank);
    int64_t rows = tensor->shape[0], cols = tensor->shape[1], ld = tensor->strides[0];
    if (rows < 0 || cols < 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has negative extents [%lld, %lld]", name, (long long)rows,
                       (long long)cols);
    if (rows == 0 || cols == 0) {
        *view = (dw_view){tensor->data, rows, cols, cols, size, name};
        return DW_OK;
    }
    if (!tensor->data)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has no data but extents [%lld, %lld]; pass its memory", name,
                       (long long)rows, (long long)cols);
    /* The stride of a dimension of extent 1 means nothing. */
    if (cols > 1 && tensor->strides[1] != 1)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "%s has inner stride %lld; expected 1 (make it contiguous along rows)", name,
                       (long long)tensor->strides[1]);
    if (rows == 1) ld = cols;
    if (ld < cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has row stride %lld; expected at least its %lld columns", name,
                       (long long)ld, (long long)cols);
    int64_t bytes;
    if (__builtin_mul_overflow(rows, ld, &bytes) || __builtin_mul_overflow(bytes, size, &bytes))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s spans %lld rows of stride %lld, more bytes than can be addressed",
                       name, (long long)rows, (long long)ld);
    *view = (dw_view){tensor->data, rows, cols, ld, size, name};
    return DW_OK;
}

dw_status dw_check_extents(const dw_view *view, int64_t rows, int64_t cols) {
    if (view->rows != rows || view->cols != cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has extents [%lld, %lld]; expected [%lld, %lld]", view->name,
                       (long long)view->rows, (long long)view->cols, (long long)rows, (long long)cols);
    return DW_OK;
}

dw_status dw_check_disjoint(const dw_view *a, const dw_view *b) {
    if (!a->rows || !a->cols || !b->rows || !b->cols) return DW_OK;
    uintptr_t first = (uintptr_t)a->data, second = (uintptr_t)b->data;
    if (first > second) return dw_check_disjoint(b, a);
    uintptr_t pitch = (uintptr_t)(a->ld * a->element_size), width = (uintptr_t)(a->cols * a->element_size);
    uintptr_t last = first + (uintptr_t)(a->rows - 1) * pitch + width;
    if (second >= last) return DW_OK;
    /* b starts inside a's span: it may still lie in the gaps between a's rows. */
    if (a->rows > 1 && (b->rows == 1 || (uintptr_t)(b->ld * b->element_size) == pitch)) {
        uintptr_t start = (second - first) % pitch, end = start + (uintptr_t)(b->cols * b->element_size);
        if (start >= width && end <= pitch) return DW_OK;
    }
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s and %s overlap in memory; give each its own", a->name, b->name);
}
