#include "bench_gemm.h"

#include <stdlib.h>
#include <string.h>

#include "bench_case.h"
#include "core/status.h"
#include "cuda/host/gemm_bf16.h"
#include "cuda/host/scratch.h"

enum { WINDOWS = 15, LAUNCHES = 10, ALIGNMENT = 256, BLOCK = 128, EXTENT = 8192, DEPTH = 4096, GROUPS = 8 };

/* A multiprocessor's dense FP8 multiplications and additions in a cycle, by NVIDIA's data sheet of the H100; half as
 * many of BF16. */
#define OPERATIONS_A_CYCLE 8192.0

/* Where the matrices of a set begin, from its start. */
typedef struct layout {
    size_t a, b, a_scale, b_scale, d, bytes;
} layout;

/* A kernel: one of gemm_sm90.h's, or of gemm_bf16.h's. */
typedef struct form {
    dw_gemm_grouping grouping;
    bool bf16, b_across; /* of BF16: no scales, and along K both operands lie across */
    bool scale_f32, b_vector, out_f32;
    int few_rows; /* of A, where the kernel is for few; else 0 */
    int index;
    dw_status (*grouped)(int index, int multiprocessors, const dw_grouped_gemm_args *args, void *stream);
} form;

typedef struct session {
    form form;
    dw_context *context;
    dw_cuda_scratch scratch;
    dw_cu_event begin, end;
    bench_product *product;
    layout at;
    int sets;
    uintptr_t memory, workspace, ends;
    size_t workspace_bytes;
    bool with_peer; /* cuBLASLt has the product */
} session;

#define CHECK(call, symbol)                                                                                            \
    DW_TRY(dw_cuda_check(on->scratch.scope.driver, call, symbol, "GPU %d", on->scratch.scope.device))

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/* What the kernel is for: the small tiles for few rows, the others for many. */
static void choose_shape(const form *row, int64_t mebibytes, bench_product *p) {
    const int64_t most = mebibytes * ((1 << 20) / DEPTH) / (row->bf16 ? 2 : 1), extent = most < EXTENT ? most : EXTENT;
    *p = (bench_product){.m = extent, .n = extent, .k = DEPTH, .groups = 1, .repetitions = WINDOWS};
    if (row->few_rows) p->m = row->few_rows;
    if (row->grouping == DW_GEMM_GROUPED_NONE) return;
    p->groups = GROUPS;
    p->n = extent / 2;
    if (row->grouping == DW_GEMM_GROUPED_K) {
        p->m = extent / 2;
        p->k = EXTENT;
    }
}

static size_t take(size_t *offset, int64_t bytes) {
    size_t at = *offset;
    *offset += (size_t)round_up(bytes, ALIGNMENT);
    return at;
}

static void lay_out(session *on) {
    const form *row = &on->form;
    const bench_product *p = on->product;
    const int64_t b_rows = row->grouping == DW_GEMM_GROUPED_M ? p->groups * p->n : p->n;
    const int64_t d_rows = row->grouping == DW_GEMM_GROUPED_K ? p->groups * p->m : p->m;
    const int64_t blocks = p->k / BLOCK, element = row->bf16 ? 2 : 1, scale = row->bf16 ? 0 : row->scale_f32 ? 4 : 1;
    size_t offset = 0;
    on->at.a = take(&offset, p->m * p->k * element);
    on->at.b = take(&offset, b_rows * p->k * element);
    on->at.a_scale = take(&offset, blocks * p->m * scale);
    on->at.b_scale = take(&offset, blocks * b_rows * scale); /* enough for squares too */
    on->at.d = take(&offset, d_rows * p->n * (row->out_f32 ? 4 : 2));
    on->at.bytes = offset;
}

/* Random signs and fractions: of BF16 like weights; of E4M3 around 1, like quantized data, and scales of one. */
static void make_data(const session *on, uint8_t *host) {
    bench_pattern(host, on->at.a_scale, DW_BF16);
    if (on->form.bf16) return;
    for (size_t i = 0; i < on->at.a_scale; i++)
        host[i] = (uint8_t)((host[i] & 0x8F) | 0x30);
    const float one = 1;
    if (on->form.scale_f32)
        for (size_t i = on->at.a_scale; i < on->at.d; i += sizeof one)
            memcpy(host + i, &one, sizeof one);
    else
        memset(host + on->at.a_scale, 127, on->at.d - on->at.a_scale);
}

static dw_status fill(session *on) {
    uint8_t *host = malloc(on->at.d);
    if (!host) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes of data", on->at.d);
    make_data(on, host);
    const dw_cuda_driver *driver = on->scratch.scope.driver;
    dw_cu_result result = DW_CU_SUCCESS;
    for (int i = 0; i < on->sets && result == DW_CU_SUCCESS; i++)
        result = driver->copy_to_device(on->memory + (size_t)i * on->at.bytes, host, on->at.d, on->scratch.stream);
    int32_t ends[GROUPS];
    const int64_t along = on->form.grouping == DW_GEMM_GROUPED_M ? on->product->m : on->product->k;
    for (int g = 0; g < GROUPS; g++)
        ends[g] = (int32_t)((g + 1) * along / GROUPS);
    if (result == DW_CU_SUCCESS) result = driver->copy_to_device(on->ends, ends, sizeof ends, on->scratch.stream);
    if (result == DW_CU_SUCCESS) result = driver->stream_synchronize(on->scratch.stream);
    free(host);
    CHECK(result, "cuMemcpyHtoDAsync");
    return DW_OK;
}

static dw_tensor view(const session *on, uintptr_t address, dw_dtype dtype, int64_t rows, int64_t cols) {
    dw_tensor tensor = dw_matrix((void *)address, dtype, rows, cols);
    tensor.device_type = DW_DEVICE_CUDA;
    tensor.device_id = on->scratch.scope.device;
    return tensor;
}

static dw_tensor stack(dw_tensor tensor, int64_t groups, int64_t rows, int64_t cols) {
    const int64_t shape[3] = {groups, rows, cols}, strides[3] = {rows * cols, cols, 1};
    tensor.rank = 3;
    memcpy(tensor.shape, shape, sizeof shape);
    memcpy(tensor.strides, strides, sizeof strides);
    return tensor;
}

/* A matrix whose columns lie in rows. */
static dw_tensor lying_across(dw_tensor tensor) {
    const int down = tensor.rank - 2;
    tensor.strides[down] = 1;
    tensor.strides[down + 1] = tensor.shape[down];
    return tensor;
}

static dw_gemm_operand operand(const session *on, uintptr_t data, uintptr_t scale, int64_t rows, bool square) {
    if (on->form.bf16) return (dw_gemm_operand){.data = view(on, data, DW_BF16, rows, on->product->k)};
    const int64_t k = on->product->k, across = k / BLOCK, down = square ? rows / BLOCK : rows;
    dw_gemm_operand o = {.data = view(on, data, DW_E4M3, rows, k),
                         .scaling = square ? DW_GEMM_128X128 : DW_GEMM_1X128,
                         .layout = DW_SCALE_MN_MAJOR};
    if (!on->form.scale_f32) {
        o.scale = view(on, scale, DW_E8M0, across, round_up(down, 16));
    } else {
        o.scale = view(on, scale, DW_F32, down, across);
        o.scale.strides[0] = square ? round_up(across, 4) : 1;
        o.scale.strides[1] = square ? 1 : down;
    }
    return o;
}

static dw_gemm_args arguments(const session *on, int set) {
    const bench_product *p = on->product;
    const uintptr_t from = on->memory + (size_t)set * on->at.bytes;
    const int64_t b_rows = on->form.grouping == DW_GEMM_GROUPED_M ? p->groups * p->n : p->n;
    return (dw_gemm_args){.a = operand(on, from + on->at.a, from + on->at.a_scale, p->m, false),
                          .b = operand(on, from + on->at.b, from + on->at.b_scale, b_rows, !on->form.b_vector),
                          .d = view(on, from + on->at.d, on->form.out_f32 ? DW_F32 : DW_BF16, p->m, p->n),
                          .workspace = (void *)on->workspace,
                          .workspace_bytes = on->workspace_bytes,
                          .backend = DW_GEMM_CUBLASLT};
}

static dw_status multiply(const session *on, int set, bool peer) {
    const dw_gemm_args args = arguments(on, set);
    void *stream = on->scratch.stream;
    if (peer) return dw_gemm(on->context, &args, stream);
    if (on->form.grouping == DW_GEMM_GROUPED_NONE) return dw_gemm_with_row(on->form.index, 0, &args, stream);
    const bench_product *p = on->product;
    dw_grouped_gemm_args grouped = {.a = args.a,
                                    .b = args.b,
                                    .d = args.d,
                                    .ends = (const int32_t *)on->ends,
                                    .groups = p->groups,
                                    .workspace = args.workspace,
                                    .workspace_bytes = args.workspace_bytes};
    if (on->form.grouping == DW_GEMM_GROUPED_M) {
        grouped.axis = DW_GROUP_M;
        grouped.b.data = stack(args.b.data, p->groups, p->n, p->k);
    } else {
        grouped.axis = DW_GROUP_K;
        grouped.d = stack(args.d, p->groups, p->m, p->n);
        if (on->form.b_across) grouped.a.data = lying_across(args.a.data);
    }
    if (on->form.b_across) grouped.b.data = lying_across(grouped.b.data);
    return on->form.grouped(on->form.index, 0, &grouped, stream);
}

/* Seconds of one launch of a window. */
static dw_status time_window(const session *on, bool peer, double *seconds) {
    const dw_cuda_driver *driver = on->scratch.scope.driver;
    CHECK(driver->event_record(on->begin, on->scratch.stream), "cuEventRecord");
    for (int i = 0; i < LAUNCHES; i++)
        DW_TRY(multiply(on, i % on->sets, peer));
    CHECK(driver->event_record(on->end, on->scratch.stream), "cuEventRecord");
    CHECK(driver->stream_synchronize(on->scratch.stream), "cuStreamSynchronize");
    float milliseconds;
    CHECK(driver->event_elapsed(&milliseconds, on->begin, on->end), "cuEventElapsedTime");
    *seconds = 1e-3 * (double)milliseconds / LAUNCHES;
    return DW_OK;
}

/* Windows of the kernel in turn with windows of cuBLASLt, where that has the product. */
static dw_status measure(session *on) {
    CHECK(on->scratch.scope.driver->event_create(&on->begin, 0), "cuEventCreate");
    CHECK(on->scratch.scope.driver->event_create(&on->end, 0), "cuEventCreate");
    DW_TRY(fill(on));
    double own[WINDOWS], peer[WINDOWS];
    const bool with_peer = on->with_peer;
    DW_TRY(time_window(on, false, &own[0])); /* loads code and warms up */
    if (with_peer) DW_TRY(time_window(on, true, &peer[0]));
    for (int i = 0; i < WINDOWS; i++) {
        if (with_peer) DW_TRY(time_window(on, true, &peer[i]));
        DW_TRY(time_window(on, false, &own[i]));
    }
    on->product->seconds = bench_median(own, WINDOWS);
    if (with_peer) on->product->peer_seconds = bench_median(peer, WINDOWS);
    return DW_OK;
}

/* Whether cuBLASLt has such a product (not of groups, not of scales that are E8M0, not in every version), and workspace
 * for both. */
static void choose_peer(session *on, int device) {
    size_t bytes = 0;
    on->workspace_bytes = DW_GEMM_WORKSPACE_MAX;
    if (on->form.grouping != DW_GEMM_GROUPED_NONE || !on->form.scale_f32) return;
    on->scratch.scope.device = device;
    const dw_gemm_args args = arguments(on, 0);
    on->with_peer = dw_gemm_workspace_size(on->context, &args, &bytes) == DW_OK;
    if (bytes > on->workspace_bytes) on->workspace_bytes = bytes;
}

static form form_of(const char *name) {
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get(i);
        if (strcmp(row->name, name) != 0) continue;
        return (form){.grouping = row->grouping,
                      .scale_f32 = row->scale_f32,
                      .b_vector = row->b_vector,
                      .out_f32 = row->out_f32,
                      .few_rows = row->k_split > 1 ? row->tile_m : 0,
                      .index = (int)i,
                      .grouped = dw_grouped_gemm_with_row};
    }
    int index = 0;
    while (strcmp(dw_gemm_bf16_get((size_t)index)->name, name) != 0)
        index++;
    const dw_gemm_bf16_row *row = dw_gemm_bf16_get((size_t)index);
    return (form){.grouping = row->grouping,
                  .bf16 = true,
                  .b_across = row->b_across,
                  .out_f32 = row->out_f32,
                  .index = index,
                  .grouped = dw_grouped_gemm_bf16_with_row};
}

dw_status bench_gemm_run(dw_context *context, const dw_kernel_info *kernel, int device, int64_t mebibytes,
                         bench_product *result) {
    session on = {.form = form_of(kernel->name), .context = context, .product = result};
    dw_cuda_device_info info;
    DW_TRY(dw_cuda_device_get(device, &info));
    choose_shape(&on.form, mebibytes, result);
    result->peak = OPERATIONS_A_CYCLE / (on.form.bf16 ? 2 : 1) * info.multiprocessors * 1e3 * info.clock_khz;
    lay_out(&on);
    const size_t wanted = 2 * (size_t)info.l2_bytes / on.at.bytes + 1;
    on.sets = wanted < 2 ? 2 : wanted > LAUNCHES ? LAUNCHES : (int)wanted;
    choose_peer(&on, device);
    const size_t sets = (size_t)on.sets * on.at.bytes;
    DW_TRY(dw_cuda_scratch_open(device, sets + on.workspace_bytes + ALIGNMENT, &on.scratch));
    on.memory = (uintptr_t)on.scratch.memory;
    on.ends = on.memory + sets;
    on.workspace = on.ends + ALIGNMENT;
    dw_status status = measure(&on);
    if (on.begin) on.scratch.scope.driver->event_destroy(on.begin);
    if (on.end) on.scratch.scope.driver->event_destroy(on.end);
    dw_cuda_scratch_close(&on.scratch);
    return status;
}

double bench_gemm_rate(const bench_product *p, double seconds) {
    return 2.0 * (double)p->m * (double)p->n * (double)p->k / seconds;
}
