/* The GPU calls of a training step: quantize, multiply, cross-entropy. They take positional integers only (addresses,
 * extents, enumeration values), because they stand between a module's forward and its launches: parsing costs well
 * under a microsecond. The GIL is kept: each call enqueues and returns. */
#include "integers.h"

#include "deepwell/cross_entropy.h"
#include "deepwell/cuda.h"

int read_numbers(const char *function, PyObject *const *arguments, Py_ssize_t given, Py_ssize_t count,
                 long long *integers, Py_ssize_t floats, double *reals) {
    if (given != count + floats) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd numbers, got %zd", function, count + floats, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        integers[i] = PyLong_AsLongLong(arguments[i]);
        if (integers[i] == -1 && PyErr_Occurred()) return 0;
    }
    for (Py_ssize_t i = 0; i < floats; i++) {
        reals[i] = PyFloat_AsDouble(arguments[count + i]);
        if (reals[i] == -1.0 && PyErr_Occurred()) return 0;
    }
    return 1;
}

void *address(long long value) {
    return (void *)(intptr_t)value;
}

dw_tensor device_matrix(long long data, dw_dtype dtype, long long rows, long long cols, long long ld,
                        long long device) {
    dw_tensor view = dw_matrix(address(data), dtype, rows, cols);
    view.strides[0] = ld;
    view.device_type = DW_DEVICE_CUDA;
    view.device_id = (int32_t)device;
    return view;
}

dw_tensor factor_view(long long data, long long rows, long long cols, dw_block block, long long device) {
    int64_t across = (cols + 127) / 128;
    bool square = block == DW_BLOCK_128X128;
    dw_tensor view = device_matrix(data, DW_F32, square ? (rows + 127) / 128 : rows, across, 0, device);
    view.strides[0] = square ? (across + 3) / 4 * 4 : 1;
    view.strides[1] = square ? 1 : rows;
    return view;
}

PyObject *outcome(PyObject *module, dw_status status) {
    if (status != DW_OK) return raise_status(module, status);
    Py_RETURN_NONE;
}

PyObject *core_cuda_quantize(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        SOURCE,
        DTYPE,
        ROWS,
        COLS,
        LD,
        DEVICE,
        ELEMENT,
        BLOCK,
        ROUNDING,
        ROW,
        ROW_LD,
        ROW_SCALE,
        TRANSPOSED,
        TRANSPOSED_LD,
        TRANSPOSED_SCALE,
        TRANSPOSED_SQUARE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_quantize", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_quantize_spec spec = {.element = (dw_dtype)v[ELEMENT],
                             .block = (dw_block)v[BLOCK],
                             .rounding = (dw_rounding)v[ROUNDING],
                             .transposed_square = v[TRANSPOSED_SQUARE] != 0};
    dw_tensor source = device_matrix(v[SOURCE], (dw_dtype)v[DTYPE], v[ROWS], v[COLS], v[LD], v[DEVICE]);
    dw_quantized row = {device_matrix(v[ROW], spec.element, v[ROWS], v[COLS], v[ROW_LD], v[DEVICE]),
                        factor_view(v[ROW_SCALE], v[ROWS], v[COLS], spec.block, v[DEVICE])};
    dw_quantized transposed = {
        device_matrix(v[TRANSPOSED], spec.element, v[COLS], v[ROWS], v[TRANSPOSED_LD], v[DEVICE]),
        factor_view(v[TRANSPOSED_SCALE], v[COLS], v[ROWS], spec.transposed_square ? DW_BLOCK_128X128 : spec.block,
                    v[DEVICE])};
    return outcome(module, dw_quantize(context, &spec, &source, v[ROW] ? &row : NULL,
                                       v[TRANSPOSED] ? &transposed : NULL, address(v[STREAM])));
}

/* Scales at `data` of `operand`, whose scaling is set: FP32 as dw_gemm reads them, or E8M0 codes in layout mn_major. */
static void set_scale(dw_gemm_operand *operand, long long data, long long codes, long long rows, long long cols,
                      long long device) {
    bool square = operand->scaling == DW_GEMM_128X128;
    if (!codes) {
        operand->scale = factor_view(data, rows, cols, square ? DW_BLOCK_128X128 : DW_BLOCK_1X128, device);
        return;
    }
    int64_t padded = ((square ? (rows + 127) / 128 : rows) + 15) / 16 * 16;
    operand->scale = device_matrix(data, DW_E8M0, (cols + 127) / 128, padded, padded, device);
    operand->layout = DW_SCALE_MN_MAJOR;
}

/* The arguments of cuda_gemm and cuda_gemm_tune. 0 with an exception set when they are wrong. */
static int read_gemm(const char *function, PyObject *const *arguments, Py_ssize_t given, dw_gemm_args *result,
                     void **stream) {
    enum {
        A,
        A_DTYPE,
        A_LD,
        A_SCALING,
        A_SCALE,
        B,
        B_DTYPE,
        B_LD,
        B_SCALING,
        B_SCALE,
        D,
        D_DTYPE,
        D_LD,
        M,
        N,
        K,
        BIAS,
        BIAS_DTYPE,
        ACCUMULATE,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        CODES,
        BACKEND,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers(function, arguments, given, COUNT, v, 0, NULL)) return 0;
    dw_gemm_args args = {
        .a = {.data = device_matrix(v[A], (dw_dtype)v[A_DTYPE], v[M], v[K], v[A_LD], v[DEVICE]),
              .scaling = (dw_gemm_scaling)v[A_SCALING]},
        .b = {.data = device_matrix(v[B], (dw_dtype)v[B_DTYPE], v[N], v[K], v[B_LD], v[DEVICE]),
              .scaling = (dw_gemm_scaling)v[B_SCALING]},
        .d = device_matrix(v[D], (dw_dtype)v[D_DTYPE], v[M], v[N], v[D_LD], v[DEVICE]),
        .accumulate = v[ACCUMULATE] != 0,
        .workspace = address(v[WORKSPACE]),
        .workspace_bytes = (size_t)v[WORKSPACE_BYTES],
        .backend = (dw_gemm_backend)v[BACKEND],
    };
    if (v[A_SCALE]) set_scale(&args.a, v[A_SCALE], v[CODES], v[M], v[K], v[DEVICE]);
    if (v[B_SCALE]) set_scale(&args.b, v[B_SCALE], v[CODES], v[N], v[K], v[DEVICE]);
    if (v[BIAS]) {
        args.bias = device_matrix(v[BIAS], (dw_dtype)v[BIAS_DTYPE], v[N], 1, 1, v[DEVICE]);
        args.bias.rank = 1;
    }
    *result = args;
    *stream = address(v[STREAM]);
    return 1;
}

PyObject *core_cuda_gemm(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    dw_gemm_args args;
    void *stream;
    if (!read_gemm("cuda_gemm", arguments, given, &args, &stream)) return NULL;
    dw_context *context = process_context();
    return context ? outcome(module, dw_gemm(context, &args, stream)) : NULL;
}

PyObject *core_cuda_gemm_tune(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    dw_gemm_args args;
    void *stream;
    if (!read_gemm("cuda_gemm_tune", arguments, given, &args, &stream)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_gemm_tuned tuned;
    PyThreadState *thread = PyEval_SaveThread(); /* it waits for the device */
    dw_status status = dw_gemm_tune(context, &args, stream, &tuned);
    PyEval_RestoreThread(thread);
    if (status != DW_OK) return raise_status(module, status);
    return Py_BuildValue("{s:s,s:s,s:i,s:i,s:d,s:d,s:i,s:N}", "kernel", tuned.kernel, "predicted", tuned.predicted,
                         "band", tuned.band, "predicted_band", tuned.predicted_band, "seconds", tuned.seconds,
                         "predicted_seconds", tuned.predicted_seconds, "measured", tuned.measured, "remembered",
                         PyBool_FromLong(tuned.remembered));
}

/* Dense matrices one after the other, `matrix` being the first. */
static dw_tensor stack_of(const dw_tensor *matrix, long long groups) {
    return (dw_tensor){.data = matrix->data,
                       .dtype = matrix->dtype,
                       .device_type = DW_DEVICE_CUDA,
                       .device_id = matrix->device_id,
                       .rank = 3,
                       .shape = {groups, matrix->shape[0], matrix->shape[1]},
                       .strides = {matrix->shape[0] * matrix->shape[1], matrix->shape[1], 1}};
}

/* Lets a matrix of inner stride 1 lie the other way: [rows, cols] as cols x rows. A dense stack's distances follow. */
static void exchange(dw_tensor *t, int rows, int cols) {
    const int64_t ld = t->rank == 3 ? t->shape[rows] : t->strides[rows];
    t->strides[rows] = 1;
    t->strides[cols] = ld;
}

PyObject *core_cuda_grouped_gemm(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        AXIS,
        GROUPS,
        ENDS,
        A,
        A_LD,
        A_SCALE,
        B,
        B_LD,
        B_SCALING,
        B_SCALE,
        D,
        D_DTYPE,
        D_LD,
        M,
        N,
        K,
        ACCUMULATE,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        CODES,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_grouped_gemm", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    bool along_m = v[AXIS] == DW_GROUP_M;
    dw_grouped_gemm_args args = {
        .a = {.data = device_matrix(v[A], DW_E4M3, v[M], v[K], v[A_LD], v[DEVICE]), .scaling = DW_GEMM_1X128},
        .b = {.data = device_matrix(v[B], DW_E4M3, v[N], v[K], v[B_LD], v[DEVICE]),
              .scaling = (dw_gemm_scaling)v[B_SCALING]},
        .d = device_matrix(v[D], (dw_dtype)v[D_DTYPE], v[M], v[N], v[D_LD], v[DEVICE]),
        .ends = address(v[ENDS]),
        .groups = v[GROUPS],
        .axis = (dw_group_axis)v[AXIS],
        .accumulate = v[ACCUMULATE] != 0,
        .workspace = address(v[WORKSPACE]),
        .workspace_bytes = (size_t)v[WORKSPACE_BYTES],
    };
    dw_tensor *stack = along_m ? &args.b.data : &args.d;
    *stack = stack_of(stack, v[GROUPS]);
    set_scale(&args.a, v[A_SCALE], v[CODES], v[M], v[K], v[DEVICE]);
    long long b_rows = along_m ? v[GROUPS] * ((v[N] + 127) / 128 * 128) : v[N]; /* grids one below the other */
    set_scale(&args.b, v[B_SCALE], v[CODES], b_rows, v[K], v[DEVICE]);
    return outcome(module, dw_grouped_gemm(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_grouped_gemm_bf16(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        AXIS,
        GROUPS,
        ENDS,
        A,
        A_LD,
        B,
        B_LD,
        B_ACROSS,
        D,
        D_DTYPE,
        D_LD,
        M,
        N,
        K,
        ACCUMULATE,
        WORKSPACE,
        WORKSPACE_BYTES,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_grouped_gemm_bf16", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_grouped_gemm_args args = {
        .a = {.data = device_matrix(v[A], DW_BF16, v[M], v[K], v[A_LD], v[DEVICE])},
        .b = {.data = device_matrix(v[B], DW_BF16, v[N], v[K], v[B_LD], v[DEVICE])},
        .d = device_matrix(v[D], (dw_dtype)v[D_DTYPE], v[M], v[N], v[D_LD], v[DEVICE]),
        .ends = address(v[ENDS]),
        .groups = v[GROUPS],
        .axis = (dw_group_axis)v[AXIS],
        .accumulate = v[ACCUMULATE] != 0,
        .workspace = address(v[WORKSPACE]),
        .workspace_bytes = (size_t)v[WORKSPACE_BYTES],
    };
    if (v[AXIS] == DW_GROUP_M) {
        args.b.data = stack_of(&args.b.data, v[GROUPS]);
        if (v[B_ACROSS]) exchange(&args.b.data, 1, 2);
    } else {
        args.d = stack_of(&args.d, v[GROUPS]);
        exchange(&args.a.data, 0, 1);
        exchange(&args.b.data, 0, 1);
    }
    return outcome(module, dw_grouped_gemm(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_cross_entropy(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum {
        LOGITS,
        DTYPE,
        ROWS,
        VOCABULARY,
        LD,
        LABELS,
        IGNORE,
        LSE,
        LOSS,
        DLOSS,
        DLOSS_STRIDE,
        DLOGITS,
        DLOGITS_LD,
        DEVICE,
        STREAM,
        COUNT
    };
    long long v[COUNT];
    if (!read_numbers("cuda_cross_entropy", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_cross_entropy_args args = {
        .logits = device_matrix(v[LOGITS], (dw_dtype)v[DTYPE], v[ROWS], v[VOCABULARY], v[LD], v[DEVICE]),
        .labels = address(v[LABELS]),
        .ignore_index = v[IGNORE],
        .lse = address(v[LSE]),
        .loss = address(v[LOSS]),
        .dloss = address(v[DLOSS]),
        .dloss_stride = v[DLOSS_STRIDE],
    };
    if (!v[DLOGITS]) return outcome(module, dw_cross_entropy_forward(context, &args, address(v[STREAM])));
    args.dlogits = device_matrix(v[DLOGITS], (dw_dtype)v[DTYPE], v[ROWS], v[VOCABULARY], v[DLOGITS_LD], v[DEVICE]);
    return outcome(module, dw_cross_entropy_backward(context, &args, address(v[STREAM])));
}

PyObject *core_cuda_device_info(PyObject *module, PyObject *object) {
    long long device = PyLong_AsLongLong(object);
    if (device == -1 && PyErr_Occurred()) return NULL;
    dw_cuda_device_info info;
    dw_status status = dw_cuda_device_get((int)device, &info);
    int driver = 0;
    if (status == DW_OK) status = dw_cuda_driver_version(&driver);
    if (status != DW_OK) return raise_status(module, status);
    return Py_BuildValue("{s:s,s:(ii),s:i,s:L,s:L,s:d,s:s,s:i,s:N}", "name", info.name, "compute_capability",
                         info.compute_major, info.compute_minor, "multiprocessors", info.multiprocessors,
                         "memory_bytes", (long long)info.memory_bytes, "l2_bytes", (long long)info.l2_bytes,
                         "memory_bandwidth", info.memory_bandwidth, "target", info.target, "driver_version", driver,
                         "has_device_code", PyBool_FromLong(info.has_device_code));
}

PyObject *core_cuda_selftest(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    enum { KERNEL, SEED, DEVICE, WORKSPACE, WORKSPACE_BYTES, STREAM, COUNT };
    long long v[COUNT];
    if (!read_numbers("cuda_selftest", arguments, given, COUNT, v, 0, NULL)) return NULL;
    dw_context *context = process_context();
    if (!context) return NULL;
    dw_selftest_result result = {0};
    dw_status status =
        dw_kernel_selftest_cuda(context, (size_t)v[KERNEL], (uint64_t)v[SEED], (int)v[DEVICE], address(v[WORKSPACE]),
                                (size_t)v[WORKSPACE_BYTES], address(v[STREAM]), &result);
    if (status != DW_OK && status != DW_ERROR_SELFTEST) return raise_status(module, status);
    return Py_BuildValue("{s:L,s:L,s:s}", "cases", (long long)result.cases, "mismatches", (long long)result.mismatches,
                         "first_mismatch", result.first_mismatch);
}

PyObject *core_cuda_selftest_workspace(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromSize_t(dw_kernel_selftest_workspace());
}
