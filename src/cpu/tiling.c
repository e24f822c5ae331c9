#include "cpu/tiling.h"

enum {
    EDGE = 128, /* tiles start at multiples of the largest block */
    TALL = 256, /* rows of the smallest tile for a transpose: whole pieces of avx2/ and avx512/pieces_*.h */
    SMALLEST_TILE = 64 * 1024, /* elements; about 30 us of scalar work, 5 us of SIMD: below that a wake-up costs more */
    LARGEST_TILE = 1024 * 1024, /* elements; keeps the last tiles of a large matrix from running alone for long */
    TILES_PER_THREAD = 4
};

static int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static dw_tiling tile_matrix(int64_t rows, int64_t cols, int64_t elements, int64_t least_rows) {
    dw_tiling tiling = {.rows = rows, .cols = cols, .tile_rows = EDGE, .tile_cols = EDGE};
    if (rows == 0 || cols == 0) return tiling;
    /* First as wide as the elements allow, then as many rows as fit: also for kernels that write the transpose, which
     * read whole lines of the source and lose up to half their speed on tall tiles (EPYC 7003, BF16 of 8192 x 16384).
     * What lies beyond the matrix is no work and does not count. */
    int64_t widest = larger(elements / smaller(rows, least_rows) / EDGE, 1) * EDGE;
    tiling.tile_cols = smaller(widest, round_up(cols, EDGE));
    int64_t tallest = larger(elements / smaller(cols, tiling.tile_cols) / least_rows, 1) * least_rows;
    tiling.tile_rows = smaller(tallest, round_up(rows, least_rows));
    tiling.across = (cols + tiling.tile_cols - 1) / tiling.tile_cols;
    tiling.count = tiling.across * ((rows + tiling.tile_rows - 1) / tiling.tile_rows);
    return tiling;
}

dw_tiling dw_fixed_tiling(int64_t rows, int64_t cols, int64_t elements) {
    return tile_matrix(rows, cols, elements, EDGE);
}

dw_tiling dw_choose_tiling(int64_t rows, int64_t cols, bool transposes, int threads) {
    /* Where a tile's part of a row ends, the hardware's prefetcher has asked for what lies beyond: with parts of 8 KiB
     * a tenth of a row kernel's time (EPYC 7003, 2026-11-23). */
    if (!transposes && threads == 1) return tile_matrix(rows, cols, larger(rows * cols, LARGEST_TILE), EDGE);
    int64_t elements = rows * cols / (threads * TILES_PER_THREAD);
    if (threads == 1 || elements > LARGEST_TILE) elements = LARGEST_TILE;
    if (elements < SMALLEST_TILE) elements = SMALLEST_TILE;
    return tile_matrix(rows, cols, elements, transposes ? TALL : EDGE);
}

dw_tile dw_tile_at(const dw_tiling *tiling, int64_t index) {
    int64_t row0 = index / tiling->across * tiling->tile_rows, col0 = index % tiling->across * tiling->tile_cols;
    return (dw_tile){row0, smaller(row0 + tiling->tile_rows, tiling->rows), col0,
                     smaller(col0 + tiling->tile_cols, tiling->cols)};
}
