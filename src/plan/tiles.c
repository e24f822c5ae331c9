/* Tiles of a block-scaled product on Blackwell, and whether a multiprocessor has room for them.
 *
 * tcgen05.mma keeps sums in tensor memory: 128 lanes x 512 columns of 4 bytes. A tile of 128 rows takes one column for
 * each of its columns (FP32 sums, a row for each lane); with two CTAs each holds half of the rows. Scale codes lie
 * there too: 4 blocks of 32 along the reduction for 128 rows or columns are 512 bytes, which the instruction wants once
 * for each quarter of the lanes: 4 columns. They are kept for two stages, so that the next ones arrive in time. Shared
 * memory holds the stages of both operands with their scale codes, and the BF16 result on its way out. */
#include <math.h>
#include <stdio.h>

#include "plan/plan.h"

enum { SCALE_BLOCK = 32, LANES = 128, SCALE_STAGES = 2, COLUMNS_MIN = 32, BARRIER_BYTES = 1024, OUT_COLUMNS = 64 };

static const dw_mma_tile candidates[] = {
    {256, 256, 128, 4, 1, 2}, {256, 256, 128, 4, 2, 2}, {256, 224, 128, 5, 2, 2}, {256, 192, 128, 5, 2, 2},
    {256, 128, 128, 6, 2, 2}, {128, 256, 128, 4, 1, 1}, {128, 256, 128, 4, 2, 1}, {128, 224, 128, 4, 2, 1},
    {128, 192, 128, 5, 2, 1}, {128, 128, 128, 6, 2, 1}, {128, 64, 128, 8, 2, 1},
};
enum { CANDIDATE_COUNT = sizeof candidates / sizeof candidates[0] };

size_t dw_mma_tile_candidate_count(void) {
    return CANDIDATE_COUNT;
}

dw_status dw_mma_tile_candidate_get(size_t index, dw_mma_tile *tile) {
    if (!tile || index >= CANDIDATE_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tile candidate %zu: expected less than %d, and a tile to fill",
                       index, CANDIDATE_COUNT);
    *tile = candidates[index];
    return DW_OK;
}

static dw_status check_shape(const dw_mma_tile *tile) {
    bool pair = tile->ctas == 2;
    if ((tile->ctas != 1 && !pair) || tile->rows != (pair ? 256 : 128) || tile->cols < 16 || tile->cols > 256 ||
        tile->cols % 16 || tile->depth < 128 || tile->depth % 128 || tile->depth > 1024 || tile->stages < 1 ||
        tile->stages > 64 || tile->accumulators < 1 || tile->accumulators > 8)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "a tile of %d x %d x %d with %d stages, %d accumulators and %d CTAs is none that tcgen05.mma "
                       "takes: expected 128 rows for one CTA or 256 for two, 16 to 256 columns in steps of 16, a depth "
                       "in steps of 128, and at least one stage and accumulator",
                       tile->rows, tile->cols, tile->depth, tile->stages, tile->accumulators, tile->ctas);
    return DW_OK;
}

static int round_up(int value, int step) {
    return (value + step - 1) / step * step;
}

dw_status dw_mma_tile_check(const dw_mma_tile *tile, const dw_device_facts *device, dw_mma_tile_budget *budget) {
    if (!tile || !device || !budget)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tile, device or budget is NULL; pass all three");
    if (device->tmem_columns == 0)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s has no tensor memory; its tiles are not tcgen05's", device->name);
    DW_TRY(check_shape(tile));
    dw_mma_tile_budget need = {0};
    /* Each CTA loads its own rows of A and its half of B's rows; B's scales are needed for all of the columns. */
    int64_t rows = tile->rows / tile->ctas, cols = tile->cols / tile->ctas;
    int64_t scales = (LANES + round_up(tile->cols, LANES)) * (tile->depth / SCALE_BLOCK);
    need.shared_bytes = tile->stages * ((rows + cols) * tile->depth + scales) + rows * OUT_COLUMNS * 2 + BARRIER_BYTES;
    need.accumulator_columns = tile->accumulators * tile->cols;
    int atoms = 1 + round_up(tile->cols, LANES) / LANES;
    need.scale_columns = SCALE_STAGES * (tile->depth / 128) * 4 * atoms;
    int columns = need.accumulator_columns + need.scale_columns;
    need.tmem_columns = COLUMNS_MIN;
    while (need.tmem_columns < columns)
        need.tmem_columns *= 2;
    need.fits = need.tmem_columns <= device->tmem_columns && need.shared_bytes <= device->shared_bytes;
    if (need.tmem_columns > device->tmem_columns)
        snprintf(need.reason, sizeof need.reason,
                 "tensor memory: %d columns of sums and %d of scales are more than the %d there are",
                 need.accumulator_columns, need.scale_columns, device->tmem_columns);
    else if (!need.fits)
        snprintf(need.reason, sizeof need.reason, "shared memory: %lld bytes are more than the %lld of a block",
                 (long long)need.shared_bytes, (long long)device->shared_bytes);
    *budget = need;
    return DW_OK;
}

/* The part of the work that is of use: whole tiles in whole waves; small tiles read their operands more often, and one
 * accumulator leaves the tensor cores idle while the result goes out. */
static double usefulness(const dw_mma_tile *tile, int64_t rows, int64_t cols, const dw_device_facts *device) {
    double across = ceil((double)rows / tile->rows) * ceil((double)cols / tile->cols);
    int at_once = device->multiprocessors / tile->ctas;
    double waves = ceil(across / at_once);
    double covered = waves * at_once * tile->rows * tile->cols;
    double reuse = 2.0 / (1.0 / tile->rows + 1.0 / tile->cols);
    return (double)rows * (double)cols / covered * reuse / (reuse + 16) * (tile->accumulators > 1 ? 1 : 0.9);
}

dw_status dw_mma_tile_choose(int64_t rows, int64_t cols, const dw_device_facts *device, dw_mma_tile *tile) {
    if (!tile || rows <= 0 || cols <= 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "expected rows and cols above 0 and a tile to fill");
    const dw_mma_tile *best = NULL;
    double most = 0;
    for (size_t i = 0; i < CANDIDATE_COUNT; i++) {
        dw_mma_tile_budget budget;
        DW_TRY(dw_mma_tile_check(&candidates[i], device, &budget));
        double useful = budget.fits ? usefulness(&candidates[i], rows, cols, device) : 0;
        if (useful <= most) continue;
        most = useful;
        best = &candidates[i];
    }
    if (!best) return dw_fail(DW_ERROR_UNSUPPORTED, "no tile fits into a multiprocessor of %s", device->name);
    *tile = *best;
    return DW_OK;
}
