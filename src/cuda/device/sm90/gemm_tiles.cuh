/* Which tile of D comes next, and what of A and B it is made from: dense products and the two grouped ones. */
#ifndef DW_DEVICE_SM90_GEMM_TILES_CUH
#define DW_DEVICE_SM90_GEMM_TILES_CUH

#include "common/ptx.cuh"
#include "sm90/gemm_params.h"
#include "sm90/gemm_split.h"

#define GROUPED_M 1 /* rows of A in groups, each with its own B */
#define GROUPED_K 2 /* the reduction in groups, each with its own D */

/* Where a block is in its walk over the tiles. Tiles are numbered group by group. */
typedef struct tile_walk {
    int total;             /* tiles of a cluster, of all groups */
    int tiles_n;           /* columns of tiles */
    int tiles_m;           /* rows of tiles of the current group */
    int group;             /* the current one */
    int group_first;       /* its first tile */
    int begin, end;        /* its extent along M or K */
    int span_m, span_n;    /* a cluster's tile */
    const uint16_t *order; /* along K: the groups that have tiles, in order (gemm_deal.cuh); NULL: all */
    int split, parts;      /* along K: of the first `split` groups each has so many parts, one behind the other */
} tile_walk;

typedef struct tile_work {
    int a_row, b_row; /* of the copies */
    int row, row_end; /* rows of D, the end being the group's */
    int column;
    int k_block, k_blocks; /* the first, as scales count them, and how many */
    int group;
    int parts; /* how many other blocks have parts of it; PARTS_LEAVE: this is such a part, and the first is another's
                */
} tile_work;

#define PARTS_LEAVE 32 /* more than there ever are (gemm_split.h) */
#define TILE_SLOT_BYTES 16

/* What the multiplying warps are told of a tile. */
typedef struct __align__(16) tile_slot {
    int row, column, row_end; /* of D */
    int work;                 /* slot_work's; -1: there are no more tiles */
} tile_slot;

/* k_blocks and parts of a tile in one number. */
DW_DEVICE int slot_work(int k_blocks, int parts) {
    return k_blocks | parts << 25;
}

DW_DEVICE int slot_k_blocks(int work) {
    return work & 0x1FFFFFF;
}

DW_DEVICE int slot_parts(int work) {
    return work >> 25 & 31;
}

/* One block has all of its reduction. */
DW_DEVICE bool slot_is_whole(int work) {
    return work >> 25 == 0;
}

DW_DEVICE bool slot_leaves(int work) {
    return work >> 30;
}

/* The compiler takes what comes out of a shuffle for the same in all threads of a warp, which lets it keep what depends
 * on it in uniform registers: the descriptors of the products, above all. */
DW_DEVICE int uniform(int value) {
    return __shfl_sync(0xFFFFFFFF, value, 0);
}

/* A group's extent along M or K. */
DW_DEVICE int group_length(const dw_gemm_sm90_params *p, int group) {
    return p->ends[group] - (group > 0 ? p->ends[group - 1] : 0);
}

DW_DEVICE int group_tiles_m(const tile_walk *walk, const dw_gemm_sm90_params *p, int grouped) {
    int rows = grouped == GROUPED_M ? walk->end - walk->begin : p->m;
    return (rows + walk->span_m - 1) / walk->span_m;
}

/* By a whole warp, like what follows. */
DW_DEVICE void walk_start(tile_walk *walk, const dw_gemm_sm90_params *p, int grouped, int span_m, int span_n) {
    walk->span_m = span_m;
    walk->span_n = span_n;
    walk->tiles_n = (p->n + span_n - 1) / span_n;
    walk->group = 0;
    walk->group_first = 0;
    walk->begin = 0;
    walk->end = grouped ? uniform(p->ends[0]) : p->m;
    walk->tiles_m = group_tiles_m(walk, p, grouped);
    int rows_of_tiles = walk->tiles_m;
    if (grouped == GROUPED_K) {
        rows_of_tiles *= p->groups;
        walk->order = NULL;
        walk->split = 0;
        walk->parts = 1;
        walk->group = -1; /* not yet */
    }
    if (grouped == GROUPED_M) {
        int rows = 0; /* of tiles, in the groups that this lane counts */
        for (int g = threadIdx.x % 32; g < p->groups; g += 32)
            rows += (group_length(p, g) + span_m - 1) / span_m;
        rows_of_tiles = uniform(__reduce_add_sync(0xFFFFFFFF, rows));
    }
    walk->total = rows_of_tiles * walk->tiles_n;
}

/* Tile number `at`, which along M never decreases from call to call. Within a group the tiles go down `band` rows of
 * tiles, then to the next column, so that those in work at one time are about square and share what they read through
 * the L2 cache. */
DW_DEVICE void walk_to(tile_walk *walk, const dw_gemm_sm90_params *p, int grouped, int at, int m_offset, int n_offset,
                       int block_k, tile_work *work) {
    if (grouped == GROUPED_K) {
        const int of_group = walk->tiles_m * walk->tiles_n, place = at / of_group;
        if (walk->group < 0 || place * of_group != walk->group_first) {
            walk->group_first = place * of_group;
            const int repeated = (walk->parts - 1) * walk->split;
            const int nth = place >= repeated ? place - repeated : place % walk->split;
            walk->group = walk->order ? walk->order[nth] : nth;
            walk->begin = walk->group > 0 ? uniform(p->ends[walk->group - 1]) : 0;
            walk->end = uniform(p->ends[walk->group]);
        }
    }
    if (grouped == GROUPED_M)
        while (at >= walk->group_first + walk->tiles_m * walk->tiles_n) {
            walk->group_first += walk->tiles_m * walk->tiles_n;
            walk->group++;
            walk->begin = walk->end;
            walk->end = uniform(p->ends[walk->group]);
            walk->tiles_m = group_tiles_m(walk, p, grouped);
        }
    int index = at - walk->group_first;
    int per_band = p->band * walk->tiles_n;
    int band = index / per_band, within = index - band * per_band;
    int top = band * p->band, height = min(p->band, walk->tiles_m - top);
    int tile_n = within / height, tile_m = top + (within - tile_n * height);

    int row = tile_m * walk->span_m + m_offset;
    work->column = tile_n * walk->span_n + n_offset;
    work->group = walk->group;
    work->a_row = work->row = row;
    work->row_end = p->m;
    work->b_row = work->column;
    work->k_block = 0;
    work->k_blocks = (p->k + block_k - 1) / block_k;
    if (grouped == GROUPED_M) {
        work->a_row = work->row = row + walk->begin;
        work->row_end = walk->end;
        work->b_row += walk->group * p->n;
    }
    if (grouped == GROUPED_K) {
        work->row = row + walk->group * p->m;
        work->row_end = (walk->group + 1) * p->m;
        work->k_block = walk->begin / block_k;
        work->k_blocks = (walk->end - walk->begin + block_k - 1) / block_k;
    }
}

#endif
