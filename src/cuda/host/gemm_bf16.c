#include "cuda/host/gemm_bf16.h"

#include <inttypes.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/host/launch.h"
#include "cuda/host/tensor_map.h"
#include "registry/proof.h"

enum { TILE_M = DW_GEMM_BF16_TILE_M, TILE_N = DW_GEMM_BF16_TILE_N, STAGES = DW_GEMM_BF16_STAGES };

/* As in src/cuda/device/sm90/gemm_bf16.cuh; and how many rows of tiles are walked together, which matters little: bands
 * of 8 and 16 are within a percent of each other (H100, 2026-11-23, docs/measured-facts.md). */
enum { THREADS = 384, PIECE_BYTES = 64 * 128, SLOT_BYTES = 16, BARRIER_BYTES = 16, BAND = 16 };

#define CUDA_GEMM_BF16(name_, grouped_, b_across_, multicast_, out_f32_)                                               \
    {.name = #name_,                                                                                                   \
     .grouping = DW_GEMM_GROUPED_##grouped_,                                                                           \
     .b_across = b_across_,                                                                                            \
     .pair = SHARES_##multicast_,                                                                                      \
     .out_f32 = out_f32_},
enum { SHARES_0 = false, SHARES_B = true };
static const dw_gemm_bf16_row rows[] = {
#include "registry/kernels.inc"
};
#define ROWS (sizeof rows / sizeof *rows)

#define CUDA_GEMM_BF16(name, ...) DW_CUDA_KERNEL("sm90/" #name, #name),
static dw_cuda_kernel kernels[ROWS] = {
#include "registry/kernels.inc"
};

size_t dw_gemm_bf16_count(void) {
    return ROWS;
}

const dw_gemm_bf16_row *dw_gemm_bf16_get(size_t index) {
    return index < ROWS ? &rows[index] : NULL;
}

static int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

uint32_t dw_gemm_bf16_shared_bytes(const dw_gemm_bf16_row *row) {
    const int pieces = STAGES * (TILE_M + TILE_N) / 64 + (row->out_f32 ? 0 : 4);
    const int dealing = row->grouping == DW_GEMM_GROUPED_K ? DW_GEMM_DEAL_SHARED(DW_GEMM_BF16_ZEROS_BYTES) : 0;
    return (uint32_t)(pieces * PIECE_BYTES + STAGES * (SLOT_BYTES + BARRIER_BYTES) + dealing);
}

/* Two blocks that share B go through their tiles together, in a fixed order. */
size_t dw_gemm_bf16_workspace(const dw_gemm_bf16_row *row) {
    return row->grouping == DW_GEMM_GROUPED_K && !row->pair ? DW_GEMM_DEAL_BYTES : 0;
}

/* ---- the choice ---- */

/* Two blocks that share B read less: where experts are large that is 1 to 2% (H100, 2026-11-23,
 * docs/measured-facts.md). Where groups end more of their tile is lost, and they begin and end a tile together, each
 * waiting for the other: with small experts of uneven size they were up to 7% slower. The tensor core's peak is 2048
 * multiplications a cycle; the shares of it are those that the block-scaled kernels of this tile reach, and so are the
 * cycles that a tile of one block costs besides. Those of a pair are set between what groups of 512, where it must not
 * be taken, and of 4096, where it must be, allow. */
static double predicted_cycles(const dw_gemm_bf16_row *row, const dw_gemm_bf16_shape *s, int multiprocessors) {
    const double groups = (double)(s->groups > 0 ? s->groups : 1), span_m = row->pair ? 2 * TILE_M : TILE_M;
    const bool along_m = s->grouping == DW_GEMM_GROUPED_M;
    const double k = along_m ? (double)s->k : (double)s->k / groups;
    const double down = along_m ? (double)s->m / groups / span_m + (s->groups > 1 ? 0.5 : 0.0)
                                : (double)ceil_div(s->m, (int64_t)span_m);
    const double tiles = groups * down * (double)ceil_div(s->n, TILE_N);
    const int64_t slots = row->pair ? multiprocessors / 2 : multiprocessors;
    const double waves = (double)ceil_div((int64_t)(tiles + 0.999), slots > 0 ? slots : 1);
    return waves * (TILE_M * TILE_N * k / 2048.0 / (row->pair ? 0.81 : 0.795) + (row->pair ? 1600 : 1300));
}

bool dw_gemm_bf16_serves(const dw_gemm_bf16_row *row, const dw_gemm_bf16_shape *shape) {
    return row->grouping == shape->grouping && row->b_across == shape->b_across && row->out_f32 == shape->out_f32;
}

int dw_gemm_bf16_choose(const dw_gemm_bf16_shape *shape, int multiprocessors, const atomic_uchar *proofs) {
    int best = -1;
    double least = 0;
    for (int i = 0; i < (int)ROWS; i++) {
        if (!dw_gemm_bf16_serves(&rows[i], shape)) continue;
        if (proofs && atomic_load_explicit(&proofs[i], memory_order_relaxed) == DW_PROOF_REFUTED) continue;
        const double cycles = predicted_cycles(&rows[i], shape, multiprocessors);
        if (best >= 0 && cycles >= least) continue;
        best = i;
        least = cycles;
    }
    return best;
}

/* The kernel for the scope's device: `forced` where that is not negative. */
static dw_status pick(const dw_cuda_scope *scope, const dw_gemm_bf16_shape *shape, int multiprocessors, int forced,
                      int *row) {
    *row = forced;
    if (forced >= 0) {
        const dw_gemm_bf16_row *wanted = dw_gemm_bf16_get((size_t)forced);
        if (wanted && dw_gemm_bf16_serves(wanted, shape)) return DW_OK;
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: kernel %s is for other formats than this product's",
                       wanted ? wanted->name : "(none)");
    }
    const size_t first = dw_gemm_sm90_count(); /* their numbers in proof.h follow those */
    const atomic_uchar *proofs = dw_gemm_proofs(scope->device);
    do
        *row = dw_gemm_bf16_choose(shape, multiprocessors, proofs ? proofs + first : NULL);
    while (*row >= 0 && !dw_gemm_row_prove(first + (size_t)*row, scope->device));
    if (*row >= 0) return DW_OK;
    return dw_fail(DW_ERROR_UNSUPPORTED,
                   "grouped gemm: each kernel for bf16 of these formats failed its self-test on GPU %d; nothing else "
                   "multiplies such groups there",
                   scope->device);
}

/* ---- operands ---- */

static dw_status wrong(const char *name, const char *what, const char *wanted) {
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s %s; bf16 takes %s", name, what, wanted);
}

dw_status dw_grouped_gemm_check_tensor(const dw_tensor *t, const char *name, int device, int rank) {
    if (t->device_type != DW_DEVICE_CUDA || t->device_id != device)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s must be on GPU %d", name, device);
    if (t->rank != rank)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s has rank %d; %d is expected", name, t->rank, rank);
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        if (t->shape[i] < 0 || t->shape[i] > INT32_MAX)
            return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: extent %d of %s is %" PRId64, i, name,
                           t->shape[i]);
        empty |= t->shape[i] == 0;
    }
    if (!empty && (!t->data || (uintptr_t)t->data % 16 != 0))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s at %p must be aligned to 16 bytes", name, t->data);
    return DW_OK;
}

/* The distance between rows of a matrix whose dimension `across` has stride 1, in elements. */
static dw_status row_distance(const dw_tensor *t, const char *name, int down, int across, int64_t unit, int64_t *ld) {
    const int64_t outer = t->shape[down], inner = t->shape[across];
    *ld = outer > 1 ? t->strides[down] : ceil_div(inner, unit) * unit;
    if ((inner > 1 && t->strides[across] != 1) || *ld < inner)
        return wrong(name, "is not contiguous the way it must be", "rows of features (see dw_grouped_gemm)");
    if (*ld % unit != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "grouped gemm: rows of %s are %" PRId64 " elements apart; a multiple of %" PRId64 " is needed",
                       name, *ld, unit);
    return DW_OK;
}

static dw_status check_stack(const dw_tensor *t, const char *name, int down, int across, int64_t unit) {
    int64_t ld;
    DW_TRY(row_distance(t, name, down, across, unit, &ld));
    if ((t->shape[down] > 1 && ld != t->shape[across]) ||
        (t->shape[0] > 1 && t->strides[0] != t->shape[1] * t->shape[2]))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s must be dense", name);
    if (t->shape[across] % unit != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "grouped gemm: rows of %s have %" PRId64 " elements; a multiple of %" PRId64 " is needed", name,
                       t->shape[across], unit);
    return DW_OK;
}

/* A product as the kernels see it. */
typedef struct call {
    dw_gemm_bf16_shape shape;
    int64_t a_ld, b_ld, d_ld;
} call;

static dw_status same(const char *what, int64_t a, int64_t b) {
    if (a == b) return DW_OK;
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %s disagree: %" PRId64 " and %" PRId64, what, a, b);
}

static dw_status check_formats(const dw_grouped_gemm_args *args) {
    const bool along_m = args->axis == DW_GROUP_M;
    if (!along_m && args->axis != DW_GROUP_K)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: axis %d is no dw_group_axis", (int)args->axis);
    if (args->b.data.dtype != DW_BF16)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: a is bf16 and b is %s; both must be the same",
                       dw_dtype_name(args->b.data.dtype));
    if (args->a.scaling != DW_GEMM_UNSCALED || args->b.scaling != DW_GEMM_UNSCALED)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: bf16 operands with %s and %s scales; they have none",
                       dw_gemm_scaling_name(args->a.scaling), dw_gemm_scaling_name(args->b.scaling));
    if (args->d.dtype != DW_BF16 && (along_m || args->d.dtype != DW_F32))
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: d is %s; bf16%s is expected", dw_dtype_name(args->d.dtype),
                       along_m ? "" : " or f32");
    if (args->groups < 0 || args->groups > INT32_MAX || (args->groups > 0 && !args->ends))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "grouped gemm: %" PRId64 " groups, ends at %p", args->groups,
                       (const void *)args->ends);
    return dw_gemm_check_workspace("grouped gemm", args->workspace, args->workspace_bytes);
}

static dw_status prepare(const dw_grouped_gemm_args *args, call *c) {
    const dw_tensor *a = &args->a.data, *b = &args->b.data, *d = &args->d;
    const bool along_m = args->axis == DW_GROUP_M;
    DW_TRY(check_formats(args));
    DW_TRY(dw_grouped_gemm_check_tensor(a, "a", a->device_id, 2));
    DW_TRY(dw_grouped_gemm_check_tensor(b, "b", a->device_id, along_m ? 3 : 2));
    DW_TRY(dw_grouped_gemm_check_tensor(d, "d", a->device_id, along_m ? 2 : 3));
    c->shape = (dw_gemm_bf16_shape){.m = a->shape[0],
                                    .n = b->shape[along_m ? 1 : 0],
                                    .k = a->shape[1],
                                    .groups = args->groups,
                                    .grouping = along_m ? DW_GEMM_GROUPED_M : DW_GEMM_GROUPED_K,
                                    .b_across = !along_m,
                                    .out_f32 = d->dtype == DW_F32};
    dw_gemm_bf16_shape *s = &c->shape;
    DW_TRY(same("the reductions of a and b", s->k, b->shape[along_m ? 2 : 1]));
    DW_TRY(same("the groups of ends and of the stack", s->groups, (along_m ? b : d)->shape[0]));
    DW_TRY(same("the rows of a and d", s->m, d->shape[along_m ? 0 : 1]));
    DW_TRY(same("the columns of d and rows of b", s->n, d->shape[along_m ? 1 : 2]));
    if (s->groups == 0 || s->m == 0 || s->n == 0) return DW_OK;
    if (s->k == 0) return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: the reduction is empty; clear d instead");
    if (!along_m) {
        DW_TRY(row_distance(a, "a", 1, 0, 8, &c->a_ld));
        DW_TRY(row_distance(b, "b", 1, 0, 8, &c->b_ld));
        c->d_ld = s->n;
        return check_stack(d, "d", 1, 2, s->out_f32 ? 4 : 8);
    }
    DW_TRY(row_distance(a, "a", 0, 1, 8, &c->a_ld));
    DW_TRY(row_distance(d, "d", 0, 1, 8, &c->d_ld));
    if (s->n % 8 != 0)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: N = %" PRId64 "; a multiple of 8 is needed", s->n);
    s->b_across = s->n > 1 && b->strides[1] == 1 && b->strides[2] != 1;
    c->b_ld = s->b_across ? s->n : s->k;
    return s->b_across ? check_stack(b, "b", 2, 1, 8) : check_stack(b, "b", 1, 2, 8);
}

/* ---- the launch ---- */

static dw_status map_of(const dw_cuda_scope *scope, const void *address, int64_t width, int64_t height, int64_t ld,
                        int64_t stack, int box_rows, dw_gemm_sm90_map *map) {
    dw_cuda_tensor_map_spec spec = {.address = address,
                                    .extents = {(uint64_t)width, (uint64_t)height},
                                    .strides = {(uint64_t)ld * 2},
                                    .box = {64, (uint32_t)box_rows},
                                    .rank = 2,
                                    .type = DW_CU_TENSOR_BFLOAT16,
                                    .swizzle = DW_CU_SWIZZLE_128B,
                                    .promotion = DW_CU_L2_PROMOTE_256B};
    if (stack > 0) {
        spec.rank = 3;
        spec.extents[2] = (uint64_t)stack;
        spec.strides[1] = (uint64_t)(ld * height) * 2;
        spec.box[2] = 1;
    }
    return dw_cuda_tensor_map(scope, &spec, (dw_cu_tensor_map *)map);
}

/* What a call is for besides multiplying: a kernel that must do it (-1: any), and on how many multiprocessors (0: all
 * there are). */
typedef struct purpose {
    int forced, multiprocessors;
    size_t *workspace; /* wanted: the bytes of it; NULL: multiply */
} purpose;

static dw_status launch(const dw_cuda_scope *scope, const dw_grouped_gemm_args *args, const call *c, const purpose *why,
                        void *stream) {
    const dw_gemm_bf16_shape *s = &c->shape;
    int capability = 0, multiprocessors = 0;
    DW_TRY(dw_gemm_sm90_device(scope, &capability, &multiprocessors));
    if (capability != 90)
        return dw_fail(DW_ERROR_UNSUPPORTED, "grouped gemm: needs compute capability 9.0 (Hopper); this GPU has %d.%d",
                       capability / 10, capability % 10);
    int chosen;
    DW_TRY(pick(scope, s, multiprocessors, why->forced, &chosen));
    if (why->multiprocessors > 0) multiprocessors = why->multiprocessors;
    const dw_gemm_bf16_row *row = &rows[chosen];
    const size_t workspace = dw_gemm_bf16_workspace(row);
    if (why->workspace) {
        *why->workspace = workspace;
        return DW_OK;
    }
    const bool along_m = s->grouping == DW_GEMM_GROUPED_M;
    const void *a = args->a.data.data, *b = args->b.data.data;
    dw_gemm_sm90_params p = {.out = args->d.data,
                             .out_ld = c->d_ld,
                             .ends = args->ends,
                             .groups = (int32_t)s->groups,
                             .m = (int32_t)s->m,
                             .n = (int32_t)s->n,
                             .k = (int32_t)s->k,
                             .band = BAND,
                             .accumulate = args->accumulate};
    if (workspace > 0 && args->workspace && args->workspace_bytes >= workspace) {
        p.workspace = args->workspace;
        p.ticket = dw_gemm_next_ticket();
    }
    if (along_m) {
        DW_TRY(map_of(scope, a, s->k, s->m, c->a_ld, 0, TILE_M, &p.a));
        DW_TRY(s->b_across ? map_of(scope, b, s->n, s->k, c->b_ld, s->groups, 64, &p.b)
                           : map_of(scope, b, s->k, s->n, c->b_ld, s->groups, row->pair ? TILE_N / 2 : TILE_N, &p.b));
    } else {
        DW_TRY(map_of(scope, a, s->m, s->k, c->a_ld, 0, 64, &p.a));
        DW_TRY(map_of(scope, b, s->n, s->k, c->b_ld, 0, 64, &p.b));
    }
    if (!s->out_f32) DW_TRY(map_of(scope, args->d.data, s->n, along_m ? s->m : s->groups * s->m, c->d_ld, 0, 64, &p.d));
    const int cluster = row->pair ? 2 : 1;
    dw_cuda_launch_config config = {.grid = {(uint32_t)(multiprocessors / cluster * cluster), 1, 1},
                                    .block = {THREADS, 1, 1},
                                    .shared_bytes = dw_gemm_bf16_shared_bytes(row),
                                    .programmatic = true};
    if (row->pair)
        for (int i = 0; i < 3; i++)
            config.cluster[i] = i == 0 ? 2 : 1;
    void *arguments[] = {&p};
    return dw_cuda_launch(scope, &kernels[chosen], &config, stream, arguments);
}

static dw_status run(const purpose *why, const dw_grouped_gemm_args *args, void *stream) {
    call c;
    DW_TRY(prepare(args, &c));
    if (c.shape.groups == 0 || c.shape.m == 0 || c.shape.n == 0) return DW_OK;
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(args->a.data.device_id, &scope));
    dw_status status = launch(&scope, args, &c, why, stream);
    dw_cuda_leave(&scope);
    return status;
}

dw_status dw_grouped_gemm_bf16(const dw_grouped_gemm_args *args, void *stream) {
    return run(&(purpose){.forced = -1}, args, stream);
}

dw_status dw_grouped_gemm_bf16_workspace_size(const dw_grouped_gemm_args *args, size_t *bytes) {
    return run(&(purpose){.forced = -1, .workspace = bytes}, args, NULL);
}

dw_status dw_grouped_gemm_bf16_with_row(int row, int multiprocessors, const dw_grouped_gemm_args *args, void *stream) {
    return run(&(purpose){.forced = row, .multiprocessors = multiprocessors}, args, stream);
}
