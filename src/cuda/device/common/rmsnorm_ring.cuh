/* The body of rmsnorm_quantize_ring_*: RMSNorm to both quantized forms from one read of x, rows of more than 4096
 * columns (rmsnorm_quantize.cu says what is computed, rmsnorm_panel.cuh has the plan for narrower ones).
 *
 * Floor: 2 bytes read, 2 written for y and 1 for each form an element; with a residual 4 more.
 *
 * Plan: a cluster of up to 16 thread blocks, one on a multiprocessor, takes panels of 128 whole rows in turn; a block
 * has the same slice of block_tiles tiles in each. Its shared memory is a ring of slots of 32 KiB. A slot is filled
 * again as soon as its tile is written, with what comes DW_CUDA_RING_SLOTS tiles later, so the next panel is on its way
 * while this one is worked on. One group of 256 threads sums up the squares of tiles as they arrive, ahead of the two
 * that take turns in writing tiles, so that these do not wait for the cluster. Shared memory is nearly all slots, so
 * the sums of squares do not go to every block but to the one block that owns the row (a block owns a sixteenth of
 * them, or so), which adds them up and sends 1 / rms to all: two ways through the cluster, no fence, and every run adds
 * up in the same order. Streaming stores: 0.810 of a copy against 0.778 at 8192 x 7168 (H100, 2026-11-23). */
#ifndef DW_DEVICE_RMSNORM_RING_CUH
#define DW_DEVICE_RMSNORM_RING_CUH

#define TILE_GROUPS 3
#define WRITING_GROUPS 2 /* and one that sums up */
#include "common/norm_slot.cuh"

#define RING_SLOTS DW_CUDA_RING_SLOTS

/* After the slots in dynamic shared memory. What there are two of belongs to panels in turn. */
typedef struct ring_shared {
    float partial[2][DW_CUDA_RING_PARTIALS]; /* [block and row owned], from everywhere */
    float rstd[2][TILE];
    uint64_t arrived[RING_SLOTS]; /* a slot's tile */
    uint64_t partials;            /* all of a panel's that this block adds up */
    uint64_t rstds[2];            /* 1 / rms of all rows, and this block's slots summed up */
    uint64_t written[2];          /* this block's tiles of a panel */
} ring_shared;

static_assert(sizeof(ring_shared) <= DW_CUDA_RING_SHARED, "the host sizes shared memory by it");
static_assert(TILE_GROUPS * TILE_THREADS == DW_CUDA_RING_THREADS, "the host launches so many");

/* What a block does in every panel. */
typedef struct ring_plan {
    int cluster, clusters;    /* which of how many: panels cluster, cluster + clusters, ... */
    int tile0, tiles, panels; /* first tile of the slice, its tiles, this cluster's panels */
    int rank, ranks;
    int owner_rows, own; /* rows that a block owns, and this one */
} ring_plan;

DW_DEVICE ring_plan plan_of(const dw_cuda_rmsnorm_panel_params *panel) {
    const dw_cuda_raster *raster = &panel->norm.raster;
    ring_plan r;
    r.rank = (int)cluster_ctarank(), r.ranks = (int)cluster_nctarank();
    r.cluster = (int)blockIdx.x / r.ranks, r.clusters = (int)gridDim.x / r.ranks;
    r.tile0 = r.rank * panel->block_tiles;
    r.tiles = min(panel->block_tiles, raster->tile_cols - r.tile0);
    r.panels = (raster->tile_rows - r.cluster + r.clusters - 1) / r.clusters;
    r.owner_rows = (TILE + r.ranks - 1) / r.ranks;
    r.own = max(0, min(r.owner_rows, TILE - r.rank * r.owner_rows));
    return r;
}

DW_DEVICE uint32_t partial_bytes(const ring_plan *r) {
    return (uint32_t)(r->own * r->ranks * 4);
}

/* Asks for tile number n of all this block works on. One thread; nobody reads or writes the slot any more. */
DW_DEVICE void fill_slot(const dw_cuda_rmsnorm_panel_params *panel, const ring_plan *r, ring_shared *s, uint4 *slots,
                         int n) {
    uint64_t *arrived = &s->arrived[n % RING_SLOTS];
    mbarrier_arrive_expect_tx(arrived, SLOT_BYTES);
    cp_async_bulk_tensor_2d_load(shared_address(slots + n % RING_SLOTS * SLOT_UNITS), &panel->x_map,
                                 (r->tile0 + n % r->tiles) * TILE, (r->cluster + n / r->tiles * r->clusters) * TILE,
                                 shared_address(arrived));
}

/* This half warp's sums of 8 rows to the rows' owners, a row a lane. A block without rows gets nothing. */
DW_DEVICE void send_sums(const float sums[LANE_ROWS], const square_tile_place *at, const ring_plan *r, ring_shared *s,
                         int panel) {
    if (at->lane_unit >= LANE_ROWS) {
        return;
    }
    float mine = sums[0];
#pragma unroll
    for (int i = 1; i < LANE_ROWS; i++) {
        mine = at->lane_unit == i ? sums[i] : mine;
    }
    const int row = at->lane_row + at->lane_unit, owner = row / r->owner_rows;
    st_async_f32(&s->partial[panel % 2][r->rank * r->owner_rows + row - owner * r->owner_rows], &s->partials,
                 (uint32_t)owner, mine);
}

/* The owner's part: a thread for each of its rows and each block that waits for it. The barrier is armed for the next
 * panel after this one's sums are here; sums that come before that are counted all the same. */
DW_DEVICE void send_rstd(const dw_cuda_rmsnorm_params *p, const ring_plan *r, ring_shared *s, int panel, int row0,
                         int thread) {
    const int i = thread % r->owner_rows, to = thread / r->owner_rows;
    if (to >= r->ranks || i >= r->own) {
        return;
    }
    mbarrier_wait_parity(&s->partials, (uint32_t)panel & 1);
    float sum = 0.0f;
    for (int from = 0; from < r->ranks; from++) {
        sum += s->partial[panel % 2][from * r->owner_rows + i];
    }
    const int row = r->rank * r->owner_rows + i;
    const float rstd = row0 + row < p->rows ? rsqrt_approx_f32(fmaf(sum, p->inverse_cols, p->eps)) : 0.0f;
    if (thread == 0 && panel + 1 < r->panels) {
        mbarrier_arrive_expect_tx(&s->partials, partial_bytes(r));
    }
    st_async_f32(&s->rstd[panel % 2][row], &s->rstds[panel % 2], (uint32_t)to, rstd);
    if (to == 0 && row0 + row < p->rows) {
        p->rstd[row0 + row] = rstd;
    }
}

/* Row of x at which panel number `panel` of this cluster begins. */
DW_DEVICE int panel_row(const ring_plan *r, int panel) {
    return (r->cluster + panel * r->clusters) * TILE;
}

/* The summing group, all panels. It may be ahead of the writing groups by what the ring holds, but sends nothing of a
 * panel before
 * - every block has 1 / rms of the panel before: then everybody has added up the sums of the panel before that, whose
 *   place these take;
 * - this block has written the panel two before: then nobody needs that one's 1 / rms, whose place this one's will
 *   take. */
DW_DEVICE void sum_panels(const dw_cuda_rmsnorm_params *p, const ring_plan *r, ring_shared *s, uint4 *slots) {
    const int thread = tile_thread();
#pragma unroll 1
    for (int k = 0, n = 0; k < r->panels; k++) {
        square_tile_place at = place_in_tile(panel_row(r, k), 0, p->rows, p->cols);
        float sums[LANE_ROWS] = {0.0f};
#pragma unroll 1
        for (int i = 0; i < r->tiles; i++, n++) {
            at.col0 = (r->tile0 + i) * TILE;
            mbarrier_wait_parity(&s->arrived[n % RING_SLOTS], (uint32_t)(n / RING_SLOTS) & 1);
            gather_tile(sums, &at, slots + n % RING_SLOTS * SLOT_UNITS, p);
        }
        sum_over_half_warp(sums);
        if (k == 0) {
            barrier_cluster_wait(); /* every block's barriers are ready by now */
        }
        if (k > 0) {
            mbarrier_wait_parity(&s->rstds[(k - 1) % 2], (uint32_t)((k - 1) / 2) & 1);
            if (thread == 0 && k + 1 < r->panels) {
                mbarrier_arrive_expect_tx(&s->rstds[(k + 1) % 2], TILE * 4);
            }
        }
        if (k > 1) {
            mbarrier_wait_parity(&s->written[k % 2], (uint32_t)((k - 2) / 2) & 1);
        }
        __syncwarp();
        if (thread % 32 == 0) {
            mbarrier_arrive(shared_address(&s->rstds[k % 2]));
        }
        if (k + 1 == r->panels) {
            griddepcontrol_launch_dependents();
        }
        send_sums(sums, &at, r, s, k);
        send_rstd(p, r, s, k, panel_row(r, k), thread);
        __syncwarp();
    }
}

DW_DEVICE void write_tile(const dw_cuda_rmsnorm_params *p, square_tile_units *t, const square_tile_place *at,
                          const float *rstd, uint4 *slot, int block) {
    float w[8];
    load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, 1, at->col0 + at->lane_unit * 8, p->cols);
    load_slot(t, at, slot);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = normalized_unit(t->v[i][0], rstd[at->lane_row + i], w);
    }
    forget_unpacked(t, DW_BF16);
    tile_barrier(); /* the slot, now in registers, becomes scratch memory */
    if (p->y != NULL) {
        store_y(t, at, p);
    }
    quantize_square_tile((square_tile_shared *)slot, &p->row, &p->transposed, at, t, p->round_add, true, true,
                         block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3, block);
}

/* A writing group, all panels: every second tile of them. */
DW_DEVICE void write_panels(const dw_cuda_rmsnorm_panel_params *panel, const ring_plan *r, ring_shared *s, uint4 *slots,
                            int group, int block) {
    const dw_cuda_rmsnorm_params *p = &panel->norm;
    const int total = r->panels * r->tiles, thread = tile_thread();
    square_tile_units t;
#pragma unroll 1
    for (int k = 0; k < r->panels; k++) {
        const int begin = k * r->tiles, end = begin + r->tiles;
        square_tile_place at = place_in_tile(panel_row(r, k), 0, p->rows, p->cols);
        mbarrier_wait_parity(&s->rstds[k % 2], (uint32_t)(k / 2) & 1);
#pragma unroll 1
        for (int n = begin + (group + begin) % WRITING_GROUPS; n < end; n += WRITING_GROUPS) {
            uint4 *slot = slots + n % RING_SLOTS * SLOT_UNITS;
            at.col0 = (r->tile0 + n - begin) * TILE;
            write_tile(p, &t, &at, s->rstd[k % 2], slot, block);
            fence_proxy_async();
            tile_barrier();
            if (thread == 0 && n + RING_SLOTS < total) {
                fill_slot(panel, r, s, slots, n + RING_SLOTS);
            }
        }
        if (thread == 0) {
            mbarrier_arrive(shared_address(&s->written[k % 2]));
        }
    }
}

DW_DEVICE void rmsnorm_quantize_ring(const dw_cuda_rmsnorm_panel_params *panel, int block) {
    extern __shared__ __align__(128) uint4 dynamic_shared[];
    ring_shared *s = (ring_shared *)(dynamic_shared + RING_SLOTS * SLOT_UNITS);
    const ring_plan r = plan_of(panel);
    const int group = (int)threadIdx.x / TILE_THREADS, total = r.panels * r.tiles;

    if (threadIdx.x == 0) {
        for (int i = 0; i < RING_SLOTS; i++) {
            mbarrier_init(&s->arrived[i], 1);
        }
        mbarrier_init(&s->partials, 1);
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&s->rstds[i], 1 + TILE_WARPS);
            mbarrier_init(&s->written[i], WRITING_GROUPS);
        }
        fence_mbarrier_init();
        for (int n = 0; n < min(RING_SLOTS, total); n++) {
            fill_slot(panel, &r, s, dynamic_shared, n);
        }
        if (r.own > 0) {
            mbarrier_arrive_expect_tx(&s->partials, partial_bytes(&r));
        }
        for (int k = 0; k < min(r.panels, 2); k++) {
            mbarrier_arrive_expect_tx(&s->rstds[k], TILE * 4);
        }
    }
    __syncthreads();
    barrier_cluster_arrive_relaxed();
    if (group < WRITING_GROUPS) {
        write_panels(panel, &r, s, dynamic_shared, group, block);
    } else {
        sum_panels(&panel->norm, &r, s, dynamic_shared);
    }
}

#define RMSNORM_RING(NAME, BLOCK)                                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_GROUPS *TILE_THREADS, 1)                                         \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_panel_params p) {                                                 \
        griddepcontrol_wait();                                                                                         \
        rmsnorm_quantize_ring(&p, BLOCK);                                                                              \
    }

#endif
