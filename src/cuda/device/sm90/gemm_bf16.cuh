/* Grouped BF16 products on Hopper, for experts that stay in BF16: the body of the kernels that set the parameters below
 * and include this file.
 *
 *   GROUPED_M   D[rows of g] = A[rows of g, K] B[g]^T; B[g] lies as [N, K], or with B_ACROSS as [K, N]: forward and
 * data gradient, whichever way the weights lie GROUPED_K   D[g] = A^T B over the rows of g; A lies as [T, M], B as [T,
 * N]: weight gradients straight from activations and gradients, since the tensor core takes BF16 operands either way
 * and nothing need be transposed
 *
 * Floor: 2 M N K operations at half of FP8's rate, 48 KiB of operands for every 1024 cycles of the tensor core.
 *
 * Plan: as in gemm_block_scaled.cuh, without scales: one block per multiprocessor walks over tiles of 128 x 256; a
 * copying warp keeps STAGES stages of 64 steps of the reduction on the way, and which tile it is with the first of
 * them; two warpgroups multiply 64 rows each, FP32 sums in registers, one stage's products behind the next one's, and
 * write through shared memory with the copy engine while the copying warp is ahead in the next tile. With MULTICAST two
 * blocks along M share B and load half of it each; along K single blocks are dealt their tiles (gemm_deal.cuh). Where a
 * group's reduction ends inside a stage, the rest of the stage, which is the next group's, is cleared.
 *
 * GROUPED    GROUPED_M or GROUPED_K
 * B_ACROSS   how B lies along M, see above; 1 along K
 * MULTICAST  0 or MULTICAST_B
 * OUT_F32    D is FP32, else BF16
 * KERNEL     the name */
#include "sm90/bf16_part.cuh"
#include "sm90/copy.cuh"
#include "sm90/gemm_deal.cuh"
#include "sm90/wgmma.cuh"

#define MULTICAST_B 2
#define TILE_M 128
#define TILE_N 256
#define BLOCK_K 64
#define STAGES 4
#define MATH_WARPGROUPS 2
#define WARPGROUP 128
#define THREADS (WARPGROUP * (MATH_WARPGROUPS + 1))
#define SUMS (TILE_N / 2) /* of a thread */
#define CLUSTER (MULTICAST ? 2 : 1)

/* Shared memory: stages, each in pieces of 64 rows of 128 bytes; store buffers; which tile a stage is of; barriers. */
#define PIECE_BYTES (64 * 128)
#define A_PIECES (TILE_M / 64)
#define B_PIECES (TILE_N / 64)
#define A_BYTES (A_PIECES * PIECE_BYTES)
#define STAGE_BYTES (A_BYTES + B_PIECES * PIECE_BYTES)
#define STORE_BUFFERS (OUT_F32 ? 0 : 2) /* of each warpgroup */
#define STORE_AT (STAGES * STAGE_BYTES)
#define SLOT_AT (STORE_AT + MATH_WARPGROUPS * STORE_BUFFERS * PIECE_BYTES)
#define BARRIER_AT (SLOT_AT + STAGES * TILE_SLOT_BYTES)
#define ORDER_AT (BARRIER_AT + STAGES * 16)
#define ZEROS_AT (ORDER_AT + 2 * DW_GEMM_ORDERED_GROUPS)
#define SHARED_BYTES (ORDER_AT + (GROUPED == GROUPED_K ? DW_GEMM_DEAL_SHARED(DW_GEMM_BF16_ZEROS_BYTES) : 0))

#if SHARED_BYTES > 232448
#error "more shared memory than a block may have"
#endif
#if GROUPED == GROUPED_K && !B_ACROSS
#error "along K both operands lie across"
#endif

/* The place in the ring of stages. */
typedef struct ring_place {
    int stage;
    uint32_t phase;
} ring_place;

DW_DEVICE void ring_advance(ring_place *place) {
    if (++place->stage == STAGES) {
        place->stage = 0;
        place->phase ^= 1;
    }
}

/* ---- the copying warp, of which one thread issues copies ---- */

/* One piece of B, or, for both blocks of a cluster, this one's. */
DW_DEVICE void copy_b_piece(const dw_gemm_sm90_params *p, uint32_t to, int x, int y, int group, uint32_t barrier) {
#if GROUPED == GROUPED_K && MULTICAST
    cp_async_bulk_tensor_2d_multicast(to, &p->b, x, y, barrier, 3);
#elif GROUPED == GROUPED_K
    cp_async_bulk_tensor_2d_load(to, &p->b, x, y, barrier);
#elif MULTICAST
    cp_async_bulk_tensor_3d_multicast(to, &p->b, x, y, group, barrier, 3);
#else
    cp_async_bulk_tensor_3d_load(to, &p->b, x, y, group, barrier);
#endif
}

/* A tile's work in one number: its stages, and along K how many rows its last one has. A tile whose reduction is empty
 * has a stage too, all of which is cleared: sums set to zero otherwise would keep the compiler from having one product
 * follow another. */
DW_DEVICE int slot_work_of(int k_blocks, int last_rows) {
    return k_blocks | (last_rows - 1) << 25;
}

DW_DEVICE int slot_stages(int work) {
    return max(slot_k_blocks(work), 1);
}

DW_DEVICE int slot_last_rows(int work) {
    return slot_k_blocks(work) > 0 ? (work >> 25) + 1 : 0;
}

/* A tile for the multiplying warps: what it is with its first stage, and all of its stages, of which an empty
 * reduction's brings nothing. `begin`: where the group's reduction begins, along K. */
DW_DEVICE void copy_tile(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int begin, int last_rows,
                         int rank, ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    const tile_slot slot = {work->row, work->column, work->row_end, slot_work_of(work->k_blocks, last_rows)};
    for (int kb = 0; kb < slot_stages(slot.work); kb++, ring_advance(place)) {
        mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
        if (!elect_one()) continue;
        const uint32_t barrier = shared_address(full + place->stage);
        if (kb == 0) *(tile_slot *)(shared + SLOT_AT + place->stage * TILE_SLOT_BYTES) = slot;
        if (work->k_blocks == 0) {
            mbarrier_arrive(barrier);
            continue;
        }
        mbarrier_arrive_expect_tx(full + place->stage, STAGE_BYTES);
        const uint32_t a = shared_address(shared) + place->stage * STAGE_BYTES, b = a + A_BYTES;
        const int at = begin + kb * BLOCK_K;
#if GROUPED == GROUPED_K
#pragma unroll
        for (int i = 0; i < A_PIECES; i++)
            cp_async_bulk_tensor_2d_load(a + i * PIECE_BYTES, &p->a, work->a_row + 64 * i, at, barrier);
#else
        cp_async_bulk_tensor_2d_load(a, &p->a, at, work->a_row, barrier);
#endif
#if B_ACROSS
#pragma unroll
        for (int j = 0; j < B_PIECES / CLUSTER; j++) {
            const int i = rank * (B_PIECES / CLUSTER) + j;
            copy_b_piece(p, b + i * PIECE_BYTES, work->column + 64 * i, at, work->group, barrier);
        }
#else
        const int i = rank * (B_PIECES / CLUSTER);
        copy_b_piece(p, b + i * PIECE_BYTES, at, work->column + 64 * i, work->group, barrier);
#endif
    }
}

/* All tiles, and that there are no more. */
DW_DEVICE void copy_tiles(const dw_gemm_sm90_params *p, char *shared, int rank) {
    const int blocks = gridDim.x / CLUSTER;
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    tile_walk walk;
    walk_start(&walk, p, GROUPED, TILE_M * CLUSTER, TILE_N);
    if (GROUPED == GROUPED_K) walk_in_order(&walk, p, (uint16_t *)(shared + ORDER_AT), blocks);
    tile_deal deal = deal_start(blockIdx.x / CLUSTER, blocks, p->workspace);
    ring_place place = {0, 0};
    for (; deal.at < walk.total; deal_next(&deal, p, walk.total)) {
        tile_work work;
        walk_to(&walk, p, GROUPED, deal.at, rank * TILE_M, 0, BLOCK_K, &work);
        const int begin = GROUPED == GROUPED_K ? walk.begin : 0;
        const int last_rows = GROUPED == GROUPED_K ? walk.end - begin - (work.k_blocks - 1) * BLOCK_K : BLOCK_K;
        copy_tile(p, shared, &work, begin, last_rows, rank, &place);
    }
    griddepcontrol_launch_dependents();
    mbarrier_wait_parity(empty + place.stage, place.phase ^ 1);
    if (!elect_one()) return;
    ((tile_slot *)(shared + SLOT_AT + place.stage * TILE_SLOT_BYTES))->work = -1;
    mbarrier_arrive(shared_address(full + place.stage));
}

/* ---- the multiplying warpgroups ---- */

/* What follows row `from` in a stage's pieces is not this group's: zeros take its place, so that not even infinities of
 * the next group get into the sums. Each warpgroup clears its piece of A and half of B. */
DW_DEVICE void clear_rest(char *stage, int from, int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP;
#pragma unroll
    for (int i = 0; i < 1 + B_PIECES / MATH_WARPGROUPS; i++) {
        const int piece = i == 0 ? warpgroup : A_PIECES + warpgroup * (B_PIECES / MATH_WARPGROUPS) + i - 1;
        for (int at = from * 8 + thread; at < PIECE_BYTES / 16; at += WARPGROUP)
            ((uint4 *)(stage + piece * PIECE_BYTES))[at] = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    bar_sync(3, MATH_WARPGROUPS * WARPGROUP);
}

/* A stage's products, begun. */
DW_DEVICE void multiply(float *sums, uint32_t a_low, uint32_t b_low, bool add) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BLOCK_K / 16; k++) {
        const uint64_t a = wgmma_descriptor_swizzle_128b(a_low + k * (GROUPED == GROUPED_K ? 128 : 2));
        const uint64_t b = wgmma_descriptor_swizzle_128b(b_low + k * (B_ACROSS ? 128 : 2));
#if GROUPED == GROUPED_K
        wgmma_m64n256k16_f32_bf16_bf16_mm(sums, a, b, add || k > 0);
#elif B_ACROSS
        wgmma_m64n256k16_f32_bf16_bf16_km(sums, a, b, add || k > 0);
#else
        wgmma_m64n256k16_f32_bf16_bf16_kk(sums, a, b, add || k > 0);
#endif
    }
    wgmma_commit_group();
}

DW_DEVICE void release(uint64_t *empty) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
    if (CLUSTER > 1 && lane < CLUSTER) mbarrier_arrive_cluster(shared_address(empty), lane);
    if (CLUSTER == 1 && lane == 0) mbarrier_arrive(shared_address(empty));
}

/* A tile's rows of this warpgroup into `sums`. `last_rows`: of the last stage. */
DW_DEVICE void multiply_tile(float *sums, char *shared, int k_blocks, int last_rows, int warpgroup, ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    const uint32_t a_low = wgmma_descriptor_low(shared_address(shared) + warpgroup * PIECE_BYTES);
    const uint32_t b_at = shared_address(shared) + A_BYTES;
    const uint32_t b_low = B_ACROSS ? wgmma_descriptor_low_across(b_at, PIECE_BYTES) : wgmma_descriptor_low(b_at);
    int before = 0;
    for (int kb = 0; kb < k_blocks; kb++, ring_advance(place)) {
        mbarrier_wait_parity(full + place->stage, place->phase);
        if (GROUPED == GROUPED_K && kb == k_blocks - 1 && last_rows < BLOCK_K)
            clear_rest(shared + place->stage * STAGE_BYTES, last_rows, warpgroup);
        multiply(sums, a_low + place->stage * (STAGE_BYTES / 16), b_low + place->stage * (STAGE_BYTES / 16), kb > 0);
        wgmma_wait_group_1();
        if (kb > 0) release(empty + before);
        before = place->stage;
    }
    wgmma_wait_group_0();
    release(empty + before);
}

/* ---- writing ---- */

#if OUT_F32
DW_DEVICE void write_tile(const dw_gemm_sm90_params *p, const float *sums, char *, const tile_slot *tile,
                          int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile->row + 64 * warpgroup + 16 * (thread / 32) + lane / 4 + 8 * half;
        if (row >= tile->row_end) continue;
#pragma unroll
        for (int j = 0; j < TILE_N / 8; j++) {
            const int column = tile->column + 8 * j + 2 * (lane % 4);
            if (column >= p->n) continue;
            float2 *at = (float2 *)((float *)p->out + row * p->out_ld + column);
            float2 v = make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
            if (p->accumulate) {
                const float2 old = *at;
                v.x += old.x;
                v.y += old.y;
            }
            *at = v;
        }
    }
}
#else
DW_DEVICE void write_tile(const dw_gemm_sm90_params *p, const float *sums, char *shared, const tile_slot *tile,
                          int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP, row = tile->row + 64 * warpgroup;
    const bool by_rows = p->accumulate || row + 64 > tile->row_end;
    char *stores = shared + STORE_AT + warpgroup * (STORE_BUFFERS * PIECE_BYTES);
#pragma unroll
    for (int part = 0; part < TILE_N / 64; part++) {
        char *buffer = stores + part % STORE_BUFFERS * PIECE_BYTES;
        const int column = tile->column + 64 * part;
        /* The buffer's last store was one before the newest. */
        if (thread == 0) cp_async_bulk_wait_group_read(1);
        bar_sync(1 + warpgroup, WARPGROUP);
        stage_store(sums + 32 * part, shared_address(buffer), thread);
        fence_proxy_async();
        bar_sync(1 + warpgroup, WARPGROUP);
        if (by_rows)
            write_rows(p, buffer, row, tile->row_end, column, thread);
        else if (thread == 0)
            cp_async_bulk_tensor_2d_store(&p->d, column, row, shared_address(buffer));
        if (thread == 0) cp_async_bulk_commit_group();
    }
}
#endif

/* The next tile, when it is there. */
DW_DEVICE tile_slot next_slot(char *shared, const ring_place *place) {
    mbarrier_wait_parity((uint64_t *)(shared + BARRIER_AT) + place->stage, place->phase);
    tile_slot tile = *(const tile_slot *)(shared + SLOT_AT + place->stage * TILE_SLOT_BYTES);
    tile.work = uniform(tile.work);
    return tile;
}

/* All tiles of a multiplying warpgroup. */
DW_DEVICE void multiply_tiles(const dw_gemm_sm90_params *p, char *shared, int warpgroup) {
    ring_place place = {0, 0};
    for (tile_slot tile = next_slot(shared, &place); tile.work >= 0; tile = next_slot(shared, &place)) {
        float sums[SUMS];
        multiply_tile(sums, shared, slot_stages(tile.work), slot_last_rows(tile.work), warpgroup, &place);
        write_tile(p, sums, shared, &tile, warpgroup);
    }
#if !OUT_F32
    if (threadIdx.x % WARPGROUP == 0) cp_async_bulk_wait_group_read(0);
#endif
}

/* ---- the kernel ---- */

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ dw_gemm_sm90_params p) {
    extern __shared__ __align__(1024) char shared[];
    const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / WARPGROUP, 0);
    const int rank = CLUSTER > 1 ? (int)cluster_ctarank() : 0;
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, CLUSTER * MATH_WARPGROUPS * 4);
        }
        fence_mbarrier_init();
    }
#if MULTICAST
    barrier_cluster_arrive();
    barrier_cluster_wait();
#else
    __syncthreads();
#endif

    /* What the kernel before this one in the stream wrote may be read, and what it read may be written, from here on.
     */
    griddepcontrol_wait();
    if (warpgroup == MATH_WARPGROUPS) {
        setmaxnreg_dec(40);
        const int warp = uniform(threadIdx.x % WARPGROUP / 32);
        if (warp == 0) copy_tiles(&p, shared, rank);
#if GROUPED == GROUPED_K
        if (warp == 1)
            clear_empty_groups(&p, shared + ZEROS_AT, DW_GEMM_BF16_ZEROS_BYTES, (int64_t)p.m * p.n * (OUT_F32 ? 4 : 2));
#endif
    } else {
        setmaxnreg_inc(232);
        multiply_tiles(&p, shared, warpgroup);
    }
#if MULTICAST
    /* No block leaves while its neighbour may still write into it or arrive at its barriers. */
    barrier_cluster_arrive();
    barrier_cluster_wait();
#endif
}
