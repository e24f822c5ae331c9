/* Converters for PyArg_Parse's "O&": names to enumerations, int to address. */
#include "module.h"

typedef const char *(*value_name)(int value);

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
static const char *operation_name(int value) {
    return dw_operation_name((dw_operation)value);
}
static const char *orientation_name(int value) {
    return dw_orientation_name((dw_orientation)value);
}

/* The value of 0..count-1 whose name `object` is, or -1 with TypeError or ValueError set. */
static int find_name(PyObject *object, const char *what, int count, value_name name) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text) return -1;
    for (int value = 0; value < count; value++)
        if (strcmp(text, name(value)) == 0) return value;
    PyErr_Format(PyExc_ValueError, "%s %R is not known to libdeepwell", what, object);
    return -1;
}

#define CONVERTER(function, type, what, count, name)                                                                   \
    int function(PyObject *object, void *result) {                                                                     \
        int value = find_name(object, what, count, name);                                                              \
        if (value < 0) return 0;                                                                                       \
        *(type *)result = (type)value;                                                                                 \
        return 1;                                                                                                      \
    }

CONVERTER(convert_dtype, dw_dtype, "element type", DW_DTYPE_COUNT, dtype_name)
CONVERTER(convert_block, dw_block, "block", DW_BLOCK_COUNT, block_name)
CONVERTER(convert_rounding, dw_rounding, "rounding", DW_ROUND_COUNT, rounding_name)
CONVERTER(convert_layout, dw_scale_layout, "scale layout", DW_SCALE_LAYOUT_COUNT, layout_name)
CONVERTER(convert_operation, dw_operation, "operation", DW_OP_COUNT, operation_name)
CONVERTER(convert_orientation, dw_orientation, "orientation", DW_ORIENT_COUNT, orientation_name)

int convert_device(PyObject *object, void *result) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text) return 0;
    if (strcmp(text, "cpu") == 0)
        *(dw_device_type *)result = DW_DEVICE_CPU;
    else if (strcmp(text, "cuda") == 0)
        *(dw_device_type *)result = DW_DEVICE_CUDA;
    else {
        PyErr_Format(PyExc_ValueError, "device %R is not known to libdeepwell; expected 'cpu' or 'cuda'", object);
        return 0;
    }
    return 1;
}

int convert_address(PyObject *object, void *result) {
    void *address = PyLong_AsVoidPtr(object);
    if (!address && PyErr_Occurred()) return 0;
    *(void **)result = address;
    return 1;
}
