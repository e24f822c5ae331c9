/* 64 x 64 elements of a BF16 result on their way through shared memory: what the Hopper matrix kernels have in common.
 * Rows of 128 bytes, whose 16-byte units are swizzled by the row as the copy engine's 128-byte mode expects. */
#ifndef DW_DEVICE_SM90_BF16_PART_CUH
#define DW_DEVICE_SM90_BF16_PART_CUH

#include "sm90/copy.cuh"
#include "sm90/gemm_params.h"

DW_DEVICE uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    const float low = __uint_as_float(a << 16) + __uint_as_float(b << 16);
    const float high = __uint_as_float(a & 0xFFFF0000) + __uint_as_float(b & 0xFFFF0000);
    return cvt_rn_bf16x2_f32(high, low);
}

DW_DEVICE uint4 add_bf16x8(uint4 a, uint4 b) {
    return make_uint4(add_bf16x2(a.x, b.x), add_bf16x2(a.y, b.y), add_bf16x2(a.z, b.z), add_bf16x2(a.w, b.w));
}

/* A warpgroup's sums, as wgmma.cuh says which a thread has, to the shared memory at `to`. Lane i of a warp gives the
 * address of row i % 8 of the 8x8 matrix i / 8 of four. thread: of the warpgroup. */
DW_DEVICE void stage_store(const float *sums, uint32_t to, int thread) {
    const int row = 16 * (thread / 32) + thread % 16, unit = thread % 32 / 16;
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
    for (int i = thread; i < 64 * 8; i += 128) {
        const int r = i / 8, unit = i % 8, c = column + 8 * unit;
        if (row + r >= row_end || c >= p->n) continue;
        uint4 v = *(const uint4 *)(from + r * 128 + ((unit ^ (r % 8)) * 16));
        uint4 *to = (uint4 *)((uint16_t *)p->out + (row + r) * p->out_ld + c);
        *to = p->accumulate ? add_bf16x8(v, *to) : v;
    }
}

#endif
