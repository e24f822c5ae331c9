/* Tiles of groups along K, which take as long as their groups are: a part of the kernels of such products.
 *
 * Order: groups come in classes, the longest first, each class half as long as the one before, so that the last tiles
 * are short ones; within a class in their own order. Empty groups have no tiles: adding nothing is nothing to do, and
 * where their results are zeros a warp that has nothing else to do has the copy engine write them, while others
 * multiply.
 *
 * Splitting: where all tiles of the first class are so few that they leave blocks idle, each is in parts along its
 * reduction, which come first of all, the last parts before the first ones: each is some block's first tile. Whoever
 * has a tile's first part finishes it, and the others leave their sums, as of other split tiles.
 *
 * Dealing: a block's first tile is the one that it would have anyway; each further one is drawn from a counter in the
 * workspace, a tile ahead, so that nobody waits for the counter but once, while the first tile's copies are on their
 * way; and late, so that nobody who has a long tile keeps others waiting for the next one. The workspace may hold
 * anything: the counter counts if the launch's ticket lies beside it, and whoever finds another number there sets it
 * up. The last to draw takes the ticket back, so that the launch can be replayed. */
#ifndef DW_DEVICE_SM90_GEMM_DEAL_CUH
#define DW_DEVICE_SM90_GEMM_DEAL_CUH

#include "sm90/copy.cuh"
#include "sm90/gemm_tiles.cuh"

/* Whether empty groups have no tiles: there must be room for the order of all. */
DW_DEVICE bool skips_empty_groups(const dw_gemm_sm90_params *p) {
    return p->groups <= DW_GEMM_ORDERED_GROUPS;
}

/* What part of a block's share of all one row of the reduction is, in one tile: times a group's length, its tile's. */
DW_DEVICE float share_of_row(const dw_gemm_sm90_params *p, int tiles_of_group, int blocks) {
    const float all = (float)p->ends[p->groups - 1] * (float)tiles_of_group;
    return (float)blocks / all;
}

/* The first class takes more than half of a block's share of all, the last but one more than 1/32, the last the rest.
 * Without a workspace, where tiles are not dealt, there is but the last. */
#define ORDER_CLASSES 6

DW_DEVICE int class_of(int length, float share) {
    if (length == 0) return ORDER_CLASSES;
    const int exponent = (int)(__float_as_uint((float)length * share) >> 23) - 127;
    return min(max(-1 - exponent, 0), ORDER_CLASSES - 1);
}

/* By a whole warp: the groups that have tiles, in order, and how many they are. */
DW_DEVICE int order_groups(const dw_gemm_sm90_params *p, uint16_t *order, int tiles_of_group, int blocks) {
    const int lane = threadIdx.x % 32, at_once = 4;
    const float share = p->workspace ? share_of_row(p, tiles_of_group, blocks) : 0.0f;
    int next[ORDER_CLASSES] = {}, total = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) { /* counts the classes, then fills them */
#pragma unroll 1
        for (int first = 0; first < p->groups; first += 32 * at_once) {
            int length[at_once];
#pragma unroll
            for (int i = 0; i < at_once; i++) {
                const int g = first + 32 * i + lane;
                length[i] = g < p->groups ? group_length(p, g) : 0;
            }
#pragma unroll
            for (int i = 0; i < at_once; i++) {
                const int its = class_of(length[i], share);
#pragma unroll
                for (int c = 0; c < ORDER_CLASSES; c++) {
                    const uint32_t members = __ballot_sync(0xFFFFFFFF, its == c);
                    if (pass == 1 && its == c)
                        order[next[c] + __popc(members & ((1u << lane) - 1))] = (uint16_t)(first + 32 * i + lane);
                    next[c] += __popc(members);
                }
            }
        }
        if (pass == 1) break;
#pragma unroll
        for (int c = 0; c < ORDER_CLASSES; c++) {
            const int count = next[c];
            next[c] = total;
            total += count;
        }
    }
    __syncwarp();
    return uniform(total);
}

/* A walk in that order. order: shared memory for DW_GEMM_ORDERED_GROUPS numbers. */
DW_DEVICE void walk_in_order(tile_walk *walk, const dw_gemm_sm90_params *p, uint16_t *order, int blocks) {
    if (!skips_empty_groups(p)) return;
    const int of_group = walk->tiles_m * walk->tiles_n;
    walk->total = order_groups(p, order, of_group, blocks) * of_group;
    walk->order = order;
}

/* ---- splitting ---- */

#define LEAST_SPLIT 4096 /* rows of a group: a part costs about as much as ten stages (gemm_split.h) */
#define MOST_PARTS 8

typedef struct group_split {
    int groups, parts; /* of the first class, which has so many groups; parts 1: none is split */
} group_split;

/* By a whole warp: the one that finds tiles, and the one that says that parts are there, each for itself. */
DW_DEVICE group_split split_of(const dw_gemm_sm90_params *p, int tiles_of_group, int blocks) {
    group_split none = {0, 1};
    if (!p->workspace || !skips_empty_groups(p)) return none;
    const float share = share_of_row(p, tiles_of_group, blocks);
    int count = 0, shortest = INT32_MAX, longest = 0;
    for (int g = threadIdx.x % 32; g < p->groups; g += 32) {
        const int length = group_length(p, g);
        if (class_of(length, share) > 0) continue;
        count++;
        shortest = min(shortest, length);
        longest = max(longest, length);
    }
    count = uniform(__reduce_add_sync(0xFFFFFFFF, count));
    shortest = uniform(__reduce_min_sync(0xFFFFFFFF, shortest));
    longest = uniform(__reduce_max_sync(0xFFFFFFFF, longest));
    if (count == 0 || shortest < LEAST_SPLIT || (int64_t)count * tiles_of_group > blocks / 2) return none;
    const int worth = max((int)(2.0f * (float)longest * share), 2); /* parts of about half a block's share */
    return (group_split){count, min(min(worth, MOST_PARTS), blocks / (count * tiles_of_group))};
}

/* ---- dealing ---- */

/* A warp's way through the tiles of its block. */
typedef struct tile_deal {
    int at, step;     /* the tile in turn; how many blocks there are */
    int drawn;        /* the number drawn for the next tile, in one lane, 0 in the others */
    bool draws;       /* has begun to draw */
    uint64_t *ticket; /* beside the counter; NULL: tiles are not dealt */
} tile_deal;

DW_DEVICE tile_deal deal_start(int block, int blocks, void *workspace) {
    return (tile_deal){block, blocks, 0, false, (uint64_t *)workspace};
}

/* By a whole warp: the counter is this launch's, and counts from 0. */
DW_DEVICE void deal_set_up(const dw_gemm_sm90_params *p, uint64_t *ticket) {
    const uint64_t setting_up = p->ticket - 1; /* tickets are odd */
    for (;;) {
        const uint64_t seen = __shfl_sync(0xFFFFFFFF, ld_acquire_gpu_u64(ticket), 0);
        if (seen == p->ticket) break;
        if (seen != setting_up && elect_one() && atom_cas_acquire_gpu_u64(ticket, seen, setting_up) == seen) {
            *(volatile int *)(ticket + 1) = 0;
            st_release_gpu_u64(ticket, p->ticket);
        }
        __syncwarp();
    }
    __syncwarp(); /* whichever thread draws has seen it */
}

/* By a whole warp: one lane has the next number of the counter once it comes, the others 0. */
DW_DEVICE int deal_draw(uint64_t *ticket) {
    int number = 0;
    if (elect_one()) number = atomicAdd((int *)(ticket + 1), 1);
    return number;
}

/* By a whole warp: on to the block's next tile, of `total`. After the last one there is none to go on to. */
DW_DEVICE void deal_next(tile_deal *d, const dw_gemm_sm90_params *p, int total) {
    if (!d->ticket) {
        d->at += d->step;
        return;
    }
    if (!d->draws) {
        deal_set_up(p, d->ticket);
        d->drawn = deal_draw(d->ticket);
        d->draws = true;
    }
    const int number = uniform(__reduce_add_sync(0xFFFFFFFF, d->drawn));
    d->at = d->step + number;
    if (number == total - 1 && elect_one()) *(volatile uint64_t *)d->ticket = 0;
    if (d->at < total) d->drawn = deal_draw(d->ticket);
}

/* ---- empty groups ---- */

/* By a whole warp, of each block: zeros for the results of empty groups, of group_bytes each. zeros: shared memory of
 * zeros_bytes, the more the better: a copy takes the engine 100 cycles whatever its size, and operands come through the
 * same one. */
DW_DEVICE void clear_empty_groups(const dw_gemm_sm90_params *p, char *zeros, int zeros_bytes, int64_t group_bytes) {
    if (p->accumulate || !skips_empty_groups(p)) return;
    const int lane = threadIdx.x % 32;
    for (int i = lane; i < zeros_bytes / 16; i += 32)
        ((uint4 *)zeros)[i] = make_uint4(0, 0, 0, 0);
    fence_proxy_async();
    __syncwarp();
    for (int first = 0; first < p->groups; first += 32) {
        const int g = first + lane;
        const bool empty = g < p->groups && group_length(p, g) == 0;
        for (uint32_t left = __ballot_sync(0xFFFFFFFF, empty); left; left &= left - 1) {
            char *to = (char *)p->out + (first + __ffs(left) - 1) * group_bytes;
            for (int64_t at = (int64_t)blockIdx.x * zeros_bytes; at < group_bytes;
                 at += (int64_t)gridDim.x * zeros_bytes) {
                if (!elect_one()) continue;
                const int64_t rest = group_bytes - at;
                cp_async_bulk_global_shared(to + at, zeros, (uint32_t)(rest < zeros_bytes ? rest : zeros_bytes));
                cp_async_bulk_commit_group();
                cp_async_bulk_wait_group(7);
            }
        }
    }
    if (elect_one()) cp_async_bulk_wait_group_read(0);
    __syncwarp();
}

#endif
