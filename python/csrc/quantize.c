/* Quantize, dequantize, measure and scale_shape. Each parses, makes views, and calls the library without the GIL. */
#include "module.h"

static dw_tensor matrix_view(void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_tensor view = dw_matrix(data, dtype, rows, cols);
    view.strides[0] = ld;
    return view;
}

/* The dense scales of a [rows, cols] matrix quantized by `spec`. */
static dw_status scale_view(const dw_quantize_spec *spec, void *data, int64_t rows, int64_t cols, dw_tensor *view) {
    int64_t shape[2];
    dw_status status = dw_scale_shape(spec, rows, cols, shape);
    if (status == DW_OK) *view = dw_matrix(data, DW_E8M0, shape[0], shape[1]);
    return status;
}

/* Reads `object`, None or (data, ld, scale), into `quantized`. 1: filled, 0: None, -1: exception set. */
static int parse_quantized(PyObject *module, PyObject *object, const dw_quantize_spec *spec, int64_t rows, int64_t cols,
                           dw_quantized *quantized) {
    if (object == Py_None) return 0;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a quantized output must be None or (data, ld, scale)");
        return -1;
    }
    void *data, *scale;
    long long ld;
    if (!PyArg_ParseTuple(object, "O&LO&", convert_address, &data, &ld, convert_address, &scale)) return -1;
    dw_status status = scale_view(spec, scale, rows, cols, &quantized->scale);
    if (status != DW_OK) {
        raise_status(module, status);
        return -1;
    }
    quantized->data = matrix_view(data, spec->element, rows, cols, ld);
    return 1;
}

PyObject *core_quantize(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"source",   "dtype",  "rows", "cols",       "ld",     "element", "block",
                            "rounding", "layout", "row",  "transposed", "kernel", NULL};
    void *source;
    dw_dtype dtype;
    long long rows, cols, ld;
    dw_quantize_spec spec = {.transposed_square = false};
    PyObject *row_object, *transposed_object;
    Py_ssize_t kernel = -1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&LLLO&O&O&O&OO|n:quantize", names, convert_address,
                                     &source, convert_dtype, &dtype, &rows, &cols, &ld, convert_dtype, &spec.element,
                                     convert_block, &spec.block, convert_rounding, &spec.rounding, convert_layout,
                                     &spec.layout, &row_object, &transposed_object, &kernel))
        return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_quantized row, transposed;
    int with_row = parse_quantized(module, row_object, &spec, rows, cols, &row);
    if (with_row < 0) return NULL;
    int with_transposed = parse_quantized(module, transposed_object, &spec, cols, rows, &transposed);
    if (with_transposed < 0) return NULL;
    dw_tensor view = matrix_view(source, dtype, rows, cols, ld);
    const dw_quantized *row_out = with_row ? &row : NULL, *transposed_out = with_transposed ? &transposed : NULL;
    dw_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = kernel < 0 ? dw_quantize(context, &spec, &view, row_out, transposed_out, NULL)
                        : dw_quantize_with(context, (size_t)kernel, &spec, &view, row_out, transposed_out, NULL);
    Py_END_ALLOW_THREADS;
    if (status != DW_OK) return raise_status(module, status);
    Py_RETURN_NONE;
}

PyObject *core_dequantize(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"data",   "ld",     "scale", "rows",      "cols",   "element", "block",
                            "layout", "target", "dtype", "target_ld", "kernel", NULL};
    void *data, *scale, *target;
    long long ld, rows, cols, target_ld;
    dw_dtype dtype;
    dw_quantize_spec spec = {.rounding = DW_ROUND_RCEIL};
    Py_ssize_t kernel = -1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&LO&LLO&O&O&O&O&L|n:dequantize", names, convert_address,
                                     &data, &ld, convert_address, &scale, &rows, &cols, convert_dtype, &spec.element,
                                     convert_block, &spec.block, convert_layout, &spec.layout, convert_address, &target,
                                     convert_dtype, &dtype, &target_ld, &kernel))
        return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_quantized source;
    dw_status status = scale_view(&spec, scale, rows, cols, &source.scale);
    if (status != DW_OK) return raise_status(module, status);
    source.data = matrix_view(data, spec.element, rows, cols, ld);
    dw_tensor view = matrix_view(target, dtype, rows, cols, target_ld);
    Py_BEGIN_ALLOW_THREADS;
    status = kernel < 0 ? dw_dequantize(context, &spec, &source, &view, NULL)
                        : dw_dequantize_with(context, (size_t)kernel, &spec, &source, &view, NULL);
    Py_END_ALLOW_THREADS;
    if (status != DW_OK) return raise_status(module, status);
    Py_RETURN_NONE;
}

PyObject *core_measure(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"source", "dtype", "rows", "cols", "ld", "element", "block", "rounding", NULL};
    void *source;
    dw_dtype dtype;
    long long rows, cols, ld;
    dw_quantize_spec spec = {.layout = DW_SCALE_ROW};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&LLLO&O&O&:measure", names, convert_address, &source,
                                     convert_dtype, &dtype, &rows, &cols, &ld, convert_dtype, &spec.element,
                                     convert_block, &spec.block, convert_rounding, &spec.rounding))
        return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_tensor view = matrix_view(source, dtype, rows, cols, ld);
    dw_quantize_stats stats = {0};
    dw_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = dw_quantize_measure(context, &spec, &view, &stats);
    Py_END_ALLOW_THREADS;
    if (status != DW_OK) return raise_status(module, status);
    return Py_BuildValue("{s:d,s:d,s:L,s:L,s:L,s:L,s:L,s:d}", "signal_power", stats.signal_power, "noise_power",
                         stats.noise_power, "elements", (long long)stats.elements, "nonzero", (long long)stats.nonzero,
                         "underflowed", (long long)stats.underflowed, "saturated", (long long)stats.saturated,
                         "nonfinite", (long long)stats.nonfinite, "amax", stats.amax);
}

PyObject *core_scale_shape(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"element", "block", "layout", "rows", "cols", NULL};
    dw_quantize_spec spec = {.rounding = DW_ROUND_RCEIL};
    long long rows, cols;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&LL:scale_shape", names, convert_dtype, &spec.element,
                                     convert_block, &spec.block, convert_layout, &spec.layout, &rows, &cols))
        return NULL;
    int64_t shape[2];
    dw_status status = dw_scale_shape(&spec, rows, cols, shape);
    if (status != DW_OK) return raise_status(module, status);
    return Py_BuildValue("(LL)", (long long)shape[0], (long long)shape[1]);
}
