/* One element and its scale back to FP32, FP16 or BF16: element * 2^(code - 127), rounded once to nearest even. */
#ifndef DW_FORMATS_DECODE_H
#define DW_FORMATS_DECODE_H

#include "formats/block_scale.h"

typedef struct dw_float_format {
    int fraction_bits, bias;
    uint32_t infinity, nan;
    int sign_shift;
} dw_float_format;

static inline dw_float_format dw_float(dw_dtype dtype) {
    switch (dtype) {
    case DW_F16: return (dw_float_format){10, 15, 0x7C00, 0x7E00, 15};
    case DW_BF16: return (dw_float_format){7, 127, 0x7F80, 0x7FC0, 15};
    default: return (dw_float_format){23, 127, 0x7F800000, 0x7FC00000, 31};
    }
}

/* The bits of the decoded value in `target`. */
static inline uint32_t dw_decode(dw_fp8_format format, uint8_t byte, uint8_t scale, dw_float_format target) {
    dw_fp8_class kind = dw_fp8_classify(format, byte);
    if (scale == DW_SCALE_NAN || kind == DW_FP8_IS_NAN) return target.nan;
    uint32_t code = target.infinity;
    if (kind == DW_FP8_FINITE) {
        dw_magnitude value = dw_split_magnitude(byte & 0x7F, format.fraction_bits, format.bias);
        value.exponent += (int)scale - DW_SCALE_BIAS;
        code = dw_round_magnitude(value, target.fraction_bits, target.bias);
        if (code > target.infinity) code = target.infinity;
    }
    return (uint32_t)(byte >> 7) << target.sign_shift | code;
}

static inline void dw_store_bits(void *target, dw_dtype dtype, int64_t index, uint32_t bits) {
    if (dtype == DW_F32) {
        __builtin_memcpy((char *)target + index * 4, &bits, 4);
    } else {
        uint16_t half = (uint16_t)bits;
        __builtin_memcpy((char *)target + index * 2, &half, 2);
    }
}

#endif
