/* Tiles dealt to blocks as they need them, for groups along K, whose tiles take as long as their groups are: a part of
 * the kernels of products, for their copying warps.
 *
 * A block's first two tiles are the two that it would have anyway; each further one is drawn, a tile ahead, from a
 * counter in the workspace, so that nobody waits for the counter but once, while the first tile's copies are on their
 * way. The workspace may hold anything: the counter counts if the launch's ticket lies beside it, and whoever finds
 * another number there sets it up. The last to draw takes the ticket back, so that the launch can be replayed. */
#ifndef DW_DEVICE_SM90_GEMM_DEAL_CUH
#define DW_DEVICE_SM90_GEMM_DEAL_CUH

#include "sm90/gemm_tiles.cuh"

/* A warp's way through the tiles of its block. */
typedef struct tile_deal {
    int at, step; /* the tile in turn; how many blocks there are */
    int drawn;    /* the number drawn for the next tile but one, in one lane, 0 in the others */
    bool draws;   /* from the next tile on */
} tile_deal;

DW_DEVICE tile_deal deal_start(int block, int blocks) {
    return (tile_deal){block, blocks, 0, false};
}

/* By a whole warp: the counter is this launch's, and counts from 0. */
DW_DEVICE void deal_set_up(const dw_gemm_sm90_params *p) {
    uint64_t *ticket = (uint64_t *)p->workspace;
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

/* By a whole warp: on to the block's next tile, of `total`. After the last one there is none to go on to. */
DW_DEVICE void deal_next(tile_deal *d, const dw_gemm_sm90_params *p, int total) {
    uint64_t *ticket = (uint64_t *)p->workspace;
    if (!d->draws) {
        d->at += d->step;
    } else {
        const int number = uniform(__reduce_add_sync(0xFFFFFFFF, d->drawn));
        d->at = 2 * d->step + number;
        if (number == total - d->step - 1 && elect_one()) *(volatile uint64_t *)ticket = 0;
    }
    if (!p->workspace || d->at >= total) return;
    if (!d->draws) deal_set_up(p);
    d->draws = true;
    d->drawn = 0;
    if (elect_one()) d->drawn = atomicAdd((int *)(ticket + 1), 1);
}

#endif
