/* The copying warps: a part of gemm_block_scaled.cuh, whose parameters, sizes and places it takes. One brings A, B and
 * the scales of vectors, stage by stage, and the parts of split tiles; where B has square blocks a second one brings
 * their scales; each finds the block's tiles by itself, but of groups along K the first one finds them and tells the
 * other. */
#ifndef DW_DEVICE_SM90_GEMM_COPY_CUH
#define DW_DEVICE_SM90_GEMM_COPY_CUH

/* One warp: the 1x128 scales of the stages from kb on, as many as a batch has. What lies beyond the reduction or the
 * matrix belongs to products of zeros or to results that are not kept. */
DW_DEVICE void copy_vector_scales(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int kb,
                                  turn_place *place) {
    uint64_t *full = scales_full(shared, place);
    mbarrier_wait_parity(scales_empty(shared, place), place->phase ^ 1);
    if (elect_one()) {
        const uint32_t to = shared_address(batch_scales(shared, place));
        mbarrier_arrive_expect_tx(full, A_SCALE_BYTES + (B_VECTOR ? B_SCALE_BYTES : 0));
#pragma unroll
        for (int i = 0; i < A_SCALE_PARTS; i++)
            cp_async_bulk_tensor_2d_load(to + i * (A_SCALE_BYTES / A_SCALE_PARTS), &p->a_scale_map,
                                         work->a_row - scale_offset(work->a_row) + i * (TILE_M / A_SCALE_PARTS),
                                         work->k_block + kb, shared_address(full));
        if (B_VECTOR)
            cp_async_bulk_tensor_2d_load(to + A_SCALE_BYTES, &p->b_scale_map, work->b_row, work->k_block + kb,
                                         shared_address(full));
    }
    turn_advance(place);
}

/* One warp, of which one thread issues copies: A, B and the 1x128 scales of a tile's stages from `from` up to `to`.
 * `opens`: which tile it is travels with the first ones. */
DW_DEVICE void copy_stages(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int rank, int from,
                           int to, bool opens, ring_place *place, turn_place *batch) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    const int a_bytes = A_BOX_FITS ? min(TILE_M, p->m) * BLOCK_K : A_BYTES;
    const tile_slot slot = {work->row, work->column, work->row_end, slot_work(work->k_blocks, work->parts)};
    for (int kb = from; kb < to; kb++, ring_advance(place, 1)) {
        if (kb % SCALE_BATCH == 0 && kb < work->k_blocks) copy_vector_scales(p, shared, work, kb, batch);
        mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
        if (!elect_one()) continue;
        if (opens && kb < K_SPLIT) *(tile_slot *)(shared + SLOT_AT + place->stage * TILE_SLOT_BYTES) = slot;
        uint32_t barrier = shared_address(full + place->stage);
        if (kb >= work->k_blocks) {
            mbarrier_arrive(barrier);
            continue;
        }
        mbarrier_arrive_expect_tx(full + place->stage, a_bytes + B_BYTES);
        uint32_t a = shared_address(shared) + place->stage * STAGE_BYTES, b = a + A_BYTES;
        int column = (work->k_block + kb) * BLOCK_K;
#if MULTICAST == MULTICAST_A
        cp_async_bulk_tensor_2d_multicast(a + rank * (A_BYTES / 2), &p->a, column, work->a_row + rank * (TILE_M / 2),
                                          barrier, 3);
#else
        cp_async_bulk_tensor_2d_load(a, &p->a, column, work->a_row, barrier);
#endif
#if MULTICAST == MULTICAST_B
        cp_async_bulk_tensor_2d_multicast(b + rank * (B_BYTES / 2), &p->b, column, work->b_row + rank * (TILE_N / 2),
                                          barrier, 3);
#else
        cp_async_bulk_tensor_2d_load(b, &p->b, column, work->b_row, barrier);
#endif
    }
}

#if SPLITS
/* Where the sums lie that a block leaves for others, and its ticket. */
DW_DEVICE char *block_sums(const dw_gemm_sm90_params *p, int block) {
    return (char *)p->workspace + (int64_t)block * (TILE_M * TILE_N * 4);
}

DW_DEVICE uint64_t *block_ticket(const dw_gemm_sm90_params *p, int block) {
    return (uint64_t *)block_sums(p, gridDim.x) + block;
}

/* The same warp, for the first part of a tile: the sums of the others, in the order of the reduction, each of a block
 * so many lower than the last. Waiting for them ends: they leave their parts before they wait for any, and all blocks
 * run at once, of which there is one to a multiprocessor. Where other work keeps some from starting, those waited for
 * have lower numbers, and GPUs start blocks in that order, though nothing promises it. Tickets are taken back: the same
 * launch may be replayed. */
DW_DEVICE void copy_parts(const dw_gemm_sm90_params *p, char *shared, int parts, int apart, ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    for (int part = 1; part <= parts; part++) {
        const int block = blockIdx.x - part * apart;
        uint64_t *ticket = block_ticket(p, block);
        while (uniform(ld_acquire_gpu_u64(ticket) != p->ticket))
            ;
        __syncwarp(); /* whichever thread goes on has seen it */
        if (elect_one()) *ticket = 0;
        fence_proxy_async_all();
        for (int i = 0; i < PART_PLACES; i++, ring_advance(place, 1)) {
            mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
            if (!elect_one()) continue;
            mbarrier_arrive_expect_tx(full + place->stage, PART_BYTES);
            cp_async_bulk_shared_global(shared + place->stage * STAGE_BYTES, block_sums(p, block) + i * PART_BYTES,
                                        PART_BYTES, full + place->stage);
        }
    }
}

/* A warp of its own, since this waits until everything written is there: where the block has a part that is not a
 * tile's first, of which there is one at most, says so when its sums have been left. */
DW_DEVICE void announce_part(const dw_gemm_sm90_params *p) {
    if (!p->workspace) return;
    const int workers = gridDim.x / CLUSTER;
    tile_walk walk;
    walk_start(&walk, p, GROUPED, CLUSTER_M, CLUSTER_N);
#if DEALS
    const int of_group = walk.tiles_m * walk.tiles_n;
    const group_split split = split_of(p, of_group, workers);
    if ((int)blockIdx.x >= (split.parts - 1) * split.groups * of_group) return;
#else
    const int k_blocks = stages_of(p);
    const dw_gemm_share share =
        dw_gemm_share_of(workers - 1 - blockIdx.x / CLUSTER, workers, walk.total, k_blocks, true);
    if (share.at >= share.end || share.at % k_blocks == 0) return;
#endif
    bar_sync(PART_BARRIER, PART_THREADS);
    if (elect_one()) st_release_gpu_u64(block_ticket(p, blockIdx.x), p->ticket);
}
#endif

/* The same warp, after the last tile. Tells the multiplying warps that there are no more. */
DW_DEVICE void copy_end(char *shared, ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    griddepcontrol_launch_dependents();
    for (int i = 0; i < K_SPLIT; i++, ring_advance(place, 1)) {
        mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
        if (!elect_one()) continue;
        ((tile_slot *)(shared + SLOT_AT + place->stage * TILE_SLOT_BYTES))->work = -1;
        mbarrier_arrive(shared_address(full + place->stage));
    }
}

#if !B_VECTOR
DW_DEVICE float load_scale(const void *scales, int at) {
#if SCALE_F32
    return ((const float *)scales)[at];
#else
    return scale_from_code(((const uint8_t *)scales)[at]);
#endif
}

/* One warp: the scales of B's square blocks, one for each part of the columns. Lane l has those of stage l of a batch,
 * and those of the next batch on the way. */
DW_DEVICE void copy_square_scales(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int lane,
                                  turn_place *place) {
    int at[TILE_SCALES]; /* a grid of 2^31 blocks would be of 2^45 elements */
    float ahead[TILE_SCALES];
#pragma unroll
    for (int i = 0; i < TILE_SCALES; i++) {
        int block = min(work->column + i * SCALE_N, p->n - 1) / 128;
        if (GROUPED == GROUPED_M) block += work->group * ((p->n + 127) / 128);
        at[i] = block * (int)p->b_scale_row_step + (work->k_block + lane) * (int)p->b_scale_k_step;
        ahead[i] = lane < min(SCALE_BATCH, work->k_blocks) ? load_scale(p->b_scale, at[i]) : 0.0f;
    }
    for (int kb = 0; kb < work->k_blocks; kb += SCALE_BATCH, turn_advance(place)) {
        float *to = (float *)(batch_scales(shared, place) + A_SCALE_BYTES) + lane * TILE_SCALES;
        mbarrier_wait_parity(scales_empty(shared, place), place->phase ^ 1);
#pragma unroll
        for (int i = 0; i < TILE_SCALES; i++) {
            if (lane < SCALE_BATCH) to[i] = ahead[i];
            at[i] += SCALE_BATCH * (int)p->b_scale_k_step;
            if (lane < SCALE_BATCH && kb + SCALE_BATCH + lane < work->k_blocks)
                ahead[i] = load_scale(p->b_scale, at[i]);
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(shared_address(scales_full(shared, place)));
    }
}
#endif

#if TELLS
/* What the second copying warp is told of a tile, in two places in turn. */
typedef struct __align__(16) told_tile {
    int column, k_block, k_blocks; /* k_blocks -1: there are no more tiles */
    int rest;                      /* 0, so that it is one store */
} told_tile;
static_assert(2 * sizeof(told_tile) + 4 * sizeof(uint64_t) == TOLD_BYTES, "shared memory is laid out for that");

DW_DEVICE told_tile *told_at(char *shared, const turn_place *t) {
    return (told_tile *)(shared + TOLD_AT) + t->turn;
}

/* The barriers of a place: a tile is there; it has been read. */
DW_DEVICE uint64_t *told_full(char *shared, const turn_place *t) {
    return (uint64_t *)(shared + TOLD_AT + 2 * sizeof(told_tile)) + t->turn;
}

DW_DEVICE uint64_t *told_empty(char *shared, const turn_place *t) {
    return told_full(shared, t) + 2;
}

/* By the first copying warp. */
DW_DEVICE void tell(char *shared, turn_place *t, const tile_work *work) {
    mbarrier_wait_parity(told_empty(shared, t), t->phase ^ 1);
    if (elect_one()) {
        *told_at(shared, t) = (told_tile){work->column, work->k_block, work->k_blocks, 0};
        mbarrier_arrive(shared_address(told_full(shared, t)));
    }
    turn_advance(t);
}

/* All that the second one has to do. */
DW_DEVICE void copy_told_scales(const dw_gemm_sm90_params *p, char *shared) {
    turn_place place = {0, 0};
    turn_place batch = {0, 0};
    for (;; turn_advance(&place)) {
        mbarrier_wait_parity(told_full(shared, &place), place.phase);
        const told_tile told = *told_at(shared, &place);
        __syncwarp();
        if (elect_one()) mbarrier_arrive(shared_address(told_empty(shared, &place)));
        if (told.k_blocks < 0) return;
        tile_work work;
        work.column = told.column;
        work.group = 0; /* along M alone */
        work.k_block = told.k_block;
        work.k_blocks = told.k_blocks;
        copy_square_scales(p, shared, &work, threadIdx.x % 32, &batch);
    }
}
#endif

/* A copying warp's way through its block's tiles. */
typedef struct tile_search {
    tile_walk walk;
#if DEALS
    tile_deal deal;
    bool begun; /* the tile in turn was taken */
#else
    dw_gemm_share share;
    int at, step;           /* the next whole tile, and how far it is to the one after */
    int m_offset, n_offset; /* of this block's tile in its cluster's */
#endif
#if TELLS
    turn_place told;
#endif
} tile_search;

DW_DEVICE void search_start(tile_search *s, const dw_gemm_sm90_params *p, char *shared, int rank) {
    const int workers = gridDim.x / CLUSTER, worker = blockIdx.x / CLUSTER;
#if !DEALS
    s->m_offset = MULTICAST == MULTICAST_B ? rank * TILE_M : 0;
    s->n_offset = MULTICAST == MULTICAST_A ? rank * TILE_N : 0;
    s->at = worker;
    s->step = workers;
#endif
    walk_start(&s->walk, p, GROUPED, CLUSTER_M, CLUSTER_N);
#if DEALS
    walk_in_order(&s->walk, p, (uint16_t *)(shared + ORDER_AT), workers);
#if SPLITS
    const int of_group = s->walk.tiles_m * s->walk.tiles_n;
    const group_split split = split_of(p, of_group, workers);
    s->walk.split = split.groups;
    s->walk.parts = split.parts;
    s->walk.total += (split.parts - 1) * split.groups * of_group;
    s->deal = deal_start(worker, workers, p->workspace ? block_ticket(p, gridDim.x) : NULL);
#else
    s->deal = deal_start(worker, workers, p->workspace);
#endif
    s->begun = false;
#elif SPLITS
    s->share = dw_gemm_share_of(workers - 1 - worker, workers, s->walk.total, stages_of(p), p->workspace != NULL);
#else
    s->share.whole = s->walk.total;
#endif
#if TELLS
    s->told.turn = 0;
    s->told.phase = 0;
#endif
}

#if DEALS && SPLITS
/* Of a tile in parts the one that number `at` stands for. */
DW_DEVICE void take_part(const tile_walk *walk, int at, tile_work *work) {
    const int place = at / (walk->tiles_m * walk->tiles_n);
    if (place >= walk->parts * walk->split) return;
    const int part = walk->parts - 1 - place / walk->split, k_blocks = work->k_blocks;
    const int begin = k_blocks * part / walk->parts, end = k_blocks * (part + 1) / walk->parts;
    work->k_block += begin;
    work->k_blocks = end - begin;
    work->parts = part > 0 ? PARTS_LEAVE : walk->parts - 1;
}
#endif

/* The next tile, if there is one: whole ones first, then the block's share of the others. Of a share the first part of
 * a tile comes last, when others have long left theirs. */
DW_DEVICE bool next_tile(tile_search *s, const dw_gemm_sm90_params *p, char *shared, tile_work *work) {
    work->parts = 0;
#if DEALS
    if (s->begun) deal_next(&s->deal, p, s->walk.total);
    s->begun = true;
    const bool found = s->deal.at < s->walk.total;
    if (found)
        walk_to(&s->walk, p, GROUPED, s->deal.at, 0, 0, BLOCK_K, work);
    else
        work->column = work->k_block = work->k_blocks = -1;
#if SPLITS
    if (found) take_part(&s->walk, s->deal.at, work);
#endif
#if TELLS
    tell(shared, &s->told, work);
#endif
    return found;
#else
    if (s->at < s->share.whole) {
        walk_to(&s->walk, p, GROUPED, s->at, s->m_offset, s->n_offset, BLOCK_K, work);
        s->at += s->step;
        return true;
    }
#endif
#if SPLITS && !DEALS
    if (s->share.at < s->share.end) {
        const int k_blocks = stages_of(p), tile = s->share.at / k_blocks;
        walk_to(&s->walk, p, GROUPED, s->share.whole + tile, s->m_offset, s->n_offset, BLOCK_K, work);
        work->k_block = s->share.at - tile * k_blocks;
        work->k_blocks = min(k_blocks - work->k_block, s->share.end - s->share.at);
        s->share.at += work->k_blocks;
        work->parts = work->k_block > 0 ? PARTS_LEAVE : work->k_blocks < k_blocks ? s->share.parts : 0;
        return true;
    }
#endif
    return false;
}

#if SPLITS
/* How many blocks further on, going down, the next part of a tile is. */
DW_DEVICE int parts_apart(const tile_search *s) {
    return DEALS ? s->walk.split * s->walk.tiles_m * s->walk.tiles_n : CLUSTER;
}
#endif

/* All tiles of a copying warp. */
DW_DEVICE void copy_tiles(const dw_gemm_sm90_params *p, char *shared, int warp, int rank) {
#if TELLS
    if (warp == 1) {
        copy_told_scales(p, shared);
        return;
    }
#endif
    ring_place place = {0, 0};
    turn_place batch = {0, 0};
    tile_search search;
    tile_work work, next;
    search_start(&search, p, shared, rank);
    for (bool more = next_tile(&search, p, shared, &work); more; work = next) {
        const int places = places_of(work.k_blocks);
        const int first = DEALS ? min(places, max(STAGES, places - STAGES)) : min(places, STAGES);
        if (!GROUPED) griddepcontrol_wait(); /* nothing after the first time */
        if (warp == 0) copy_stages(p, shared, &work, rank, 0, first, true, &place, &batch);
        more = next_tile(&search, p, shared, &next);
        if (warp == 0) copy_stages(p, shared, &work, rank, first, places, false, &place, &batch);
#if SPLITS
        if (warp == 0 && work.parts != PARTS_LEAVE) copy_parts(p, shared, work.parts, parts_apart(&search), &place);
#endif
#if !B_VECTOR && !TELLS
        if (warp == 1) copy_square_scales(p, shared, &work, threadIdx.x % 32, &batch);
#endif
    }
    if (!GROUPED) griddepcontrol_wait();
    if (warp == 0) copy_end(shared, &place);
}

#endif
