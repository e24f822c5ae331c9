/* Turns a cross-entropy request into launches of src/cuda/device/common/cross_entropy.cu. */
#include "deepwell/cross_entropy.h"

#include "cuda/device/common/cross_entropy_params.h"
#include "cuda/host/launch.h"

#define IMAGE "common/cross_entropy"
#define THREADS 512
/* Elements one block of the backward pass takes before the row is given another block. */
#define BACKWARD_ELEMENTS_PER_BLOCK 16384

static dw_cuda_kernel forward_kernels[] = {
    [DW_F32] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_f32"),
    [DW_F16] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_f16"),
    [DW_BF16] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_bf16"),
};
static dw_cuda_kernel backward_kernels[] = {
    [DW_F32] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_backward_f32"),
    [DW_F16] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_backward_f16"),
    [DW_BF16] = DW_CUDA_KERNEL(IMAGE, "cross_entropy_backward_bf16"),
};

static bool aligned(const dw_tensor *t) {
    return (uintptr_t)t->data % 16 == 0 && t->strides[0] * (int64_t)dw_dtype_size(t->dtype) % 16 == 0;
}

static dw_status check_matrix(const dw_tensor *t, const char *what) {
    if (t->device_type != DW_DEVICE_CUDA) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s must be on a GPU; use the framework's own loss on the CPU", what);
    }
    if (t->dtype != DW_F32 && t->dtype != DW_F16 && t->dtype != DW_BF16) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s is %s; f32, f16 or bf16 is expected", what,
                       dw_dtype_name(t->dtype));
    }
    if (t->rank != 2 || t->shape[0] < 0 || t->shape[1] < 1) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s must have shape [rows, vocabulary] with vocabulary at least 1",
                       what);
    }
    if ((t->shape[1] > 1 && t->strides[1] != 1) || (t->shape[0] > 1 && t->strides[0] < t->shape[1])) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "%s must have inner stride 1 and a row stride of at least its columns", what);
    }
    return DW_OK;
}

static dw_status launch(dw_cuda_kernel *kernel, const dw_cross_entropy_args *args, uint32_t splits, void *stream) {
    const dw_tensor *logits = &args->logits, *dlogits = &args->dlogits;
    dw_cuda_cross_entropy_params params = {
        .logits = logits->data,
        .dlogits = dlogits->data,
        .labels = args->labels,
        .lse = args->lse,
        .loss = args->loss,
        .dloss = args->dloss,
        .logits_ld = logits->strides[0],
        .dlogits_ld = dlogits->strides[0],
        .dloss_stride = args->dloss_stride,
        .rows = logits->shape[0],
        .vocabulary = logits->shape[1],
        .ignore = args->ignore_index,
        .vector = aligned(logits) && (!dlogits->data || aligned(dlogits)),
    };
    if (params.rows > INT32_MAX) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%lld rows of logits are more than one launch takes (%d); split them",
                       (long long)params.rows, INT32_MAX);
    }
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(logits->device_id, &scope));
    dw_cuda_launch_config config = {
        .grid = {(uint32_t)params.rows, splits, 1}, .block = {THREADS, 1, 1}, .programmatic = true};
    void *arguments[] = {&params};
    dw_status status = dw_cuda_launch(&scope, kernel, &config, stream, arguments);
    dw_cuda_leave(&scope);
    return status;
}

dw_status dw_cross_entropy_forward(dw_context *context, const dw_cross_entropy_args *args, void *stream) {
    if (!context || !args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context and args must not be NULL");
    DW_TRY(check_matrix(&args->logits, "logits"));
    if (args->logits.shape[0] && (!args->logits.data || !args->labels || !args->lse || !args->loss)) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "logits, labels, lse and loss must all be given");
    }
    dw_cross_entropy_args without = *args;
    without.dlogits.data = NULL;
    return launch(&forward_kernels[args->logits.dtype], &without, 1, stream);
}

dw_status dw_cross_entropy_backward(dw_context *context, const dw_cross_entropy_args *args, void *stream) {
    if (!context || !args) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context and args must not be NULL");
    const dw_tensor *logits = &args->logits, *dlogits = &args->dlogits;
    DW_TRY(check_matrix(logits, "logits"));
    DW_TRY(check_matrix(dlogits, "dlogits"));
    if (dlogits->dtype != logits->dtype || dlogits->shape[0] != logits->shape[0] ||
        dlogits->shape[1] != logits->shape[1] || dlogits->device_id != logits->device_id) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dlogits must have the shape, type and device of logits");
    }
    if (logits->shape[0] && (!logits->data || !dlogits->data || !args->labels || !args->lse || !args->dloss)) {
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "logits, dlogits, labels, lse and dloss must all be given");
    }
    int64_t splits = (logits->shape[1] + BACKWARD_ELEMENTS_PER_BLOCK - 1) / BACKWARD_ELEMENTS_PER_BLOCK;
    return launch(&backward_kernels[logits->dtype], args, (uint32_t)(splits > 65535 ? 65535 : splits), stream);
}
