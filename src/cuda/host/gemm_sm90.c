#include "cuda/host/gemm_sm90.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/device/sm90/gemm_split.h"
#include "cuda/host/gemm_tuning.h"
#include "cuda/host/launch.h"
#include "cuda/host/tensor_map.h"
#include "registry/proof.h"

#define BLOCK 128
#define WARPGROUP_THREADS 128
#define STORE_BYTES (64 * 128)
#define BARRIER_BYTES 16 /* of one stage, of one batch of scales */
#define SLOT_BYTES 16    /* of one stage, which tile it is of; of one warpgroup, which it has left */
#define TOLD_BYTES 64    /* of groups along K: which tiles the second copying warp is told of, with barriers */

#define MULTICAST_0 DW_GEMM_SHARES_NOTHING
#define MULTICAST_A DW_GEMM_SHARES_A
#define MULTICAST_B DW_GEMM_SHARES_B

#define CUDA_GEMM(name_, tile_m_, tile_n_, chunk_n_, warpgroups_, k_split_, stages_, multicast_, scale_f32_,           \
                  b_vector_, out_f32_, store_buffers_, grouped_, splits_)                                              \
    {.name = #name_,                                                                                                   \
     .tile_m = tile_m_,                                                                                                \
     .tile_n = tile_n_,                                                                                                \
     .chunk_n = chunk_n_,                                                                                              \
     .warpgroups = warpgroups_,                                                                                        \
     .k_split = k_split_,                                                                                              \
     .stages = stages_,                                                                                                \
     .multicast = MULTICAST_##multicast_,                                                                              \
     .scale_f32 = scale_f32_,                                                                                          \
     .b_vector = b_vector_,                                                                                            \
     .out_f32 = out_f32_,                                                                                              \
     .store_buffers = store_buffers_,                                                                                  \
     .grouping = DW_GEMM_GROUPED_##grouped_,                                                                           \
     .splits = splits_},
static const dw_gemm_sm90_row rows[] = {
#include "registry/kernels.inc"
};
#define ROWS (sizeof rows / sizeof *rows)

#define CUDA_GEMM(name, ...) DW_CUDA_KERNEL("sm90/" #name, #name),
static dw_cuda_kernel kernels[ROWS] = {
#include "registry/kernels.inc"
};

_Static_assert(sizeof(dw_gemm_sm90_map) == sizeof(dw_cu_tensor_map), "the kernels' tensor map is the driver's");

size_t dw_gemm_sm90_count(void) {
    return ROWS;
}

const dw_gemm_sm90_row *dw_gemm_sm90_get(size_t index) {
    return index < ROWS ? &rows[index] : NULL;
}

static int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

/* Of a box. */
static int a_scale_rows(const dw_gemm_sm90_row *row) {
    return DW_GEMM_SCALE_ROWS(row->tile_m, row->grouping == DW_GEMM_GROUPED_M, row->scale_f32 ? 4 : 1);
}

uint32_t dw_gemm_sm90_shared_bytes(const dw_gemm_sm90_row *row) {
    int batch = DW_GEMM_SCALE_BATCH(row->b_vector) * (row->scale_f32 ? 4 : 1);
    int a_scales = a_scale_rows(row) * DW_GEMM_SCALE_PARTS(row->tile_m, row->grouping == DW_GEMM_GROUPED_M);
    int stage = (row->tile_m + row->tile_n) * BLOCK;
    int scales = batch * a_scales + (row->b_vector ? batch * row->tile_n : DW_GEMM_SQUARE_SCALE_BYTES);
    int stores = row->out_f32 ? 0 : row->warpgroups / row->k_split * row->store_buffers * STORE_BYTES;
    int sums = (row->k_split - 1) * row->tile_m * row->tile_n * 4;
    int dealing = row->grouping != DW_GEMM_GROUPED_K
                      ? 0
                      : DW_GEMM_DEAL_SHARED(DW_GEMM_ZEROS_BYTES) + (row->b_vector ? 0 : TOLD_BYTES);
    return (uint32_t)(row->stages * (stage + SLOT_BYTES + BARRIER_BYTES) + 2 * (scales + BARRIER_BYTES) + stores +
                      sums + row->warpgroups * SLOT_BYTES + dealing);
}

static int cluster_of(const dw_gemm_sm90_row *row) {
    return row->multicast == DW_GEMM_SHARES_NOTHING ? 1 : 2;
}

/* Tiles a cluster works on at once span this much of D. */
static int64_t span_m(const dw_gemm_sm90_row *row) {
    return row->tile_m * (row->multicast == DW_GEMM_SHARES_B ? 2 : 1);
}

static int64_t span_n(const dw_gemm_sm90_row *row) {
    return row->tile_n * (row->multicast == DW_GEMM_SHARES_A ? 2 : 1);
}

/* Of these tiles, how many are not split. */
static double whole_tiles(const dw_gemm_sm90_row *row, double tiles, int64_t k, int64_t workers) {
    const int64_t k_blocks = ceil_div(k, BLOCK);
    if (!row->splits || tiles > INT32_MAX || k_blocks > INT32_MAX || workers < 1) return tiles;
    return dw_gemm_whole_tiles((int)tiles, (int)workers, (int)k_blocks);
}

size_t dw_gemm_sm90_workspace(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape, int multiprocessors) {
    const int64_t workers = multiprocessors / cluster_of(row);
    const double tiles = (double)ceil_div(shape->m, span_m(row)) * (double)ceil_div(shape->n, span_n(row));
    const bool dense = shape->grouping == DW_GEMM_GROUPED_NONE;
    const size_t parts = (size_t)(workers * cluster_of(row)) * DW_GEMM_PART_BYTES((size_t)row->tile_m, row->tile_n);
    if (shape->grouping == DW_GEMM_GROUPED_K) return (row->splits ? parts : 0) + DW_GEMM_DEAL_BYTES;
    return !row->splits || (dense && whole_tiles(row, tiles, shape->k, workers) >= tiles) ? 0 : parts;
}

/* Cycles, up to a factor that all rows share, from what was measured on H100s and H200s (2026-11-23 to 2026-11-29;
 * docs/measured-facts.md): the share of the tensor core's peak (4096 multiplications a cycle) each form reaches, what
 * writing a tile and starting the next one cost, the bytes a multiprocessor gets from the L2 cache in a cycle, and all
 * of them from memory, an H200's. What is smaller than 128x256 and 192x128 is there for products of few rows, but for
 * 128x192, which is for groups. Not shares and cycles as such, which power bends, but what puts the candidates in the
 * order that was measured. */
#define PEAK 4096.0
#define L2_BYTES 56.0
#define MEMORY_BYTES 2600.0
#define SPLIT_CYCLES 8000.0     /* what the parts of split tiles cost a multiprocessor */
#define SPLIT_TILE_CYCLES 200.0 /* and what any tile costs more in kernels that can split */

static double share_of_peak(const dw_gemm_sm90_row *row) {
    const bool pair = row->multicast != DW_GEMM_SHARES_NOTHING;
    if (row->b_vector) return 0.60;
    if (row->warpgroups == 3) return pair ? 0.855 : 0.845;
    switch (row->tile_m * row->tile_n) {
    case 128 * 192: return 0.85;
    case 128 * 256: return pair || row->out_f32 ? 0.82 : 0.85;
    case 128 * 128: return 0.78;
    case 128 * 64: return row->tile_m == 128 ? 0.59 : 0.51;
    case 64 * 64: return 0.40;
    default: return 0.26;
    }
}

/* A kernel of large tiles with a stage where others have the buffers of results (_deep). */
static bool is_deep(const dw_gemm_sm90_row *row) {
    return row->tile_m * row->tile_n == 128 * 256 && row->store_buffers == 0 && !row->out_f32;
}

static double tile_cycles(const dw_gemm_sm90_row *row, double k) {
    const bool pair = row->multicast != DW_GEMM_SHARES_NOTHING;
    double written = row->warpgroups == 3 || row->tile_n == 192 ? (pair ? 700 : 600)
                     : is_deep(row)                             ? 0
                     : row->tile_m * row->tile_n == 32768       ? (row->out_f32 ? 1300 : 1000)
                                                                : 800;
    double a_rows = row->multicast == DW_GEMM_SHARES_A ? row->tile_m / 2.0 : row->tile_m;
    double b_rows = row->multicast == DW_GEMM_SHARES_B ? row->tile_n / 2.0 : row->tile_n;
    double products = (double)row->tile_m * row->tile_n * k / PEAK / share_of_peak(row);
    double copies = (a_rows + b_rows) * k / L2_BYTES;
    return (products > copies ? products : copies) + written + (row->splits ? SPLIT_TILE_CYCLES : 0);
}

static double predicted_cycles(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *s, int multiprocessors,
                               size_t workspace) {
    double groups = (double)(s->groups > 0 ? s->groups : 1);
    double m = s->grouping == DW_GEMM_GROUPED_M ? (double)s->m / groups : (double)s->m;
    double k = s->grouping == DW_GEMM_GROUPED_K ? (double)s->k / groups : (double)s->k;
    double down = s->groups > 1 && s->grouping == DW_GEMM_GROUPED_M
                      ? m / (double)span_m(row) + 0.5 /* groups end where they will: half a tile is lost on average */
                      : (double)ceil_div(s->m, span_m(row));
    double tiles = groups * (down < 1 ? 1 : down) * (double)ceil_div(s->n, span_n(row));
    int64_t slots = multiprocessors / cluster_of(row);
    double waves = ceil(tiles) / (double)(slots > 0 ? slots : 1);
    const bool can = row->splits && dw_gemm_sm90_workspace(row, s, multiprocessors) <= workspace;
    bool parts = can && whole_tiles(row, ceil(tiles), (int64_t)k, slots) < ceil(tiles);
    if (s->groups > 1 && s->grouping == DW_GEMM_GROUPED_M) { /* half a wave is idle on average, or split */
        parts = can && k >= 2 * DW_GEMM_LEAST_PART * BLOCK;
        waves += parts ? 0 : 0.5;
    } else if (!parts) {
        waves = ceil(waves);
    }
    double cycles = waves * tile_cycles(row, k) + (parts ? SPLIT_CYCLES : 0);
    double memory = groups * (m * k + (double)s->n * k) / MEMORY_BYTES;
    return cycles > memory ? cycles : memory + 1e-3 * row->tile_m * row->tile_n; /* many small tiles keep memory busy */
}

int64_t dw_gemm_sm90_tile_rows(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape) {
    return ceil_div(ceil_div(shape->m, shape->grouping == DW_GEMM_GROUPED_M ? shape->groups : 1), span_m(row));
}

int dw_gemm_sm90_band(const dw_gemm_sm90_row *row) {
    const bool pair = row->multicast != DW_GEMM_SHARES_NOTHING; /* all measured; see walk_to */
    return row->tile_m == 128 || (row->tile_m == 192 && pair) ? 16 : row->tile_m == 192 && !row->splits ? 4 : 8;
}

bool dw_gemm_sm90_serves(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *shape) {
    return row->grouping == shape->grouping && row->scale_f32 == shape->scale_f32 && row->b_vector == shape->b_vector &&
           row->out_f32 == shape->out_f32;
}

/* Tiles of 192 columns won by 5% where they come out even and the reduction is short, so that writing a tile counts
 * (65536 rows of 128 experts, 1536 x 2048), were 1% behind where they do not (2048 x 768), and 6 to 10% at reductions
 * from 4096 on. Measured on an H100 (2026-11-28). A stage instead of buffers won by 3 to 4% where each block has one
 * tile, whose first stages it waits for, and was up to 11% slower elsewhere (an H200, 2026-11-29). */
static bool suits(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *s, int multiprocessors) {
    if (row->tile_n == 192) return s->n % 192 == 0 && s->k <= 2048;
    if (is_deep(row)) return ceil_div(s->m, span_m(row)) <= multiprocessors / ceil_div(s->n, span_n(row));
    return true;
}

int dw_gemm_sm90_choose(const dw_gemm_sm90_shape *shape, int multiprocessors, size_t workspace,
                        const atomic_uchar *proofs) {
    int best = -1;
    double least = 0;
    for (int i = 0; i < (int)ROWS; i++) {
        const dw_gemm_sm90_row *row = &rows[i];
        if (!dw_gemm_sm90_serves(row, shape) || !suits(row, shape, multiprocessors)) continue;
        if (proofs && atomic_load_explicit(&proofs[i], memory_order_relaxed) == DW_PROOF_REFUTED) continue;
        double cycles = predicted_cycles(row, shape, multiprocessors, workspace);
        if (best >= 0 && cycles >= least) continue;
        best = i;
        least = cycles;
    }
    return best;
}

dw_status dw_gemm_sm90_pick(const dw_cuda_scope *scope, const dw_gemm_sm90_shape *shape, int multiprocessors,
                            size_t workspace, int forced, dw_gemm_sm90_choice *choice) {
    choice->row = forced;
    if (forced >= 0) {
        const dw_gemm_sm90_row *wanted = dw_gemm_sm90_get((size_t)forced);
        if (wanted && dw_gemm_sm90_serves(wanted, shape)) {
            choice->band = dw_gemm_sm90_band(wanted);
            return DW_OK;
        }
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: kernel %s is for other formats than this product's",
                       wanted ? wanted->name : "(none)");
    }
    /* Along K each form has one kernel, so that what was measured is its band. */
    if (dw_gemm_tuning_find(scope->device, shape, choice) &&
        (shape->grouping == DW_GEMM_GROUPED_K ||
         dw_gemm_sm90_workspace(&rows[choice->row], shape, multiprocessors) <= workspace) &&
        dw_gemm_row_prove((size_t)choice->row, scope->device))
        return DW_OK;
    do
        choice->row = dw_gemm_sm90_choose(shape, multiprocessors, workspace, dw_gemm_proofs(scope->device));
    while (choice->row >= 0 && !dw_gemm_row_prove((size_t)choice->row, scope->device));
    if (choice->row >= 0) choice->band = dw_gemm_sm90_band(&rows[choice->row]);
    return DW_OK;
}

const char *dw_gemm_sm90_refusal(const dw_gemm_args *args, const dw_gemm_problem *p) {
    const dw_gemm_operand *a = &args->a, *b = &args->b;
    if (a->data.dtype != DW_E4M3 || b->data.dtype != DW_E4M3) return "the operands are not both e4m3";
    if (a->scaling != DW_GEMM_1X128 || (b->scaling != DW_GEMM_1X128 && b->scaling != DW_GEMM_128X128))
        return "the scaling is not 1x128 by 128x128 or 1x128 by 1x128";
    if (args->d.dtype != DW_BF16 && args->d.dtype != DW_F32) return "the result is neither bf16 nor f32";
    if (a->scale.dtype != b->scale.dtype) return "one operand's scales are e8m0 and the other's f32";
    bool vectors = b->scaling == DW_GEMM_1X128;
    if ((uintptr_t)a->scale.data % 16 != 0 || (vectors && (uintptr_t)b->scale.data % 16 != 0))
        return "the scales of 1x128 blocks are not aligned to 16 bytes";
    if (a->scale.dtype == DW_E8M0) {
        if (a->layout != DW_SCALE_MN_MAJOR || (vectors && b->layout != DW_SCALE_MN_MAJOR))
            return "the layout of 1x128 e8m0 scales is not mn_major";
    } else if (p->m % 4 != 0 || (vectors && p->n % 4 != 0)) {
        return "f32 scales of 1x128 blocks need rows in multiples of 4";
    }
    if (p->m > INT32_MAX || p->n > INT32_MAX || p->k > INT32_MAX) return "an extent is beyond 2^31 - 1";
    return "";
}

/* Devices' facts, once asked: capability << 16 | multiprocessors; 0: not yet. */
#define MOST_DEVICES 64
static atomic_uint facts[MOST_DEVICES];

dw_status dw_gemm_sm90_device(const dw_cuda_scope *scope, int *capability, int *multiprocessors) {
    bool kept = scope->device >= 0 && scope->device < MOST_DEVICES;
    unsigned known = kept ? atomic_load_explicit(&facts[scope->device], memory_order_relaxed) : 0;
    if (known == 0) {
        int major = 0, minor = 0, count = 0;
        const struct {
            int attribute, *value;
        } wanted[] = {{DW_CU_DEVICE_COMPUTE_MAJOR, &major},
                      {DW_CU_DEVICE_COMPUTE_MINOR, &minor},
                      {DW_CU_DEVICE_MULTIPROCESSOR_COUNT, &count}};
        dw_cu_device device;
        DW_TRY(dw_cuda_check(scope->driver, scope->driver->device_get(&device, scope->device), "cuDeviceGet",
                             "device %d", scope->device));
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            DW_TRY(dw_cuda_check(scope->driver,
                                 scope->driver->device_attribute(wanted[i].value, wanted[i].attribute, device),
                                 "cuDeviceGetAttribute", "device %d", scope->device));
        known = (unsigned)(10 * major + minor) << 16 | (unsigned)count;
        if (kept) atomic_store_explicit(&facts[scope->device], known, memory_order_relaxed);
    }
    *capability = (int)(known >> 16);
    *multiprocessors = (int)(known & 0xFFFF);
    return DW_OK;
}

static dw_status operand_map(const dw_cuda_scope *scope, const void *data, int64_t matrix_rows, int64_t matrix_cols,
                             int64_t ld, int box_rows, dw_gemm_sm90_map *map) {
    dw_cuda_tensor_map_spec spec = {.address = data,
                                    .extents = {(uint64_t)matrix_cols, (uint64_t)matrix_rows},
                                    .strides = {(uint64_t)ld},
                                    .box = {BLOCK, (uint32_t)box_rows},
                                    .rank = 2,
                                    .type = DW_CU_TENSOR_UINT8,
                                    .swizzle = DW_CU_SWIZZLE_128B,
                                    .promotion = DW_CU_L2_PROMOTE_256B};
    return dw_cuda_tensor_map(scope, &spec, (dw_cu_tensor_map *)map);
}

/* Of 1x128 scales, a batch of stages at a time. */
static dw_status scale_map(const dw_cuda_scope *scope, const dw_gemm_sm90_row *row, const void *scales, int64_t ld,
                           int64_t k, int box_rows, dw_gemm_sm90_map *map) {
    dw_cuda_tensor_map_spec spec = {
        .address = scales,
        .extents = {(uint64_t)ld, (uint64_t)ceil_div(k, BLOCK)},
        .strides = {(uint64_t)ld * (row->scale_f32 ? 4 : 1)},
        .box = {(uint32_t)box_rows, DW_GEMM_SCALE_BATCH(row->b_vector)},
        .rank = 2,
        .type = row->scale_f32 ? DW_CU_TENSOR_FLOAT32 : DW_CU_TENSOR_UINT8,
        .swizzle = DW_CU_SWIZZLE_NONE,
        .promotion = DW_CU_L2_PROMOTE_128B,
    };
    return dw_cuda_tensor_map(scope, &spec, (dw_cu_tensor_map *)map);
}

static dw_status result_map(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call, dw_gemm_sm90_map *map) {
    dw_cuda_tensor_map_spec spec = {.address = call->d,
                                    .extents = {(uint64_t)call->shape.n, (uint64_t)call->d_rows},
                                    .strides = {(uint64_t)call->d_ld * 2},
                                    .box = {64, 64},
                                    .rank = 2,
                                    .type = DW_CU_TENSOR_BFLOAT16,
                                    .swizzle = DW_CU_SWIZZLE_128B,
                                    .promotion = DW_CU_L2_PROMOTE_128B};
    return dw_cuda_tensor_map(scope, &spec, (dw_cu_tensor_map *)map);
}

/* Rows of A that one copy brings: half a tile's where two blocks share them, and no more than there are. */
static int a_box_rows(const dw_gemm_sm90_row *row, const dw_gemm_sm90_shape *s) {
    if (row->multicast == DW_GEMM_SHARES_A) return row->tile_m / 2;
    return s->grouping == DW_GEMM_GROUPED_NONE && s->m < row->tile_m ? (int)s->m : row->tile_m;
}

uint64_t dw_gemm_next_ticket(void) {
    static atomic_uint_fast64_t count;
    struct timespec now = {0};
    timespec_get(&now, TIME_UTC);
    uint64_t x = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    x += atomic_fetch_add_explicit(&count, 1, memory_order_relaxed) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u; /* the mixing function of splitmix64 (Steele, Lea, Flood) */
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return (x ^ x >> 31) | 1; /* zero says that there is none, and see gemm_deal.cuh */
}

dw_status dw_gemm_sm90_launch(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call,
                              const dw_gemm_sm90_choice *choice, int multiprocessors, void *stream) {
    const dw_gemm_sm90_shape *s = &call->shape;
    const dw_gemm_sm90_row *row = &rows[choice->row];
    dw_gemm_sm90_params p = {.b_scale = call->b_scale,
                             .b_scale_row_step = call->b_scale_row_step,
                             .b_scale_k_step = call->b_scale_k_step,
                             .out = call->d,
                             .out_ld = call->d_ld,
                             .bias = call->bias,
                             .ends = call->ends,
                             .groups = (int32_t)s->groups,
                             .m = (int32_t)s->m,
                             .n = (int32_t)s->n,
                             .k = (int32_t)s->k,
                             .band = choice->band,
                             .accumulate = call->accumulate};
    DW_TRY(operand_map(scope, call->a, call->a_rows, call->a_cols, call->a_ld, a_box_rows(row, s), &p.a));
    DW_TRY(operand_map(scope, call->b, call->b_rows, call->b_cols, call->b_ld,
                       row->multicast == DW_GEMM_SHARES_B ? row->tile_n / 2 : row->tile_n, &p.b));
    DW_TRY(scale_map(scope, row, call->a_scale, call->a_scale_ld, call->a_cols, a_scale_rows(row), &p.a_scale_map));
    if (row->b_vector)
        DW_TRY(scale_map(scope, row, call->b_scale, call->b_scale_ld, call->b_cols, row->tile_n, &p.b_scale_map));
    if (!s->out_f32) DW_TRY(result_map(scope, call, &p.d));

    const size_t workspace = dw_gemm_sm90_workspace(row, s, multiprocessors);
    if (workspace > 0 && call->workspace && call->workspace_bytes >= workspace) {
        p.workspace = call->workspace;
        p.ticket = dw_gemm_next_ticket();
    }
    int64_t cluster = cluster_of(row), slots = multiprocessors / cluster;
    int64_t tiles = ceil_div(s->m, span_m(row)) * ceil_div(s->n, span_n(row));
    if (s->grouping != DW_GEMM_GROUPED_NONE) tiles = slots; /* the device knows the groups' sizes */
    dw_cuda_launch_config config = {.grid = {(uint32_t)((tiles < slots ? tiles : slots) * cluster), 1, 1},
                                    .block = {(uint32_t)(WARPGROUP_THREADS * (row->warpgroups + 1)), 1, 1},
                                    .shared_bytes = dw_gemm_sm90_shared_bytes(row),
                                    .programmatic = true};
    if (cluster > 1)
        for (int i = 0; i < 3; i++)
            config.cluster[i] = i == 0 ? (uint32_t)cluster : 1;
    void *arguments[] = {&p};
    return dw_cuda_launch(scope, &kernels[choice->row], &config, stream, arguments);
}

dw_gemm_sm90_call dw_gemm_sm90_call_of(const dw_gemm_args *args, const dw_gemm_problem *p) {
    bool scale_f32 = args->a.scale.dtype == DW_F32, vectors = args->b.scaling == DW_GEMM_1X128;
    const dw_tensor *bs = &args->b.scale;
    dw_gemm_sm90_call call = {
        .shape = {.m = p->m,
                  .n = p->n,
                  .k = p->k,
                  .groups = 1,
                  .scale_f32 = scale_f32,
                  .b_vector = vectors,
                  .out_f32 = args->d.dtype == DW_F32},
        .a = p->a.data,
        .b = p->b.data,
        .a_scale = args->a.scale.data,
        .b_scale = bs->data,
        .bias = p->has_bias ? p->bias : NULL,
        .d = p->d,
        .a_rows = p->m,
        .a_cols = p->k,
        .a_ld = p->a.ld,
        .b_rows = p->n,
        .b_cols = p->k,
        .b_ld = p->b.ld,
        .d_rows = p->m,
        .d_ld = p->d_ld,
        .a_scale_ld = scale_f32 ? p->m : ceil_div(p->m, 16) * 16,
        .b_scale_ld = scale_f32 ? p->n : ceil_div(p->n, 16) * 16,
        .accumulate = p->accumulate,
        .workspace = args->workspace,
        .workspace_bytes = args->workspace_bytes,
    };
    if (!vectors) {
        int64_t grid_rows = ceil_div(p->n, BLOCK), grid_cols = ceil_div(p->k, BLOCK);
        bool mn_major = !scale_f32 && args->b.layout == DW_SCALE_MN_MAJOR;
        call.b_scale_row_step = mn_major ? 1 : scale_f32 ? ceil_div(grid_cols, 4) * 4 : grid_cols;
        call.b_scale_k_step = mn_major ? ceil_div(grid_rows, 16) * 16 : 1;
    }
    return call;
}
