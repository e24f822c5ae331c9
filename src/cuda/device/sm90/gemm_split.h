/* How the block-scaled matrix kernels share out tiles that do not fill a wave: used by the kernels, and by the host to
 * choose between them. */
#ifndef DW_DEVICE_SM90_GEMM_SPLIT_H
#define DW_DEVICE_SM90_GEMM_SPLIT_H

#include <stdint.h>

#ifdef __CUDACC__
#define DW_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define DW_HOST_DEVICE static inline
#endif

/* A part of a tile has at least so many stages (of 128 steps of the reduction). A tile then has no more than eight
 * parts. */
#define DW_GEMM_LEAST_PART 6

/* Workspace of a block: the FP32 sums of its part of a split tile, and the ticket that says that they are there. All
 * blocks' sums come first, then all tickets. */
#define DW_GEMM_PART_BYTES(tile_m, tile_n) ((tile_m) * (tile_n) * 4 + 8)

/* How many of `tiles` with `k_blocks` stages each stay whole, where so many `workers` (blocks or pairs) walk over them.
 * The rest, what does not fill a wave and sometimes a wave more, is shared out evenly, which splits tiles along the
 * reduction. A part costs a worker about as much as ten stages: its sums are written, read and added up, and workers at
 * different places of the reduction share less in the L2 cache. The latter is worse the longer the reduction, but
 * little worse where few tiles are left over, each of which would be in many parts without the wave more. Measured on
 * H200s, docs/measured-facts.md. Shares are found in 32 bits: enough for two waves of 65535 stages on 181
 * multiprocessors, and Hopper has 144 at most. */
DW_HOST_DEVICE int dw_gemm_whole_tiles(int tiles, int workers, int k_blocks) {
    const int over = tiles % workers;
    if (over == 0 || tiles < workers || k_blocks < 2 * DW_GEMM_LEAST_PART || k_blocks > 65535) return tiles;
    if ((float)(workers - over) * (float)k_blocks < 10.0f * (float)workers) return tiles;
    return tiles - over - (over < workers / 4 || k_blocks <= 32 ? workers : 0);
}

/* A worker's share: stages of the split tiles, which are laid end to end. */
typedef struct dw_gemm_share {
    int whole;   /* tiles that are not split: the first ones */
    int at, end; /* the share, counted in stages after those tiles */
    int parts;   /* how many workers after this one have parts of the tile that the share ends in */
} dw_gemm_share;

/* Where a worker's share begins: not within a few stages of where a tile does. */
DW_HOST_DEVICE int dw_gemm_share_begin(int stages, int k_blocks, int worker, int workers) {
    const int at = (int)((uint32_t)stages * (uint32_t)worker / (uint32_t)workers), within = at % k_blocks;
    if (within < DW_GEMM_LEAST_PART) return at - within;
    if (within > k_blocks - DW_GEMM_LEAST_PART) return at - within + k_blocks;
    return at;
}

/* With `split` 0 no tile is split. At most one of a worker's parts is not the first of its tile, since only its share's
 * beginning can lie within one. */
DW_HOST_DEVICE dw_gemm_share dw_gemm_share_of(int worker, int workers, int tiles, int k_blocks, int split) {
    dw_gemm_share share = {split ? dw_gemm_whole_tiles(tiles, workers, k_blocks) : tiles, 0, 0, 0};
    if (share.whole == tiles) return share;
    const int stages = (tiles - share.whole) * k_blocks;
    if (workers > stages / DW_GEMM_LEAST_PART) workers = stages / DW_GEMM_LEAST_PART;
    if (worker >= workers) return share;
    share.at = dw_gemm_share_begin(stages, k_blocks, worker, workers);
    share.end = dw_gemm_share_begin(stages, k_blocks, worker + 1, workers);
    const int tile_end = (share.end + k_blocks - 1) / k_blocks * k_blocks;
    int next = worker + 1;
    while (dw_gemm_share_begin(stages, k_blocks, next, workers) < tile_end)
        next++;
    share.parts = next - worker - 1;
    return share;
}

#endif
