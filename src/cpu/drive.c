#include "cpu/drive.h"

#include "cpu/tiling.h"
#include "formats/scale_layout.h"

dw_scale_map dw_make_scale_map(const dw_quantize_spec *spec, int64_t rows, int64_t cols, uint8_t *base) {
    dw_grid grid = dw_block_grid(spec->block, rows, cols);
    switch (spec->layout) {
    case DW_SCALE_MN_MAJOR: return (dw_scale_map){base, 1, (grid.rows + 15) / 16 * 16, 0};
    case DW_SCALE_TCGEN05: return (dw_scale_map){base, 0, 0, (grid.cols + 3) / 4};
    default: return (dw_scale_map){base, grid.cols, 1, 0};
    }
}

typedef struct tiled_work {
    const dw_tiling *tiling;
    const void *job;
    dw_quantize_kernel quantize;
    dw_dequantize_kernel dequantize;
} tiled_work;

static void quantize_tile(void *argument, int64_t i) {
    const tiled_work *work = argument;
    dw_tile tile = dw_tile_at(work->tiling, i);
    work->quantize(work->job, &tile);
}

static void dequantize_tile(void *argument, int64_t i) {
    const tiled_work *work = argument;
    dw_tile tile = dw_tile_at(work->tiling, i);
    work->dequantize(work->job, &tile);
}

void dw_cpu_quantize(dw_context *context, dw_quantize_kernel kernel, dw_scale_layout layout,
                     const dw_quantize_job *job) {
    dw_tiling tiling =
        dw_choose_tiling(job->rows, job->cols, job->col_data != NULL, dw_thread_pool_size(context->pool));
    if (tiling.count == 0) return;
    if (job->row_data)
        dw_scale_zero_padding(layout, dw_block_grid(job->block, job->rows, job->cols), job->row_scale.base);
    if (job->col_data)
        dw_scale_zero_padding(layout, dw_block_grid(job->block, job->cols, job->rows), job->col_scale.base);
    tiled_work work = {.tiling = &tiling, .job = job, .quantize = kernel};
    dw_parallel_for(context->pool, tiling.count, quantize_tile, &work);
}

void dw_cpu_dequantize(dw_context *context, dw_dequantize_kernel kernel, const dw_dequantize_job *job) {
    dw_tiling tiling = dw_choose_tiling(job->rows, job->cols, false, dw_thread_pool_size(context->pool));
    tiled_work work = {.tiling = &tiling, .job = job, .dequantize = kernel};
    dw_parallel_for(context->pool, tiling.count, dequantize_tile, &work);
}
