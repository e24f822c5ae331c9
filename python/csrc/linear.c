/* One linear layer on a Hopper GPU in one call each way: quantize what is not quantized yet, then multiply. Positional
 * integers, as in cuda.c. Quantized matrices are forms as cuda_linear.py allocates them: dense elements, then, from the
 * next multiple of 256 bytes, the FP32 scales. */
#include "integers.h"

#include "deepwell/cuda.h"

/* A form [rows, cols] at `buffer`. */
static dw_quantized form_at(long long buffer, long long rows, long long cols, dw_block block, long long device) {
    const long long offset = (rows * cols + 255) / 256 * 256;
    return (dw_quantized){device_matrix(buffer, DW_E4M3, rows, cols, cols, device),
                          factor_view(buffer + offset, rows, cols, block, device)};
}

static dw_gemm_operand operand_of(const dw_quantized *form, dw_gemm_scaling scaling) {
    return (dw_gemm_operand){.data = form->data, .scaling = scaling, .scale = form->scale};
}

/* Writes the forms that are not NULL: rows in 1x128 blocks, the transposed form of an activation in square ones. */
static dw_status quantize(dw_context *context, const dw_tensor *source, const dw_quantized *row,
                          const dw_quantized *transposed, bool square, void *stream) {
    const dw_quantize_spec spec = {.element = DW_E4M3,
                                   .block = DW_BLOCK_1X128,
                                   .rounding = DW_ROUND_RCEIL,
                                   .layout = DW_SCALE_ROW,
                                   .transposed_square = square};
    if (!row && !transposed) return DW_OK;
    return dw_quantize(context, &spec, source, row, transposed, stream);
}

PyObject *core_cuda_linear_forward(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        X,
        X_DTYPE,
        M,
        K,
        MAKE_ROW,
        ROW,
        MAKE_TRANSPOSED,
        TRANSPOSED,
        WEIGHT,
        N,
        Y,
        Y_DTYPE,
        BIAS,
        BIAS_DTYPE,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_linear_forward", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    const dw_tensor x = device_matrix(v[X], (dw_dtype)v[X_DTYPE], v[M], v[K], v[K], v[DEVICE]);
    const dw_quantized row = form_at(v[ROW], v[M], v[K], DW_BLOCK_1X128, v[DEVICE]);
    const dw_quantized transposed = form_at(v[TRANSPOSED], v[K], v[M], DW_BLOCK_128X128, v[DEVICE]);
    const dw_quantized weight = form_at(v[WEIGHT], v[N], v[K], DW_BLOCK_128X128, v[DEVICE]);
    dw_gemm_args args = {
        .a = operand_of(&row, DW_GEMM_1X128),
        .b = operand_of(&weight, DW_GEMM_128X128),
        .d = device_matrix(v[Y], (dw_dtype)v[Y_DTYPE], v[M], v[N], v[N], v[DEVICE]),
        .workspace = address(v[WORKSPACE]),
        .workspace_bytes = (size_t)v[WORKSPACE_BYTES],
    };
    if (v[BIAS]) {
        args.bias = device_matrix(v[BIAS], (dw_dtype)v[BIAS_DTYPE], v[N], 1, 1, v[DEVICE]);
        args.bias.rank = 1;
    }
    void *stream = address(v[STREAM]);
    dw_status status =
        quantize(context, &x, v[MAKE_ROW] ? &row : NULL, v[MAKE_TRANSPOSED] ? &transposed : NULL, true, stream);
    if (status == DW_OK) status = dw_gemm(context, &args, stream);
    return outcome(module, status);
}

PyObject *core_cuda_linear_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        DY,
        DY_DTYPE,
        M,
        N,
        K,
        MAKE_ROW,
        ROW,
        MAKE_TRANSPOSED,
        TRANSPOSED,
        WEIGHT,
        DX,
        DX_DTYPE,
        X,
        DW,
        DW_DTYPE,
        ACCUMULATE,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_linear_backward", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    void *stream = address(v[STREAM]);
    const dw_tensor dy = device_matrix(v[DY], (dw_dtype)v[DY_DTYPE], v[M], v[N], v[N], v[DEVICE]);
    const dw_quantized row = form_at(v[ROW], v[M], v[N], DW_BLOCK_1X128, v[DEVICE]);
    const dw_quantized transposed = form_at(v[TRANSPOSED], v[N], v[M], DW_BLOCK_1X128, v[DEVICE]);
    dw_status status =
        quantize(context, &dy, v[MAKE_ROW] ? &row : NULL, v[MAKE_TRANSPOSED] ? &transposed : NULL, false, stream);
    dw_gemm_args args = {.workspace = address(v[WORKSPACE]), .workspace_bytes = (size_t)v[WORKSPACE_BYTES]};
    if (status == DW_OK && v[DX]) {
        const dw_quantized weight = form_at(v[WEIGHT], v[K], v[N], DW_BLOCK_128X128, v[DEVICE]);
        args.a = operand_of(&row, DW_GEMM_1X128);
        args.b = operand_of(&weight, DW_GEMM_128X128);
        args.d = device_matrix(v[DX], (dw_dtype)v[DX_DTYPE], v[M], v[K], v[K], v[DEVICE]);
        status = dw_gemm(context, &args, stream);
    }
    if (status == DW_OK && v[DW]) {
        const dw_quantized x = form_at(v[X], v[K], v[M], DW_BLOCK_128X128, v[DEVICE]);
        args.a = operand_of(&transposed, DW_GEMM_1X128);
        args.b = operand_of(&x, DW_GEMM_128X128);
        args.d = device_matrix(v[DW], (dw_dtype)v[DW_DTYPE], v[N], v[K], v[K], v[DEVICE]);
        args.accumulate = v[ACCUMULATE] != 0;
        status = dw_gemm(context, &args, stream);
    }
    return outcome(module, status);
}
