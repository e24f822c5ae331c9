/* RMSNorm and gated activations that quantize their results, on the GPU. Positional integers, then floats, as in
 * cuda.c.
 */
#include "integers.h"

#include "deepwell/fused.h"

/* Activations have a square transposed form, gradients do not (deepwell/cuda_linear.py says why). */
static const dw_quantize_spec ACTIVATION = {.element = DW_E4M3, .block = DW_BLOCK_1X128, .transposed_square = true};
static const dw_quantize_spec GRADIENT = {.element = DW_E4M3, .block = DW_BLOCK_1X128};

/* One orientation of a quantized result, dense, with FP32 scales. */
static dw_quantized form_view(long long data, long long scale, long long rows, long long cols, dw_block block,
                              long long device) {
    return (dw_quantized){device_matrix(data, DW_E4M3, rows, cols, cols, device),
                          factor_view(scale, rows, cols, block, device)};
}

static dw_tensor device_vector(long long data, dw_dtype dtype, long long count, long long device) {
    dw_tensor view = device_matrix(data, dtype, count, 1, 1, device);
    view.rank = 1;
    return view;
}

PyObject *core_cuda_rmsnorm(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        X,
        ROWS,
        COLS,
        WEIGHT,
        WEIGHT_DTYPE,
        Y,
        RSTD,
        ROW,
        ROW_SCALE,
        TRANSPOSED,
        TRANSPOSED_SCALE,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    double f[2];
    if (!read_numbers("cuda_rmsnorm", arguments, given, COUNT, v, 2, f)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_quantized row = form_view(v[ROW], v[ROW_SCALE], v[ROWS], v[COLS], DW_BLOCK_1X128, v[DEVICE]);
    dw_quantized transposed =
        form_view(v[TRANSPOSED], v[TRANSPOSED_SCALE], v[COLS], v[ROWS], DW_BLOCK_128X128, v[DEVICE]);
    dw_rmsnorm_quantize_args args = {
        .x = device_matrix(v[X], DW_BF16, v[ROWS], v[COLS], v[COLS], v[DEVICE]),
        .weight = device_vector(v[WEIGHT], (dw_dtype)v[WEIGHT_DTYPE], v[COLS], v[DEVICE]),
        .eps = (float)f[0],
        .weight_offset = (float)f[1],
        .spec = ACTIVATION,
        .row = v[ROW] ? &row : NULL,
        .transposed = v[TRANSPOSED] ? &transposed : NULL,
        .y = device_matrix(v[Y], DW_BF16, v[ROWS], v[COLS], v[COLS], v[DEVICE]),
        .rstd = device_vector(v[RSTD], DW_F32, v[ROWS], v[DEVICE]),
    };
    return outcome(module, dw_rmsnorm_quantize(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_rmsnorm_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        DY,
        H,
        ROWS,
        COLS,
        WEIGHT,
        WEIGHT_DTYPE,
        RSTD,
        DX,
        DWEIGHT,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    double offset;
    if (!read_numbers("cuda_rmsnorm_backward", arguments, given, COUNT, v, 1, &offset)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_rmsnorm_backward_args args = {
        .dy = device_matrix(v[DY], DW_BF16, v[ROWS], v[COLS], v[COLS], v[DEVICE]),
        .h = device_matrix(v[H], DW_BF16, v[ROWS], v[COLS], v[COLS], v[DEVICE]),
        .weight = device_vector(v[WEIGHT], (dw_dtype)v[WEIGHT_DTYPE], v[COLS], v[DEVICE]),
        .weight_offset = (float)offset,
        .rstd = device_vector(v[RSTD], DW_F32, v[ROWS], v[DEVICE]),
        .dx = device_matrix(v[DX], DW_BF16, v[ROWS], v[COLS], v[COLS], v[DEVICE]),
        .dweight = device_vector(v[DWEIGHT], (dw_dtype)v[WEIGHT_DTYPE], v[COLS], v[DEVICE]),
        .workspace = address(v[WORKSPACE]),
        .workspace_bytes = (size_t)v[WORKSPACE_BYTES],
    };
    return outcome(module, dw_rmsnorm_backward(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_rmsnorm_backward_workspace(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum { DEVICE, ROWS, COLS, COUNT };
    long long v[COUNT];
    if (!read_numbers("cuda_rmsnorm_backward_workspace", arguments, given, COUNT, v, 0, NULL)) return NULL;
    size_t bytes;
    dw_status status = dw_rmsnorm_backward_workspace_size((int)v[DEVICE], v[ROWS], v[COLS], &bytes);
    if (status != DW_OK) return raise_status(module, status);
    return PyLong_FromSize_t(bytes);
}

/* The last two integers and the two floats of both calls below. */
static dw_swiglu_form swiglu_form(const long long flags[2], const double reals[2]) {
    return (dw_swiglu_form){flags[0] != 0, flags[1] != 0, (float)reals[0], (float)reals[1]};
}

PyObject *core_cuda_swiglu(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        GATE_UP,
        ROWS,
        INNER,
        ROW,
        ROW_SCALE,
        TRANSPOSED,
        TRANSPOSED_SCALE,
        DEVICE,
        STREAM,
        INTERLEAVED,
        CLAMPED,
        COUNT
    };
    long long v[COUNT];
    double f[2];
    if (!read_numbers("cuda_swiglu", arguments, given, COUNT, v, 2, f)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_quantized row = form_view(v[ROW], v[ROW_SCALE], v[ROWS], v[INNER], DW_BLOCK_1X128, v[DEVICE]);
    dw_quantized transposed =
        form_view(v[TRANSPOSED], v[TRANSPOSED_SCALE], v[INNER], v[ROWS], DW_BLOCK_128X128, v[DEVICE]);
    dw_swiglu_quantize_args args = {
        .form = swiglu_form(v + INTERLEAVED, f),
        .gate_up = device_matrix(v[GATE_UP], DW_BF16, v[ROWS], 2 * v[INNER], 2 * v[INNER], v[DEVICE]),
        .spec = ACTIVATION,
        .row = v[ROW] ? &row : NULL,
        .transposed = v[TRANSPOSED] ? &transposed : NULL,
    };
    return outcome(module, dw_swiglu_quantize(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_swiglu_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        DY,
        GATE_UP,
        ROWS,
        INNER,
        ROW,
        ROW_SCALE,
        TRANSPOSED,
        TRANSPOSED_SCALE,
        DEVICE,
        STREAM,
        INTERLEAVED,
        CLAMPED,
        COUNT
    };
    long long v[COUNT];
    double f[2];
    if (!read_numbers("cuda_swiglu_backward", arguments, given, COUNT, v, 2, f)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    long long wide = 2 * v[INNER];
    dw_quantized row = form_view(v[ROW], v[ROW_SCALE], v[ROWS], wide, DW_BLOCK_1X128, v[DEVICE]);
    dw_quantized transposed = form_view(v[TRANSPOSED], v[TRANSPOSED_SCALE], wide, v[ROWS], DW_BLOCK_1X128, v[DEVICE]);
    dw_swiglu_backward_args args = {
        .form = swiglu_form(v + INTERLEAVED, f),
        .dy = device_matrix(v[DY], DW_BF16, v[ROWS], v[INNER], v[INNER], v[DEVICE]),
        .gate_up = device_matrix(v[GATE_UP], DW_BF16, v[ROWS], wide, wide, v[DEVICE]),
        .spec = GRADIENT,
        .row = v[ROW] ? &row : NULL,
        .transposed = v[TRANSPOSED] ? &transposed : NULL,
    };
    return outcome(module, dw_swiglu_backward_quantize(context, &args, address(v[STREAM])));
}
