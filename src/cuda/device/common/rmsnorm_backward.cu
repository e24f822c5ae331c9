/* rmsnorm_backward_bf16: dx = rstd * (g - h rstd^2 mean(g h)) + dresidual with g = dy * (weight + offset), and partial
 * sums of dweight = sum over rows of dy h rstd. rmsnorm_dweight adds the partial sums up.
 *
 * Floor: 4 bytes read (dy, h) and 2 written (dx) an element, 2 more read with dresidual. The partial sums are
 * blocks * columns * 4 bytes, written and read again.
 *
 * Plan: a persistent grid, a block for each multiprocessor; it has groups of threads, each of which takes a run of
 * consecutive rows, one at a time across the group, UNITS units of 16 bytes a thread (the host chooses threads =
 * columns / 16, so at most 16384 columns). Rows arrive through a ring in shared memory (row_ring.cuh), several ahead,
 * so the reduction in the middle of a row does not stop the reading. A row is read from its stage twice, before and
 * after its reduction, which costs less than the registers that would hold it; the one barrier of the reduction also
 * frees the stage of the row before. Sums over the run for dweight stay in registers, 8 a unit; at the end the groups'
 * are added up in shared memory, so that a multiprocessor writes one row of partial sums however many groups it has. dx
 * may be dy or dresidual: a row is written after all of it was read. */
#include "common/norm.cuh"
#include "common/row_ring.cuh"

#define MAX_THREADS 1024
#define UNITS 2

/* The sums of a group's unit k, to shared memory or memory. */
DW_DEVICE void store_sums(float *to, const float sums[8], int col, int cols) {
    if (cols % 8 == 0) {
        if (col < cols) {
            *(float4 *)(to + col) = make_float4(sums[0], sums[1], sums[2], sums[3]);
            *(float4 *)(to + col + 4) = make_float4(sums[4], sums[5], sums[6], sums[7]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (col + i < cols) {
                to[col + i] = sums[i];
            }
        }
    }
}

/* Where a group's sums are when its ring is free. */
DW_DEVICE float *group_sums(char *shared, const dw_cuda_rmsnorm_backward_params *p, uint32_t group) {
    return (float *)(shared + group * (uint32_t)p->group_shared + 8 * RING_STAGES_MAX);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
    rmsnorm_backward_bf16__sm90(const __grid_constant__ dw_cuda_rmsnorm_backward_params p) {
    griddepcontrol_wait();
    extern __shared__ __align__(16) char dynamic_shared[];
    __shared__ float partial[2][MAX_THREADS / 32];
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, warps = threads / 32;
    /* Out of a shuffle the compiler takes it for uniform, and with it rows and addresses: else they are too many. */
    const int group = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.y, 0), groups = (int)blockDim.y;
    const int run = group * (int)gridDim.x + (int)blockIdx.x, runs = (int)gridDim.x * groups;
    const int row0 = (int)((int64_t)run * p.rows / runs), row1 = (int)((int64_t)(run + 1) * p.rows / runs);
    const row_ring ring = make_row_ring(dynamic_shared + group * p.group_shared, p.stages, p.dresidual != NULL ? 3 : 2,
                                        p.cols, p.source_vector, thread);
    if (ring.bulk && thread == 0) {
        for (int i = 0; i < ring.stages && row0 + i < row1; i++) {
            ring_request(&ring, i, p.dy, p.h, p.dresidual, p.ld, row0 + i);
        }
    }
    float dweight[UNITS][8];
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            dweight[k][i] = 0.0f;
        }
    }
    int stage = 0;
    uint32_t parity = 0;
#pragma unroll 1
    for (int row = row0; row < row1; row++) {
        const float rstd = p.rstd[row];
        if (ring.bulk) {
            mbarrier_wait_parity(&ring.full[stage], parity);
        }
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int col = (k * threads + thread) * 8;
            const uint4 dy = ring_unit(&ring, stage, 0, p.dy, p.ld, row, col, p.rows, p.cols, p.source_vector);
            const uint4 h = ring_unit(&ring, stage, 1, p.h, p.ld, row, col, p.rows, p.cols, p.source_vector);
            float w[8];
            load_weights(w, p.weight, p.weight_is_f32, p.weight_offset, p.source_vector, col, p.cols);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float d = unit_element(dy, i, DW_BF16), x = unit_element(h, i, DW_BF16);
                sum = fmaf(d * w[i], x, sum);
                dweight[k][i] = fmaf(d, x * rstd, dweight[k][i]);
            }
        }
        sum = warp_sum(sum);
        if (thread % 32 == 0) {
            partial[row & 1][group * warps + thread / 32] = sum;
        }
        bar_sync(1 + group, threads);
        /* Everybody of the group is done with the row before this one, so its stage is free. */
        if (ring.bulk && thread == 0 && row > row0 && row - 1 + ring.stages < row1) {
            ring_request(&ring, stage == 0 ? ring.stages - 1 : stage - 1, p.dy, p.h, p.dresidual, p.ld,
                         row - 1 + ring.stages);
        }
        sum = warp_sum(thread % 32 < warps ? partial[row & 1][group * warps + thread % 32] : 0.0f);
        const float pull = sum * p.inverse_cols * rstd * rstd;
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int col = (k * threads + thread) * 8;
            const uint4 dy = ring_unit(&ring, stage, 0, p.dy, p.ld, row, col, p.rows, p.cols, p.source_vector);
            const uint4 h = ring_unit(&ring, stage, 1, p.h, p.ld, row, col, p.rows, p.cols, p.source_vector);
            const uint4 residual = p.dresidual == NULL ? make_uint4(0, 0, 0, 0)
                                                       : ring_unit(&ring, stage, 2, p.dresidual, p.ld, row, col, p.rows,
                                                                   p.cols, p.source_vector);
            float w[8];
            load_weights(w, p.weight, p.weight_is_f32, p.weight_offset, p.source_vector, col, p.cols);
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t d = unit_word(dy, i), x = unit_word(h, i), r = unit_word(residual, i);
                const float low = fmaf(rstd, fmaf(-low_bf16(x), pull, low_bf16(d) * w[2 * i]), low_bf16(r));
                const float high = fmaf(rstd, fmaf(-high_bf16(x), pull, high_bf16(d) * w[2 * i + 1]), high_bf16(r));
                word[i] = cvt_rn_bf16x2_f32(high, low);
            }
            store_bf16_unit(p.dx, p.ld, row, col, p.rows, p.cols, p.source_vector,
                            make_uint4(word[0], word[1], word[2], word[3]));
        }
        if (++stage == ring.stages) {
            stage = 0;
            parity ^= 1;
        }
    }
    /* Nothing of the loop is used again: it has no registers to spare. */
    float *out = p.dweight_partial + (int64_t)blockIdx.x * p.cols;
    if (blockDim.y == 1) {
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            store_sums(out, dweight[k], (k * threads + thread) * 8, p.cols);
        }
        return;
    }
    __syncthreads(); /* the rings are free */
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        store_sums(group_sums(dynamic_shared, &p, threadIdx.y), dweight[k], (k * threads + thread) * 8, p.cols);
    }
    __syncthreads();
    for (uint32_t col = threadIdx.y * blockDim.x + threadIdx.x; col < (uint32_t)p.cols;
         col += blockDim.x * blockDim.y) {
        float sum = group_sums(dynamic_shared, &p, 0)[col];
        for (uint32_t g = 1; g < blockDim.y; g++) {
            sum += group_sums(dynamic_shared, &p, g)[col];
        }
        out[col] = sum;
    }
}

/* Sums partial[blocks][cols] over blocks: 32 columns and 8 slices of the blocks a thread block, in a fixed order. */
extern "C" __global__ void __launch_bounds__(256)
    rmsnorm_dweight__sm90(const __grid_constant__ dw_cuda_rmsnorm_dweight_params p) {
    griddepcontrol_wait();
    __shared__ float slice[8][32];
    const int lane = (int)threadIdx.x % 32, part = (int)threadIdx.x / 32;
    const int col = (int)blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (col < p.cols) {
#pragma unroll 4
        for (int i = part; i < p.blocks; i += 8) {
            sum += p.partial[(int64_t)i * p.cols + col];
        }
    }
    slice[part][lane] = sum;
    __syncthreads();
    if (part == 0 && col < p.cols) {
#pragma unroll
        for (int i = 1; i < 8; i++) {
            sum += slice[i][lane];
        }
        if (p.dweight_is_f32) {
            float *to = (float *)p.dweight + col;
            *to = p.accumulate ? *to + sum : sum;
        } else {
            uint16_t *to = (uint16_t *)p.dweight + col;
            const float old = p.accumulate ? __uint_as_float((uint32_t)*to << 16) : 0.0f;
            *to = (uint16_t)cvt_rn_bf16x2_f32(0.0f, old + sum);
        }
    }
}
