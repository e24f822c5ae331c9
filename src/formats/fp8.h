/* E4M3 ("fn") and E5M2 elements, exact. */
#ifndef DW_FORMATS_FP8_H
#define DW_FORMATS_FP8_H

#include "formats/binary_float.h"

enum { DW_FP8_NAN = 0x7F }; /* a NaN in both formats, and what a block with a NaN or an infinity is filled with */

typedef struct dw_fp8_format {
    int fraction_bits, bias;
    uint32_t largest;     /* encoding of the largest finite value: 448 or 57344 */
    int largest_exponent; /* its power of two */
} dw_fp8_format;

static inline dw_fp8_format dw_fp8(dw_dtype element) {
    return element == DW_E5M2 ? (dw_fp8_format){2, 15, 0x7B, 15} : (dw_fp8_format){3, 7, 0x7E, 8};
}

/* x * 2^-exponent to the nearest element, ties to even, saturating to the largest finite value; x is the finite FP32
 * number of these bits. */
static inline uint8_t dw_fp8_encode(dw_fp8_format format, uint32_t bits, int exponent) {
    dw_magnitude value = dw_split_magnitude(bits & 0x7FFFFFFF, 23, 127);
    value.exponent -= exponent;
    uint32_t code = dw_round_magnitude(value, format.fraction_bits, format.bias);
    return (uint8_t)((bits >> 31) << 7 | (code < format.largest ? code : format.largest));
}

typedef enum dw_fp8_class { DW_FP8_FINITE, DW_FP8_INFINITE, DW_FP8_IS_NAN } dw_fp8_class;

static inline dw_fp8_class dw_fp8_classify(dw_fp8_format format, uint8_t byte) {
    uint32_t code = byte & 0x7F;
    if (code <= format.largest) return DW_FP8_FINITE;
    return format.fraction_bits == 2 && code == 0x7C ? DW_FP8_INFINITE : DW_FP8_IS_NAN;
}

#endif
