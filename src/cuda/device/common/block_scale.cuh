/* The arithmetic of one block: amax, scale code, elements; and the places where scales are stored.
 *
 * Functions here take the formats as constants of the calling kernel (`source`, `element`, `block`: the enumerations of
 * deepwell/types.h); everything is inlined and the choices fold away.
 *
 * Magnitudes are compared as integers: with the sign cleared, floating-point bits are ordered, infinities above every
 * number and NaNs above infinities, so one maximum also finds what makes a block NaN. 16-bit sources are compared two
 * at a time in their own format. */
#ifndef DW_DEVICE_BLOCK_SCALE_CUH
#define DW_DEVICE_BLOCK_SCALE_CUH

#include "common/ptx.cuh"
#include "common/quantize_params.h"
#include "deepwell/types.h"

/* Elements in 16 bytes of source. */
DW_DEVICE int unit_elements(int source) {
    return source == DW_F32 ? 4 : 8;
}

DW_DEVICE uint32_t magnitude(uint32_t word, int source) {
    return word & (source == DW_F32 ? 0x7FFFFFFFu : 0x7FFF7FFFu);
}

DW_DEVICE uint32_t larger(uint32_t a, uint32_t b, int source) {
    return source == DW_F32 ? max(a, b) : max_u16x2(a, b);
}

/* Largest magnitude in 16 bytes: for 16-bit sources still two maxima, of even and odd elements. */
DW_DEVICE uint32_t unit_amax(uint4 v, int source) {
    return larger(larger(magnitude(v.x, source), magnitude(v.y, source), source),
                  larger(magnitude(v.z, source), magnitude(v.w, source), source), source);
}

/* A 16-bit magnitude, or FP32's, as FP32 bits. */
DW_DEVICE uint32_t amax_as_f32(uint32_t amax, int source) {
    return source == DW_F32 ? amax : source == DW_BF16 ? amax << 16 : __float_as_uint(cvt_f32_f16(amax));
}

/* The E8M0 code. Adding 0x1FFFFF carries into the exponent exactly when the mantissa field exceeds 0x600000, the rceil
 * rule; floor adds nothing. Subnormal amax has exponent field 0 and ends at code 0 like everything below 2^-119. */
DW_DEVICE uint32_t scale_code(uint32_t amax_f32, uint32_t round_add, int element) {
    const uint32_t bias = element == DW_E4M3 ? 8 : 15;
    uint32_t exponent = (amax_f32 + round_add) >> 23;
    uint32_t code = exponent > bias ? exponent - bias : 0;
    return amax_f32 >= 0x7F800000u ? 255u : code;
}

/* 2^-(code - 127): always a normal number, since finite blocks have codes below 248. A NaN for code 255 makes every
 * element NaN through the same multiplication. */
DW_DEVICE float scale_inverse(uint32_t code) {
    return __uint_as_float(code == 255 ? 0x7FFFFFFFu : (254 - code) << 23);
}

/* 2^(code - 127); the smallest is subnormal. */
DW_DEVICE float scale_factor(uint32_t code) {
    return __uint_as_float(code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23);
}

/* Element `i` of 16 bytes of source as FP32. */
DW_DEVICE float unit_element(uint4 v, int i, int source) {
    if (source == DW_F32) {
        return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
    }
    uint32_t word = i < 2 ? v.x : i < 4 ? v.y : i < 6 ? v.z : v.w;
    if (source == DW_BF16) {
        return __uint_as_float(i & 1 ? word & 0xFFFF0000u : word << 16);
    }
    return cvt_f32_f16(i & 1 ? word >> 16 : word & 0xFFFFu);
}

/* Four floats to four FP8 bytes, `a` lowest. */
DW_DEVICE uint32_t pack_fp8x4(float a, float b, float c, float d, int element) {
    if (element == DW_E4M3) {
        return cvt_rn_satfinite_e4m3x2_f32(b, a) | cvt_rn_satfinite_e4m3x2_f32(d, c) << 16;
    }
    return cvt_rn_satfinite_e5m2x2_f32(b, a) | cvt_rn_satfinite_e5m2x2_f32(d, c) << 16;
}

/* Elements 4 * `quarter` onwards of a unit, scaled and converted. The product is exact in FP32 unless it is so small
 * that it converts to zero either way (nvcc's default keeps subnormals). */
DW_DEVICE uint32_t quantize_quarter(uint4 v, int quarter, float inverse, int source, int element) {
    return pack_fp8x4(unit_element(v, 4 * quarter, source) * inverse,
                      unit_element(v, 4 * quarter + 1, source) * inverse,
                      unit_element(v, 4 * quarter + 2, source) * inverse,
                      unit_element(v, 4 * quarter + 3, source) * inverse, element);
}

/* 16 bytes of source from column `col` of a row on, element by element; beyond the matrix, zeros. */
DW_DEVICE uint4 load_unit_partial(const void *row_start, int64_t col, int64_t cols, int source) {
    const int n = unit_elements(source);
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < n; i++) {
        if (col + i < cols) {
            if (source == DW_F32) {
                word[i] = ((const uint32_t *)row_start)[col + i];
            } else {
                word[i / 2] |= (uint32_t)((const uint16_t *)row_start)[col + i] << 16 * (i & 1);
            }
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* Writes one block's scale, wherever and in whatever forms it is wanted. */
DW_DEVICE void store_scale(const dw_cuda_scale *s, int r, int c, uint32_t code) {
    if (s->codes != NULL && r < s->padded_rows && c < s->padded_cols) {
        int64_t at = s->atoms_per_row != 0 ? ((int64_t)(r >> 7) * s->atoms_per_row + (c >> 2)) * 512 + (r & 31) * 16 +
                                                 (r >> 5 & 3) * 4 + (c & 3)
                                           : r * s->row_stride + c * s->col_stride;
        s->codes[at] = (uint8_t)code;
    }
    if (s->factors != NULL && r < s->factor_rows && c < s->factor_cols) {
        s->factors[r * s->factor_row_stride + c * s->factor_col_stride] = scale_factor(code);
    }
}

/* Writes a rectangle of scales from shared memory, codes[c * rows + r], with the threads of the block along whichever
 * direction is contiguous in memory. Blocks outside the matrix carry code 0 (their elements were taken as zero), which
 * is what padding must hold. */
DW_DEVICE void store_scales(const dw_cuda_scale *s, const uint8_t *codes, int rows, int cols, int row0, int col0,
                            int thread, int threads) {
    const bool along_rows = s->atoms_per_row == 0 && s->row_stride <= s->col_stride;
#pragma unroll
    for (int pass = 0; pass * threads < rows * cols; pass++) {
        const uint32_t i = (uint32_t)(pass * threads + thread);
        if ((pass + 1) * threads > rows * cols && i >= (uint32_t)(rows * cols)) {
            break;
        }
        const int r = (int)(along_rows ? i % (uint32_t)rows : i / (uint32_t)cols);
        const int c = (int)(along_rows ? i / (uint32_t)rows : i % (uint32_t)cols);
        store_scale(s, row0 + r, col0 + c, codes[c * rows + r]);
    }
}

#endif
