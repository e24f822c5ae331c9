#include "cuda/host/gemm_problem.h"

#include <inttypes.h>
#include <stdio.h>

#include "cuda/host/cublaslt_api.h"
#include "deepwell/quantize.h"

#define FRESH_ALIGNMENT 256
#define NO_TYPE (-1)

static const char *const scaling_names[DW_GEMM_SCALING_COUNT] = {"unscaled", "tensor", "1x128", "128x128", "1x32"};

const char *dw_gemm_scaling_name(dw_gemm_scaling scaling) {
    return (unsigned)scaling < DW_GEMM_SCALING_COUNT ? scaling_names[scaling] : "?";
}

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

static int32_t lt_type(dw_dtype dtype) {
    switch (dtype) {
    case DW_F32: return DW_LT_F32;
    case DW_F16: return DW_LT_F16;
    case DW_BF16: return DW_LT_BF16;
    case DW_E4M3: return DW_LT_E4M3;
    case DW_E5M2: return DW_LT_E5M2;
    default: return NO_TYPE;
    }
}

static bool is_fp8(dw_dtype dtype) {
    return dtype == DW_E4M3 || dtype == DW_E5M2;
}

/* The largest power of two, up to 256, that divides the address. */
static uint32_t alignment_of(const void *address) {
    uintptr_t bits = (uintptr_t)address | FRESH_ALIGNMENT;
    return (uint32_t)(bits & (~bits + 1));
}

static dw_status check_alignment(const void *address, uint32_t needed, const char *name) {
    if (alignment_of(address) < needed)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s at %p must be aligned to %u bytes", name, address, needed);
    return DW_OK;
}

dw_status dw_gemm_check_workspace(const char *who, const void *workspace, size_t bytes) {
    if (bytes > 0 && (!workspace || alignment_of(workspace) < FRESH_ALIGNMENT))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s: the workspace at %p must be aligned to %d bytes", who, workspace,
                       FRESH_ALIGNMENT);
    return DW_OK;
}

/* Elements between rows; a matrix of one row has no use for its stride, so any is allowed there. */
static int64_t leading(const dw_tensor *t) {
    return t->shape[0] > 1 ? t->strides[0] : (t->shape[1] > 1 ? t->shape[1] : 1);
}

static dw_status check_matrix(const dw_tensor *t, const char *name, int device, bool with_pointers) {
    if (t->device_type != DW_DEVICE_CUDA)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s is not on a GPU; move it there", name);
    if (t->device_id != device)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s is on GPU %d but a is on GPU %d; all must be on one", name,
                       t->device_id, device);
    if (t->rank != 2)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has rank %d; a matrix is expected", name, t->rank);
    if (t->shape[0] < 0 || t->shape[1] < 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has a negative extent", name);
    if (t->shape[1] > 1 && t->strides[1] != 1)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has inner stride %" PRId64 "; 1 is expected", name,
                       t->strides[1]);
    if (t->shape[0] > 1 && t->strides[0] < t->shape[1])
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "gemm: %s has row stride %" PRId64 "; at least %" PRId64 " is expected", name, t->strides[0],
                       t->shape[1]);
    if (with_pointers && !t->data && t->shape[0] > 0 && t->shape[1] > 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has no data", name);
    return DW_OK;
}

static dw_status check_dense(const dw_tensor *t, const char *name, int64_t rows, int64_t cols) {
    if (t->rank != 2 || t->shape[0] != rows || t->shape[1] != cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale must have shape [%" PRId64 ", %" PRId64 "]", name,
                       rows, cols);
    if ((cols > 1 && t->strides[1] != 1) || (rows > 1 && t->strides[0] != cols))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale must be dense (strides %" PRId64 ", 1)", name, cols);
    return DW_OK;
}

/* Strides that cuBLASLt takes for granted: a wrong one would not fail but give wrong results, so it is checked here. */
static dw_status check_f32_blocks(const dw_tensor *t, const char *name, bool square, int64_t grid_rows,
                                  int64_t grid_cols) {
    int64_t row_stride = square ? round_up(grid_cols, 4) : 1, col_stride = square ? 1 : grid_rows;
    if (t->rank != 2 || t->shape[0] != grid_rows || t->shape[1] != grid_cols)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale must have shape [%" PRId64 ", %" PRId64 "]", name,
                       grid_rows, grid_cols);
    if ((grid_rows > 1 && t->strides[0] != row_stride) || (grid_cols > 1 && t->strides[1] != col_stride))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "gemm: f32 %s_scale has strides (%" PRId64 ", %" PRId64 "); (%" PRId64 ", %" PRId64
                       ") are expected for %s blocks",
                       name, t->strides[0], t->strides[1], row_stride, col_stride, square ? "128x128" : "1x128");
    return DW_OK;
}

/* How the codes of a dense E8M0 grid, R x C, become the FP32 grid cuBLASLt reads. */
static void plan_decode(dw_gemm_side *side, const dw_gemm_operand *operand, int64_t grid_rows, int64_t grid_cols,
                        size_t *workspace) {
    bool square = operand->scaling == DW_GEMM_128X128, mn_major = operand->layout == DW_SCALE_MN_MAJOR;
    int64_t row_step = mn_major ? 1 : grid_cols, col_step = mn_major ? round_up(grid_rows, 16) : 1;
    dw_scale_decode_job *job = &side->job;
    job->codes = operand->scale.data;
    job->outer = square ? grid_rows : grid_cols;
    job->inner = square ? grid_cols : grid_rows;
    job->inner_padded = square ? round_up(grid_cols, 4) : grid_rows;
    job->code_outer = square ? row_step : col_step;
    job->code_inner = square ? col_step : row_step;
    side->decode = true;
    side->scale_offset = *workspace;
    *workspace += (size_t)round_up(job->outer * job->inner_padded * (int64_t)sizeof(float), FRESH_ALIGNMENT);
}

static dw_status prepare_scale(dw_gemm_side *side, const dw_gemm_operand *operand, const char *name, int device,
                               bool with_pointers, size_t *workspace) {
    const dw_tensor *scale = &operand->scale;
    int64_t rows = operand->data.shape[0], k = operand->data.shape[1];
    if (scale->device_type != DW_DEVICE_CUDA || scale->device_id != device)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale must be on GPU %d like its operand", name, device);
    if (with_pointers && !scale->data && rows > 0 && k > 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale has no data", name);
    side->scale = scale->data;

    if (operand->scaling == DW_GEMM_TENSOR) {
        side->scale_mode = DW_LT_SCALE_SCALAR_F32;
        bool single = scale->dtype == DW_F32 && scale->rank >= 0 && scale->rank <= DW_MAX_RANK;
        for (int i = 0; single && i < scale->rank; i++)
            single = scale->shape[i] == 1;
        if (!single) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale must be one f32 value", name);
        return check_alignment(scale->data, 4, "a tensor-wise scale");
    }

    bool square = operand->scaling == DW_GEMM_128X128;
    int64_t grid_rows = square ? ceil_div(rows, 128) : rows;
    if (operand->scaling != DW_GEMM_1X32 && scale->dtype == DW_F32) {
        side->scale_mode = square ? DW_LT_SCALE_BLK128_F32 : DW_LT_SCALE_VEC128_F32;
        DW_TRY(check_f32_blocks(scale, name, square, grid_rows, ceil_div(k, 128)));
        return check_alignment(scale->data, 16, "a block scale tensor");
    }
    if (scale->dtype != DW_E8M0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s_scale is %s; %s blocks take %s", name,
                       dw_dtype_name(scale->dtype), dw_gemm_scaling_name(operand->scaling),
                       operand->scaling == DW_GEMM_1X32 ? "e8m0" : "e8m0 or f32");
    bool tiled = operand->layout == DW_SCALE_TCGEN05;
    if (tiled != (operand->scaling == DW_GEMM_1X32))
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: %s_scale of %s blocks in layout %s; quantize it with layout %s",
                       name, dw_gemm_scaling_name(operand->scaling), dw_scale_layout_name(operand->layout),
                       tiled ? "mn_major" : "tcgen05");
    dw_quantize_spec spec = {.element = operand->data.dtype,
                             .block = square  ? DW_BLOCK_128X128
                                      : tiled ? DW_BLOCK_1X32
                                              : DW_BLOCK_1X128,
                             .rounding = DW_ROUND_RCEIL,
                             .layout = operand->layout};
    int64_t shape[2] = {0, 0};
    DW_TRY(dw_scale_shape(&spec, rows, k, shape));
    DW_TRY(check_dense(scale, name, shape[0], shape[1]));
    if (tiled) {
        side->scale_mode = DW_LT_SCALE_VEC32_E8M0;
        return check_alignment(scale->data, 16, "a tcgen05 scale tensor");
    }
    side->scale_mode = square ? DW_LT_SCALE_BLK128_F32 : DW_LT_SCALE_VEC128_F32;
    side->scale = NULL;
    plan_decode(side, operand, grid_rows, ceil_div(k, 128), workspace);
    return DW_OK;
}

static dw_status prepare_side(dw_gemm_side *side, const dw_gemm_operand *operand, const char *name, int device,
                              bool with_pointers, size_t *workspace) {
    const dw_tensor *data = &operand->data;
    DW_TRY(check_matrix(data, name, device, with_pointers));
    if ((unsigned)operand->scaling >= DW_GEMM_SCALING_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has scaling %d, which is no dw_gemm_scaling", name,
                       (int)operand->scaling);
    bool fp8 = is_fp8(data->dtype);
    if (!fp8 && data->dtype != DW_BF16 && data->dtype != DW_F16)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: %s is %s; e4m3, e5m2, bf16 or f16 is expected", name,
                       dw_dtype_name(data->dtype));
    if (fp8 != (operand->scaling != DW_GEMM_UNSCALED))
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: %s is %s and %s; FP8 operands have scales, others have none", name,
                       dw_dtype_name(data->dtype), dw_gemm_scaling_name(operand->scaling));
    side->type = lt_type(data->dtype);
    side->ld = leading(data);
    side->data = data->data;
    side->alignment = alignment_of(data->data);
    DW_TRY(check_alignment(data->data, fp8 ? 16 : (uint32_t)dw_dtype_size(data->dtype), name));
    if (!fp8) return DW_OK;
    if (side->ld % 16 != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: %s has row stride %" PRId64 "; FP8 needs a multiple of 16",
                       name, side->ld);
    return prepare_scale(side, operand, name, device, with_pointers, workspace);
}

static dw_status check_pair(const dw_gemm_args *args) {
    dw_gemm_scaling a = args->a.scaling, b = args->b.scaling;
    dw_dtype at = args->a.data.dtype, bt = args->b.data.dtype;
    bool hopper = (a == DW_GEMM_1X128 || a == DW_GEMM_128X128) && (b == DW_GEMM_1X128 || b == DW_GEMM_128X128) &&
                  !(a == DW_GEMM_128X128 && b == DW_GEMM_128X128);
    if (a != b && !hopper)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: %s scales of a with %s scales of b; see dw_gemm for the pairs",
                       dw_gemm_scaling_name(a), dw_gemm_scaling_name(b));
    if (a == DW_GEMM_128X128 && b == DW_GEMM_128X128)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: both operands have 128x128 blocks; one must have 1x128");
    if (is_fp8(at) ? (!is_fp8(bt) || (at == DW_E5M2 && bt == DW_E5M2)) : at != bt)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: a is %s and b is %s; see dw_gemm for the pairs", dw_dtype_name(at),
                       dw_dtype_name(bt));
    return DW_OK;
}

static dw_status prepare_result(const dw_gemm_args *args, bool with_pointers, dw_gemm_problem *p) {
    const dw_tensor *d = &args->d, *bias = &args->bias;
    bool fp8 = is_fp8(args->a.data.dtype);
    DW_TRY(check_matrix(d, "d", p->device, with_pointers));
    if (d->shape[0] != p->m || d->shape[1] != p->n)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "gemm: d is [%" PRId64 ", %" PRId64 "]; [%" PRId64 ", %" PRId64 "] is expected", d->shape[0],
                       d->shape[1], p->m, p->n);
    if (d->dtype != DW_BF16 && d->dtype != DW_F16 && d->dtype != DW_F32)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: d is %s; bf16, f16 or f32 is expected", dw_dtype_name(d->dtype));
    if (!fp8 && d->dtype != DW_F32 && d->dtype != args->a.data.dtype)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: d is %s; f32 or the operands' own %s is expected",
                       dw_dtype_name(d->dtype), dw_dtype_name(args->a.data.dtype));
    int64_t element = (int64_t)dw_dtype_size(d->dtype);
    p->d_type = lt_type(d->dtype);
    p->d_ld = leading(d);
    p->d = d->data;
    p->d_alignment = alignment_of(d->data);
    DW_TRY(check_alignment(d->data, fp8 ? 16 : (uint32_t)element, "d"));
    if (fp8 && p->d_ld * element % 16 != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "gemm: d has a row stride of %" PRId64 " bytes; with FP8 operands a multiple of 16 is needed",
                       p->d_ld * element);
    if (fp8 && p->n * element % 16 != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: N = %" PRId64 "; FP8 with %s results needs a multiple of %" PRId64,
                       p->n, dw_dtype_name(d->dtype), 16 / element);

    p->has_bias = bias->rank > 0;
    if (!p->has_bias) return DW_OK;
    dw_dtype expected = fp8 && d->dtype == DW_F32 ? DW_BF16 : d->dtype;
    if (bias->rank != 1 || bias->shape[0] != p->n || (p->n > 1 && bias->strides[0] != 1))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: bias must be a dense vector of %" PRId64 " values", p->n);
    if (bias->dtype != expected)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: bias is %s; %s is expected for a %s result",
                       dw_dtype_name(bias->dtype), dw_dtype_name(expected), dw_dtype_name(d->dtype));
    if (bias->device_type != DW_DEVICE_CUDA || bias->device_id != p->device)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: bias must be on GPU %d like a", p->device);
    if (with_pointers && !bias->data && p->n > 0) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: bias has no data");
    p->bias_type = lt_type(bias->dtype);
    p->bias = bias->data;
    return check_alignment(bias->data, 16, "bias");
}

dw_status dw_gemm_prepare(const dw_gemm_args *args, bool with_pointers, dw_gemm_problem *problem) {
    dw_gemm_problem p = {.device = args->a.data.device_id,
                         .a_scaling = args->a.scaling,
                         .b_scaling = args->b.scaling,
                         .accumulate = args->accumulate,
                         .fast_accumulation = args->fast_accumulation,
                         .bias_type = NO_TYPE};
    DW_TRY(prepare_side(&p.a, &args->a, "a", p.device, with_pointers, &p.decode_bytes));
    DW_TRY(prepare_side(&p.b, &args->b, "b", p.device, with_pointers, &p.decode_bytes));
    DW_TRY(check_pair(args));
    p.m = args->a.data.shape[0];
    p.k = args->a.data.shape[1];
    p.n = args->b.data.shape[0];
    if (args->b.data.shape[1] != p.k)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "gemm: a has K = %" PRId64 " and b has K = %" PRId64 "; they must agree", p.k,
                       args->b.data.shape[1]);
    if (p.fast_accumulation && p.a_scaling != DW_GEMM_TENSOR)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: fast accumulation is for tensor-wise scales, not %s",
                       dw_gemm_scaling_name(p.a_scaling));
    if (is_fp8(args->a.data.dtype) && p.k % 16 != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: K = %" PRId64 "; FP8 needs a multiple of 16", p.k);
    DW_TRY(prepare_result(args, with_pointers, &p));
    *problem = p;
    return DW_OK;
}

dw_status dw_gemm_available(const dw_gemm_problem *problem, int compute_major, int compute_minor, size_t version) {
    const char *name = dw_gemm_scaling_name(problem->a_scaling);
    int capability = 10 * compute_major + compute_minor;
    switch (problem->a_scaling) {
    case DW_GEMM_TENSOR:
        if (capability < 90)
            return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: FP8 needs compute capability 9.0 or later; this GPU has %d.%d",
                           compute_major, compute_minor);
        break;
    case DW_GEMM_1X128:
    case DW_GEMM_128X128:
        if (capability != 90)
            return dw_fail(DW_ERROR_UNSUPPORTED,
                           "gemm: %s scales need compute capability 9.0 (Hopper); this GPU has %d.%d", name,
                           compute_major, compute_minor);
        if (problem->m % 4 != 0 || problem->n % 4 != 0)
            return dw_fail(DW_ERROR_UNSUPPORTED,
                           "gemm: M = %" PRId64 ", N = %" PRId64
                           "; cuBLASLt's block scales on Hopper need multiples of 4",
                           problem->m, problem->n);
        if (version < 120900)
            return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: %s scales need cuBLASLt 12.9 or later; this one is %zu.%zu",
                           name, version / 10000, version / 100 % 100);
        break;
    case DW_GEMM_1X32:
        if (compute_major < 10)
            return dw_fail(DW_ERROR_UNSUPPORTED,
                           "gemm: 1x32 scales need compute capability 10.0 or later (Blackwell); this GPU has %d.%d",
                           compute_major, compute_minor);
        if (version < 120800)
            return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: 1x32 scales need cuBLASLt 12.8 or later; this one is %zu.%zu",
                           version / 10000, version / 100 % 100);
        break;
    default: break;
    }
    return DW_OK;
}

static const char *type_name(int32_t type) {
    switch (type) {
    case DW_LT_F32: return "f32";
    case DW_LT_F16: return "f16";
    case DW_LT_BF16: return "bf16";
    case DW_LT_E4M3: return "e4m3";
    default: return "e5m2";
    }
}

void dw_gemm_describe(const dw_gemm_problem *p, char *text, size_t capacity) {
    snprintf(text, capacity, "%" PRId64 "x%" PRId64 "x%" PRId64 " (MxNxK), %s %s by %s %s -> %s%s%s", p->m, p->n, p->k,
             type_name(p->a.type), dw_gemm_scaling_name(p->a_scaling), type_name(p->b.type),
             dw_gemm_scaling_name(p->b_scaling), type_name(p->d_type), p->has_bias ? " with bias" : "",
             p->accumulate ? ", accumulating" : "");
}
