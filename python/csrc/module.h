/* What the files of the extension share: argument converters, the process-wide context, turning a dw_status into an
 * exception. The extension holds no logic of its own; python/deepwell decides, libdeepwell computes. */
#ifndef DW_PYTHON_MODULE_H
#define DW_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "deepwell/deepwell.h"

/* The context every call uses, created by the first one and kept for the life of the process; a child after fork() goes
 * on with the one it inherited. Needs the GIL, which is also what keeps two threads from creating it twice. NULL with
 * an exception set on failure (say, DEEPWELL_ISA names what this processor lacks), and the next call tries again. */
dw_context *process_context(void);

/* Sets the exception that `status` stands for, with dw_last_error() as its text. Always returns NULL. Must run in the
 * thread that got the status. */
PyObject *raise_status(PyObject *module, dw_status status);

/* "O&" converters from names ("bf16", "1x32", ...) to the enumerations, and from int to an address. */
int convert_dtype(PyObject *object, void *result);
int convert_block(PyObject *object, void *result);
int convert_rounding(PyObject *object, void *result);
int convert_layout(PyObject *object, void *result);
int convert_operation(PyObject *object, void *result);
int convert_orientation(PyObject *object, void *result);
int convert_device(PyObject *object, void *result);
int convert_address(PyObject *object, void *result);

/* What the interpreter calls when it loads the extension. */
PyMODINIT_FUNC PyInit__core(void);

/* Functions of the module, by file. */
PyObject *core_quantize(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_dequantize(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_measure(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_scale_shape(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_kernels(PyObject *module, PyObject *unused);
PyObject *core_dispatch(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_load_plugin(PyObject *module, PyObject *path);
PyObject *core_selftest(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_version(PyObject *module, PyObject *unused);
PyObject *core_cpu_info(PyObject *module, PyObject *unused);
PyObject *core_context_info(PyObject *module, PyObject *unused);
PyObject *core_cuda_quantize(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_gemm(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_gemm_tune(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_grouped_gemm(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_linear_forward(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_linear_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_grouped_gemm_bf16(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_cross_entropy(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_rmsnorm(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_rmsnorm_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_rmsnorm_backward_workspace(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_swiglu(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_swiglu_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_selftest(PyObject *module, PyObject *const *arguments, Py_ssize_t given);
PyObject *core_cuda_selftest_workspace(PyObject *module, PyObject *unused);
PyObject *core_cuda_device_info(PyObject *module, PyObject *device);

PyObject *core_plan(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_plan_explain(PyObject *module, PyObject *arguments, PyObject *keywords);
PyObject *core_plan_check_options(PyObject *module, PyObject *options);
PyObject *core_plan_matches(PyObject *module, PyObject *arguments);
PyObject *core_plan_evidence(PyObject *module, PyObject *unused);

#endif
