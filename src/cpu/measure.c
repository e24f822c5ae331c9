/* What quantization costs in accuracy: runs the row kernel on tiles that stay in the cache and compares with the
 * source. Tiles depend on the shape alone and are summed in order, so the result does not depend on the number of
 * threads. */
#include <math.h>
#include <stdlib.h>

#include "core/status.h"
#include "cpu/drive.h"
#include "cpu/tiling.h"
#include "formats/decode.h"

enum { TILE_ELEMENTS = 32 * 1024 };

typedef struct measuring {
    const dw_quantize_job *job;
    dw_quantize_kernel kernel;
    dw_tiling tiling;
    double decoded[256]; /* of each element byte, unscaled */
    double largest;      /* finite element */
    dw_quantize_stats *partial;
} measuring;

/* Adds one row of a block. `scale` is the block's, or NaN when it holds a NaN or an infinity. */
static void add_run(const measuring *all, int64_t row, int64_t col0, int64_t col1, const uint8_t *bytes, double scale,
                    dw_quantize_stats *stats) {
    const dw_quantize_job *job = all->job;
    double limit = all->largest * scale;
    for (int64_t c = col0; c < col1; c++) {
        uint32_t bits = dw_load_f32_bits(job->source, job->source_dtype, row * job->source_ld + c);
        double x = (double)dw_f32_from_bits(bits), magnitude = fabs(x);
        stats->nonzero += x != 0;
        if (magnitude > stats->amax && isfinite(magnitude)) stats->amax = magnitude;
        if (isnan(scale)) {
            stats->nonfinite++;
            continue;
        }
        double y = all->decoded[bytes[c - col0]] * scale;
        stats->signal_power += x * x;
        stats->noise_power += (x - y) * (x - y);
        stats->underflowed += x != 0 && y == 0;
        stats->saturated += magnitude > limit;
    }
}

static void measure_tile(void *argument, int64_t i) {
    const measuring *all = argument;
    dw_tile tile = dw_tile_at(&all->tiling, i);
    uint8_t data[TILE_ELEMENTS], codes[TILE_ELEMENTS];
    dw_quantize_job job = *all->job;
    int64_t rows = tile.row1 - tile.row0, cols = tile.col1 - tile.col0;
    int64_t down = dw_block_rows(job.block), across = dw_block_cols(job.block), grid_cols = dw_ceil_div(cols, across);
    job.source =
        (const char *)job.source + (tile.row0 * job.source_ld + tile.col0) * (int64_t)dw_dtype_size(job.source_dtype);
    job.rows = rows;
    job.cols = cols;
    job.row_data = data;
    job.row_ld = cols;
    job.row_scale = (dw_scale_map){codes, grid_cols, 1, 0};
    all->kernel(&job, &(dw_tile){0, rows, 0, cols});
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c += across) {
            uint8_t code = codes[r / down * grid_cols + c / across];
            double scale = code == DW_SCALE_NAN ? (double)NAN : ldexp(1, code - DW_SCALE_BIAS);
            int64_t end = c + across < cols ? c + across : cols;
            add_run(all, tile.row0 + r, tile.col0 + c, tile.col0 + end, data + r * cols + c, scale, &all->partial[i]);
        }
    }
}

dw_status dw_cpu_measure(dw_context *context, dw_quantize_kernel kernel, const dw_quantize_job *job,
                         dw_quantize_stats *stats) {
    measuring all = {.job = job, .kernel = kernel};
    all.tiling = dw_fixed_tiling(job->rows, job->cols, TILE_ELEMENTS);
    if (all.tiling.count == 0) return DW_OK;
    dw_fp8_format format = dw_fp8(job->element);
    for (int byte = 0; byte < 256; byte++)
        all.decoded[byte] = (double)dw_f32_from_bits(dw_decode(format, (uint8_t)byte, DW_SCALE_BIAS, dw_float(DW_F32)));
    all.largest = all.decoded[format.largest];
    all.partial = calloc((size_t)all.tiling.count, sizeof *all.partial);
    if (!all.partial)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY,
                       "no memory for the statistics of a [%lld, %lld] matrix; measure row panels",
                       (long long)job->rows, (long long)job->cols);
    dw_parallel_for(context->pool, all.tiling.count, measure_tile, &all);
    dw_quantize_stats sum = *stats;
    for (int64_t i = 0; i < all.tiling.count; i++) {
        const dw_quantize_stats *part = &all.partial[i];
        sum.signal_power += part->signal_power;
        sum.noise_power += part->noise_power;
        sum.nonzero += part->nonzero;
        sum.underflowed += part->underflowed;
        sum.saturated += part->saturated;
        sum.nonfinite += part->nonfinite;
        if (part->amax > sum.amax) sum.amax = part->amax;
    }
    sum.elements += job->rows * job->cols;
    free(all.partial);
    *stats = sum;
    return DW_OK;
}
