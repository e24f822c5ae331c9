/* Turns the requests of deepwell/fused.h into launches of the fused kernels of src/cuda/device/common. */
#include "deepwell/fused.h"

#include <stdatomic.h>

#include "core/tensor.h"
#include "cuda/host/norm_panel.h"
#include "cuda/host/quantize_launch.h"
#include "deepwell/cuda.h"
#include "formats/quantized.h"

/* The constants of rmsnorm_quantize.cu and rmsnorm_backward.cu. */
#define NORM_ROWS 16
#define NORM_COLS_MAX 16384
#define NORM_THREADS_MAX 1024
#define NORM_STATIC_SHARED 8448
#define RING_STAGES_MAX 8
#define RING_BARRIER_BYTES (8 * RING_STAGES_MAX)
#define NORM_STATISTICS_WARPS 8

/* sizeof(square_tile_shared) and what swiglu_backward_quantize adds for halves. */
#define TILE_SHARED 23584
#define HALVES_SHARED (TILE_SHARED + 32768)

static bool given(const dw_tensor *tensor) {
    return tensor->rank != 0;
}

/* What launches are sized by. */
typedef struct device_limits {
    int64_t multiprocessors, shared; /* shared memory of a multiprocessor */
} device_limits;

/* Asked of the driver once for each of the first devices: these calls are on the hot path. */
static dw_status get_limits(int device, device_limits *limits) {
    static _Atomic uint64_t known[32];
    uint64_t packed = device >= 0 && device < 32 ? atomic_load_explicit(&known[device], memory_order_relaxed) : 0;
    if (!packed) {
        dw_cuda_device_info info;
        DW_TRY(dw_cuda_device_get(device, &info));
        packed = (uint64_t)info.multiprocessors << 32 | (uint64_t)info.shared_per_multiprocessor_bytes;
        if (device < 32) atomic_store_explicit(&known[device], packed, memory_order_relaxed);
    }
    *limits = (device_limits){(int64_t)(packed >> 32), (int64_t)(packed & UINT32_MAX)};
    return DW_OK;
}

static int64_t divide_up(int64_t value, int64_t by) {
    return (value + by - 1) / by;
}

/* A BF16 matrix on the device of `first`, with these extents (and row stride, when ld is not 0). */
static dw_status check_bf16(const dw_tensor *tensor, const char *name, const dw_tensor *first, int64_t rows,
                            int64_t cols, int64_t ld, dw_view *view) {
    DW_TRY(dw_check_matrix(tensor, name, view));
    if (tensor->dtype != DW_BF16)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s has dtype %s; the fused kernels take bf16", name,
                       dw_dtype_name(tensor->dtype));
    DW_TRY(dw_check_device(tensor, name, first));
    DW_TRY(dw_check_extents(view, rows, cols));
    if (ld && rows > 1 && view->ld != ld)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has row stride %lld; it must be that of the other matrices, %lld",
                       name, (long long)view->ld, (long long)ld);
    return DW_OK;
}

/* The first matrix of a call: on a GPU, BF16, with extents the kernels can index. */
static dw_status check_first(const dw_context *context, const dw_tensor *tensor, const char *name, dw_view *view) {
    if (!context) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context is NULL; create one with dw_context_create");
    DW_TRY(dw_check_matrix(tensor, name, view));
    if (tensor->device_type != DW_DEVICE_CUDA)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s is not on a GPU; the fused operations run on GPUs only", name);
    if (view->rows > DW_CUDA_EXTENT_MAX || view->cols > DW_CUDA_EXTENT_MAX)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s is wider than GPU kernels index (2^30); split it", name);
    return check_bf16(tensor, name, tensor, view->rows, view->cols, 0, view);
}

static dw_status check_vector(const dw_tensor *tensor, const char *name, const dw_tensor *first, int64_t length,
                              bool allow_bf16) {
    if (tensor->rank != 1 || tensor->shape[0] != length || (length > 1 && tensor->strides[0] != 1) ||
        (length && !tensor->data))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s must be a dense vector of %lld elements", name,
                       (long long)length);
    if (tensor->dtype != DW_F32 && !(allow_bf16 && tensor->dtype == DW_BF16))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s has dtype %s; expected f32%s", name, dw_dtype_name(tensor->dtype),
                       allow_bf16 ? " or bf16" : "");
    return dw_check_device(tensor, name, first);
}

static dw_status check_workspace(const void *workspace, size_t bytes, size_t needed) {
    if (bytes < needed || (needed && !workspace) || (uintptr_t)workspace % 16)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "workspace has %zu bytes at %p; expected %zu, 16-byte aligned", bytes,
                       workspace, needed);
    return DW_OK;
}

/* Which results are wanted, and their parameters. The row matrix is [rows, cols]. */
static dw_status check_results(const dw_quantize_spec *spec, const dw_quantized *row, const dw_quantized *transposed,
                               const dw_tensor *first, int64_t rows, int64_t cols, dw_cuda_quantized *to_row,
                               dw_cuda_quantized *to_transposed) {
    static const char *const names[2][2] = {{"row.data", "row.scale"}, {"transposed.data", "transposed.scale"}};
    if (!row && !transposed)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "row and transposed are both NULL; pass at least one output");
    int64_t shape[2];
    DW_TRY(dw_scale_shape(spec, rows, cols, shape));
    if (spec->element != DW_E4M3 || spec->block == DW_BLOCK_128X128)
        return dw_fail(DW_ERROR_UNSUPPORTED, "the fused kernels write e4m3 in blocks 1x32 or 1x128, not %s in %s",
                       dw_dtype_name(spec->element), dw_block_name(spec->block));
    for (int i = 0; i < 2; i++) {
        const dw_quantized *quantized = i ? transposed : row;
        if (!quantized) continue;
        const int64_t m = i ? cols : rows, n = i ? rows : cols;
        const dw_quantize_spec own = dw_result_spec(spec, i);
        dw_quantized_view view;
        DW_TRY(dw_check_quantized(quantized, &own, names[i], first, true, &view));
        DW_TRY(dw_check_extents(&view.data, m, n));
        *(i ? to_transposed : to_row) =
            dw_cuda_quantized_of(spec, i, m, n, view.data.data, view.data.ld, view.scale.data,
                                 quantized->scale.dtype == DW_F32 ? view.scale.data : NULL);
    }
    return DW_OK;
}

static bool bf16_rows_aligned(const dw_view *view) {
    return dw_cuda_rows_aligned(view->data, view->ld, 2);
}

/* ---- norms ----------------------------------------------------------------------------------------------------------
 */

static uint32_t norm_threads(int64_t cols) {
    int64_t threads = divide_up(divide_up(cols, 16), 32) * 32;
    return (uint32_t)(threads > NORM_THREADS_MAX ? NORM_THREADS_MAX : threads);
}

/* Stages of a ring of rows of `matrices` matrices in so many bytes of shared memory. */
static int32_t ring_stages(int64_t cols, int matrices, int64_t room, uint32_t *dynamic_shared) {
    const int64_t stage = cols * 2 * matrices;
    int64_t stages = stage ? (room - RING_BARRIER_BYTES) / stage : RING_STAGES_MAX;
    stages = stages < 2 ? 2 : stages > RING_STAGES_MAX ? RING_STAGES_MAX : stages;
    *dynamic_shared = (uint32_t)(RING_BARRIER_BYTES + stages * stage);
    return (int32_t)stages;
}

/* Dynamic shared memory of a block when the multiprocessor is full of blocks of 64 registers a thread. */
static int64_t room_of_block(uint32_t threads, uint32_t static_shared, int64_t shared) {
    return shared / (NORM_THREADS_MAX / threads) - 1024 - static_shared;
}

static dw_cuda_kernel norm_row_kernels[] = {
    [DW_BLOCK_1X32] = DW_CUDA_KERNEL("common/rmsnorm_quantize", "rmsnorm_quantize_row_bf16_e4m3_1x32__sm90"),
    [DW_BLOCK_1X128] = DW_CUDA_KERNEL("common/rmsnorm_quantize", "rmsnorm_quantize_row_bf16_e4m3_1x128__sm90"),
};
static dw_cuda_kernel norm_tile_kernels[] = {
    [DW_BLOCK_1X32] = DW_CUDA_KERNEL("common/rmsnorm_quantize", "rmsnorm_quantize_tile_bf16_e4m3_1x32__sm90"),
    [DW_BLOCK_1X128] = DW_CUDA_KERNEL("common/rmsnorm_quantize", "rmsnorm_quantize_tile_bf16_e4m3_1x128__sm90"),
};
static dw_cuda_kernel norm_statistics_kernel =
    DW_CUDA_KERNEL("common/rmsnorm_quantize", "rmsnorm_statistics_bf16__sm90");
static dw_cuda_kernel norm_backward_kernel = DW_CUDA_KERNEL("common/rmsnorm_backward", "rmsnorm_backward_bf16__sm90");
static dw_cuda_kernel norm_dweight_kernel = DW_CUDA_KERNEL("common/rmsnorm_backward", "rmsnorm_dweight__sm90");

dw_status dw_rmsnorm_quantize(dw_context *context, const dw_rmsnorm_quantize_args *args, void *stream) {
    if (!args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "args is NULL; pass a dw_rmsnorm_quantize_args");
    dw_view x, residual = {0}, h = {0}, y = {0};
    DW_TRY(check_first(context, &args->x, "x", &x));
    if (given(&args->residual) != given(&args->h))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "h goes with residual; pass both or neither");
    if (given(&args->residual)) {
        DW_TRY(check_bf16(&args->residual, "residual", &args->x, x.rows, x.cols, x.ld, &residual));
        DW_TRY(check_bf16(&args->h, "h", &args->x, x.rows, x.cols, x.ld, &h));
    }
    if (given(&args->y)) DW_TRY(check_bf16(&args->y, "y", &args->x, x.rows, x.cols, x.ld, &y));
    DW_TRY(check_vector(&args->weight, "weight", &args->x, x.cols, true));
    DW_TRY(check_vector(&args->rstd, "rstd", &args->x, x.rows, false));
    dw_cuda_rmsnorm_params params = {
        .x = x.data,
        .residual = residual.data,
        .h = h.data,
        .weight = args->weight.data,
        .y = y.data,
        .rstd = args->rstd.data,
        .x_ld = x.ld,
        .rows = (int32_t)x.rows,
        .cols = (int32_t)x.cols,
        .source_vector = bf16_rows_aligned(&x) && bf16_rows_aligned(&residual) && bf16_rows_aligned(&h) &&
                         bf16_rows_aligned(&y) && (uintptr_t)args->weight.data % 16 == 0,
        .weight_is_f32 = args->weight.dtype == DW_F32,
        .eps = args->eps,
        .weight_offset = args->weight_offset,
        .inverse_cols = x.cols ? 1.0f / (float)x.cols : 0.0f,
        .round_add = dw_cuda_round_add(args->spec.rounding),
        .raster = dw_cuda_raster_of(x.rows, x.cols),
    };
    DW_TRY(check_results(&args->spec, args->row, args->transposed, &args->x, x.rows, x.cols, &params.row,
                         &params.transposed));
    if (!x.rows || !x.cols) return DW_OK;
    const int id = args->x.device_id;
    if (args->row && args->transposed) {
        bool launched;
        DW_TRY(dw_norm_panel_launch(id, args->spec.block, &params, stream, &launched));
        if (launched) return DW_OK;
    }
    device_limits device;
    DW_TRY(get_limits(id, &device));
    if (args->row && x.cols <= NORM_COLS_MAX) {
        dw_cuda_shape shape = {.threads = norm_threads(x.cols)};
        const int64_t rows = x.rows > params.row.scale.padded_rows ? x.rows : params.row.scale.padded_rows;
        shape.blocks = divide_up(rows, NORM_ROWS);
        params.stages =
            ring_stages(x.cols, residual.data ? 2 : 1, room_of_block(shape.threads, NORM_STATIC_SHARED, device.shared),
                        &shape.shared_bytes);
        DW_TRY(dw_cuda_launch_shape(id, &norm_row_kernels[args->spec.block], &shape, &params, stream));
        if (!args->transposed) return DW_OK;
        params.row.data = NULL; /* done, and so is y */
        params.y = NULL;
    } else {
        dw_cuda_shape shape = {.blocks = divide_up(x.rows, NORM_STATISTICS_WARPS),
                               .threads = 32 * NORM_STATISTICS_WARPS};
        DW_TRY(dw_cuda_launch_shape(id, &norm_statistics_kernel, &shape, &params, stream));
    }
    dw_cuda_shape shape = dw_cuda_tile_shape(&params.raster, 0);
    return dw_cuda_launch_shape(id, &norm_tile_kernels[args->spec.block], &shape, &params, stream);
}

/* Thread blocks of the backward pass, each of `groups` groups of threads with rows of their own: what fills the device,
 * and no more groups than rows. */
static int64_t backward_blocks(int64_t rows, int64_t cols, int64_t multiprocessors, int64_t *groups) {
    const int64_t most = NORM_THREADS_MAX / norm_threads(cols);
    *groups = most > DW_CUDA_NORM_GROUPS ? DW_CUDA_NORM_GROUPS : most;
    const int64_t resident = multiprocessors * (most / *groups), needed = divide_up(rows, *groups);
    return needed < resident ? needed : resident;
}

dw_status dw_rmsnorm_backward_workspace_size(int device, int64_t rows, int64_t cols, size_t *bytes) {
    if (!bytes || rows < 0 || cols < 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "bytes is NULL or an extent negative; pass a result and extents");
    device_limits info;
    DW_TRY(get_limits(device, &info));
    int64_t groups;
    *bytes = (size_t)(backward_blocks(rows, cols, info.multiprocessors, &groups) * cols) * sizeof(float);
    return DW_OK;
}

dw_status dw_rmsnorm_backward(dw_context *context, const dw_rmsnorm_backward_args *args, void *stream) {
    if (!args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "args is NULL; pass a dw_rmsnorm_backward_args");
    dw_view dy, h, dresidual = {0}, dx;
    DW_TRY(check_first(context, &args->dy, "dy", &dy));
    DW_TRY(check_bf16(&args->h, "h", &args->dy, dy.rows, dy.cols, dy.ld, &h));
    DW_TRY(check_bf16(&args->dx, "dx", &args->dy, dy.rows, dy.cols, dy.ld, &dx));
    if (given(&args->dresidual))
        DW_TRY(check_bf16(&args->dresidual, "dresidual", &args->dy, dy.rows, dy.cols, dy.ld, &dresidual));
    DW_TRY(check_vector(&args->weight, "weight", &args->dy, dy.cols, true));
    DW_TRY(check_vector(&args->dweight, "dweight", &args->dy, dy.cols, true));
    DW_TRY(check_vector(&args->rstd, "rstd", &args->dy, dy.rows, false));
    if (dy.cols > NORM_COLS_MAX)
        return dw_fail(DW_ERROR_UNSUPPORTED, "dy has %lld columns; the kernel takes at most %d", (long long)dy.cols,
                       NORM_COLS_MAX);
    if (!dy.cols) return DW_OK;
    size_t needed;
    DW_TRY(dw_rmsnorm_backward_workspace_size(args->dy.device_id, dy.rows, dy.cols, &needed));
    DW_TRY(check_workspace(args->workspace, args->workspace_bytes, needed));
    device_limits device;
    DW_TRY(get_limits(args->dy.device_id, &device));
    int64_t groups;
    dw_cuda_shape shape = {.threads = norm_threads(dy.cols)};
    shape.blocks = backward_blocks(dy.rows, dy.cols, device.multiprocessors, &groups);
    shape.groups = (uint32_t)groups;
    uint32_t group_shared;
    const int64_t room = room_of_block(shape.threads * shape.groups, 256, device.shared) / groups - 16;
    const int32_t stages = ring_stages(dy.cols, dresidual.data ? 3 : 2, room, &group_shared);
    group_shared = (group_shared + 15) / 16 * 16;
    shape.shared_bytes = group_shared * shape.groups;
    dw_cuda_rmsnorm_backward_params params = {
        .dy = dy.data,
        .h = h.data,
        .dresidual = dresidual.data,
        .weight = args->weight.data,
        .rstd = args->rstd.data,
        .dx = dx.data,
        .dweight_partial = args->workspace,
        .ld = dy.ld,
        .rows = (int32_t)dy.rows,
        .cols = (int32_t)dy.cols,
        .source_vector = bf16_rows_aligned(&dy) && bf16_rows_aligned(&h) && bf16_rows_aligned(&dresidual) &&
                         bf16_rows_aligned(&dx) && (uintptr_t)args->weight.data % 16 == 0,
        .weight_is_f32 = args->weight.dtype == DW_F32,
        .group_shared = (int32_t)group_shared,
        .stages = stages,
        .weight_offset = args->weight_offset,
        .inverse_cols = 1.0f / (float)dy.cols,
    };
    if (shape.blocks) DW_TRY(dw_cuda_launch_shape(args->dy.device_id, &norm_backward_kernel, &shape, &params, stream));
    dw_cuda_rmsnorm_dweight_params sum = {.partial = args->workspace,
                                          .dweight = args->dweight.data,
                                          .blocks = (int32_t)shape.blocks,
                                          .cols = (int32_t)dy.cols,
                                          .dweight_is_f32 = args->dweight.dtype == DW_F32,
                                          .accumulate = args->accumulate};
    dw_cuda_shape sum_shape = {.blocks = divide_up(dy.cols, 32), .threads = 256};
    return dw_cuda_launch_shape(args->dy.device_id, &norm_dweight_kernel, &sum_shape, &sum, stream);
}

/* ---- gated activations
 * ----------------------------------------------------------------------------------------------- */

#define GATED(stem, form)                                                                                              \
    {                                                                                                                  \
        [DW_BLOCK_1X32] = DW_CUDA_KERNEL("common/" stem, stem "_" form "_bf16_e4m3_1x32__sm90"),                       \
        [DW_BLOCK_1X128] = DW_CUDA_KERNEL("common/" stem, stem "_" form "_bf16_e4m3_1x128__sm90"),                     \
    }
static dw_cuda_kernel gated_kernels[2][2] = {GATED("swiglu_quantize", "halves"),
                                             GATED("swiglu_quantize", "interleaved")};
static dw_cuda_kernel gated_backward_kernels[2][2] = {GATED("swiglu_backward_quantize", "halves"),
                                                      GATED("swiglu_backward_quantize", "interleaved")};

static dw_status check_gate_up(const dw_view *gate_up) {
    if (gate_up->cols % 2)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gate_up has %lld columns; expected an even number, gate and up",
                       (long long)gate_up->cols);
    return DW_OK;
}

dw_status dw_swiglu_quantize(dw_context *context, const dw_swiglu_quantize_args *args, void *stream) {
    if (!args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "args is NULL; pass a dw_swiglu_quantize_args");
    dw_view gate_up, out = {0};
    DW_TRY(check_first(context, &args->gate_up, "gate_up", &gate_up));
    DW_TRY(check_gate_up(&gate_up));
    const int64_t inner = gate_up.cols / 2;
    if (given(&args->out)) DW_TRY(check_bf16(&args->out, "out", &args->gate_up, gate_up.rows, inner, 0, &out));
    dw_cuda_swiglu_params params = {
        .gate_up = gate_up.data,
        .out = out.data,
        .gate_up_ld = gate_up.ld,
        .out_ld = out.ld,
        .rows = (int32_t)gate_up.rows,
        .inner = (int32_t)inner,
        .source_vector = bf16_rows_aligned(&gate_up) && bf16_rows_aligned(&out),
        .clamped = args->form.clamped,
        .alpha = args->form.alpha,
        .limit = args->form.limit,
        .round_add = dw_cuda_round_add(args->spec.rounding),
        .raster = dw_cuda_raster_of(gate_up.rows, inner),
    };
    DW_TRY(check_results(&args->spec, args->row, args->transposed, &args->gate_up, gate_up.rows, inner, &params.row,
                         &params.transposed));
    dw_cuda_shape shape = dw_cuda_tile_shape(&params.raster, 0);
    return dw_cuda_launch_shape(args->gate_up.device_id, &gated_kernels[args->form.interleaved][args->spec.block],
                                &shape, &params, stream);
}

dw_status dw_swiglu_backward_quantize(dw_context *context, const dw_swiglu_backward_args *args, void *stream) {
    if (!args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "args is NULL; pass a dw_swiglu_backward_args");
    dw_view gate_up, dy, out = {0};
    DW_TRY(check_first(context, &args->gate_up, "gate_up", &gate_up));
    DW_TRY(check_gate_up(&gate_up));
    const int64_t inner = gate_up.cols / 2;
    DW_TRY(check_bf16(&args->dy, "dy", &args->gate_up, gate_up.rows, inner, 0, &dy));
    if (given(&args->dgate_up))
        DW_TRY(check_bf16(&args->dgate_up, "dgate_up", &args->gate_up, gate_up.rows, gate_up.cols, 0, &out));
    if (args->spec.transposed_square)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "spec.transposed_square is set; the gradient's transposed form is written in blocks of %s only",
                       dw_block_name(args->spec.block));
    if (!args->form.interleaved && inner % DW_CUDA_TILE)
        return dw_fail(
            DW_ERROR_UNSUPPORTED,
            "gate and up have %lld columns each; side by side they must be multiples of %d, so that no block "
            "spans both: quantize the BF16 gradient with dw_quantize instead",
            (long long)inner, DW_CUDA_TILE);
    dw_cuda_swiglu_params params = {
        .gate_up = gate_up.data,
        .dy = dy.data,
        .out = out.data,
        .gate_up_ld = gate_up.ld,
        .dy_ld = dy.ld,
        .out_ld = out.ld,
        .rows = (int32_t)gate_up.rows,
        .inner = (int32_t)inner,
        .source_vector = bf16_rows_aligned(&gate_up) && bf16_rows_aligned(&dy) && bf16_rows_aligned(&out),
        .clamped = args->form.clamped,
        .alpha = args->form.alpha,
        .limit = args->form.limit,
        .round_add = dw_cuda_round_add(args->spec.rounding),
        .raster = dw_cuda_raster_of(gate_up.rows, args->form.interleaved ? gate_up.cols : inner),
    };
    DW_TRY(check_results(&args->spec, args->row, args->transposed, &args->gate_up, gate_up.rows, gate_up.cols,
                         &params.row, &params.transposed));
    dw_cuda_shape shape = dw_cuda_tile_shape(&params.raster, args->form.interleaved ? TILE_SHARED : HALVES_SHARED);
    return dw_cuda_launch_shape(args->gate_up.device_id,
                                &gated_backward_kernels[args->form.interleaved][args->spec.block], &shape, &params,
                                stream);
}
