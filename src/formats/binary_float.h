/* Exact conversions between small binary floating-point formats, in integer arithmetic only, so that neither the
 * processor's rounding mode nor flush-to-zero can touch them. */
#ifndef DW_FORMATS_BINARY_FLOAT_H
#define DW_FORMATS_BINARY_FLOAT_H

#include "deepwell/types.h"

/* A finite magnitude: significand * 2^exponent. Zero has significand 0. */
typedef struct dw_magnitude {
    uint32_t significand;
    int exponent;
} dw_magnitude;

/* The encoding, without sign, of the value nearest to `value` (ties to even) in an IEEE-like format with
 * `fraction_bits` and `bias` whose exponent field has no upper end: the caller compares the result with the format's
 * largest. */
static inline uint32_t dw_round_magnitude(dw_magnitude value, int fraction_bits, int bias) {
    if (value.significand == 0) return 0;
    int lowest = 1 - bias; /* exponent of the smallest normal; subnormals share its spacing */
    int top = 31 - __builtin_clz(value.significand) + value.exponent;
    int spacing = (top > lowest ? top : lowest) - fraction_bits;
    int drop = spacing - value.exponent; /* low bits that do not fit */
    uint32_t kept;
    if (drop <= 0) {
        kept = value.significand << -drop;
    } else if (drop > 32) {
        kept = 0;
    } else {
        uint64_t wide = value.significand, half = (uint64_t)1 << (drop - 1), rest = wide & (2 * half - 1);
        kept = (uint32_t)(wide >> drop);
        kept += rest > half || (rest == half && (kept & 1));
    }
    /* A normal `kept` carries the hidden bit, which adds one to the exponent field; so does a carry out of rounding. */
    return top < lowest ? kept : ((uint32_t)(top - lowest) << fraction_bits) + kept;
}

/* The magnitude of a finite encoding without its sign. */
static inline dw_magnitude dw_split_magnitude(uint32_t code, int fraction_bits, int bias) {
    uint32_t field = code >> fraction_bits, fraction = code & ((1u << fraction_bits) - 1);
    if (field == 0) return (dw_magnitude){fraction, 1 - bias - fraction_bits};
    return (dw_magnitude){fraction | (1u << fraction_bits), (int)field - bias - fraction_bits};
}

static inline uint32_t dw_f16_to_f32_bits(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, code = half & 0x7FFF;
    if (code >= 0x7C00) return sign | 0x7F800000 | (code & 0x3FF) << 13;
    if (code >= 0x0400) return sign | ((code << 13) + (112u << 23));
    return sign | dw_round_magnitude(dw_split_magnitude(code, 10, 15), 23, 127);
}

static inline uint32_t dw_bf16_to_f32_bits(uint16_t half) {
    return (uint32_t)half << 16;
}

static inline float dw_f32_from_bits(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

#endif
