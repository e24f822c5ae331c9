/* What cuda.c and fused.c share: arguments as plain numbers, views of device memory. */
#ifndef DW_PYTHON_INTEGERS_H
#define DW_PYTHON_INTEGERS_H

#include "module.h"

/* Reads `count` integers and then `floats` floating-point numbers. 0 with an exception set when the number of arguments
 * is another, or one is of the wrong kind. */
int read_numbers(const char *function, PyObject *const *arguments, Py_ssize_t given, Py_ssize_t count,
                 long long *integers, Py_ssize_t floats, double *reals);

void *address(long long value);

/* [rows, cols] on GPU `device`, inner stride 1. */
dw_tensor device_matrix(long long data, dw_dtype dtype, long long rows, long long cols, long long ld, long long device);

/* FP32 scales of a [rows, cols] matrix as dw_gemm reads them on Hopper. */
dw_tensor factor_view(long long data, long long rows, long long cols, dw_block block, long long device);

/* None, or NULL with the exception that `status` stands for. */
PyObject *outcome(PyObject *module, dw_status status);

#endif
