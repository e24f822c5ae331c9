/* D[M, N] = A[M, K] B[N, K]^T on Hopper's FP8 tensor cores, block scaling inside: the body of the kernels that set the
 * parameters below and include this file.
 *
 * Floor: 2 M N K operations. A tensor core adds up about 14 bits, and it cannot apply scales, so each sum of 128
 * products goes into temporaries and is added to FP32 sums by ordinary arithmetic, times the product of the two block
 * scales. One such addition costs a quarter of its tensor time in issue slots; the other warpgroups' products run
 * meanwhile. Large products are limited by power: what counts is few bytes moved and a tensor core that never waits.
 *
 * Plan: one block per multiprocessor walks over tiles of D. A copying warp keeps STAGES stages of A and B (128 bytes
 * of the reduction each, swizzled) on the way, and the scales of SCALE_BATCH stages at a time: a copy of its own for
 * each stage's took as long to issue as both operands'. Where B has square blocks a second warp brings B's scales, one
 * number per stage and chunk, because a load in the multiplying warps would stall them. Which tile it is travels with
 * its first stage, so that the multiplying warps need not compute it; finding the next tile takes as long as a stage
 * or two, so the copying warps do it when a tile's first stages fill the ring, not when the next one's copies should
 * go out. Each multiplying warpgroup takes its rows of the tile, 64 at a time, by chunks of CHUNK_N columns, and leaves
 * them in shared memory, whence the copy engine brings them to D while the next tile is multiplied: of large tiles a
 * warp of its own gives it the orders. Between the end of one chunk's products and the start of the next ones a
 * warpgroup does nothing but add up: whatever else a stage needs, its scales and to know that the next one is there, is
 * asked for while products run. With MULTICAST two neighbouring blocks share the larger operand and load half of it
 * each. Once everything is on its way the next kernel may start; until this one has ended it does no more than find its
 * first tile.
 *
 * TILE_M, TILE_N   tile of D
 * CHUNK_N          columns multiplied at once: 32, 64, 128 or 192
 * MATH_WARPGROUPS  1 to 4 that multiply; TILE_M is 64 times a multiple of MATH_WARPGROUPS / K_SPLIT
 * K_SPLIT          1, or how many warpgroups share the reduction of the same rows, a stage each in turn: where a
 *                  product has few rows it is not work that takes time but the way from one stage's sums to the next
 * STAGES           stages in shared memory, a multiple of K_SPLIT: a warpgroup that came back to a stage two rounds
 *                  later would take the parity of the barrier's older phase for the newer one's
 * MULTICAST        0, MULTICAST_A (two blocks along N share A) or MULTICAST_B (two along M share B)
 * SCALE_F32        scales are FP32, else E8M0 codes
 * B_VECTOR         B has 1x128 blocks, else 128x128
 * OUT_F32          D is FP32, else BF16
 * STORE_BUFFERS    8 KiB buffers through which a warpgroup writes BF16: 1, 2 or 4, or 3 of a chunk of 192 columns; 0:
 *                  from registers
 * GROUPED          0, GROUPED_M or GROUPED_K
 * SPLITS           1: tiles that do not fill a wave are split along their reduction (gemm_split.h), given a workspace.
 *                  Whoever has the first part of a tile finishes it; the others leave their sums there. Only with
 *                  K_SPLIT 1, square blocks of B, and D through shared memory. Of groups along K those tiles are split
 *                  which others would wait for (gemm_deal.cuh)
 * ADD_UP           1 unless set. 0: the tensor core adds up the whole reduction in its own registers, in about 14 bits,
 *                  and no scales are applied; all that is copied and written stays the same. No product of block-scaled
 *                  operands, and the library has no such kernel: bench/unscaled.py compiles it, to measure what adding
 *                  up costs
 * KERNEL           the name */
#include "sm90/copy.cuh"
#include "sm90/gemm_deal.cuh"
#include "sm90/wgmma.cuh"

#define MULTICAST_A 1
#define MULTICAST_B 2

#ifndef ADD_UP
#define ADD_UP 1
#endif

#define BLOCK_K 128
#define LARGE_TILE (TILE_M * TILE_N >= 128 * 192)
#define COPYING_WARPS (B_VECTOR ? 1 : 2)
#define WARPGROUP 128
#define THREADS (WARPGROUP * (MATH_WARPGROUPS + 1))
#define ROW_WARPGROUPS (MATH_WARPGROUPS / K_SPLIT)
#define SUB_M (TILE_M / (64 * ROW_WARPGROUPS))
#define SUB_N (TILE_N / CHUNK_N)
#define SUBS (SUB_M * SUB_N)
/* Columns with the same square block of B everywhere, and how many such parts a tile and a chunk have. */
#define SCALE_N (CHUNK_N == 192 ? 64 : CHUNK_N)
#define TILE_SCALES (TILE_N / SCALE_N)
#define CHUNK_SCALES (CHUNK_N / SCALE_N)
#define CHUNK_REGISTERS (CHUNK_N / 2)
#define CLUSTER (MULTICAST ? 2 : 1)
#define CLUSTER_M (TILE_M * (MULTICAST == MULTICAST_B ? 2 : 1)) /* tile of a cluster */
#define CLUSTER_N (TILE_N * (MULTICAST == MULTICAST_A ? 2 : 1))
#define SCALE_BYTES (SCALE_F32 ? 4 : 1)

/* Shared memory: stages, store buffers, sums to be added to others, two batches of scales in turn, which tile a stage
 * is of, barriers, which tile each warpgroup has left to be written, and what tiles are dealt with. */
#define A_BYTES (TILE_M * BLOCK_K)
#define B_BYTES (TILE_N * BLOCK_K)
#define STAGE_BYTES (A_BYTES + B_BYTES)
#define STORE_BYTES (64 * 128)             /* 64 rows of 64 BF16 */
#define THROUGH_SHARED (STORE_BUFFERS > 0) /* else D is written from registers */
#define STORE_AT (STAGES * STAGE_BYTES)
#define REDUCE_AT (STORE_AT + ROW_WARPGROUPS * STORE_BUFFERS * STORE_BYTES)
#define REDUCE_BYTES ((K_SPLIT - 1) * TILE_M * TILE_N * 4)
#define SCALE_BATCH DW_GEMM_SCALE_BATCH(B_VECTOR)
#define A_SCALE_PARTS DW_GEMM_SCALE_PARTS(TILE_M, GROUPED == GROUPED_M)
#define A_SCALE_ROWS DW_GEMM_SCALE_ROWS(TILE_M, GROUPED == GROUPED_M, SCALE_BYTES)
#define A_SCALE_BYTES (A_SCALE_PARTS * SCALE_BATCH * A_SCALE_ROWS * SCALE_BYTES)
#define B_SCALE_BYTES (B_VECTOR ? SCALE_BATCH * TILE_N * SCALE_BYTES : DW_GEMM_SQUARE_SCALE_BYTES)
#define BATCH_BYTES (A_SCALE_BYTES + B_SCALE_BYTES)
#define SCALE_AT (REDUCE_AT + REDUCE_BYTES)
#define SLOT_AT (SCALE_AT + 2 * BATCH_BYTES)
#define BARRIER_AT (SLOT_AT + STAGES * TILE_SLOT_BYTES)
#define SCALE_BARRIER_AT (BARRIER_AT + STAGES * 16)
#define WRITTEN_AT (SCALE_BARRIER_AT + 2 * 16)
#define ORDER_AT (WRITTEN_AT + MATH_WARPGROUPS * TILE_SLOT_BYTES)
#define ZEROS_AT (ORDER_AT + (DEALS ? 2 * DW_GEMM_ORDERED_GROUPS : 0))
#define TOLD_AT (ZEROS_AT + (DEALS ? DW_GEMM_ZEROS_BYTES : 0))
#define SHARED_BYTES (TOLD_AT + (TELLS ? TOLD_BYTES : 0))

/* Tiles of groups along K are dealt (gemm_deal.cuh). Where two warps copy, the first finds them and tells the second,
 * through two places in turn. */
#define DEALS (GROUPED == GROUPED_K)
#define TELLS (DEALS && COPYING_WARPS == 2)
#define TOLD_BYTES 64

/* Large tiles have buffers for a whole tile, and a warp of the copying warpgroup that has the copy engine empty them. A
 * small one is mostly a block's only one, which is written sooner without it. */
#define WRITER (LARGE_TILE && THROUGH_SHARED && K_SPLIT == 1 && STORE_BUFFERS * 64 == SUBS * CHUNK_N)
#define WRITING_WARP 3
#define LEAVES_EARLY (WRITER && ADD_UP && SUBS == 2)

/* Parts of tiles that are split come back through places of the ring, PART_REGISTERS of each thread in each. */
#define PART_FITS(registers)                                                                                           \
    (ROW_WARPGROUPS * WARPGROUP * 4 * (registers) <= STAGE_BYTES && CHUNK_REGISTERS % (registers) == 0)
#define PART_REGISTERS (PART_FITS(32) ? 32 : PART_FITS(16) ? 16 : 8)
#define PART_PLACES (SUBS * CHUNK_REGISTERS / PART_REGISTERS)
#define PART_BYTES (ROW_WARPGROUPS * WARPGROUP * 4 * PART_REGISTERS)
#define PART_BARRIER 9 /* of the multiplying warps and the one that says that a part is there */
#define PART_THREADS (MATH_WARPGROUPS * WARPGROUP + 32)

/* Products of fewer rows than a tile has: the copies of A bring no more than there are. */
#define A_BOX_FITS (!GROUPED && MULTICAST != MULTICAST_A)

#if STAGES % K_SPLIT != 0
#error "a stage must belong to one of the warpgroups that take turns"
#endif

#if SPLITS && (K_SPLIT > 1 || B_VECTOR || !THROUGH_SHARED)
#error "such a kernel splits no tiles"
#endif

#if DEALS && (CLUSTER > 1 || K_SPLIT > 1)
#error "tiles are dealt to single blocks"
#endif

#if A_SCALE_PARTS > 1 && A_SCALE_PARTS != ROW_WARPGROUPS
#error "each warpgroup has a part of the scales"
#endif

#if SCALE_BATCH * TILE_SCALES * 4 > DW_GEMM_SQUARE_SCALE_BYTES && !B_VECTOR
#error "a batch has no room for the scales of its square blocks"
#endif

#if SHARED_BYTES > 232448
#error "more shared memory than a block may have"
#endif

/* 2^(code - 127), exact; the code of NaN gives infinity, and its elements are NaN already. The maximum is named: the
 * compiler would make it a comparison and a selection. */
DW_DEVICE float scale_from_code(uint32_t code) {
    return __uint_as_float(max_u32(code << 23, 0x00400000u));
}

DW_DEVICE float shared_scale(const char *scales, int at) {
#if SCALE_F32
    return ((const float *)scales)[at];
#else
    return scale_from_code(((const uint8_t *)scales)[at]);
#endif
}

/* The place in the ring of stages. */
typedef struct ring_place {
    int stage;
    uint32_t phase;
} ring_place;

DW_DEVICE void ring_advance(ring_place *place, int stages) {
    place->stage += stages;
    if (place->stage >= STAGES) {
        place->stage -= STAGES;
        place->phase ^= 1;
    }
}

/* Which of two is in turn: batches of scales, or what the second copying warp is told. */
typedef struct turn_place {
    int turn;
    uint32_t phase;
} turn_place;

DW_DEVICE void turn_advance(turn_place *place) {
    place->phase ^= (uint32_t)place->turn;
    place->turn ^= 1;
}

DW_DEVICE char *batch_scales(char *shared, const turn_place *place) {
    return shared + SCALE_AT + place->turn * BATCH_BYTES;
}

/* How far the scales of a tile that begins in a row are from where their copy begins. */
DW_DEVICE int scale_offset(int row) {
    return GROUPED == GROUPED_M ? row % (16 / SCALE_BYTES) : 0;
}

/* The barriers of a batch: its scales are here; they have been read. */
DW_DEVICE uint64_t *scales_full(char *shared, const turn_place *place) {
    return (uint64_t *)(shared + SCALE_BARRIER_AT) + place->turn;
}

DW_DEVICE uint64_t *scales_empty(char *shared, const turn_place *place) {
    return (uint64_t *)(shared + SCALE_BARRIER_AT) + 2 + place->turn;
}

/* Stages of the whole reduction. */
DW_DEVICE int stages_of(const dw_gemm_sm90_params *p) {
    return (p->k + BLOCK_K - 1) / BLOCK_K;
}

/* A tile takes at least one place of the ring for each warpgroup that shares its reduction, and the same number for all
 * of them; places beyond its reduction carry no operands. */
DW_DEVICE int places_of(int k_blocks) {
    return max((k_blocks + K_SPLIT - 1) / K_SPLIT, 1) * K_SPLIT;
}

#include "sm90/gemm_copy.cuh"

/* ---- the multiplying warpgroups ---- */

/* What a thread's products of one stage are multiplied by, but for scales of single columns of B: those of its rows r
 * and r + 8 of each sub-tile, times the one of each part of the columns where B has square blocks. */
typedef struct stage_scales {
    float of[SUB_M][2][TILE_SCALES];
} stage_scales;

/* The products of 64 rows and CHUNK_N columns over one stage, begun: with ADD_UP they replace what was there. */
DW_DEVICE void multiply(float *products, uint32_t a_low, uint32_t b_low) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BLOCK_K / 32; k++) {
        uint64_t a = wgmma_descriptor_swizzle_128b(a_low + 2 * k), b = wgmma_descriptor_swizzle_128b(b_low + 2 * k);
#if CHUNK_N == 192
        wgmma_m64n192k32_f32_e4m3_e4m3(products, a, b, !ADD_UP || k > 0);
#elif CHUNK_N == 128
        wgmma_m64n128k32_f32_e4m3_e4m3(products, a, b, !ADD_UP || k > 0);
#elif CHUNK_N == 64
        wgmma_m64n64k32_f32_e4m3_e4m3(products, a, b, !ADD_UP || k > 0);
#else
        wgmma_m64n32k32_f32_e4m3_e4m3(products, a, b, !ADD_UP || k > 0);
#endif
    }
    wgmma_commit_group();
}

#if ADD_UP
/* Adds the products of one chunk, scaled, to its sums. scales: of its rows, for the parts of the tile's columns from
 * `part` on; columns: the scales of single columns. */
DW_DEVICE void promote(float *sums, const float *products, const float scales[2][TILE_SCALES], int part,
                       const char *columns) {
#pragma unroll
    for (int j = 0; j < CHUNK_N / 8; j++) {
#if B_VECTOR
        const float b0 = shared_scale(columns, 8 * j), b1 = shared_scale(columns, 8 * j + 1);
#endif
#pragma unroll
        for (int half = 0; half < 2; half++) {
#if B_VECTOR
            const float scale0 = scales[half][0] * b0, scale1 = scales[half][0] * b1;
#else
            const float scale0 = scales[half][part + j / (SCALE_N / 8)], scale1 = scale0;
#endif
            sums[4 * j + 2 * half] += products[4 * j + 2 * half] * scale0;
            sums[4 * j + 2 * half + 1] += products[4 * j + 2 * half + 1] * scale1;
        }
    }
}
#endif

#if K_SPLIT > 1
/* The sums of all warpgroups that share rows into those of the first of them. Barrier 8 is all of them's. */
DW_DEVICE void reduce_tile(float sums[SUBS][CHUNK_REGISTERS], char *shared, int warpgroup) {
    float *parts = (float *)(shared + REDUCE_AT);
    const int thread = threadIdx.x % WARPGROUP, turn = warpgroup / ROW_WARPGROUPS;
    const int slot = SUBS * CHUNK_REGISTERS * WARPGROUP;
    if (turn > 0) {
        float *to = parts + (warpgroup - ROW_WARPGROUPS) * slot + thread;
#pragma unroll
        for (int i = 0; i < CHUNK_REGISTERS; i++)
            to[i * WARPGROUP] = sums[0][i];
    }
    bar_sync(8, MATH_WARPGROUPS * WARPGROUP);
    if (turn == 0)
#pragma unroll
        for (int other = 1; other < K_SPLIT; other++) {
            const float *from = parts + ((other - 1) * ROW_WARPGROUPS + warpgroup) * slot + thread;
#pragma unroll
            for (int i = 0; i < CHUNK_REGISTERS; i++)
                sums[0][i] += from[i * WARPGROUP];
        }
    bar_sync(8, MATH_WARPGROUPS * WARPGROUP); /* before the next tile's sums come */
}

#if SUBS > 1
#error "with K_SPLIT a warpgroup holds one chunk"
#endif
#endif

#include "sm90/gemm_write.cuh"

/* ---- multiplying ---- */

/* A multiplying warpgroup's place in its work. */
typedef struct math_state {
    uint32_t a_low, b_low; /* descriptors of its operands in stage 0 */
    ring_place place;
    turn_place batch;
} math_state;

DW_DEVICE void wait_for_stage(char *shared, const ring_place *place) {
    mbarrier_wait_parity((uint64_t *)(shared + BARRIER_AT) + place->stage, place->phase);
}

/* This warpgroup has read what it needs of the batch in turn. */
DW_DEVICE void release_batch(char *shared, turn_place *place) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_address(scales_empty(shared, place)));
    turn_advance(place);
}

/* The stage is read: it may be filled again. */
DW_DEVICE void release_stage(char *shared, int stage) {
    const int lane = threadIdx.x % 32;
    const uint32_t empty = shared_address((uint64_t *)(shared + BARRIER_AT) + STAGES + stage);
    __syncwarp();
    if (CLUSTER > 1 && lane < CLUSTER) mbarrier_arrive_cluster(empty, lane);
    if (CLUSTER == 1 && lane == 0) mbarrier_arrive(empty);
}

/* Whether the stages of a whole batch of scales are laid out one after the other: no branch stands between them, and
 * what depends on a stage's number in its batch is known beforehand. Not where registers do not suffice for it. */
#define LAID_OUT (K_SPLIT == 1 && !(B_VECTOR && SCALE_F32 && !OUT_F32))

/* Chunk `sub` of a stage, begun. */
DW_DEVICE void multiply_chunk(float *products, const math_state *m, int stage, int sub) {
    const int at = stage * (STAGE_BYTES / 16);
    multiply(products, m->a_low + at + sub / SUB_N * (64 * BLOCK_K / 16),
             m->b_low + at + sub % SUB_N * (CHUNK_N * BLOCK_K / 16));
}

#if ADD_UP
/* The scales of stage i of the batch in turn, for the tile that begins in a row. */
DW_DEVICE void read_scales(stage_scales *s, char *shared, int warpgroup, int row, int i, const math_state *m) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const char *scales = batch_scales(shared, &m->batch);
    const int a_rows = warpgroup % ROW_WARPGROUPS * (A_SCALE_PARTS > 1 ? SCALE_BATCH * A_SCALE_ROWS : 64 * SUB_M);
    const int at = a_rows + i * A_SCALE_ROWS + 16 * (thread / 32) + lane / 4 + scale_offset(row);
#pragma unroll
    for (int part = 0; part < (B_VECTOR ? 1 : TILE_SCALES); part++) {
        const float b = B_VECTOR ? 1.0f : ((const float *)(scales + A_SCALE_BYTES))[i * TILE_SCALES + part];
#pragma unroll
        for (int j = 0; j < SUB_M; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                s->of[j][half][part] = shared_scale(scales, at + 64 * j + 8 * half) * b;
    }
}

/* On to the next stage's place; whether it is there. Nothing that follows is asked for sooner: an order that the
 * compiler keeps. Scales asked for between a chunk's four instructions would hold back those after them, since shared
 * memory, which feeds the tensor core, takes its time. */
DW_DEVICE bool next_stage(char *shared, math_state *m) {
    ring_advance(&m->place, K_SPLIT);
    return mbarrier_test_wait_parity((uint64_t *)(shared + BARRIER_AT) + m->place.stage, m->place.phase);
}

/* Whether each stage reads the next one's scales: where a batch's stages are laid out one after the other and registers
 * are left; not where results are FP32, whose pairs of sums the compiler would then put into the banks of their
 * products. */
#define SCALES_AHEAD (LAID_OUT && !B_VECTOR && !OUT_F32)
/* Whether the next stage is asked for behind a stage's first chunk of several, to keep its scales behind it. */
#define ASKS_EARLY (SUBS == 1 || !SCALES_AHEAD)

/* One stage, number i of its batch of scales, of a tile: its products, whose first chunk runs already, scaled, onto
 * `sums`. Then the next stage's first chunk is begun, but for the tile's `last`; `leaves`: after which the first chunk
 * of sums is left to be written. s: its scales, and afterwards, with SCALES_AHEAD, the next stage's of the same batch.
 */
DW_DEVICE void multiply_stage(float sums[SUBS][CHUNK_REGISTERS], float *products, char *shared, int warpgroup,
                              const tile_slot *tile, int i, bool last, bool leaves, stage_scales *s, math_state *m) {
    const int stage = m->place.stage;
    const char *columns =
        batch_scales(shared, &m->batch) + A_SCALE_BYTES + (i * TILE_N + 2 * (threadIdx.x % 4)) * SCALE_BYTES;
    stage_scales ahead;
    bool there = false;
    if (ASKS_EARLY) there = next_stage(shared, m);
    if (!SCALES_AHEAD || i == 0) read_scales(s, shared, warpgroup, tile->row, i, m);
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++) {
        const int i_m = sub / SUB_N, i_n = sub % SUB_N;
        if (sub > 0) multiply_chunk(products, m, stage, sub);
        if (!ASKS_EARLY && sub == SUBS - 1) there = next_stage(shared, m);
        if (SCALES_AHEAD && sub == SUBS - 1 && i + 1 < SCALE_BATCH)
            read_scales(&ahead, shared, warpgroup, tile->row, i + 1, m);
#if LEAVES_EARLY
        if (leaves && sub == 1) leave_first_chunk(sums[0], shared, warpgroup, tile);
#endif
        wgmma_wait_group_0();
        const char *chunk_columns = columns + i_n * CHUNK_N * SCALE_BYTES;
        if (B_VECTOR) promote(sums[sub], products, s->of[i_m], 0, chunk_columns);
        if (sub == SUBS - 1) release_stage(shared, stage);
        if (!B_VECTOR) promote(sums[sub], products, s->of[i_m], i_n * CHUNK_SCALES, chunk_columns);
    }
    if (SCALES_AHEAD && i + 1 < SCALE_BATCH) *s = ahead;
    if (last) return;
    if (!there) wait_for_stage(shared, &m->place);
    multiply_chunk(products, m, m->place.stage, 0);
}
#else
/* One stage: its products as they are onto `sums`, both chunks begun before the first is waited for. */
DW_DEVICE void multiply_stage(float sums[SUBS][CHUNK_REGISTERS], float *, char *shared, int, const tile_slot *, int,
                              bool, bool, stage_scales *, math_state *m) {
    wait_for_stage(shared, &m->place);
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++)
        multiply_chunk(sums[sub], m, m->place.stage, sub);
    wgmma_wait_group_0();
    release_stage(shared, m->place.stage);
    ring_advance(&m->place, K_SPLIT);
}
#endif

#if SPLITS
/* The sums that other blocks left onto this warpgroup's, as copy_parts brings them. The place moves on by arithmetic:
 * moved by the loop it would be in uniform registers nowhere else either. */
DW_DEVICE void add_parts(float sums[SUBS][CHUNK_REGISTERS], char *shared, int warpgroup, int parts, math_state *m) {
    ring_place place = m->place;
    for (int part = 0; part < parts; part++)
#pragma unroll
        for (int i = 0; i < PART_PLACES; i++) {
            wait_for_stage(shared, &place);
            const float4 *from = (const float4 *)(shared + place.stage * STAGE_BYTES) +
                                 warpgroup * (PART_REGISTERS / 4 * WARPGROUP) + threadIdx.x % WARPGROUP;
            float *to = sums[i * PART_REGISTERS / CHUNK_REGISTERS] + i * PART_REGISTERS % CHUNK_REGISTERS;
#pragma unroll
            for (int j = 0; j < PART_REGISTERS / 4; j++) {
                float4 v = from[j * WARPGROUP];
                to[4 * j + 1] += v.x;
                to[4 * j] += v.y;
                to[4 * j + 3] += v.z;
                to[4 * j + 2] += v.w;
            }
            release_stage(shared, place.stage);
            ring_advance(&place, 1);
        }
    const int reached = m->place.stage + parts * PART_PLACES;
    m->place.stage = reached % STAGES;
    m->place.phase ^= reached / STAGES & 1;
}

/* This warpgroup's sums to where another block finds them. A vector of four lies in four registers in turn; in the
 * sums' own order each sum would then be in a register of its product's bank, odd or even, and the loop over stages 4
 * to 6% slower. */
DW_DEVICE void leave_part(const dw_gemm_sm90_params *p, float sums[SUBS][CHUNK_REGISTERS], int warpgroup) {
    float4 *to =
        (float4 *)block_sums(p, blockIdx.x) + warpgroup * (PART_REGISTERS / 4 * WARPGROUP) + threadIdx.x % WARPGROUP;
#pragma unroll
    for (int i = 0; i < PART_PLACES; i++) {
        const float *from = sums[i * PART_REGISTERS / CHUNK_REGISTERS] + i * PART_REGISTERS % CHUNK_REGISTERS;
#pragma unroll
        for (int j = 0; j < PART_REGISTERS / 4; j++)
            to[i * (PART_BYTES / 16) + j * WARPGROUP] =
                make_float4(from[4 * j + 1], from[4 * j], from[4 * j + 3], from[4 * j + 2]);
    }
    bar_arrive(PART_BARRIER, PART_THREADS);
}
#endif

/* Of large tiles the first chunk is begun before it is known whether there is a tile, and after the last one in vain:
 * which does not count there, as it would in products of few rows. */
#define BEGIN_UNSEEN (ADD_UP && LARGE_TILE)

/* All tiles of a multiplying warpgroup. */
DW_DEVICE void multiply_tiles(const dw_gemm_sm90_params *p, char *shared, int warpgroup) {
    const uint32_t rows = shared_address(shared) + warpgroup % ROW_WARPGROUPS * (64 * SUB_M * BLOCK_K);
    const int turn = warpgroup / ROW_WARPGROUPS;
    const int laid_out = SCALE_BATCH; /* a pragma knows no macros */
    math_state m;
    m.a_low = wgmma_descriptor_low(rows);
    m.b_low = wgmma_descriptor_low(shared_address(shared) + A_BYTES);
    m.place.stage = turn;
    m.place.phase = 0;
    m.batch.turn = 0;
    m.batch.phase = 0;
    for (;;) {
        float products[CHUNK_REGISTERS], sums[SUBS][CHUNK_REGISTERS];
        stage_scales scales;
        wait_for_stage(shared, &m.place);
        if (BEGIN_UNSEEN) multiply_chunk(products, &m, m.place.stage, 0);
        const tile_slot tile = *(const tile_slot *)(shared + SLOT_AT + m.place.stage * TILE_SLOT_BYTES);
        const int work = uniform(tile.work); /* one shuffle: after a second one the compiler trusts none */
        if (work < 0) break;
        if (ADD_UP && !BEGIN_UNSEEN) multiply_chunk(products, &m, m.place.stage, 0);
        const int k_blocks = slot_k_blocks(work);
#if LEAVES_EARLY
        const bool leaves = k_blocks > 0 && slot_is_whole(work) && tile_is_plain(p, &tile);
#else
        const bool leaves = false;
#endif
#pragma unroll
        for (int sub = 0; sub < SUBS; sub++)
#pragma unroll
            for (int i = 0; i < CHUNK_REGISTERS; i++)
                sums[sub][i] = 0.0f;
        for (int left = k_blocks; left > 0; left -= SCALE_BATCH) {
            mbarrier_wait_parity(scales_full(shared, &m.batch), m.batch.phase);
            if (LAID_OUT && left >= SCALE_BATCH) {
#pragma unroll laid_out
                for (int i = 0; i < SCALE_BATCH; i++) {
                    const bool last = i == SCALE_BATCH - 1 && left == SCALE_BATCH;
                    multiply_stage(sums, products, shared, warpgroup, &tile, i, last, last && leaves, &scales, &m);
                }
            } else {
#pragma unroll 1
                for (int i = turn; i < min(left, SCALE_BATCH); i += K_SPLIT) {
                    const bool last = i + K_SPLIT >= left;
                    multiply_stage(sums, products, shared, warpgroup, &tile, i, last, last && leaves, &scales, &m);
                }
            }
            release_batch(shared, &m.batch);
        }
        /* this warpgroup's place without operands, if it has one */
        if (places_of(k_blocks) - k_blocks > K_SPLIT - 1 - turn) {
            wgmma_wait_group_0(); /* where it has no other, products of what lay there, which nobody adds up */
            wait_for_stage(shared, &m.place);
            release_stage(shared, m.place.stage);
            ring_advance(&m.place, K_SPLIT);
        }
#if K_SPLIT > 1
        reduce_tile(sums, shared, warpgroup);
#endif
#if SPLITS
        add_parts(sums, shared, warpgroup, slot_parts(work), &m);
        if (slot_leaves(work)) leave_part(p, sums, warpgroup);
        if (!slot_leaves(work)) /* no else: with one the loop's stage is no longer in a uniform register */
#endif
            if (warpgroup < ROW_WARPGROUPS) write_tile(p, sums, shared, warpgroup, &tile, leaves ? 1 : 0);
    }
    wgmma_wait_group_0();
#if WRITER
    leave_end(shared, warpgroup);
#elif THROUGH_SHARED
    if (threadIdx.x % WARPGROUP == 0) cp_async_bulk_wait_group_read(0);
#endif
}

#if SUBS > 2
#error "a warpgroup holds at most two chunks"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ dw_gemm_sm90_params p) {
    extern __shared__ __align__(1024) char shared[];
    const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / WARPGROUP, 0);
    const int rank = CLUSTER > 1 ? (int)cluster_ctarank() : 0;
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, CLUSTER * ROW_WARPGROUPS * 4);
        }
#if TELLS
        for (turn_place t = {0, 0}; t.turn < 2; t.turn++) {
            mbarrier_init(told_full(shared, &t), 1);
            mbarrier_init(told_empty(shared, &t), 1);
        }
#endif
        for (turn_place b = {0, 0}; b.turn < 2; b.turn++) {
            mbarrier_init(scales_full(shared, &b), B_VECTOR ? 1 : 2);
            mbarrier_init(scales_empty(shared, &b), MATH_WARPGROUPS * 4);
        }
        fence_mbarrier_init();
    }
    if (threadIdx.x == MATH_WARPGROUPS * WARPGROUP) { /* while the kernel before this one ends */
        prefetch_tensormap(&p.a);
        prefetch_tensormap(&p.b);
        prefetch_tensormap(&p.a_scale_map);
        if (THROUGH_SHARED) prefetch_tensormap(&p.d);
    }
#if MULTICAST
    barrier_cluster_arrive();
    barrier_cluster_wait();
#else
    __syncthreads();
#endif

    /* What the kernel before this one in the stream wrote may be read, and what it read may be written, from
     * griddepcontrol_wait on. */
    if (warpgroup == MATH_WARPGROUPS) {
#if MATH_WARPGROUPS == 4
        setmaxnreg_dec(40);
#elif MATH_WARPGROUPS == 3
        setmaxnreg_dec(32);
#elif MATH_WARPGROUPS == 2
        setmaxnreg_dec(40);
#endif
        const int warp = uniform(threadIdx.x % WARPGROUP / 32);
        if (warp < COPYING_WARPS) {
            if (GROUPED) griddepcontrol_wait(); /* what is grouped reads first where groups end */
            copy_tiles(&p, shared, warp, rank);
        } else {
            griddepcontrol_wait();
#if SPLITS
            if (warp == COPYING_WARPS) announce_part(&p);
#endif
#if WRITER
            if (warp == WRITING_WARP) write_left_tiles(&p, shared);
#endif
#if DEALS
            if (warp == COPYING_WARPS)
                clear_empty_groups(&p, shared + ZEROS_AT, DW_GEMM_ZEROS_BYTES, (int64_t)p.m * p.n * (OUT_F32 ? 4 : 2));
#endif
        }
    } else {
#if MATH_WARPGROUPS == 4
        setmaxnreg_inc(104);
#elif MATH_WARPGROUPS == 3
        setmaxnreg_inc(160);
#elif MATH_WARPGROUPS == 2
        setmaxnreg_inc(232);
#endif
        griddepcontrol_wait();
        multiply_tiles(&p, shared, warpgroup);
    }
#if MULTICAST
    /* No block leaves while its neighbour may still write into it or arrive at its barriers. */
    barrier_cluster_arrive();
    barrier_cluster_wait();
#endif
}
