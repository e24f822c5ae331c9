/* NUMERICS stated a second time for the tests, in double arithmetic and by search instead of bit manipulation: tables
 * of every representable magnitude, the nearest one by bisection, scales by trying exponents. Shares no code with the
 * library. */
#ifndef DW_TESTS_STATEMENT_H
#define DW_TESTS_STATEMENT_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "deepwell/quantize.h"

typedef struct number_format {
    int exponent_bits, fraction_bits;
    int finite; /* encodings 0 to finite - 1 are finite magnitudes */
    double
        *magnitude; /* of each of them, and at [finite] the next power-of-two step beyond, where rounding overflows */
} number_format;

static inline number_format make_format(int exponent_bits, int fraction_bits, int finite) {
    number_format format = {exponent_bits, fraction_bits, finite, malloc(((size_t)finite + 1) * sizeof(double))};
    int bias = (1 << (exponent_bits - 1)) - 1;
    for (int code = 0; code <= finite; code++) {
        int exponent = code >> fraction_bits;
        double fraction = (double)(code % (1 << fraction_bits)) / (1 << fraction_bits);
        format.magnitude[code] = exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias);
    }
    return format;
}

static inline number_format format_of(dw_dtype dtype) {
    switch (dtype) {
    case DW_E4M3: return make_format(4, 3, 0x7F);
    case DW_E5M2: return make_format(5, 2, 0x7C);
    case DW_F16: return make_format(5, 10, 0x7C00);
    default: return make_format(8, 7, 0x7F80); /* BF16 */
    }
}

/* The code nearest to a magnitude, ties to the even code; format->finite when it rounds beyond the largest. */
static inline int nearest_code(const number_format *format, double magnitude) {
    int low = 0, high = format->finite; /* magnitude[low] <= magnitude < magnitude[high] */
    if (magnitude >= format->magnitude[high]) return high;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (format->magnitude[middle] <= magnitude)
            low = middle;
        else
            high = middle;
    }
    double below = magnitude - format->magnitude[low], above = format->magnitude[high] - magnitude;
    if (below != above) return below < above ? low : high;
    return low % 2 == 0 ? low : high;
}

/* The number with these bits. */
static inline double number_of(dw_dtype dtype, uint32_t bits) {
    if (dtype == DW_F16) {
        _Float16 half;
        uint16_t narrow = (uint16_t)bits;
        memcpy(&half, &narrow, 2);
        return (double)half;
    }
    if (dtype == DW_BF16) bits <<= 16;
    float single;
    memcpy(&single, &bits, 4);
    return (double)single;
}

static inline double number_at(const void *data, dw_dtype dtype, int64_t index) {
    uint32_t bits = 0;
    size_t size = dtype == DW_F32 ? 4 : 2;
    memcpy(&bits, (const char *)data + index * (int64_t)size, size);
    return number_of(dtype, bits);
}

/* The exponent of a block's scale from its definition; amax is finite. */
static inline int scale_exponent(const number_format *format, dw_rounding rounding, double amax) {
    double largest = format->magnitude[format->finite - 1];
    if (amax == 0) return -127;
    int exponent = -127;
    if (rounding == DW_ROUND_FLOOR) {
        int power = ilogb(amax) - ilogb(largest);
        return power > exponent ? power : exponent;
    }
    while (amax > ldexp(largest, exponent))
        exponent++;
    return exponent;
}

static inline uint8_t element_byte(const number_format *format, double x, int exponent) {
    int code = nearest_code(format, ldexp(fabs(x), -exponent));
    if (code == format->finite) code--;
    return (uint8_t)(code | (signbit(x) ? 0x80 : 0));
}

/* The quantized [rows, cols] matrix whose element (r, c) is source[r * down + c * across]. `codes` has the row layout.
 */
static inline void state_quantized(const dw_quantize_spec *spec, const void *source, dw_dtype dtype, int64_t down,
                                   int64_t across, int64_t rows, int64_t cols, uint8_t *data, uint8_t *codes) {
    number_format format = format_of(spec->element);
    int64_t high = spec->block == DW_BLOCK_128X128 ? 128 : 1, wide = spec->block == DW_BLOCK_1X32 ? 32 : 128;
    for (int64_t r0 = 0; r0 < rows; r0 += high)
        for (int64_t c0 = 0; c0 < cols; c0 += wide) {
            double amax = 0; /* infinite when the block holds a NaN or an infinity */
            for (int64_t r = r0; r < r0 + high && r < rows; r++)
                for (int64_t c = c0; c < c0 + wide && c < cols; c++) {
                    double x = number_at(source, dtype, r * down + c * across);
                    amax = isfinite(x) ? fmax(amax, fabs(x)) : (double)INFINITY;
                }
            bool fault = isinf(amax);
            int exponent = fault ? 128 : scale_exponent(&format, spec->rounding, amax);
            *codes++ = (uint8_t)(exponent + 127);
            for (int64_t r = r0; r < r0 + high && r < rows; r++)
                for (int64_t c = c0; c < c0 + wide && c < cols; c++)
                    data[r * cols + c] =
                        fault ? 0x7F : element_byte(&format, number_at(source, dtype, r * down + c * across), exponent);
        }
    free(format.magnitude);
}

#endif
