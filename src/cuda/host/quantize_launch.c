#include "cuda/host/quantize_launch.h"

#include <string.h>

#include "core/status.h"
#include "deepwell/cuda.h"

/* The constants of quantize_row.cu and square_tile.cuh. */
#define ROW_TILE_ROWS 16
#define ROW_TILE_UNITS 64
#define THREADS 256

/* Rows of tiles walked together: measured within 1% of each other from 1 to 8, 16 slower by 2% (H100, 2026-11-22). */
#define RASTER_BAND 4

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

dw_cuda_scale dw_cuda_scale_codes(const dw_quantize_spec *spec, int64_t rows, int64_t cols, void *codes) {
    const dw_grid grid = dw_block_grid(spec->block, rows, cols);
    dw_cuda_scale scale = {.codes = codes, .padded_rows = (int32_t)grid.rows, .padded_cols = (int32_t)grid.cols};
    switch (spec->layout) {
    case DW_SCALE_MN_MAJOR:
        scale.padded_rows = (int32_t)round_up(grid.rows, 16);
        scale.row_stride = 1;
        scale.col_stride = scale.padded_rows;
        break;
    case DW_SCALE_TCGEN05:
        scale.padded_rows = (int32_t)round_up(grid.rows, 128);
        scale.padded_cols = (int32_t)round_up(grid.cols, 4);
        scale.atoms_per_row = scale.padded_cols / 4;
        break;
    default:
        scale.row_stride = grid.cols;
        scale.col_stride = 1;
        break;
    }
    return scale;
}

dw_cuda_scale dw_cuda_scale_factors(dw_block block, int64_t rows, int64_t cols, float *factors) {
    const dw_grid grid = dw_block_grid(block, rows, cols);
    dw_cuda_scale scale = {.factors = factors, .factor_rows = (int32_t)grid.rows, .factor_cols = (int32_t)grid.cols};
    if (block == DW_BLOCK_128X128) {
        scale.factor_cols = (int32_t)round_up(grid.cols, 4);
        scale.factor_row_stride = scale.factor_cols;
        scale.factor_col_stride = 1;
    } else {
        scale.factor_row_stride = 1;
        scale.factor_col_stride = grid.rows;
    }
    return scale;
}

dw_cuda_quantized dw_cuda_quantized_of(const dw_quantize_spec *spec, bool transposed, int64_t rows, int64_t cols,
                                       uint8_t *data, int64_t ld, void *codes, float *factors) {
    const dw_quantize_spec own = dw_result_spec(spec, transposed);
    return (dw_cuda_quantized){.data = data,
                               .ld = ld,
                               .vector = dw_cuda_rows_aligned(data, ld, 1),
                               .square = transposed && spec->transposed_square,
                               .scale = factors ? dw_cuda_scale_factors(own.block, rows, cols, factors)
                                                : dw_cuda_scale_codes(&own, rows, cols, codes)};
}

dw_cuda_raster dw_cuda_raster_of(int64_t rows, int64_t cols) {
    return (dw_cuda_raster){.tile_rows = (int32_t)((rows + DW_CUDA_TILE - 1) / DW_CUDA_TILE),
                            .tile_cols = (int32_t)((cols + DW_CUDA_TILE - 1) / DW_CUDA_TILE),
                            .band = RASTER_BAND};
}

uint32_t dw_cuda_round_add(dw_rounding rounding) {
    return rounding == DW_ROUND_RCEIL ? 0x1FFFFFu : 0u;
}

bool dw_cuda_rows_aligned(const void *data, int64_t ld, int64_t element_size) {
    return (uintptr_t)data % 16 == 0 && ld * element_size % 16 == 0;
}

dw_cuda_shape dw_cuda_quantize_row_shape(dw_dtype source, int64_t padded_rows, int64_t cols, int32_t *tile_cols) {
    const int64_t width = ROW_TILE_UNITS * (source == DW_F32 ? 4 : 8);
    const int64_t across = (cols + width - 1) / width;
    *tile_cols = (int32_t)across;
    return (dw_cuda_shape){.blocks = (padded_rows + ROW_TILE_ROWS - 1) / ROW_TILE_ROWS * across, .threads = THREADS};
}

dw_cuda_shape dw_cuda_tile_shape(const dw_cuda_raster *raster, uint32_t shared_bytes) {
    return (dw_cuda_shape){
        .blocks = (int64_t)raster->tile_rows * raster->tile_cols, .threads = THREADS, .shared_bytes = shared_bytes};
}

dw_status dw_cuda_launch_shape(int device, dw_cuda_kernel *kernel, const dw_cuda_shape *shape, void *params,
                               void *stream) {
    if (shape->blocks > INT32_MAX)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "%s would need %lld thread blocks, more than the %d of one launch; split the "
                       "matrix into panels of rows",
                       kernel->symbol, (long long)shape->blocks, INT32_MAX);
    dw_cuda_launch_config config = {.grid = {(uint32_t)shape->blocks, 1, 1},
                                    .block = {shape->threads, shape->groups ? shape->groups : 1, 1},
                                    .shared_bytes = shape->shared_bytes,
                                    .programmatic = true};
    void *arguments[] = {params};
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(device, &scope));
    dw_status status = dw_cuda_launch(&scope, kernel, &config, stream, arguments);
    dw_cuda_leave(&scope);
    return status;
}

static const char *find_target(const char *target) {
    int devices = 0;
    if (dw_cuda_device_count(&devices) != DW_OK) return "needs an NVIDIA driver of CUDA 12.0 or later; none works here";
    bool seen = false;
    for (int i = 0; i < devices; i++) {
        dw_cuda_device_info info;
        if (dw_cuda_device_get(i, &info) != DW_OK || strcmp(info.target, target) != 0) continue;
        if (info.has_device_code) return "";
        seen = true;
    }
    if (seen) return "this build of the library holds no device code; build it where a CUDA 13 compiler is found";
    return strcmp(target, "sm90") == 0 ? "needs a GPU of compute capability 9.0 (Hopper)"
                                       : "needs a GPU of compute capability 10.x (Blackwell)";
}

const char *dw_cuda_target_reason(const char *target) {
    static _Atomic(const char *) known[2];
    _Atomic(const char *) *mine = &known[strcmp(target, "sm90") == 0 ? 0 : 1];
    const char *reason = atomic_load_explicit(mine, memory_order_acquire);
    if (!reason) {
        reason = find_target(target);
        atomic_store_explicit(mine, reason, memory_order_release);
    }
    return reason;
}

bool dw_cuda_device_takes(int device, const char *target) {
    enum { DEVICES = 64, UNASKED = 0, SM90 = 1, SM100 = 2, OTHER = 3 };
    static atomic_uchar known[DEVICES];
    if (device < 0 || device >= DEVICES) return true;
    unsigned char kind = atomic_load_explicit(&known[device], memory_order_relaxed);
    if (kind == UNASKED) {
        dw_cuda_device_info info;
        if (dw_cuda_device_get(device, &info) != DW_OK) return true;
        kind = strcmp(info.target, "sm90") == 0 ? SM90 : strcmp(info.target, "sm100") == 0 ? SM100 : OTHER;
        atomic_store_explicit(&known[device], kind, memory_order_relaxed);
    }
    return kind == (strcmp(target, "sm90") == 0 ? SM90 : SM100);
}

/* ---- the kernels by orientation, block, source and element ----------------------------------------------------------
 */

#define TILE_IMAGE(source) "common/quantize_tile_" source
#define ELEMENTS(image, stem, block)                                                                                   \
    {DW_CUDA_KERNEL(image, stem "_e4m3_" block "__sm90"), DW_CUDA_KERNEL(image, stem "_e5m2_" block "__sm90")}
#define SOURCES(orientation, block)                                                                                    \
    {                                                                                                                  \
        [DW_F32] = ELEMENTS(TILE_IMAGE("f32"), "quantize_" orientation "_f32", block),                                 \
        [DW_F16] = ELEMENTS(TILE_IMAGE("f16"), "quantize_" orientation "_f16", block),                                 \
        [DW_BF16] = ELEMENTS(TILE_IMAGE("bf16"), "quantize_" orientation "_bf16", block),                              \
    }
#define ROW_SOURCES(block)                                                                                             \
    {                                                                                                                  \
        [DW_F32] = ELEMENTS("common/quantize_row", "quantize_row_f32", block),                                         \
        [DW_F16] = ELEMENTS("common/quantize_row", "quantize_row_f16", block),                                         \
        [DW_BF16] = ELEMENTS("common/quantize_row", "quantize_row_bf16", block),                                       \
    }
static dw_cuda_kernel kernels[DW_ORIENT_COUNT][DW_BLOCK_COUNT][3][2] = {
    [DW_ORIENT_ROW] = {[DW_BLOCK_1X32] = ROW_SOURCES("1x32"),
                       [DW_BLOCK_1X128] = ROW_SOURCES("1x128"),
                       [DW_BLOCK_128X128] = SOURCES("row", "128x128")},
    [DW_ORIENT_TRANSPOSED] = {[DW_BLOCK_1X32] = SOURCES("transposed", "1x32"),
                              [DW_BLOCK_1X128] = SOURCES("transposed", "1x128"),
                              [DW_BLOCK_128X128] = SOURCES("transposed", "128x128")},
    [DW_ORIENT_BOTH] = {[DW_BLOCK_1X32] = SOURCES("both", "1x32"),
                        [DW_BLOCK_1X128] = SOURCES("both", "1x128"),
                        [DW_BLOCK_128X128] = SOURCES("both", "128x128")},
};

dw_status dw_cuda_quantize(dw_context *context, const dw_request *request, const dw_quantize_job *job, void *stream) {
    (void)context;
    if (job->rows > DW_CUDA_EXTENT_MAX || job->cols > DW_CUDA_EXTENT_MAX)
        return dw_fail(DW_ERROR_UNSUPPORTED, "a [%lld, %lld] matrix is wider than GPU kernels index (2^30); split it",
                       (long long)job->rows, (long long)job->cols);
    if ((uintptr_t)job->source % dw_dtype_size(job->source_dtype))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "source.data is not aligned to its %zu-byte elements; GPUs need that",
                       dw_dtype_size(job->source_dtype));
    if (!job->rows || !job->cols) return DW_OK; /* such a matrix has no scales either */
    dw_cuda_quantize_params params = {
        .source = job->source,
        .source_ld = job->source_ld,
        .rows = (int32_t)job->rows,
        .cols = (int32_t)job->cols,
        .source_vector = dw_cuda_rows_aligned(job->source, job->source_ld, (int64_t)dw_dtype_size(job->source_dtype)),
        .round_add = dw_cuda_round_add(job->rounding),
        .raster = dw_cuda_raster_of(job->rows, job->cols),
    };
    if (request->orientation != DW_ORIENT_TRANSPOSED)
        params.row = dw_cuda_quantized_of(&request->spec, false, job->rows, job->cols, job->row_data, job->row_ld,
                                          job->row_scale.base, job->row_factors);
    if (request->orientation != DW_ORIENT_ROW)
        params.transposed = dw_cuda_quantized_of(&request->spec, true, job->cols, job->rows, job->col_data, job->col_ld,
                                                 job->col_scale.base, job->col_factors);

    dw_cuda_shape shape = dw_cuda_tile_shape(&params.raster, 0);
    if (request->orientation == DW_ORIENT_ROW && job->block != DW_BLOCK_128X128) {
        int64_t rows = job->rows > params.row.scale.padded_rows ? job->rows : params.row.scale.padded_rows;
        shape = dw_cuda_quantize_row_shape(job->source_dtype, rows, job->cols, &params.raster.tile_cols);
    }
    dw_cuda_kernel *kernel =
        &kernels[request->orientation][job->block][job->source_dtype][job->element == DW_E4M3 ? 0 : 1];
    return dw_cuda_launch_shape(request->device_id, kernel, &shape, &params, stream);
}
