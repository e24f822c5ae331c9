/* A ring of matrix rows in shared memory, filled by bulk copies ahead of the threads that use them.
 *
 * A stage holds one row of each of up to three matrices that are read together. A block may have groups of threads with
 * a ring each. Thread 0 of a group asks for the rows; everybody
 * waits on the stage's barrier. A stage may be asked for again once all threads have read it, which the caller knows
 * from a barrier of its own. The bytes in flight do not depend on registers: stages * matrices * row bytes for each
 * thread block.
 *
 * Rows that are not aligned to 16 bytes, or not whole 16-byte units, cannot be copied in bulk: `bulk` is false then and
 * callers load from global memory instead (correct, slow). */
#ifndef DW_DEVICE_ROW_RING_CUH
#define DW_DEVICE_ROW_RING_CUH

#include "common/row_tile.cuh"

#define RING_STAGES_MAX 8

typedef struct row_ring {
    uint64_t *full; /* [stages] */
    char *stage0;
    int stages, matrices;
    uint32_t row_bytes, stage_bytes;
    bool bulk;
} row_ring;

/* Uses shared memory: RING_STAGES_MAX barriers, then the stages. `thread`: this one's number in its group. Ends with a
 * barrier of the thread block. */
DW_DEVICE row_ring make_row_ring(char *shared, int stages, int matrices, int cols, int vector, int thread) {
    row_ring ring;
    ring.full = (uint64_t *)shared;
    ring.stage0 = shared + 8 * RING_STAGES_MAX;
    ring.stages = stages;
    ring.matrices = matrices;
    ring.row_bytes = (uint32_t)cols * 2;
    ring.stage_bytes = ring.row_bytes * (uint32_t)matrices;
    ring.bulk = vector && cols % 8 == 0;
    if (thread == 0) {
        for (int i = 0; i < stages; i++) {
            mbarrier_init(&ring.full[i], 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    return ring;
}

/* Thread 0 of a group: asks for row `row` of the matrices (the third and second only where the ring has them). */
DW_DEVICE void ring_request(const row_ring *ring, int stage, const void *a, const void *b, const void *c, int64_t ld,
                            int row) {
    char *to = ring->stage0 + (uint32_t)stage * ring->stage_bytes;
    const int64_t offset = row * ld * 2;
    mbarrier_arrive_expect_tx(&ring->full[stage], ring->stage_bytes);
    cp_async_bulk_shared_global(to, (const char *)a + offset, ring->row_bytes, &ring->full[stage]);
    if (ring->matrices > 1) {
        cp_async_bulk_shared_global(to + ring->row_bytes, (const char *)b + offset, ring->row_bytes,
                                    &ring->full[stage]);
    }
    if (ring->matrices > 2) {
        cp_async_bulk_shared_global(to + 2 * ring->row_bytes, (const char *)c + offset, ring->row_bytes,
                                    &ring->full[stage]);
    }
}

/* A unit of matrix number `which` in a stage that has arrived, or the same from global memory. */
DW_DEVICE uint4 ring_unit(const row_ring *ring, int stage, int which, const void *matrix, int64_t ld, int row, int col,
                          int rows, int cols, int vector) {
    if (ring->bulk) {
        return col < cols ? *(const uint4 *)(ring->stage0 + (uint32_t)stage * ring->stage_bytes +
                                             (uint32_t)which * ring->row_bytes + (uint32_t)col * 2)
                          : make_uint4(0, 0, 0, 0);
    }
    return load_unit(matrix, ld, row, col, rows, cols, vector, DW_BF16);
}

#endif
