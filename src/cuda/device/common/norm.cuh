/* What forward and backward of the norms share. */
#ifndef DW_DEVICE_NORM_CUH
#define DW_DEVICE_NORM_CUH

#include "common/bf16_unit.cuh"
#include "common/square_tile.cuh"

DW_DEVICE uint4 add_bf16_units(uint4 a, uint4 b) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t x = unit_word(a, i), y = unit_word(b, i);
        word[i] = cvt_rn_bf16x2_f32(high_bf16(x) + high_bf16(y), low_bf16(x) + low_bf16(y));
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DW_DEVICE float sum_of_squares(uint4 v, float sum) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t w = unit_word(v, i);
        sum = fmaf(low_bf16(w), low_bf16(w), sum);
        sum = fmaf(high_bf16(w), high_bf16(w), sum);
    }
    return sum;
}

DW_DEVICE float warp_sum(float v) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        v += __shfl_xor_sync(0xFFFFFFFFu, v, distance);
    }
    return v;
}

/* weight + offset of the 8 columns from `col` on; 0 beyond the matrix. */
DW_DEVICE void load_weights(float w[8], const void *weight, int is_f32, float offset, int vector, int col, int cols) {
    if (vector && col + 8 <= cols) {
        if (is_f32) {
            const float4 a = *(const float4 *)((const float *)weight + col);
            const float4 b = *(const float4 *)((const float *)weight + col + 4);
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        } else {
            const uint4 v = ld_global_v4((const uint16_t *)weight + col);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                w[i] = unit_element(v, i, DW_BF16);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            w[i] = col + i >= cols ? 0.0f
                   : is_f32        ? ((const float *)weight)[col + i]
                                   : __uint_as_float((uint32_t)((const uint16_t *)weight)[col + i] << 16);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        w[i] += offset;
    }
}

/* y of 8 columns, rounded to BF16. */
DW_DEVICE uint4 normalized_unit(uint4 h, float rstd, const float w[8]) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t x = unit_word(h, i);
        word[i] = cvt_rn_bf16x2_f32(high_bf16(x) * rstd * w[2 * i + 1], low_bf16(x) * rstd * w[2 * i]);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

#endif
