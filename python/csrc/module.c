/* deepwell._core: libdeepwell for Python, in the limited API, so that one binary serves every supported interpreter.
 *
 * Tensors come in as address, shape and leading dimension, because the limited API of Python 3.10 has no buffer
 * protocol and because NumPy and PyTorch give out exactly these. The callers in python/deepwell keep the memory alive.
 */
#include "module.h"

/* Exceptions are Python classes (deepwell.errors), looked up once when the module is made. */
typedef struct core_state {
    PyObject *errors;
} core_state;

static const char *exception_name(dw_status status) {
    switch (status) {
    case DW_OK: break;
    case DW_ERROR_INVALID_ARGUMENT: return "InvalidArgumentError";
    case DW_ERROR_UNSUPPORTED: return "UnsupportedError";
    case DW_ERROR_OUT_OF_MEMORY: return "OutOfMemoryError";
    case DW_ERROR_SELFTEST: return "SelftestError";
    case DW_ERROR_DEVICE: return "DeviceError";
    case DW_ERROR_IO:
    case DW_ERROR_CORRUPT:
    case DW_ERROR_NOT_FOUND:
    case DW_ERROR_EXISTS:
    case DW_ERROR_CANCELLED: break;
    }
    return "DeepwellError";
}

PyObject *raise_status(PyObject *module, dw_status status) {
    /* The text goes first: looking up the class may run code that fails a call of its own. */
    PyObject *text = PyUnicode_DecodeUTF8(dw_last_error(), (Py_ssize_t)strlen(dw_last_error()), "replace");
    if (!text) return NULL;
    core_state *state = PyModule_GetState(module);
    PyObject *class = PyObject_GetAttrString(state->errors, exception_name(status));
    if (class) {
        PyErr_SetObject(class, text);
        Py_DECREF(class);
    }
    Py_DECREF(text);
    return NULL;
}

/* The library's warnings become Python's. Where those are errors, the call goes on all the same. */
static void warn(const char *text, void *data) {
    (void)data;
    PyGILState_STATE state = PyGILState_Ensure();
    if (PyErr_WarnEx(PyExc_RuntimeWarning, text, 1) < 0) PyErr_WriteUnraisable(NULL);
    PyGILState_Release(state);
}

dw_context *process_context(void) {
    static dw_context *context;
    if (!context) {
        dw_set_warning_handler(warn, NULL);
        dw_status status = dw_context_create(NULL, &context);
        if (status != DW_OK) {
            context = NULL;
            PyObject *module = PyImport_ImportModule("deepwell._core");
            if (module) {
                raise_status(module, status);
                Py_DECREF(module);
            }
        }
    }
    return context;
}

PyObject *core_version(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyUnicode_FromString(dw_version());
}

PyObject *core_cpu_info(PyObject *module, PyObject *unused) {
    (void)unused;
    dw_cpu_info info;
    dw_status status = dw_probe_cpu(&info);
    if (status != DW_OK) return raise_status(module, status);
    return Py_BuildValue("{s:s,s:s,s:i,s:N,s:N,s:L}", "vendor", info.vendor, "model", info.model, "logical_processors",
                         info.logical_processors, "has_avx2", PyBool_FromLong(info.has_avx2), "has_avx512",
                         PyBool_FromLong(info.has_avx512), "memory_bytes", (long long)info.memory_bytes);
}

PyObject *core_context_info(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    dw_context *context = process_context();
    if (!context) return NULL;
    return Py_BuildValue("{s:s,s:i}", "isa", dw_context_isa(context), "threads", dw_context_threads(context));
}

/* The cast through a parameterless function type tells the compiler that the difference in signature is meant; METH_*
 * says which one it is. */
#define KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS
#define FAST(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL

static PyMethodDef methods[] = {
    {"quantize", KEYWORDS(core_quantize),
     "quantize(source, dtype, rows, cols, ld, element, block, rounding, layout, row, transposed, kernel=-1)\n\n"
     "dw_quantize on addresses. row and transposed: (data address, leading dimension, scale address) or None.\n"
     "kernel: index of the row of kernels() to use, -1 for the dispatcher's choice."},
    {"dequantize", KEYWORDS(core_dequantize),
     "dequantize(data, ld, scale, rows, cols, element, block, layout, target, dtype, target_ld, kernel=-1)\n\n"
     "dw_dequantize on addresses."},
    {"measure", KEYWORDS(core_measure),
     "measure(source, dtype, rows, cols, ld, element, block, rounding) -> dict\n\n"
     "dw_quantize_measure: what row-wise quantization would do to the matrix."},
    {"scale_shape", KEYWORDS(core_scale_shape),
     "scale_shape(element, block, layout, rows, cols) -> (int, int)\n\nShape of the dense scale tensor, in bytes."},
    {"kernels", core_kernels, METH_NOARGS, "kernels() -> list of dict\n\nThe rows of the kernel table, in order."},
    {"dispatch", KEYWORDS(core_dispatch),
     "dispatch(operation, orientation, source, element, block, rounding, layout, rows, cols, device='cpu', "
     "device_id=0, alignment=0)\n"
     "-> (index or None, explanation, error)\n\nWhich row serves the request, with a line for each candidate."},
    {"load_plugin", core_load_plugin, METH_O, "load_plugin(path) -> int\n\ndw_plugin_load: how many kernels it added."},
    {"selftest", KEYWORDS(core_selftest),
     "selftest(kernel, seed) -> dict\n\nRuns a row against the reference; mismatches are in the result, not raised."},
    {"version", core_version, METH_NOARGS, "version() -> str\n\nVersion of the library in use."},
    {"cpu_info", core_cpu_info, METH_NOARGS, "cpu_info() -> dict\n\nFacts about this processor."},
    {"context_info", core_context_info, METH_NOARGS,
     "context_info() -> dict\n\nInstruction set and threads in use (DEEPWELL_ISA and DEEPWELL_THREADS choose them)."},
    {"cuda_quantize", FAST(core_cuda_quantize),
     "cuda_quantize(source, dtype, rows, cols, ld, device, element, block, rounding, row, row_ld, row_scale, "
     "transposed, "
     "transposed_ld, transposed_scale, stream)\n\n"
     "dw_quantize of a GPU matrix with FP32 scales as dw_gemm reads them. Integers only; address 0: not wanted."},
    {"cuda_gemm", FAST(core_cuda_gemm),
     "cuda_gemm(a, a_dtype, a_ld, a_scaling, a_scale, b, b_dtype, b_ld, b_scaling, b_scale, d, d_dtype, d_ld, m, n, k, "
     "bias, bias_dtype, accumulate, workspace, workspace_bytes, device, stream, codes, backend)\n\n"
     "dw_gemm; scales are FP32, or with codes=1 E8M0 in layout mn_major; backend: a dw_gemm_backend. Integers only; "
     "address 0: none."},
    {"cuda_gemm_tune", FAST(core_cuda_gemm_tune),
     "cuda_gemm_tune(as cuda_gemm) -> dict\n\ndw_gemm_tune: measures, waits for the device, remembers the fastest."},
    {"cuda_grouped_gemm", FAST(core_cuda_grouped_gemm),
     "cuda_grouped_gemm(axis, groups, ends, a, a_ld, a_scale, b, b_ld, b_scaling, b_scale, d, d_dtype, d_ld, m, n, k, "
     "accumulate, workspace, workspace_bytes, device, stream, codes)\n\n"
     "dw_grouped_gemm of e4m3 operands, a in 1x128 blocks; scales as in cuda_gemm. Integers only."},
    {"cuda_grouped_gemm_bf16", FAST(core_cuda_grouped_gemm_bf16),
     "cuda_grouped_gemm_bf16(axis, groups, ends, a, a_ld, b, b_ld, b_across, d, d_dtype, d_ld, m, n, k, accumulate, "
     "workspace, workspace_bytes, device, stream)\n\ndw_grouped_gemm of bf16 operands; b_across: b lies as [groups, k, "
     "n]. Integers only."},
    {"cuda_linear_forward", FAST(core_cuda_linear_forward),
     "cuda_linear_forward(x, x_dtype, m, k, make_row, row, make_transposed, transposed, weight, n, y, y_dtype, bias, "
     "bias_dtype, workspace, workspace_bytes, device, stream)\n\n"
     "Quantizes x into the forms to be made, then y = row . weight^T (+ bias). Integers only; address 0: none."},
    {"cuda_linear_backward", FAST(core_cuda_linear_backward),
     "cuda_linear_backward(dy, dy_dtype, m, n, k, make_row, row, make_transposed, transposed, weight, dx, dx_dtype, x, "
     "dw, dw_dtype, accumulate, workspace, workspace_bytes, device, stream)\n\n"
     "Quantizes dy into the forms to be made, then dx = row . weight^T and dw (+)= transposed . x^T, for the weight's "
     "and x's transposed forms. Integers only; address 0: not wanted."},
    {"cuda_cross_entropy", FAST(core_cuda_cross_entropy),
     "cuda_cross_entropy(logits, dtype, rows, vocabulary, ld, labels, ignore, lse, loss, dloss, dloss_stride, dlogits, "
     "dlogits_ld, device, stream)\n\n"
     "dw_cross_entropy_forward, or _backward when dlogits is not 0. Integers only."},
    {"cuda_rmsnorm", FAST(core_cuda_rmsnorm),
     "cuda_rmsnorm(x, rows, cols, weight, weight_dtype, y, rstd, row, row_scale, transposed, transposed_scale, device, "
     "stream, eps, weight_offset)\n\n"
     "dw_rmsnorm_quantize of dense BF16 rows."},
    {"cuda_rmsnorm_backward", FAST(core_cuda_rmsnorm_backward),
     "cuda_rmsnorm_backward(dy, h, rows, cols, weight, weight_dtype, rstd, dx, dweight, workspace, workspace_bytes, "
     "device, stream, weight_offset)\n\ndw_rmsnorm_backward of dense BF16 rows."},
    {"cuda_rmsnorm_backward_workspace", FAST(core_cuda_rmsnorm_backward_workspace),
     "cuda_rmsnorm_backward_workspace(device, rows, cols) -> int\n\nBytes of workspace that cuda_rmsnorm_backward "
     "needs."},
    {"cuda_swiglu", FAST(core_cuda_swiglu),
     "cuda_swiglu(gate_up, rows, inner, row, row_scale, transposed, transposed_scale, device, stream, "
     "interleaved, clamped, alpha, limit)\n\n"
     "dw_swiglu_quantize."},
    {"cuda_swiglu_backward", FAST(core_cuda_swiglu_backward),
     "cuda_swiglu_backward(dy, gate_up, rows, inner, row, row_scale, transposed, transposed_scale, device, stream, "
     "interleaved, clamped, alpha, limit)\n\n"
     "dw_swiglu_backward_quantize."},
    {"cuda_selftest", FAST(core_cuda_selftest),
     "cuda_selftest(kernel, seed, device, workspace, workspace_bytes, stream) -> dict\n\n"
     "Runs a GPU's row against the reference; mismatches are in the result, not raised. Waits for the stream."},
    {"cuda_selftest_workspace", core_cuda_selftest_workspace, METH_NOARGS,
     "cuda_selftest_workspace() -> int\n\nBytes of device memory cuda_selftest needs."},
    {"cuda_device_info", core_cuda_device_info, METH_O,
     "cuda_device_info(device) -> dict\n\nFacts about a GPU, from the driver."},
    {"plan", KEYWORDS(core_plan),
     "plan(model, options, expect=False) -> (block, weight_block, notes, decisions)\n\n"
     "dw_plan_create. model: (name, parameters, names, remarks, layers); layers and options: tuples in the order of\n"
     "python/csrc/plan.c. expect: raise when nothing is converted."},
    {"plan_explain", KEYWORDS(core_plan_explain),
     "plan_explain(model, options, format) -> str\n\ndw_plan_explain; format 0: text, 1: JSON, 2: HTML."},
    {"plan_check_options", core_plan_check_options, METH_O, "plan_check_options(options)\n\nRaises for bad ones."},
    {"plan_matches", core_plan_matches, METH_VARARGS, "plan_matches(name, pattern) -> bool"},
    {"plan_evidence", core_plan_evidence, METH_NOARGS,
     "plan_evidence() -> list of (device, what, value, unit, source)\n\nThe figures behind predictions."},
    {NULL, NULL, 0, NULL},
};

static int core_exec(PyObject *module) {
    core_state *state = PyModule_GetState(module);
    state->errors = PyImport_ImportModule("deepwell.errors");
    return state->errors ? 0 : -1;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg) {
    core_state *state = PyModule_GetState(module);
    Py_VISIT(state->errors);
    return 0;
}

static int core_clear(PyObject *module) {
    core_state *state = PyModule_GetState(module);
    Py_CLEAR(state->errors);
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)core_exec}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "libdeepwell on raw addresses. Not public: use the deepwell package.",
    .m_size = sizeof(core_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
