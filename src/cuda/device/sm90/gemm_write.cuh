/* Writing a tile of D: a part of gemm_block_scaled.cuh, whose parameters and sizes it takes. A warpgroup's sums go out
 * by chunks, as BF16 through shared memory with the copy engine, or from registers where STORE_BUFFERS is 0 or D FP32.
 *
 * Where there is a writing warp (WRITER) nobody who multiplies gives the copy engine its orders, nor waits for the
 * fence of the proxies that has to stand before them, 100 to 500 cycles: a warpgroup fills its buffers, says so chunk
 * by chunk, and goes on. The writing warp has the fence. The PTX ISA does not say on which side of the barrier it
 * belongs; the model of those who wrote it asks for one in the thread block of the access that is not generic, anywhere
 * on the path from one access to the other (Lustig, Cooksey, Giroux: Mixed-Proxy Extensions for the NVIDIA PTX Memory
 * Consistency Model, ISCA 2022).
 * Of two chunks the first is left in the shadow of the last stage's products of the second. */
#ifndef DW_DEVICE_SM90_GEMM_WRITE_CUH
#define DW_DEVICE_SM90_GEMM_WRITE_CUH

#include "sm90/bf16_part.cuh"

#define CHUNK_PARTS (CHUNK_N / 64) /* 64 columns each, of which a buffer holds as many rows */

/* columns of sums that a thread holds: column + 8 j and the next */
DW_DEVICE void add_bias(const dw_gemm_sm90_params *p, float *sums, int column) {
#pragma unroll
    for (int j = 0; j < CHUNK_N / 8; j++) {
        int c = column + 8 * j;
        if (c >= p->n) continue;
        uint32_t two = *(const uint32_t *)((const uint16_t *)p->bias + c);
        float low = __uint_as_float(two << 16), high = __uint_as_float(two & 0xFFFF0000);
        sums[4 * j] += low;
        sums[4 * j + 1] += high;
        sums[4 * j + 2] += low;
        sums[4 * j + 3] += high;
    }
}

#if OUT_F32
/* One chunk, from registers; row, column: of this thread's first element. */
DW_DEVICE void write_registers(const dw_gemm_sm90_params *p, const float *sums, int row, int row_end, int column) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row + 8 * half >= row_end) continue;
        float *out = (float *)p->out + (row + 8 * half) * p->out_ld + column;
#pragma unroll
        for (int j = 0; j < CHUNK_N / 8; j++) {
            if (column + 8 * j >= p->n) continue;
            float2 v = make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
            if (p->accumulate) {
                float2 old = *(const float2 *)(out + 8 * j);
                v.x += old.x;
                v.y += old.y;
            }
            *(float2 *)(out + 8 * j) = v;
        }
    }
}
#elif !THROUGH_SHARED
/* Four neighbouring threads hold two columns each of four groups of eight: afterwards each has all of one group, the
 * thread's number among the four. */
DW_DEVICE uint4 exchange_in_quad(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    uint32_t low_got = __shfl_xor_sync(0xFFFFFFFF, odd ? a : b, 1),
             high_got = __shfl_xor_sync(0xFFFFFFFF, odd ? c : d, 1);
    uint32_t w = odd ? low_got : a, x = odd ? b : low_got, y = odd ? high_got : c, z = odd ? d : high_got;
    uint32_t first = __shfl_xor_sync(0xFFFFFFFF, high ? w : y, 2),
             second = __shfl_xor_sync(0xFFFFFFFF, high ? x : z, 2);
    return high ? make_uint4(first, second, y, z) : make_uint4(w, x, first, second);
}

/* One chunk, from registers; row, column: of this thread's first element. Each row gets 64 bytes at a time. */
DW_DEVICE void write_registers(const dw_gemm_sm90_params *p, const float *sums, int row, int row_end, int column) {
    const int own = threadIdx.x % 4; /* which of four groups of columns this thread writes */
    column += 8 * own - 2 * own;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint16_t *out = (uint16_t *)p->out + (row + 8 * half) * p->out_ld + column;
#pragma unroll
        for (int j = 0; j < CHUNK_N / 8; j += 4) {
            const float *s = sums + 4 * j + 2 * half;
            uint4 v = exchange_in_quad(cvt_rn_bf16x2_f32(s[1], s[0]), cvt_rn_bf16x2_f32(s[5], s[4]),
                                       cvt_rn_bf16x2_f32(s[9], s[8]), cvt_rn_bf16x2_f32(s[13], s[12]));
            if (row + 8 * half >= row_end || column + 8 * j >= p->n) continue;
            uint4 *to = (uint4 *)(out + 8 * j);
            *to = p->accumulate ? add_bf16x8(v, *to) : v;
        }
    }
}
#elif !WRITER
/* 64 x 64 elements, from their buffer to D. */
DW_DEVICE void write_part(const dw_gemm_sm90_params *p, const char *from, const tile_slot *tile, int row, int column) {
    const int thread = threadIdx.x % WARPGROUP;
    if (p->accumulate || (GROUPED && row + 64 > tile->row_end))
        write_rows(p, from, row, tile->row_end, column, thread);
    else if (thread == 0)
        cp_async_bulk_tensor_2d_store(&p->d, column, row, shared_address(from));
}

/* The buffers are used in turn, a chunk's parts together; the copy engine may still read those not in turn. */
#define PARTS_AT_ONCE (STORE_BUFFERS < CHUNK_PARTS ? STORE_BUFFERS : CHUNK_PARTS)
#define STORE_TURNS (STORE_BUFFERS / PARTS_AT_ONCE)
#endif

#if !WRITER
/* Chunk number `sub` of this warpgroup's part of a tile. */
DW_DEVICE void write_chunk(const dw_gemm_sm90_params *p, float *sums, char *shared, int warpgroup,
                           const tile_slot *tile, int sub) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const int row = tile->row + 64 * (warpgroup * SUB_M + sub / SUB_N);
    const int column = tile->column + CHUNK_N * (sub % SUB_N);
    if (p->bias) add_bias(p, sums, column + 2 * (lane % 4));
#if !THROUGH_SHARED
    write_registers(p, sums, row + 16 * (thread / 32) + lane / 4, tile->row_end, column + 2 * (lane % 4));
#else
#pragma unroll
    for (int first = 0; first < CHUNK_PARTS; first += PARTS_AT_ONCE) {
        const int turn = (sub * CHUNK_PARTS + first) / PARTS_AT_ONCE % STORE_TURNS;
        char *buffers = shared + STORE_AT + (warpgroup * STORE_BUFFERS + turn * PARTS_AT_ONCE) * STORE_BYTES;
        if (thread == 0) cp_async_bulk_wait_group_read(STORE_TURNS - 1);
        bar_sync(1 + warpgroup, WARPGROUP);
#pragma unroll
        for (int i = 0; i < PARTS_AT_ONCE; i++)
            stage_store(sums + (first + i) * 32, shared_address(buffers + i * STORE_BYTES), thread);
        fence_proxy_async();
        bar_sync(1 + warpgroup, WARPGROUP);
#pragma unroll
        for (int i = 0; i < PARTS_AT_ONCE; i++)
            write_part(p, buffers + i * STORE_BYTES, tile, row, column + 64 * (first + i));
        if (thread == 0) cp_async_bulk_commit_group();
    }
#endif
}

/* All of them. They are named one by one: the compiler would keep a loop over them one, and the sums in local memory.
 */
DW_DEVICE void write_tile(const dw_gemm_sm90_params *p, float sums[SUBS][CHUNK_REGISTERS], char *shared, int warpgroup,
                          const tile_slot *tile, int) {
    write_chunk(p, sums[0], shared, warpgroup, tile, 0);
    if (SUBS > 1) write_chunk(p, sums[SUBS - 1], shared, warpgroup, tile, SUBS - 1);
}
#else
/* What a warpgroup has left in its buffers. */
typedef struct __align__(16) written_slot {
    int row, column; /* of D, the first */
    int copied;      /* how many times 64 rows the copy engine is to bring; the others are written. -1: nothing more */
} written_slot;
static_assert(sizeof(written_slot) == TILE_SLOT_BYTES, "shared memory is laid out for slots of that size");

/* Tiles of groups along K may be so short that writing them is what takes time: there each of two chunks' buffers are
 * free by themselves. */
#define FREED_APART (DEALS && SUBS == 2 ? 2 : 1)

/* Named barriers, with the writing warp: a warpgroup's buffers are free, or one chunk's; those of a chunk are filled.
 */
#define BUFFERS_FREE(warpgroup, sub) (10 + (warpgroup) * FREED_APART + (sub) % FREED_APART)
#define BUFFERS_FILLED(warpgroup, sub) (5 + (warpgroup) * SUBS + (sub))
#define WRITING_THREADS (WARPGROUP + 32)

#if MATH_WARPGROUPS * SUBS > 4
#error "there are no barriers for so many chunks"
#endif

DW_DEVICE written_slot *written(char *shared, int warpgroup) {
    return (written_slot *)(shared + WRITTEN_AT) + warpgroup;
}

/* Where the writing warp finds a chunk. */
DW_DEVICE char *chunk_buffers(char *shared, int warpgroup, int sub) {
    return shared + STORE_AT + (warpgroup * STORE_BUFFERS + sub * CHUNK_PARTS) * STORE_BYTES;
}

/* The first row of a warpgroup's part of a tile. */
DW_DEVICE int part_row(const tile_slot *tile, int warpgroup) {
    return tile->row + 64 * SUB_M * warpgroup;
}

/* Waits until a warpgroup's buffers are free, or the first chunk's, and says what will be in them. */
DW_DEVICE void claim_buffers(char *shared, int warpgroup, const tile_slot *tile, int copied) {
    bar_sync(BUFFERS_FREE(warpgroup, 0), WRITING_THREADS);
    if (threadIdx.x % WARPGROUP == 0)
        *written(shared, warpgroup) = (written_slot){part_row(tile, warpgroup), tile->column, copied};
}

DW_DEVICE void fill_buffers(const float *sums, char *shared, int warpgroup, int sub) {
#pragma unroll
    for (int i = 0; i < CHUNK_PARTS; i++)
        stage_store(sums + i * 32, shared_address(chunk_buffers(shared, warpgroup, sub) + i * STORE_BYTES),
                    threadIdx.x % WARPGROUP);
}

/* Whether a copy may write all rows of a tile as they are, and its sums are the result. */
DW_DEVICE bool tile_is_plain(const dw_gemm_sm90_params *p, const tile_slot *tile) {
    return !p->bias && !p->accumulate && (!GROUPED || tile->row + TILE_M <= tile->row_end);
}

/* The first chunk of a plain tile. */
DW_DEVICE void leave_first_chunk(const float *sums, char *shared, int warpgroup, const tile_slot *tile) {
    claim_buffers(shared, warpgroup, tile, SUB_M);
    fill_buffers(sums, shared, warpgroup, 0);
    bar_arrive(BUFFERS_FILLED(warpgroup, 0), WRITING_THREADS);
}

/* A warpgroup's part of a tile, into its buffers, from chunk number `first` on. Rows that a copy may not write as they
 * are, those that are added to D and those of a group's end, it writes itself. */
DW_DEVICE void write_tile(const dw_gemm_sm90_params *p, float sums[SUBS][CHUNK_REGISTERS], char *shared, int warpgroup,
                          const tile_slot *tile, int first) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = part_row(tile, warpgroup);
    const int copied = p->accumulate ? 0 : GROUPED ? min(max(tile->row_end - row, 0) / 64, SUB_M) : SUB_M;
    if (first == 0) claim_buffers(shared, warpgroup, tile, copied);
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++) {
        if (sub < first) continue;
        const int column = tile->column + CHUNK_N * (sub % SUB_N);
        if (p->bias) add_bias(p, sums[sub], column + 2 * (lane % 4));
        if (sub % FREED_APART > 0) bar_sync(BUFFERS_FREE(warpgroup, sub), WRITING_THREADS);
        fill_buffers(sums[sub], shared, warpgroup, sub);
        if (sub / SUB_N >= copied) {
            bar_sync(1 + warpgroup, WARPGROUP);
#pragma unroll 1
            for (int i = 0; i < CHUNK_PARTS; i++)
                write_rows(p, chunk_buffers(shared, warpgroup, sub) + i * STORE_BYTES, row + 64 * (sub / SUB_N),
                           tile->row_end, column + 64 * i, thread);
        }
        bar_arrive(BUFFERS_FILLED(warpgroup, sub), WRITING_THREADS);
    }
}

/* After a warpgroup's last tile. */
DW_DEVICE void leave_end(char *shared, int warpgroup) {
    for (int sub = 0; sub < FREED_APART; sub++)
        bar_sync(BUFFERS_FREE(warpgroup, sub), WRITING_THREADS);
    if (threadIdx.x % WARPGROUP == 0) written(shared, warpgroup)->copied = -1;
    bar_arrive(BUFFERS_FILLED(warpgroup, 0), WRITING_THREADS);
}

/* By the writing warp: the buffers of all warpgroups, or of a chunk. */
DW_DEVICE void free_buffers(int sub) {
#pragma unroll 1
    for (int w = 0; w < MATH_WARPGROUPS; w++)
        bar_arrive(BUFFERS_FREE(w, sub), WRITING_THREADS);
}

/* The writing warp: all that the warpgroups leave. They have the same tiles, and chunks in the same order. */
DW_DEVICE void write_left_tiles(const dw_gemm_sm90_params *p, char *shared) {
#if FREED_APART > 1
    free_buffers(0);
    free_buffers(1);
#endif
    for (;;) {
        if (FREED_APART == 1) free_buffers(0);
        bool more = true;
#pragma unroll
        for (int sub = 0; sub < SUBS && more; sub++) {
#pragma unroll 1
            for (int w = 0; w < MATH_WARPGROUPS; w++) {
                bar_sync(BUFFERS_FILLED(w, sub), WRITING_THREADS);
                const written_slot slot = *written(shared, w);
                const int copied = uniform(slot.copied);
                more = copied >= 0;
                fence_proxy_async();
                if (sub / SUB_N < copied && elect_one()) {
#pragma unroll
                    for (int i = 0; i < CHUNK_PARTS; i++)
                        cp_async_bulk_tensor_2d_store(&p->d, slot.column + CHUNK_N * (sub % SUB_N) + 64 * i,
                                                      slot.row + 64 * (sub / SUB_N),
                                                      shared_address(chunk_buffers(shared, w, sub) + i * STORE_BYTES));
                }
                __syncwarp();
            }
            if (FREED_APART > 1 && elect_one()) cp_async_bulk_commit_group();
        }
        if (!more) return;
#if FREED_APART > 1
        if (elect_one()) cp_async_bulk_wait_group_read(1);
        __syncwarp();
        free_buffers(0);
        if (elect_one()) cp_async_bulk_wait_group_read(0);
        __syncwarp();
        free_buffers(1);
#else
        if (elect_one()) {
            cp_async_bulk_commit_group();
            cp_async_bulk_wait_group_read(0);
        }
        __syncwarp();
#endif
    }
}
#endif

#endif
