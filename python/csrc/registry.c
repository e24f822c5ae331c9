/* The kernel table: listing, choosing, proving. */
#include "module.h"

static const char *dtype_name(int value) {
    return dw_dtype_name((dw_dtype)value);
}
static const char *block_name(int value) {
    return dw_block_name((dw_block)value);
}
static const char *rounding_name(int value) {
    return dw_rounding_name((dw_rounding)value);
}
static const char *layout_name(int value) {
    return dw_scale_layout_name((dw_scale_layout)value);
}
static const char *orientation_name(int value) {
    return dw_orientation_name((dw_orientation)value);
}

/* The names of the values whose bits `mask` has, as a tuple. */
static PyObject *mask_names(uint32_t mask, int count, const char *(*name)(int)) {
    PyObject *list = PyList_New(0);
    for (int value = 0; list && value < count; value++) {
        if (!(mask & (1u << value))) continue;
        PyObject *text = PyUnicode_FromString(name(value));
        if (!text || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

static PyObject *kernel_dict(const dw_kernel_info *info) {
    return Py_BuildValue("{s:s,s:s,s:s,s:N,s:N,s:N,s:N,s:N,s:N,s:i,s:N,s:s,s:i,s:s}", "name", info->name, "target",
                         info->target, "operation", dw_operation_name(info->operation), "orientations",
                         mask_names(info->orientations, DW_ORIENT_COUNT, orientation_name), "sources",
                         mask_names(info->sources, DW_DTYPE_COUNT, dtype_name), "elements",
                         mask_names(info->elements, DW_DTYPE_COUNT, dtype_name), "blocks",
                         mask_names(info->blocks, DW_BLOCK_COUNT, block_name), "roundings",
                         mask_names(info->roundings, DW_ROUND_COUNT, rounding_name), "layouts",
                         mask_names(info->layouts, DW_SCALE_LAYOUT_COUNT, layout_name), "priority", info->priority,
                         "available", PyBool_FromLong(info->available), "reason", info->reason, "alignment",
                         info->alignment, "form", info->form);
}

PyObject *core_kernels(PyObject *module, PyObject *unused) {
    (void)unused;
    dw_context *context = process_context();
    if (!context) return NULL;
    PyObject *list = PyList_New(0);
    size_t count = dw_kernel_count(context);
    for (size_t index = 0; list && index < count; index++) {
        dw_kernel_info info;
        dw_status status = dw_kernel_get(context, index, &info);
        PyObject *row = status == DW_OK ? kernel_dict(&info) : raise_status(module, status);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

PyObject *core_dispatch(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"operation", "orientation", "source", "element",   "block",     "rounding", "layout",
                            "rows",      "cols",        "device", "device_id", "alignment", NULL};
    dw_request request = {.device_type = DW_DEVICE_CPU};
    long long rows, cols;
    int device_id = 0, alignment = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&O&O&O&O&LL|O&ii:dispatch", names, convert_operation,
                                     &request.operation, convert_orientation, &request.orientation, convert_dtype,
                                     &request.source, convert_dtype, &request.spec.element, convert_block,
                                     &request.spec.block, convert_rounding, &request.spec.rounding, convert_layout,
                                     &request.spec.layout, &rows, &cols, convert_device, &request.device_type,
                                     &device_id, &alignment))
        return NULL;
    request.rows = rows;
    request.cols = cols;
    request.device_id = device_id;
    request.alignment = alignment;
    dw_context *context = process_context();
    if (!context) return NULL;
    size_t index, capacity = 65536;
    char *explanation = PyMem_Malloc(capacity);
    if (!explanation) return PyErr_NoMemory();
    explanation[0] = '\0';
    dw_status status = dw_dispatch(context, &request, &index, explanation, capacity);
    PyObject *result;
    if (status == DW_OK)
        result = Py_BuildValue("(nss)", (Py_ssize_t)index, explanation, "");
    else if (status == DW_ERROR_UNSUPPORTED)
        result = Py_BuildValue("(Oss)", Py_None, explanation, dw_last_error());
    else
        result = raise_status(module, status);
    PyMem_Free(explanation);
    return result;
}

PyObject *core_load_plugin(PyObject *module, PyObject *path) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(path, &length);
    dw_context *context = text ? process_context() : NULL;
    if (!context) return NULL;
    size_t count = 0;
    dw_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = dw_plugin_load(context, text, &count);
    Py_END_ALLOW_THREADS;
    if (status != DW_OK) return raise_status(module, status);
    return PyLong_FromSize_t(count);
}

PyObject *core_selftest(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"kernel", "seed", NULL};
    Py_ssize_t kernel;
    unsigned long long seed;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "nK:selftest", names, &kernel, &seed)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_selftest_result result = {0};
    dw_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = dw_kernel_selftest(context, (size_t)kernel, seed, &result);
    Py_END_ALLOW_THREADS;
    if (status != DW_OK && status != DW_ERROR_SELFTEST) return raise_status(module, status);
    return Py_BuildValue("{s:L,s:L,s:s}", "cases", (long long)result.cases, "mismatches", (long long)result.mismatches,
                         "first_mismatch", result.first_mismatch);
}
