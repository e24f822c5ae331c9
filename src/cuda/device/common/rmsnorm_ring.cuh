/* The body of rmsnorm_quantize_ring_*: RMSNorm to both quantized forms from one read of x, rows of more than 4096
 * columns (rmsnorm_quantize.cu says what is computed, rmsnorm_panel.cuh has the plan for narrower ones).
 *
 * Floor: 2 bytes read, 2 written for y and 1 for each form an element; with a residual 4 more.
 *
 * Plan: a cluster of 16 thread blocks, one on a multiprocessor, takes panels of 128 whole rows in turn; a block has a
 * slice of each. Its shared memory is a ring of slots of 32 KiB. A slot is filled again, with what comes
 * DW_CUDA_RING_SLOTS tiles later, as soon as its tile is in registers, where it is for all the time that it takes to
 * write it; so the next panel is on its way while this one is worked on. One group of 256 threads sums up the squares
 * of tiles as they arrive, ahead of the two that take turns in writing tiles, and lists for these what to write and
 * what to ask for: between two tiles they have no time for divisions. A writing group takes its next tile when it has
 * been summed up, whether 1 / rms is known or not. Shared memory is nearly all slots: transposed bytes go through a
 * quarter of a slot, one half of a tile after the other, and the sums of squares do not go to every block but to the
 * one block that owns the row (a block owns a sixteenth of them), which adds them up and sends 1 / rms to all: two ways
 * through the cluster, no fence, and every run adds up in the same order. Where a slice is more than the ring holds,
 * its last tile is summed up from memory, first of all, and comes to its slot later. Panels that do not come out even
 * for the clusters are read by several, each of which writes a part.
 * What was measured is in docs/measured-facts.md. */
#ifndef DW_DEVICE_RMSNORM_RING_CUH
#define DW_DEVICE_RMSNORM_RING_CUH

#define TILE_GROUPS 3
#define TILE_PARTS 2
#define WRITING_GROUPS 2 /* and one that sums up */
#include "common/norm_slot.cuh"

#define RING_SLOTS DW_CUDA_RING_SLOTS

/* Slices of panels in turn: where the columns do not come out even, a block has one tile more in every second panel. */
typedef struct ring_slice {
    int tile0, tiles; /* the first, and how many */
} ring_slice;

/* What a block does. In shared memory, for the sake of registers. */
typedef struct ring_plan {
    int cluster, clusters; /* which of how many: panels cluster, cluster + clusters, ... */
    int panels;            /* this cluster's */
    ring_slice slice[2];   /* of its panels of even and of odd number */
    bool from_memory;      /* the last tile of a slice is summed up from memory, before the others */
    int rank, ranks;
    int owner_rows, own;    /* rows that a block owns, and this one */
    int whole, part, parts; /* how many panels this cluster has alone; which of how many parts of its last it writes */
} ring_plan;

/* What a writing group needs to know of a tile, and what to copy into its slot when it is in registers. */
typedef struct __align__(16) ring_work {
    int number, col0;         /* of all tiles this block works on */
    int next_col0, next_row0; /* -1: nothing */
} ring_work;

#define WORK_PANELS 4 /* being written, being summed up, and those between */
#define WORK_ITEMS 32 /* as many as they have, or more */

/* After the slots in dynamic shared memory. What there are two of belongs to panels in turn. */
typedef struct ring_shared {
    float partial[2][DW_CUDA_RING_PARTIALS]; /* [block and row owned], from everywhere */
    float rstd[2][TILE];
    uint64_t arrived[RING_SLOTS]; /* a slot's tile */
    uint64_t summed[RING_SLOTS];  /* it has been summed up in its slot */
    uint64_t empty[RING_SLOTS];   /* it is in registers, and nobody uses its slot any more */
    uint64_t partials;            /* all of a panel's that this block adds up */
    uint64_t rstds[2];            /* 1 / rms of all rows, and this block's slots summed up */
    uint64_t written[2];          /* this block's tiles of a panel */
    ring_plan plan;
    ring_work work[WORK_ITEMS]; /* number n of all at n % WORK_ITEMS */
    int work_end[WORK_PANELS];  /* of a panel */
    uint32_t warps_done[WRITING_GROUPS];
    alignas(16) square_tile_shared scratch[WRITING_GROUPS];
} ring_shared;

static_assert(sizeof(ring_shared) <= DW_CUDA_RING_SHARED, "the host sizes shared memory by it");
static_assert(TILE_GROUPS * TILE_THREADS == DW_CUDA_RING_THREADS, "the host launches so many");

/* Whether a panel may be read by several clusters: not where one's h takes the place of what another has yet to read.
 */
DW_DEVICE bool may_share(const dw_cuda_rmsnorm_params *p) {
    return p->h != p->x && (p->residual == NULL || p->h != p->residual);
}

/* How many of `clusters` clusters share a panel. Where a slice is more than the ring holds, such a number that a slot's
 * tiles are all the same cluster's to write. */
DW_DEVICE int parts_of(int clusters, int tiles) {
    static_assert(RING_SLOTS == 6, "its divisors");
    return tiles <= RING_SLOTS ? clusters : clusters >= 6 ? 6 : clusters >= 3 ? 3 : clusters;
}

DW_DEVICE ring_plan plan_of(const dw_cuda_rmsnorm_panel_params *panel) {
    const dw_cuda_raster *raster = &panel->norm.raster;
    ring_plan r;
    r.rank = (int)cluster_ctarank(), r.ranks = (int)cluster_nctarank();
    r.cluster = (int)blockIdx.x / r.ranks, r.clusters = (int)gridDim.x / r.ranks;
    for (int odd = 0; odd < 2; odd++) {
        const int offset = odd * (r.ranks / 2), begin = r.rank * raster->tile_cols + offset;
        ring_slice *slice = &r.slice[odd];
        slice->tile0 = begin / r.ranks;
        slice->tiles = (begin + raster->tile_cols) / r.ranks - slice->tile0;
    }
    const int own_most = max(r.slice[0].tiles, r.slice[1].tiles);
    const bool whole_units = panel->norm.residual == NULL && panel->norm.cols % 8 == 0;
    r.from_memory = whole_units && own_most > RING_SLOTS;
    r.whole = raster->tile_rows / r.clusters;
    /* What the blocks of a cluster must agree on follows from the largest slice of them all. */
    const int left = raster->tile_rows - r.whole * r.clusters, most = (raster->tile_cols + r.ranks - 1) / r.ranks;
    const bool fits = whole_units || most <= RING_SLOTS; /* else a tile must be written before the last has room */
    r.parts = left > 0 && fits && may_share(&panel->norm) ? parts_of(r.clusters / left, most) : 1;
    r.part = r.cluster % r.parts;
    r.panels = r.whole + (r.cluster / r.parts < left);
    r.owner_rows = (TILE + r.ranks - 1) / r.ranks;
    r.own = max(0, min(r.owner_rows, TILE - r.rank * r.owner_rows));
    return r;
}

/* How many tiles this block has in the panels before number `panel`. */
DW_DEVICE int tiles_before(const ring_plan *r, int panel) {
    return panel / 2 * (r->slice[0].tiles + r->slice[1].tiles) + panel % 2 * r->slice[0].tiles;
}

/* Row of x at which panel number `panel` of this cluster begins. */
DW_DEVICE int panel_row(const ring_plan *r, int panel) {
    return (panel < r->whole ? r->cluster + panel * r->clusters : r->whole * r->clusters + r->cluster / r->parts) *
           TILE;
}

/* Whether this cluster is the one that writes what there is one of for each row. */
DW_DEVICE bool writes_rows(const ring_plan *r, int panel) {
    return panel < r->whole || r->part == 0;
}

DW_DEVICE uint32_t partial_bytes(const ring_plan *r) {
    return (uint32_t)(r->own * r->ranks * 4);
}

/* Where tile number n of all this block works on begins. */
DW_DEVICE void find_tile(const ring_plan *r, int n, int *row0, int *col0) {
    const int even = r->slice[0].tiles, both = even + r->slice[1].tiles, within = n % both, odd = within >= even;
    *row0 = panel_row(r, n / both * 2 + odd);
    *col0 = (r->slice[odd].tile0 + within - odd * even) * TILE;
}

/* Whether tile number n, at a column, is needed in a slot: not where it is summed up from memory and another cluster's
 * to write. Nobody would wait for it, and its copy might arrive after this block is gone. */
DW_DEVICE bool needs_slot(const ring_plan *r, int n, int col0) {
    return r->panels == r->whole || !r->from_memory || n < tiles_before(r, r->panels) - 1 ||
           col0 / TILE % r->parts == r->part;
}

/* Asks for a tile. One thread; nobody uses the slot any more. */
DW_DEVICE void fill_slot(const dw_cuda_rmsnorm_panel_params *panel, ring_shared *s, uint4 *slots, int slot, int row0,
                         int col0) {
    mbarrier_arrive_expect_tx(&s->arrived[slot], SLOT_BYTES);
    cp_async_bulk_tensor_2d_load(shared_address(slots + slot * SLOT_UNITS), &panel->x_map, col0, row0,
                                 shared_address(&s->arrived[slot]));
}

/* Until this block has written its tiles of a panel. */
DW_DEVICE void wait_until_written(ring_shared *s, int panel) {
    if (panel >= 0) {
        mbarrier_wait_parity(&s->written[panel % 2], (uint32_t)(panel / 2) & 1);
    }
}

/* What is to be written of a panel: a thread for each tile of the slice, by the summing group. */
DW_DEVICE void list_work(const ring_plan *r, ring_shared *s, int panel, int i) {
    const ring_slice *slice = &r->slice[panel % 2];
    const bool whole = panel < r->whole;
    const int parts = whole ? 1 : r->parts, part = whole ? 0 : r->part;
    const int first = (part + parts - slice->tile0 % parts) % parts, before = tiles_before(r, panel);
    if (i == 0) {
        s->work_end[panel % WORK_PANELS] = before + (slice->tiles + parts - 1 - first) / parts;
    }
    if (i < slice->tiles && i % parts == first) {
        const int n = before + i, next = n + RING_SLOTS;
        ring_work work = {n, (slice->tile0 + i) * TILE, -1, -1};
        if (next < tiles_before(r, r->panels)) {
            find_tile(r, next, &work.next_row0, &work.next_col0);
            work.next_row0 = needs_slot(r, next, work.next_col0) ? work.next_row0 : -1;
        }
        s->work[(before + i / parts) % WORK_ITEMS] = work;
    }
}

/* The summing group: until tile number n is in its slot. It does not wait for tiles that it sums up from memory, and a
 * barrier's parity does not tell a phase from the one before the last: so first until the slot's tile before is in
 * registers, as the one before that must be, since a slot's tiles are the same writing group's. */
DW_DEVICE void wait_for_tile(ring_shared *s, int n) {
    const int round = n / RING_SLOTS, slot = n % RING_SLOTS;
    if (round > 0) {
        mbarrier_wait_parity(&s->empty[slot], (uint32_t)(round - 1) & 1);
    }
    mbarrier_wait_parity(&s->arrived[slot], (uint32_t)round & 1);
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
    if (to == 0 && writes_rows(r, panel) && row0 + row < p->rows) {
        p->rstd[row0 + row] = rstd;
    }
}

/* The squares of a tile of x onto the sums, from memory; whole units. */
DW_DEVICE void gather_from_memory(float sums[LANE_ROWS], const square_tile_place *at, const dw_cuda_rmsnorm_params *p) {
    const uint16_t *from = (const uint16_t *)p->x + (at->row0 + at->lane_row) * p->x_ld + at->col0 + at->lane_unit * 8;
    uint4 v[LANE_ROWS];
    const uint64_t kept = createpolicy_l2_evict_last();
    const int rows = at->col0 + at->lane_unit * 8 < at->cols ? at->rows - at->row0 - at->lane_row : 0;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        v[i] = make_uint4(0, 0, 0, 0);
        if (i < rows) {
            v[i] = ld_global_no_allocate_l2_hint_v4(from + i * p->x_ld, kept);
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        sums[i] = sum_of_squares(v[i], sums[i]);
    }
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
    for (int k = 0; k < r->panels; k++) {
        const ring_slice *slice = &r->slice[k % 2];
        square_tile_place at = place_in_tile(panel_row(r, k), 0, p->rows, p->cols);
        float sums[LANE_ROWS] = {0.0f};
        list_work(r, s, k, thread);
#pragma unroll 1
        for (int j = 0; j < slice->tiles; j++) {
            const bool from_memory = r->from_memory && j == 0;
            const int i = from_memory ? slice->tiles - 1 : j - r->from_memory, n = tiles_before(r, k) + i;
            at.col0 = (slice->tile0 + i) * TILE;
            if (from_memory) {
                gather_from_memory(sums, &at, p);
            } else {
                wait_for_tile(s, n);
                gather_tile(sums, &at, slots + n % RING_SLOTS * SLOT_UNITS, p, writes_rows(r, k));
                __syncwarp();
                if (thread % 32 == 0) {
                    mbarrier_arrive(shared_address(&s->summed[n % RING_SLOTS]));
                }
            }
        }
        sum_over_half_warp(sums);
        wait_until_written(s, k - 2);
        if (k == 0) {
            barrier_cluster_wait(); /* every block's barriers are ready by now */
        }
        if (k > 0) {
            mbarrier_wait_parity(&s->rstds[(k - 1) % 2], (uint32_t)((k - 1) / 2) & 1);
            if (thread == 0 && k + 1 < r->panels) {
                mbarrier_arrive_expect_tx(&s->rstds[(k + 1) % 2], TILE * 4);
            }
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

/* A tile in registers, to memory. */
DW_DEVICE void write_tile(const dw_cuda_rmsnorm_params *p, square_tile_units *t, const square_tile_place *at,
                          const float *rstd, square_tile_shared *scratch, int block) {
    float w[8];
    load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, 1, at->col0 + at->lane_unit * 8, p->cols);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        t->v[i][0] = normalized_unit(t->v[i][0], rstd[at->lane_row + i], w);
    }
    forget_unpacked(t, DW_BF16);
    if (p->y != NULL) {
        store_y(t, at, p);
    }
    quantize_square_tile(scratch, &p->row, &p->transposed, at, t, p->round_add, true, true,
                         block == DW_BLOCK_1X128 && p->transposed.square, DW_BF16, DW_E4M3, block);
}

/* A warp of a writing group: whether the others were done with the tile before it. */
DW_DEVICE bool last_of_group(ring_shared *s) {
    return atom_add_acq_rel_shared(&s->warps_done[threadIdx.x / TILE_THREADS], 1) % TILE_WARPS == TILE_WARPS - 1;
}

/* A writing group, all panels. Of a panel that is its cluster's alone it takes its first tile before 1 / rms is known:
 * that makes room for another. There tile n is number n of what is written, and as the number of slots is even, a
 * slot's tiles are always the same group's, which therefore sees every phase of the slot's barrier. */
DW_DEVICE void write_panels(const dw_cuda_rmsnorm_panel_params *panel, const ring_plan *r, ring_shared *s, uint4 *slots,
                            int group, int block) {
    const dw_cuda_rmsnorm_params *p = &panel->norm;
    square_tile_units t;
    int n = group; /* of what is written */
#pragma unroll 1
    for (int k = 0; k < r->panels; k++) {
        const bool shared = k >= r->whole && r->parts > 1;
        if (shared) {
            mbarrier_wait_parity(&s->rstds[k % 2], (uint32_t)(k / 2) & 1);
        }
        const int end = shared ? s->work_end[k % WORK_PANELS] : tiles_before(r, k + 1);
#pragma unroll 1
        for (; n < end; n += WRITING_GROUPS) {
            const ring_work *work = &s->work[n % WORK_ITEMS];
            const int number = shared ? work->number : n, slot = number % RING_SLOTS;
            const bool unsummed = !shared && r->from_memory && n == end - 1;
            mbarrier_wait_parity(shared || unsummed ? &s->arrived[slot] : &s->summed[slot],
                                 (uint32_t)(number / RING_SLOTS) & 1);
            const square_tile_place lane = place_in_tile(0, 0, 0, 0); /* where the tile lies matters later */
            load_slot(&t, &lane, slots + slot * SLOT_UNITS);
            fence_proxy_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                if (unsummed) {
                    mbarrier_arrive(shared_address(&s->summed[slot]));
                }
                if (last_of_group(s)) {
                    if (work->next_row0 >= 0) {
                        fill_slot(panel, s, slots, slot, work->next_row0, work->next_col0);
                    }
                    mbarrier_arrive(shared_address(&s->empty[slot]));
                }
            }
            asm volatile("" : "+r"(n), "+r"(k)); /* else what was made of them is kept meanwhile, a register too many */
            mbarrier_wait_parity(&s->rstds[k % 2], (uint32_t)(k / 2) & 1);
            const square_tile_place at = place_in_tile(panel_row(r, k), s->work[n % WORK_ITEMS].col0, p->rows, p->cols);
            write_tile(p, &t, &at, s->rstd[k % 2], &s->scratch[group], block);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive(shared_address(&s->written[k % 2]));
        }
    }
}

DW_DEVICE void rmsnorm_quantize_ring(const dw_cuda_rmsnorm_panel_params *panel, int block) {
    extern __shared__ __align__(128) uint4 dynamic_shared[];
    ring_shared *s = (ring_shared *)(dynamic_shared + RING_SLOTS * SLOT_UNITS);
    const ring_plan *r = &s->plan;
    const int group = (int)threadIdx.x / TILE_THREADS;

    if (threadIdx.x == 0) {
        s->plan = plan_of(panel);
        for (int i = 0; i < RING_SLOTS; i++) {
            mbarrier_init(&s->arrived[i], 1);
            mbarrier_init(&s->summed[i], TILE_WARPS);
            mbarrier_init(&s->empty[i], 1);
        }
        mbarrier_init(&s->partials, 1);
        s->warps_done[0] = s->warps_done[1] = 0;
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&s->rstds[i], 1 + TILE_WARPS);
            mbarrier_init(&s->written[i], WRITING_GROUPS * TILE_WARPS);
        }
        fence_mbarrier_init();
        for (int n = 0; n < min(RING_SLOTS, tiles_before(r, r->panels)); n++) {
            int row0, col0;
            find_tile(r, n, &row0, &col0);
            if (needs_slot(r, n, col0)) {
                fill_slot(panel, s, dynamic_shared, n, row0, col0);
            }
        }
        if (r->own > 0) {
            mbarrier_arrive_expect_tx(&s->partials, partial_bytes(r));
        }
        for (int k = 0; k < min(r->panels, 2); k++) {
            mbarrier_arrive_expect_tx(&s->rstds[k], TILE * 4);
        }
    }
    __syncthreads();
    barrier_cluster_arrive_relaxed();
    if (group < WRITING_GROUPS) {
        write_panels(panel, r, s, dynamic_shared, group, block);
    } else {
        sum_panels(&panel->norm, r, s, dynamic_shared);
    }
}

#define RMSNORM_RING(NAME, BLOCK)                                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_GROUPS *TILE_THREADS, 1)                                         \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_panel_params p) {                                                 \
        griddepcontrol_wait();                                                                                         \
        rmsnorm_quantize_ring(&p, BLOCK);                                                                              \
    }

#endif
