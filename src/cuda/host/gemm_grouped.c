/* dw_grouped_gemm: checks, and the operands as the Hopper kernels see them. */
#include <inttypes.h>

#include "cuda/host/gemm_bf16.h"
#include "cuda/host/gemm_tuning.h"

#define BLOCK 128

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static int64_t blocks_of(int64_t extent) {
    return (extent + BLOCK - 1) / BLOCK;
}

/* A matrix or, with `groups`, a dense stack of them, on the device of `a`, with data. */
static dw_status check_operand(const dw_tensor *t, const char *name, int device, bool groups, int64_t alignment) {
    const int rank = groups ? 3 : 2;
    DW_TRY(dw_grouped_gemm_check_tensor(t, name, device, rank));
    for (int i = 0; i < rank; i++)
        if (t->shape[i] == 0) return DW_OK;
    int64_t rows = t->shape[rank - 2], cols = t->shape[rank - 1], ld = t->strides[rank - 2];
    if ((cols > 1 && t->strides[rank - 1] != 1) || (rows > 1 && ld < cols))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s must have inner stride 1 and rows apart", name);
    if (groups && ((rows > 1 && ld != cols) || (t->shape[0] > 1 && t->strides[0] != rows * cols)))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s must be dense", name);
    if ((rows > 1 ? ld : cols) % alignment != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "grouped gemm: rows of %s are %" PRId64 " elements apart; a multiple of %" PRId64 " is needed",
                       name, rows > 1 ? ld : cols, alignment);
    return DW_OK;
}

/* Scales of `rows` x `cols` blocks, given as rows of blocks (a square operand's grid, or a 1x128 operand's rows). */
static dw_status check_scale(const dw_gemm_operand *operand, const char *name, int device, int64_t rows, int64_t cols,
                             int64_t *ld, int64_t *row_step, int64_t *k_step) {
    const dw_tensor *t = &operand->scale;
    bool vectors = operand->scaling == DW_GEMM_1X128, f32 = t->dtype == DW_F32;
    if (t->device_type != DW_DEVICE_CUDA || t->device_id != device || t->rank != 2 || !t->data ||
        (uintptr_t)t->data % 16 != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "grouped gemm: %s_scale must be a matrix on GPU %d, aligned to 16 bytes", name, device);
    if (!f32 && t->dtype != DW_E8M0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s_scale is %s; e8m0 or f32 is expected", name,
                       dw_dtype_name(t->dtype));
    bool mn_major = !f32 && operand->layout == DW_SCALE_MN_MAJOR;
    if (!f32 && !mn_major && (vectors || operand->layout != DW_SCALE_ROW))
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: %s_scale in layout %s; quantize with layout mn_major", name,
                       dw_scale_layout_name(operand->layout));
    if (f32 && vectors && rows % 4 != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "grouped gemm: %s has %" PRId64 " rows; f32 scales of 1x128 blocks need a multiple of 4", name,
                       rows);
    int64_t padded = round_up(rows, 16);
    int64_t shape[2] = {mn_major ? cols : rows, mn_major ? padded : cols}, strides[2];
    strides[0] = mn_major ? padded : f32 ? (vectors ? 1 : round_up(cols, 4)) : cols;
    strides[1] = f32 && vectors ? rows : 1;
    for (int i = 0; i < 2; i++)
        if (t->shape[i] != shape[i] || (t->shape[i] > 1 && t->strides[i] != strides[i]))
            return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                           "grouped gemm: %s_scale must have shape [%" PRId64 ", %" PRId64 "] and strides (%" PRId64
                           ", %" PRId64 ")",
                           name, shape[0], shape[1], strides[0], strides[1]);
    *ld = mn_major ? padded : rows;
    *row_step = mn_major ? 1 : strides[0];
    *k_step = mn_major ? padded : 1;
    return DW_OK;
}

static dw_status check_formats(const dw_grouped_gemm_args *args) {
    bool along_m = args->axis == DW_GROUP_M;
    if (args->axis != DW_GROUP_M && args->axis != DW_GROUP_K)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: axis %d is no dw_group_axis", (int)args->axis);
    if (args->a.data.dtype != DW_E4M3 || args->b.data.dtype != DW_E4M3)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: a is %s and b is %s; both must be e4m3",
                       dw_dtype_name(args->a.data.dtype), dw_dtype_name(args->b.data.dtype));
    bool vectors = args->b.scaling == DW_GEMM_1X128;
    if (args->a.scaling != DW_GEMM_1X128 || !(args->b.scaling == DW_GEMM_128X128 || (vectors && !along_m)))
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: %s scales of a with %s scales of b are not there",
                       dw_gemm_scaling_name(args->a.scaling), dw_gemm_scaling_name(args->b.scaling));
    if (args->a.scale.dtype != args->b.scale.dtype)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: scales of a are %s and of b %s; both must be the same",
                       dw_dtype_name(args->a.scale.dtype), dw_dtype_name(args->b.scale.dtype));
    if (args->d.dtype != DW_BF16 && (along_m || args->d.dtype != DW_F32))
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: d is %s; bf16%s is expected", dw_dtype_name(args->d.dtype),
                       along_m ? "" : " or f32");
    return DW_OK;
}

static dw_status mismatch(const char *what, int64_t a, int64_t b) {
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s disagree: %" PRId64 " and %" PRId64, what, a, b);
}

static dw_status prepare(const dw_grouped_gemm_args *args, dw_gemm_sm90_call *call) {
    const dw_tensor *a = &args->a.data, *b = &args->b.data, *d = &args->d;
    bool along_m = args->axis == DW_GROUP_M, f32 = d->dtype == DW_F32;
    int device = a->device_id;
    DW_TRY(check_formats(args));
    DW_TRY(check_operand(a, "a", device, false, 16));
    DW_TRY(check_operand(b, "b", device, along_m, 16));
    DW_TRY(check_operand(d, "d", device, !along_m, f32 ? 4 : 8));
    if (args->groups < 0 || args->groups > INT32_MAX || (args->groups > 0 && !args->ends))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %" PRId64 " groups, ends at %p", args->groups,
                       (const void *)args->ends);
    DW_TRY(dw_gemm_check_workspace("grouped gemm", args->workspace, args->workspace_bytes));
    int64_t groups = args->groups, m = a->shape[0], k = a->shape[1];
    int64_t n = along_m ? b->shape[1] : b->shape[0], element = f32 ? 4 : 2;
    int64_t b_k = along_m ? b->shape[2] : b->shape[1], b_groups = along_m ? b->shape[0] : groups;
    if (b_k != k) return mismatch("the reductions of a and b", k, b_k);
    if (b_groups != groups) return mismatch("the groups of ends and b", groups, b_groups);
    int64_t d_groups = along_m ? groups : d->shape[0];
    if (d_groups != groups) return mismatch("the groups of ends and d", groups, d_groups);
    int64_t d_rows = d->shape[along_m ? 0 : 1], d_cols = d->shape[along_m ? 1 : 2];
    if (d_rows != m) return mismatch("the rows of a and d", m, d_rows);
    if (d_cols != n) return mismatch("the columns of d and rows of b", d_cols, n);
    if (k % 16 != 0 || n * element % 16 != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "grouped gemm: K = %" PRId64 ", N = %" PRId64 "; multiples of 16 and %" PRId64 " are needed", k,
                       n, 16 / element);
    *call = (dw_gemm_sm90_call){
        .shape = {.m = m,
                  .n = n,
                  .k = k,
                  .groups = groups,
                  .grouping = along_m ? DW_GEMM_GROUPED_M : DW_GEMM_GROUPED_K,
                  .scale_f32 = args->a.scale.dtype == DW_F32,
                  .b_vector = args->b.scaling == DW_GEMM_1X128,
                  .out_f32 = f32},
        .a = a->data,
        .b = b->data,
        .a_scale = args->a.scale.data,
        .b_scale = args->b.scale.data,
        .ends = args->ends,
        .d = d->data,
        .a_rows = m,
        .a_cols = k,
        .a_ld = m > 1 ? a->strides[0] : k,
        .b_rows = along_m ? groups * n : n,
        .b_cols = k,
        .b_ld = along_m ? k : (n > 1 ? b->strides[0] : k),
        .d_rows = along_m ? m : groups * m,
        .d_ld = along_m ? (m > 1 ? d->strides[0] : n) : n,
        .accumulate = args->accumulate,
        .workspace = args->workspace,
        .workspace_bytes = args->workspace_bytes,
    };
    if (groups == 0 || m == 0 || n == 0 || k == 0) return DW_OK;
    int64_t unused_row, unused_k;
    DW_TRY(check_scale(&args->a, "a", device, m, blocks_of(k), &call->a_scale_ld, &unused_row, &unused_k));
    int64_t b_blocks = call->shape.b_vector ? n : blocks_of(n) * (along_m ? groups : 1);
    return check_scale(&args->b, "b", device, b_blocks, blocks_of(k), &call->b_scale_ld, &call->b_scale_row_step,
                       &call->b_scale_k_step);
}

/* What a call is for besides multiplying: a kernel that must do it (-1: any), or tuning. */
typedef struct purpose {
    int forced;
    int multiprocessors;  /* 0: all there are */
    dw_gemm_tuned *tuned; /* or */
    size_t *workspace;    /* wanted: the bytes of it; both NULL: multiply */
} purpose;

static dw_status run(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call, const purpose *why, void *stream) {
    int capability = 0, multiprocessors = 0;
    DW_TRY(dw_gemm_sm90_device(scope, &capability, &multiprocessors));
    if (capability != 90)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: needs compute capability 9.0 (Hopper); this GPU has %d.%d",
                       capability / 10, capability % 10);
    dw_gemm_sm90_choice choice;
    DW_TRY(dw_gemm_sm90_pick(scope, &call->shape, multiprocessors, why->workspace ? SIZE_MAX : call->workspace_bytes,
                             why->forced, &choice));
    if (choice.row < 0)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "grouped gemm: each kernel of these formats failed its self-test on GPU %d", scope->device);
    if (why->workspace) {
        *why->workspace = dw_gemm_sm90_workspace(dw_gemm_sm90_get((size_t)choice.row), &call->shape, multiprocessors);
        return DW_OK;
    }
    if (why->tuned) return dw_gemm_sm90_tune(scope, call, multiprocessors, stream, why->tuned);
    return dw_gemm_sm90_launch(scope, call, &choice, why->multiprocessors > 0 ? why->multiprocessors : multiprocessors,
                               stream);
}

static dw_status grouped_gemm(const dw_grouped_gemm_args *args, const purpose *why, void *stream) {
    dw_gemm_sm90_call call;
    DW_TRY(prepare(args, &call));
    const dw_gemm_sm90_shape *s = &call.shape;
    const bool empty = s->groups == 0 || s->m == 0 || s->n == 0;
    if (why->tuned && (empty || s->k == 0))
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: an empty product has nothing to tune");
    if (empty) return DW_OK;
    if (s->k == 0) return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: the reduction is empty; clear d instead");
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(args->a.data.device_id, &scope));
    dw_status status = run(&scope, &call, why, stream);
    dw_cuda_leave(&scope);
    return status;
}

dw_status dw_grouped_gemm(dw_context *context, const dw_grouped_gemm_args *args, void *stream) {
    if (!context || !args)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_grouped_gemm: %s is NULL", context ? "args" : "context");
    if (args->a.data.dtype == DW_BF16) return dw_grouped_gemm_bf16(args, stream);
    return grouped_gemm(args, &(purpose){.forced = -1}, stream);
}

dw_status dw_grouped_gemm_with_row(int row, int multiprocessors, const dw_grouped_gemm_args *args, void *stream) {
    return grouped_gemm(args, &(purpose){.forced = row, .multiprocessors = multiprocessors}, stream);
}

dw_status dw_grouped_gemm_workspace_size(dw_context *context, const dw_grouped_gemm_args *args, size_t *bytes) {
    if (!context || !args || !bytes)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_grouped_gemm_workspace_size: %s is NULL",
                       !context ? "context"
                       : !args  ? "args"
                                : "bytes");
    *bytes = 0;
    if (args->a.data.dtype == DW_BF16) return dw_grouped_gemm_bf16_workspace_size(args, bytes);
    return grouped_gemm(args, &(purpose){.forced = -1, .workspace = bytes}, NULL);
}

dw_status dw_grouped_gemm_tune(dw_context *context, const dw_grouped_gemm_args *args, void *stream,
                               dw_gemm_tuned *tuned) {
    if (!context || !args || !tuned)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_grouped_gemm_tune: %s is NULL",
                       !context ? "context"
                       : !args  ? "args"
                                : "tuned");
    DW_TRY(dw_gemm_tuning_allowed());
    if (args->a.data.dtype == DW_BF16)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "grouped gemm: products of bf16 are not tuned; dw_grouped_gemm chooses their kernel by shape");
    return grouped_gemm(args, &(purpose){.forced = -1, .tuned = tuned}, stream);
}
