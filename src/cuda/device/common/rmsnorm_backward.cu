/* rmsnorm_backward_bf16_<columns>: dx = rstd * (g - h rstd^2 mean(g h)) + dresidual with g = dy * (weight + offset), and
 * partial sums of dweight = sum over rows of dy h rstd. rmsnorm_dweight adds the partial sums up.
 *
 * Floor: 4 bytes read (dy, h) and 2 written (dx) an element, 2 more read with dresidual. The partial sums are
 * blocks * columns * 4 bytes, a few percent of one matrix.
 *
 * Plan: a persistent grid; a block takes a run of consecutive rows, one at a time across all its threads, `units` units of
 * 16 bytes a thread, the next row's loads in flight while this one is reduced. Sums over the run for dweight stay in
 * registers, 8 a unit, and are written once. Two widths: 2 units (up to 8192 columns with 512 threads) and 4 (16384). The
 * weight is read again each row, from L1, which costs less than the registers it would hold. */
#include "common/norm.cuh"

#define MAX_THREADS 512

DW_DEVICE void rmsnorm_backward(const dw_cuda_rmsnorm_backward_params *p, int units) {
    __shared__ float partial[2][32];
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, warps = threads / 32;
    const int run = (int)(((uint32_t)p->rows + gridDim.x - 1) / gridDim.x);
    const int row0 = (int)blockIdx.x * run, row1 = min(row0 + run, p->rows);
    float dweight[4][8];
    uint4 next_dy[4], next_h[4];
#pragma unroll
    for (int k = 0; k < units; k++) {
        const int col = (k * threads + thread) * 8;
        next_dy[k] = load_unit(p->dy, p->ld, row0, col, p->rows, p->cols, p->source_vector, DW_BF16);
        next_h[k] = load_unit(p->h, p->ld, row0, col, p->rows, p->cols, p->source_vector, DW_BF16);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            dweight[k][i] = 0.0f;
        }
    }
#pragma unroll 1
    for (int row = row0; row < row1; row++) {
        uint4 dy[4], h[4];
        const float rstd = p->rstd[row];
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < units; k++) {
            const int col = (k * threads + thread) * 8;
            dy[k] = next_dy[k];
            h[k] = next_h[k];
            if (row + 1 < row1) {
                next_dy[k] = load_unit(p->dy, p->ld, row + 1, col, p->rows, p->cols, p->source_vector, DW_BF16);
                next_h[k] = load_unit(p->h, p->ld, row + 1, col, p->rows, p->cols, p->source_vector, DW_BF16);
            }
            float w[8];
            load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, col, p->cols);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float d = unit_element(dy[k], i, DW_BF16), x = unit_element(h[k], i, DW_BF16);
                sum = fmaf(d * w[i], x, sum);
                dweight[k][i] = fmaf(d, x * rstd, dweight[k][i]);
            }
        }
        sum = warp_sum(sum);
        if (thread % 32 == 0) {
            partial[row & 1][thread / 32] = sum;
        }
        __syncthreads();
        sum = warp_sum(thread % 32 < warps ? partial[row & 1][thread % 32] : 0.0f);
        const float pull = sum * p->inverse_cols * rstd * rstd;
#pragma unroll
        for (int k = 0; k < units; k++) {
            const int col = (k * threads + thread) * 8;
            float w[8];
            load_weights(w, p->weight, p->weight_is_f32, p->weight_offset, p->source_vector, col, p->cols);
            uint4 residual = make_uint4(0, 0, 0, 0);
            if (p->dresidual != NULL) {
                residual = load_unit(p->dresidual, p->ld, row, col, p->rows, p->cols, p->source_vector, DW_BF16);
            }
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t d = unit_word(dy[k], i), x = unit_word(h[k], i), r = unit_word(residual, i);
                const float low = fmaf(rstd, fmaf(-low_bf16(x), pull, low_bf16(d) * w[2 * i]), low_bf16(r));
                const float high = fmaf(rstd, fmaf(-high_bf16(x), pull, high_bf16(d) * w[2 * i + 1]), high_bf16(r));
                word[i] = cvt_rn_bf16x2_f32(high, low);
            }
            store_bf16_unit(p->dx, p->ld, row, col, p->rows, p->cols, p->source_vector,
                            make_uint4(word[0], word[1], word[2], word[3]));
        }
    }
    float *out = p->dweight_partial + (int64_t)blockIdx.x * p->cols;
#pragma unroll
    for (int k = 0; k < units; k++) {
        const int col = (k * threads + thread) * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (col + i < p->cols) {
                out[col + i] = dweight[k][i];
            }
        }
    }
}

#define RMSNORM_BACKWARD(NAME, UNITS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)                                                       \
        NAME(const __grid_constant__ dw_cuda_rmsnorm_backward_params p) {                                              \
        rmsnorm_backward(&p, UNITS);                                                                                   \
    }

RMSNORM_BACKWARD(rmsnorm_backward_bf16_8192__sm90, 2)
RMSNORM_BACKWARD(rmsnorm_backward_bf16_16384__sm90, 4)

/* Sums partial[blocks][cols] over blocks: 32 columns and 8 slices of the blocks a thread block, in a fixed order. */
extern "C" __global__ void __launch_bounds__(256) rmsnorm_dweight__sm90(const __grid_constant__ dw_cuda_rmsnorm_dweight_params p) {
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
