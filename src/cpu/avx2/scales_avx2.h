/* The scales of sixteen segments side by side, for both instruction sets: sixteen words are one 256-bit vector. */
#ifndef DW_SCALES_AVX2_H
#define DW_SCALES_AVX2_H

#include "cpu/avx2/encode_avx2.h"

/* Keeps 16 biases for encoding. */
DW_INLINE void dw_keep_biases(uint32_t bias[16], __m256i biases) {
    __m256i low = _mm256_unpacklo_epi16(biases, biases), high = _mm256_unpackhi_epi16(biases, biases);
    _mm_store_si128((__m128i *)bias, _mm256_castsi256_si128(low));
    _mm_store_si128((__m128i *)(bias + 4), _mm256_castsi256_si128(high));
    _mm_store_si128((__m128i *)(bias + 8), _mm256_extracti128_si256(low, 1));
    _mm_store_si128((__m128i *)(bias + 12), _mm256_extracti128_si256(high, 1));
}

/* Sixteen segments with one code. */
DW_INLINE void dw_scale_alike(dw_blocks *blocks, const dw_encoding *encoding, int code) {
    dw_keep_biases(blocks->bias, dw_bias(code, encoding));
}

/* The scales of sixteen segments, from a vector of magnitudes for each that holds its largest. Returns the biases. */
DW_INLINE __m256i dw_scale_tops(dw_blocks *blocks, const dw_encoding *encoding, const __m256i top[16], int64_t block) {
    __m256i amax = dw_largest16(top);
    if (block == 128) amax = dw_largest_of_four(amax);
    __m256i codes = dw_codes(amax, encoding);
    __m256i biases = dw_biases(codes, encoding);
    dw_keep_biases(blocks->bias, biases);
    __m256i packed = dw_in_order(_mm256_packus_epi16(codes, codes));
    _mm_store_si128((__m128i *)blocks->code, _mm256_castsi256_si128(packed));
    blocks->rare = (uint32_t)_mm256_movemask_epi8(dw_rare(amax, encoding));
    if (DW_RARELY(blocks->rare)) _mm256_store_si256((__m256i *)blocks->amax, amax);
    return biases;
}

#endif
