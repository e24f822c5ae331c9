/* How the drivers cut a matrix into tiles. */
#ifndef DW_CPU_TILING_H
#define DW_CPU_TILING_H

#include "cpu/cpu_kernel.h"

typedef struct dw_tiling {
    int64_t rows, cols;           /* of the matrix */
    int64_t tile_rows, tile_cols; /* multiples of 128 */
    int64_t across;               /* tiles side by side */
    int64_t count;                /* tiles in all; 0 for an empty matrix */
} dw_tiling;

/* A tiling that keeps `threads` threads busy on any shape, and is one tile when the matrix is too small to share.
 * `transposes` is for kernels that write the transpose; the others get whole rows where they can. */
dw_tiling dw_choose_tiling(int64_t rows, int64_t cols, bool transposes, int threads);

/* A tiling by shape alone, in tiles that hold at most `elements` (at least 128 * 128). */
dw_tiling dw_fixed_tiling(int64_t rows, int64_t cols, int64_t elements);

dw_tile dw_tile_at(const dw_tiling *tiling, int64_t index);

#endif
