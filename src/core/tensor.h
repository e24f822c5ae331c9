/* Checks that every operation makes on the views it is given. */
#ifndef DW_CORE_TENSOR_H
#define DW_CORE_TENSOR_H

#include "deepwell/types.h"

/* A checked matrix: elements [rows, cols], `ld` elements between rows (at least cols), inner stride 1. */
typedef struct dw_view {
    void *data;
    int64_t rows, cols, ld;
    int64_t element_size;
    const char *name; /* how messages call it */
} dw_view;

/* Checks that `tensor` is a matrix of a known dtype with inner stride 1, rows that do not overlap, memory behind it and
 * a byte size that fits, and fills `view`. `name` goes into messages. Errors: INVALID_ARGUMENT. */
dw_status dw_check_matrix(const dw_tensor *tensor, const char *name, dw_view *view);

/* INVALID_ARGUMENT unless the view has these extents. */
dw_status dw_check_extents(const dw_view *view, int64_t rows, int64_t cols);

/* INVALID_ARGUMENT when some element of `a` may share memory with one of `b`. Views that interleave (the same distance
 * between rows, disjoint columns) do not overlap. */
dw_status dw_check_disjoint(const dw_view *a, const dw_view *b);

#endif
