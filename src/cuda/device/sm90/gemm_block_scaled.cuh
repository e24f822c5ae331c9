/* D[M, N] = A[M, K] B[N, K]^T on Hopper's FP8 tensor cores, block scaling inside: the body of the kernels that set the
 * parameters below and include this file.
 *
 * Floor: 2 M N K operations. A tensor core adds up about 14 bits, and it cannot apply scales, so each sum of 128
 * products goes into temporaries and is added to FP32 sums by ordinary arithmetic, times the product of the two block
 * scales. One such addition costs a quarter of its tensor time in issue slots; the other warpgroups' products run
 * meanwhile. Large products are limited by power: what counts is few bytes moved and a tensor core that never waits.
 *
 * Plan: one block per multiprocessor walks over tiles of D. A copying thread keeps STAGES stages of A and B (128 bytes
 * of the reduction each, swizzled) and their scales on the way; where B has square blocks a second warp brings B's
 * scales, one number per stage and chunk, fetched 32 stages ahead, because a load in the multiplying warps would stall
 * them. Each multiplying warpgroup takes its rows of the tile, 64 at a time, by chunks of CHUNK_N columns, and writes
 * them through shared memory with the copy engine while the copying thread is ahead in the next tile. With MULTICAST
 * two neighbouring blocks share the larger operand and load half of it each.
 *
 * TILE_M, TILE_N   tile of D
 * CHUNK_N          columns multiplied at once: 32, 64 or 128
 * MATH_WARPGROUPS  1 to 4 that multiply; TILE_M is 64 times a multiple of MATH_WARPGROUPS / K_SPLIT
 * K_SPLIT          1, or how many warpgroups share the reduction of the same rows, a stage each in turn: where a
 * product has few rows it is not work that takes time but the way from one stage's sums to the next STAGES stages in
 * shared memory MULTICAST        0, MULTICAST_A (two blocks along N share A) or MULTICAST_B (two along M share B)
 * SCALE_F32        scales are FP32, else E8M0 codes
 * B_VECTOR         B has 1x128 blocks, else 128x128
 * OUT_F32          D is FP32, else BF16
 * STORE_BUFFERS    8 KiB buffers through which a warpgroup writes BF16
 * GROUPED          0, GROUPED_M or GROUPED_K
 * KERNEL           the name */
#include "sm90/copy.cuh"
#include "sm90/gemm_tiles.cuh"
#include "sm90/wgmma.cuh"

#define MULTICAST_A 1
#define MULTICAST_B 2

#define BLOCK_K 128
#define WARPGROUP 128
#define THREADS (WARPGROUP * (MATH_WARPGROUPS + 1))
#define ROW_WARPGROUPS (MATH_WARPGROUPS / K_SPLIT)
#define SUB_M (TILE_M / (64 * ROW_WARPGROUPS))
#define SUB_N (TILE_N / CHUNK_N)
#define SUBS (SUB_M * SUB_N)
#define CHUNK_REGISTERS (CHUNK_N / 2)
#define CLUSTER (MULTICAST ? 2 : 1)
#define SCALE_BYTES (SCALE_F32 ? 4 : 1)
#define SCALES_PER_UNIT (16 / SCALE_BYTES) /* bulk copies start at multiples of 16 bytes */

/* Shared memory: stages, store buffers, scales (each operand's with a unit to spare for groups that start between two
 * units), barriers. */
#define A_BYTES (TILE_M * BLOCK_K)
#define B_BYTES (TILE_N * BLOCK_K)
#define STAGE_BYTES (A_BYTES + B_BYTES)
#define STORE_BYTES (64 * 128)                     /* 64 rows of 64 BF16 */
#define THROUGH_SHARED (!OUT_F32 && CHUNK_N >= 64) /* a narrower result is written from registers */
#define STORES (THROUGH_SHARED ? STORE_BUFFERS : 0)
#define STORE_AT (STAGES * STAGE_BYTES)
#define A_SCALE_BYTES (TILE_M * SCALE_BYTES + 16)
#define B_SCALE_BYTES (B_VECTOR ? TILE_N * SCALE_BYTES : 16)
#define STAGE_SCALE_BYTES (A_SCALE_BYTES + B_SCALE_BYTES)
#define REDUCE_AT (STORE_AT + ROW_WARPGROUPS * STORES * STORE_BYTES)
#define REDUCE_BYTES ((K_SPLIT - 1) * TILE_M * TILE_N * 4)
#define SCALE_AT (REDUCE_AT + REDUCE_BYTES)
#define BARRIER_AT (SCALE_AT + STAGES * STAGE_SCALE_BYTES)
#define SHARED_BYTES (BARRIER_AT + STAGES * 16)

#if SHARED_BYTES > 232448
#error "more shared memory than a block may have"
#endif

/* 2^(code - 127), exact; the code of NaN gives infinity, and its elements are NaN already. */
DW_DEVICE float scale_from_code(uint32_t code) {
    return __uint_as_float(max(code << 23, 0x00400000u));
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

DW_DEVICE void ring_advance(ring_place *place) {
    if (++place->stage == STAGES) {
        place->stage = 0;
        place->phase ^= 1;
    }
}

DW_DEVICE void ring_skip(ring_place *place, int stages) {
    for (int i = 0; i < stages; i++)
        ring_advance(place);
}

/* ---- the copying warps ---- */

/* Bytes of a tile's 1x128 scales, from the unit its first lies in; none beyond the last (the products they belong to
 * are of zeros or not kept). */
DW_DEVICE int scale_copy_bytes(int row, int rows, int64_t ld) {
    int first = row - row % SCALES_PER_UNIT;
    int64_t left = ld - first;
    int wanted = (rows + (row - first) + SCALES_PER_UNIT - 1) / SCALES_PER_UNIT * SCALES_PER_UNIT;
    return left <= 0 ? 0 : (int)min((int64_t)wanted, left) * SCALE_BYTES;
}

/* One thread: A, B and the 1x128 scales of every stage of a tile. */
DW_DEVICE void copy_tile(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int rank,
                         ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    const int a_scales = scale_copy_bytes(work->a_row, TILE_M, p->a_scale_ld);
    const int b_scales = B_VECTOR ? scale_copy_bytes(work->b_row, TILE_N, p->b_scale_ld) : 0;
    const char *a_scale = (const char *)p->a_scale +
                          (work->k_block * p->a_scale_ld + (work->a_row - work->a_row % SCALES_PER_UNIT)) * SCALE_BYTES;
    const char *b_scale = (const char *)p->b_scale + (work->k_block * p->b_scale_ld + work->b_row) * SCALE_BYTES;
    for (int kb = 0; kb < work->k_blocks; kb++) {
        mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
        mbarrier_arrive_expect_tx(full + place->stage, STAGE_BYTES + a_scales + b_scales);
        uint32_t barrier = shared_address(full + place->stage);
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
        char *scales = shared + SCALE_AT + place->stage * STAGE_SCALE_BYTES;
        if (a_scales > 0) cp_async_bulk_shared_global(scales, a_scale, a_scales, full + place->stage);
        if (b_scales > 0) cp_async_bulk_shared_global(scales + A_SCALE_BYTES, b_scale, b_scales, full + place->stage);
        a_scale += p->a_scale_ld * SCALE_BYTES;
        b_scale += p->b_scale_ld * SCALE_BYTES;
        ring_advance(place);
    }
}

#if !B_VECTOR
DW_DEVICE float load_scale(const void *scales, int64_t at) {
#if SCALE_F32
    return __ldg((const float *)scales + at);
#else
    return scale_from_code(__ldg((const uint8_t *)scales + at));
#endif
}

/* One warp: the scales of B's square blocks, one for each chunk of columns. Lane l has those of stages l, l + 32, ...
 */
DW_DEVICE void copy_square_scales(const dw_gemm_sm90_params *p, char *shared, const tile_work *work, int lane,
                                  ring_place *place) {
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    int64_t at[SUB_N];
    float ahead[SUB_N], now[SUB_N];
#pragma unroll
    for (int i = 0; i < SUB_N; i++) {
        int block = min(work->column + i * CHUNK_N, p->n - 1) / 128;
        if (GROUPED == GROUPED_M) block += work->group * ((p->n + 127) / 128);
        at[i] = block * p->b_scale_row_step + (work->k_block + lane) * p->b_scale_k_step;
        now[i] = 0.0f;
        ahead[i] = lane < work->k_blocks ? load_scale(p->b_scale, at[i]) : 0.0f;
    }
    for (int kb = 0; kb < work->k_blocks; kb++) {
        if (kb % 32 == 0) {
#pragma unroll
            for (int i = 0; i < SUB_N; i++) {
                now[i] = ahead[i];
                at[i] += 32 * p->b_scale_k_step;
                if (kb + 32 + lane < work->k_blocks) ahead[i] = load_scale(p->b_scale, at[i]);
            }
        }
        mbarrier_wait_parity(empty + place->stage, place->phase ^ 1);
        if (lane == kb % 32) {
            float *to = (float *)(shared + SCALE_AT + place->stage * STAGE_SCALE_BYTES + A_SCALE_BYTES);
#pragma unroll
            for (int i = 0; i < SUB_N; i++)
                to[i] = now[i];
            mbarrier_arrive(shared_address(full + place->stage));
        }
        ring_advance(place);
    }
}
#endif

/* ---- the multiplying warpgroups ---- */

/* The scales of one stage that a thread needs besides those of single columns. */
typedef struct stage_scales {
    float a[SUB_M][2]; /* of its rows r and r + 8 of each sub-tile */
    float b[SUB_N];    /* of square blocks */
} stage_scales;

/* The products of 64 rows and CHUNK_N columns over one stage, begun. */
DW_DEVICE void multiply(float *products, uint32_t a_low, uint32_t b_low) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BLOCK_K / 32; k++) {
        uint64_t a = wgmma_descriptor_swizzle_128b(a_low + 2 * k), b = wgmma_descriptor_swizzle_128b(b_low + 2 * k);
#if CHUNK_N == 128
        wgmma_m64n128k32_f32_e4m3_e4m3(products, a, b, k > 0);
#elif CHUNK_N == 64
        wgmma_m64n64k32_f32_e4m3_e4m3(products, a, b, k > 0);
#else
        wgmma_m64n32k32_f32_e4m3_e4m3(products, a, b, k > 0);
#endif
    }
    wgmma_commit_group();
}

/* Adds the products of one chunk, scaled, to its sums. b_scale: the stage's scales of single columns. */
DW_DEVICE void promote(float *sums, const float *products, const float *a, float b, const char *b_scale) {
#pragma unroll
    for (int j = 0; j < CHUNK_N / 8; j++) {
#if B_VECTOR
        float b0 = shared_scale(b_scale, 8 * j), b1 = shared_scale(b_scale, 8 * j + 1);
#else
        float b0 = b, b1 = b;
#endif
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sums[4 * j + 2 * half] += products[4 * j + 2 * half] * (a[half] * b0);
            sums[4 * j + 2 * half + 1] += products[4 * j + 2 * half + 1] * (a[half] * b1);
        }
    }
}

/* All stages of one tile, or with K_SPLIT this warpgroup's share of them: its rows of it into `sums`. */
DW_DEVICE void multiply_tile(float sums[SUBS][CHUNK_REGISTERS], char *shared, const tile_work *work, int warpgroup,
                             ring_place *place) {
    const int half_m = warpgroup % ROW_WARPGROUPS * (64 * SUB_M), turn = warpgroup / ROW_WARPGROUPS;
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    uint64_t *full = (uint64_t *)(shared + BARRIER_AT), *empty = full + STAGES;
    const uint32_t a_low = wgmma_descriptor_low(shared_address(shared) + half_m * BLOCK_K);
    const uint32_t b_low = wgmma_descriptor_low(shared_address(shared) + A_BYTES);
    const int a_scale_at = half_m + 16 * (thread / 32) + lane / 4 + work->a_row % SCALES_PER_UNIT;
    const int b_scale_at = 2 * (lane % 4) * SCALE_BYTES;
    float products[CHUNK_REGISTERS];
    bool ready = false;
    if (K_SPLIT > 1) ring_skip(place, min(turn, work->k_blocks));
    for (int kb = turn; kb < work->k_blocks; kb += K_SPLIT) {
        if (!ready) mbarrier_wait_parity(full + place->stage, place->phase);
        const char *scales = shared + SCALE_AT + place->stage * STAGE_SCALE_BYTES;
        stage_scales s;
#pragma unroll
        for (int sub = 0; sub < SUBS; sub++) {
            const int i_m = sub / SUB_N, i_n = sub % SUB_N;
            multiply(products, a_low + place->stage * (STAGE_BYTES / 16) + i_m * (64 * BLOCK_K / 16),
                     b_low + place->stage * (STAGE_BYTES / 16) + i_n * (CHUNK_N * BLOCK_K / 16));
            if (sub == 0) {
#pragma unroll
                for (int i = 0; i < SUB_M; i++) {
                    s.a[i][0] = shared_scale(scales, a_scale_at + 64 * i);
                    s.a[i][1] = shared_scale(scales, a_scale_at + 64 * i + 8);
                }
#pragma unroll
                for (int i = 0; i < SUB_N; i++)
                    s.b[i] = B_VECTOR ? 1.0f : ((const float *)(scales + A_SCALE_BYTES))[i];
            }
            wgmma_wait_group_0();
            const char *columns = scales + A_SCALE_BYTES + i_n * CHUNK_N * SCALE_BYTES + b_scale_at;
            if (B_VECTOR) promote(sums[sub], products, s.a[i_m], s.b[i_n], columns);
            if (sub == SUBS - 1) {
                __syncwarp();
                if (CLUSTER > 1 && lane < CLUSTER) mbarrier_arrive_cluster(shared_address(empty + place->stage), lane);
                if (CLUSTER == 1 && lane == 0) mbarrier_arrive(shared_address(empty + place->stage));
                ring_skip(place, min(K_SPLIT, work->k_blocks - kb));
                /* the answer comes while the sums are added */
                ready = kb + K_SPLIT < work->k_blocks && mbarrier_try_wait_parity(full + place->stage, place->phase);
            }
            if (!B_VECTOR) promote(sums[sub], products, s.a[i_m], s.b[i_n], columns);
        }
    }
}

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

/* ---- writing ---- */

/* columns of sums that a thread holds: column + 8 j and the next */
DW_DEVICE void add_bias(const dw_gemm_sm90_params *p, float *sums, int column) {
#pragma unroll
    for (int j = 0; j < CHUNK_N / 8; j++) {
        int c = column + 8 * j;
        if (c >= p->n) continue;
        uint32_t two = __ldg((const uint32_t *)((const uint16_t *)p->bias + c));
        float low = __uint_as_float(two << 16), high = __uint_as_float(two & 0xFFFF0000);
        sums[4 * j] += low;
        sums[4 * j + 1] += high;
        sums[4 * j + 2] += low;
        sums[4 * j + 3] += high;
    }
}

#if !OUT_F32
DW_DEVICE uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    float low = __uint_as_float(a << 16) + __uint_as_float(b << 16);
    float high = __uint_as_float(a & 0xFFFF0000) + __uint_as_float(b & 0xFFFF0000);
    return cvt_rn_bf16x2_f32(high, low);
}
#endif

#if !THROUGH_SHARED
/* Two neighbouring elements of D, at `to`. */
DW_DEVICE void write_pair(const dw_gemm_sm90_params *p, int64_t to, float2 v) {
#if OUT_F32
    float2 *at = (float2 *)((float *)p->out + to);
    if (p->accumulate) {
        float2 old = *at;
        v.x += old.x;
        v.y += old.y;
    }
    *at = v;
#else
    uint32_t *at = (uint32_t *)((uint16_t *)p->out + to);
    uint32_t two = cvt_rn_bf16x2_f32(v.y, v.x);
    *at = p->accumulate ? add_bf16x2(two, *at) : two;
#endif
}

DW_DEVICE void write_chunk(const dw_gemm_sm90_params *p, const float *sums, int row, int row_end, int column) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + 8 * half;
        if (r >= row_end) continue;
#pragma unroll
        for (int j = 0; j < CHUNK_N / 8; j++) {
            int c = column + 8 * j;
            if (c < p->n)
                write_pair(p, r * p->out_ld + c, make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]));
        }
    }
}
#else
/* 64 rows and 64 columns to the shared memory at `to`. Lane i of a warp gives the address of row i % 8 of the 8x8
 * matrix i / 8 of four; 16-byte units are swizzled by the row as the copy engine expects. */
DW_DEVICE void stage_store(const float *sums, uint32_t to, int thread) {
    int row = 16 * (thread / 32) + thread % 16, unit = thread % 32 / 16;
#pragma unroll
    for (int j = 0; j < 8; j += 2)
        stmatrix_x4(to + row * 128 + (((j + unit) ^ (row % 8)) * 16), cvt_rn_bf16x2_f32(sums[4 * j + 1], sums[4 * j]),
                    cvt_rn_bf16x2_f32(sums[4 * j + 3], sums[4 * j + 2]),
                    cvt_rn_bf16x2_f32(sums[4 * j + 5], sums[4 * j + 4]),
                    cvt_rn_bf16x2_f32(sums[4 * j + 7], sums[4 * j + 6]));
}

/* From there to D, row by row: for rows the copy engine must not touch, those of the next group, and to add. */
DW_DEVICE void write_rows(const dw_gemm_sm90_params *p, const char *from, int row, int row_end, int column,
                          int thread) {
    for (int i = thread; i < 64 * 8; i += WARPGROUP) {
        int r = i / 8, unit = i % 8, c = column + 8 * unit;
        if (row + r >= row_end || c >= p->n) continue;
        uint4 v = *(const uint4 *)(from + r * 128 + ((unit ^ (r % 8)) * 16));
        uint4 *to = (uint4 *)((uint16_t *)p->out + (row + r) * p->out_ld + c);
        if (p->accumulate) {
            uint4 old = *to;
            v = make_uint4(add_bf16x2(v.x, old.x), add_bf16x2(v.y, old.y), add_bf16x2(v.z, old.z),
                           add_bf16x2(v.w, old.w));
        }
        *to = v;
    }
}

/* A warpgroup's 64 x 64 parts, each from its buffer to D. */
DW_DEVICE void write_part(const dw_gemm_sm90_params *p, const char *from, const tile_work *work, int row, int column) {
    const int thread = threadIdx.x % WARPGROUP;
    if (p->accumulate || (GROUPED && row + 64 > work->row_end))
        write_rows(p, from, row, work->row_end, column, thread);
    else if (thread == 0)
        cp_async_bulk_tensor_2d_store(&p->d, column, row, shared_address(from));
}
#endif

/* This warpgroup's rows of a tile. Its chunks are named one by one: the compiler would keep a loop over them one, and
 * the sums in local memory. */
#define PARTS (SUBS * CHUNK_N / 64)
#define PART_ROW(part) (row + 64 * ((part) * 64 / CHUNK_N / SUB_N))
#define PART_COLUMN(part) (work->column + 64 * ((part) % (TILE_N / 64)))
DW_DEVICE void write_tile(const dw_gemm_sm90_params *p, float sums[SUBS][CHUNK_REGISTERS], char *shared, int warpgroup,
                          const tile_work *work) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const int row = work->row + 64 * warpgroup * SUB_M;
    if (p->bias) {
        add_bias(p, sums[0], work->column + 2 * (lane % 4));
        if (SUBS > 1) add_bias(p, sums[SUBS - 1], work->column + CHUNK_N * (SUB_N - 1) + 2 * (lane % 4));
    }
#if !THROUGH_SHARED
    const int row_in_sub = 16 * (thread / 32) + lane / 4;
    write_chunk(p, sums[0], row + row_in_sub, work->row_end, work->column + 2 * (lane % 4));
    if (SUBS > 1)
        write_chunk(p, sums[SUBS - 1], row + 64 * (SUB_M - 1) + row_in_sub, work->row_end,
                    work->column + CHUNK_N * (SUB_N - 1) + 2 * (lane % 4));
#else
    char *stores = shared + STORE_AT + warpgroup * (STORES * STORE_BYTES);
    /* As many parts at a time as there are buffers. */
#pragma unroll
    for (int first = 0; first < PARTS; first += STORE_BUFFERS) {
        if (thread == 0) cp_async_bulk_wait_group_read(0);
        bar_sync(1 + warpgroup, WARPGROUP);
#pragma unroll
        for (int i = 0; i < STORE_BUFFERS; i++)
            stage_store(&sums[(first + i) * 64 / CHUNK_N][(first + i) % (CHUNK_N / 64) * 32],
                        shared_address(stores + i * STORE_BYTES), thread);
        fence_proxy_async();
        bar_sync(1 + warpgroup, WARPGROUP);
#pragma unroll
        for (int i = 0; i < STORE_BUFFERS; i++)
            write_part(p, stores + i * STORE_BYTES, work, PART_ROW(first + i), PART_COLUMN(first + i));
        if (thread == 0) cp_async_bulk_commit_group();
    }
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
            mbarrier_init(full + s, B_VECTOR ? 1 : 2);
            mbarrier_init(empty + s, CLUSTER * ROW_WARPGROUPS * 4);
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
    const int m_offset = MULTICAST == MULTICAST_B ? rank * TILE_M : 0;
    const int n_offset = MULTICAST == MULTICAST_A ? rank * TILE_N : 0;
    const int step = gridDim.x / CLUSTER;
    tile_walk walk;
    tile_work work;
    walk_start(&walk, &p, GROUPED, TILE_M * (MULTICAST == MULTICAST_B ? 2 : 1),
               TILE_N * (MULTICAST == MULTICAST_A ? 2 : 1));
#define FOR_EACH_TILE                                                                                                  \
    for (int at = blockIdx.x / CLUSTER;                                                                                \
         at < walk.total && (walk_to(&walk, &p, GROUPED, at, m_offset, n_offset, BLOCK_K, &work), true); at += step)
    ring_place place = {0, 0};

    if (warpgroup == MATH_WARPGROUPS) {
#if MATH_WARPGROUPS == 4
        setmaxnreg_dec(40);
#elif MATH_WARPGROUPS == 3
        setmaxnreg_dec(32);
#elif MATH_WARPGROUPS == 2
        setmaxnreg_dec(40);
#endif
        const int thread = threadIdx.x % WARPGROUP;
        if (thread / 32 == 0) FOR_EACH_TILE
        if (thread == 0) copy_tile(&p, shared, &work, rank, &place);
#if !B_VECTOR
        if (thread / 32 == 1) FOR_EACH_TILE
        copy_square_scales(&p, shared, &work, thread % 32, &place);
#endif
    } else {
#if MATH_WARPGROUPS == 4
        setmaxnreg_inc(104);
#elif MATH_WARPGROUPS == 3
        setmaxnreg_inc(160);
#elif MATH_WARPGROUPS == 2
        setmaxnreg_inc(232);
#endif
        FOR_EACH_TILE {
            float sums[SUBS][CHUNK_REGISTERS];
#pragma unroll
            for (int s = 0; s < SUBS; s++)
#pragma unroll
                for (int i = 0; i < CHUNK_REGISTERS; i++)
                    sums[s][i] = 0.0f;
            multiply_tile(sums, shared, &work, warpgroup, &place);
#if K_SPLIT > 1
            reduce_tile(sums, shared, warpgroup);
            if (warpgroup >= ROW_WARPGROUPS) continue;
#endif
            write_tile(&p, sums, shared, warpgroup, &work);
        }
#if THROUGH_SHARED
        if (threadIdx.x % WARPGROUP == 0) cp_async_bulk_wait_group_read(0);
#endif
    }
#if MULTICAST
    /* No block leaves while its neighbour may still write into it or arrive at its barriers. */
    barrier_cluster_arrive();
    barrier_cluster_wait();
#endif
}
