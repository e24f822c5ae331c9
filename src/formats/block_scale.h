/* E8M0 scales of blocks: the code from the largest magnitude. */
#ifndef DW_FORMATS_BLOCK_SCALE_H
#define DW_FORMATS_BLOCK_SCALE_H

#include "formats/fp8.h"

enum { DW_SCALE_BIAS = 127, DW_SCALE_NAN = 255 };

/* The code for a block whose largest |x| has the FP32 bits `amax`. Magnitudes of floats order as their bits do, so
 * `amax` is the maximum of bits & 0x7FFFFFFF, and a NaN or an infinity anywhere shows as 0x7F800000 or more. */
static inline uint8_t dw_scale_code(dw_fp8_format format, dw_rounding rounding, uint32_t amax) {
    if (amax >= 0x7F800000) return DW_SCALE_NAN;
    /* Exponent field minus the element's largest exponent. A subnormal amax has field 0 and ends at code 0 either way.
     */
    int code = (int)(amax >> 23) - format.largest_exponent;
    /* Above 1.75 * 2^p the largest element, 1.75 * 2^emax in both formats, would be exceeded. */
    if (rounding == DW_ROUND_RCEIL) code += (amax & 0x7FFFFF) > 0x600000;
    return (uint8_t)(code > 0 ? code : 0);
}

/* Reads element `index` as FP32 bits, exactly. Memory may have any alignment (checkpoint files give none). */
static inline uint32_t dw_load_f32_bits(const void *source, dw_dtype dtype, int64_t index) {
    const char *at = (const char *)source + index * (dtype == DW_F32 ? 4 : 2);
    if (dtype == DW_F32) {
        uint32_t bits;
        __builtin_memcpy(&bits, at, sizeof bits);
        return bits;
    }
    uint16_t half;
    __builtin_memcpy(&half, at, sizeof half);
    return dtype == DW_F16 ? dw_f16_to_f32_bits(half) : dw_bf16_to_f32_bits(half);
}

/* Extent of a block along a row, and across rows. */
static inline int64_t dw_block_cols(dw_block block) {
    return block == DW_BLOCK_1X32 ? 32 : 128;
}
static inline int64_t dw_block_rows(dw_block block) {
    return block == DW_BLOCK_128X128 ? 128 : 1;
}

static inline int64_t dw_ceil_div(int64_t value, int64_t step) {
    return value / step + (value % step != 0);
}

#endif
