/* The arithmetic of cpu/avx2/encode_avx2.h, 32 words at a time. The steps and their constants are the same; scales of
 * sixteen segments, which are one 256-bit vector, use the AVX2 functions themselves. What is wider here: packing takes
 * any byte of two vectors to any place (VBMI), so elements come out in order at once, and a sign is merged by one
 * ternary operation. */
#ifndef DW_ENCODE_AVX512_H
#define DW_ENCODE_AVX512_H

#include "cpu/avx2/scales_avx2.h"

/* dw_encoding with its vectors twice as wide. */
typedef struct dw_encoding512 {
    dw_encoding narrow;
    __m512i gain, powers, limit, magnitude, eight, hidden, fraction, sign, step, tail, half, above;
    __m512i low_bytes, high_bytes; /* indices of the lower and the upper bytes of 64 words */
} dw_encoding512;

DW_INLINE __m512i dw_bytes_of_words(int first) {
    uint8_t index[64];
    for (int i = 0; i < 64; i++)
        index[i] = (uint8_t)(2 * i + first);
    return _mm512_loadu_si512(index);
}

DW_INLINE dw_encoding512 dw_encoding512_of(dw_dtype element, dw_rounding rounding) {
    dw_encoding n = dw_encoding_of(element, rounding);
    return (dw_encoding512){.narrow = n,
                            .gain = _mm512_broadcast_i64x4(n.gain),
                            .powers = _mm512_broadcast_i64x4(n.powers),
                            .limit = _mm512_broadcast_i64x4(n.limit),
                            .magnitude = _mm512_broadcast_i64x4(n.magnitude),
                            .eight = _mm512_broadcast_i64x4(n.eight),
                            .hidden = _mm512_broadcast_i64x4(n.hidden),
                            .fraction = _mm512_broadcast_i64x4(n.fraction),
                            .sign = _mm512_broadcast_i64x4(n.sign),
                            .step = _mm512_broadcast_i64x4(n.step),
                            .tail = _mm512_broadcast_i64x4(n.tail),
                            .half = _mm512_broadcast_i64x4(n.half),
                            .above = _mm512_broadcast_i64x4(n.above),
                            .low_bytes = dw_bytes_of_words(0),
                            .high_bytes = dw_bytes_of_words(1)};
}

DW_INLINE __m512i dw_magnitudes512(__m512i words, const dw_encoding512 *encoding) {
    return _mm512_and_si512(words, encoding->magnitude);
}

/* As dw_encode16: the elements of 32 words, without signs and before saturation, 0 to 0x80 in 16-bit lanes. */
DW_INLINE __m512i dw_encode32_lanes(__m512i words, __m512i biases, const dw_encoding512 *encoding) {
    __m512i scaled = _mm512_subs_epu16(dw_magnitudes512(words, encoding), biases);
    __m512i normal = _mm512_mullo_epi16(_mm512_subs_epu16(scaled, encoding->eight), encoding->gain);
    __m512i power = _mm512_shuffle_epi8(encoding->powers, _mm512_srli_epi16(scaled, 7));
    __m512i small = _mm512_maddubs_epi16(_mm512_or_si512(words, encoding->hidden), power);
    __m512i exact = _mm512_max_epu16(normal, small);
    __m512i rounded = _mm512_mulhrs_epi16(exact, encoding->hidden);
    __mmask32 tie = _mm512_cmpeq_epi16_mask(_mm512_and_si512(exact, encoding->fraction), encoding->hidden);
    return _mm512_mask_sub_epi16(rounded, tie, rounded, _mm512_set1_epi16(1));
}

/* The 64 elements of two vectors of words, in order. */
DW_INLINE __m512i dw_encode64(__m512i a, __m512i b, __m512i biases_a, __m512i biases_b,
                              const dw_encoding512 *encoding) {
    __m512i lanes_a = dw_encode32_lanes(a, biases_a, encoding), lanes_b = dw_encode32_lanes(b, biases_b, encoding);
    __m512i magnitudes = _mm512_permutex2var_epi8(lanes_a, encoding->low_bytes, lanes_b);
    __m512i uppers = _mm512_permutex2var_epi8(a, encoding->high_bytes, b);
    magnitudes = _mm512_min_epu8(magnitudes, encoding->limit);
    return _mm512_ternarylogic_epi64(uppers, encoding->sign, magnitudes, 0xEA); /* (uppers & sign) | magnitudes */
}

/* As dw_encode16_normal. */
DW_INLINE __m512i dw_encode32_normal_lanes(__m512i words, __m512i biases, const dw_encoding512 *encoding) {
    __m512i offsets = _mm512_add_epi16(biases, encoding->eight);
    __m512i exact = _mm512_subs_epu16(dw_magnitudes512(words, encoding), offsets);
    __mmask32 tie = _mm512_cmpeq_epi16_mask(_mm512_and_si512(exact, encoding->tail), encoding->half);
    __m512i rounded = _mm512_mulhrs_epi16(exact, encoding->step);
    return _mm512_mask_sub_epi16(rounded, tie, rounded, _mm512_set1_epi16(1));
}

/* As dw_encode64 where no element is small. Bits of `small` are set where one is. */
DW_INLINE __m512i dw_encode64_normal(__m512i a, __m512i b, __m512i biases_a, __m512i biases_b,
                                     const dw_encoding512 *encoding, __mmask64 *small) {
    __m512i lanes_a = dw_encode32_normal_lanes(a, biases_a, encoding);
    __m512i lanes_b = dw_encode32_normal_lanes(b, biases_b, encoding);
    __m512i magnitudes = _mm512_permutex2var_epi8(lanes_a, encoding->low_bytes, lanes_b);
    __m512i uppers = _mm512_permutex2var_epi8(a, encoding->high_bytes, b);
    __mmask64 nonzero = (__mmask64)_mm512_test_epi16_mask(a, encoding->magnitude) |
                        (__mmask64)_mm512_test_epi16_mask(b, encoding->magnitude) << 32;
    *small |= nonzero & _mm512_cmplt_epu8_mask(magnitudes, encoding->above);
    magnitudes = _mm512_min_epu8(magnitudes, encoding->limit);
    return _mm512_ternarylogic_epi64(uppers, encoding->sign, magnitudes, 0xEA);
}

/* 16 words from 16 FP32 numbers: adding 0xFFFF to the lower half carries into bit 16 exactly when it is not zero. */
DW_INLINE __m256i dw_words_of_f32x16(__m512i numbers) {
    __m512i lower = _mm512_set1_epi32(0xFFFF);
    __m512i odd = _mm512_or_si512(numbers, _mm512_add_epi32(_mm512_and_si512(numbers, lower), lower));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(odd, 16));
}

/* 32 words from source elements at any address. */
DW_INLINE __m512i dw_load_words512(const uint8_t *source, dw_dtype dtype) {
    if (dtype == DW_BF16) return _mm512_loadu_si512(source);
    __m512i a, b;
    if (dtype == DW_F32) {
        a = _mm512_loadu_si512(source);
        b = _mm512_loadu_si512(source + 64);
    } else {
        a = _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)source)));
        b = _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(source + 32))));
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(dw_words_of_f32x16(a)), dw_words_of_f32x16(b), 1);
}

#endif
