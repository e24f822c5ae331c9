/* Row blocks: their scales, then their elements. */
#ifndef DW_ROW_BLOCK_AVX2_H
#define DW_ROW_BLOCK_AVX2_H

#include "cpu/avx2/encode_avx2.h"

DW_INLINE void dw_store32(uint8_t *out, __m256i bytes, bool stream) {
    if (stream)
        _mm256_stream_si256((__m256i *)out, bytes);
    else
        _mm256_storeu_si256((__m256i *)out, bytes);
}

/* Sixteen row blocks that follow one another in memory: their scales, computed side by side so that nothing waits for a
 * single block's reduction. */
typedef struct dw_blocks {
    _Alignas(32) uint16_t bias[16]; /* for dw_encode32 */
    _Alignas(32) uint16_t amax[16]; /* bits of words */
    _Alignas(16) uint8_t code[16];
    uint32_t rare; /* bits 2i and 2i + 1: block i goes through dw_encode_exactly */
} dw_blocks;

DW_INLINE void dw_scale_blocks(dw_blocks *blocks, const dw_encoding *encoding, const uint8_t *words, int64_t block) {
    __m256i top[16];
    for (int b = 0; b < 16; b++) {
        top[b] = _mm256_setzero_si256();
        for (int64_t i = 0; i < block * 2; i += 32) {
            __m256i part = _mm256_loadu_si256((const __m256i *)(words + b * block * 2 + i));
            top[b] = _mm256_max_epu16(top[b], dw_magnitudes(part, encoding));
        }
    }
    __m256i amax = dw_largest16(top), codes = dw_codes(amax, encoding);
    _mm256_store_si256((__m256i *)blocks->bias, dw_biases(codes, encoding));
    __m256i packed = dw_in_order(_mm256_packus_epi16(codes, codes));
    _mm_store_si128((__m128i *)blocks->code, _mm256_castsi256_si128(packed));
    blocks->rare = (uint32_t)_mm256_movemask_epi8(dw_rare(amax, encoding));
    if (DW_RARELY(blocks->rare)) _mm256_store_si256((__m256i *)blocks->amax, amax);
}

/* Encodes `count` words, a multiple of 32, in blocks of `block` with biases bias[0], bias[1], ... */
DW_INLINE void dw_encode_run(const uint8_t *words, const uint16_t *bias, int64_t block, int64_t count,
                             const dw_encoding *encoding, uint8_t *out, bool stream) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; i += 32) {
        __m256i biases = _mm256_set1_epi16((short)bias[i / block]);
        __m256i low = _mm256_loadu_si256((const __m256i *)(words + 2 * i));
        __m256i high = _mm256_loadu_si256((const __m256i *)(words + 2 * i + 32));
        dw_store32(out + i, dw_in_order(dw_encode32(low, high, biases, biases, encoding)), stream);
    }
}

/* Encodes those of blocks [first, last) that are rare anew; block `first` begins at (r, c) of the source and at `out`,
 * and `count` elements are left in the row. */
DW_INLINE void dw_mend_blocks(dw_blocks *blocks, int first, int last, const dw_quantize_job *job, int64_t r, int64_t c,
                              int64_t block, int64_t count, uint8_t *out) {
    for (int b = first; b < last; b++) {
        if (!(blocks->rare >> (2 * b) & 1)) continue;
        int64_t at = (b - first) * block;
        if (blocks->amax[b] >= DW_WORD_INFINITY) blocks->code[b] = DW_SCALE_NAN;
        dw_encode_exactly(job, r, c + at, 0, 1, dw_least(block, count - at), blocks->code[b], out + at);
    }
}

/* Words of `count` source elements, padded with zeros to a multiple of 32. */
DW_INLINE void dw_stage_words(uint8_t *words, const uint8_t *source, dw_dtype dtype, int64_t count) {
    size_t size = dtype == DW_F32 ? 4 : 2;
    for (int64_t i = 0; i < count; i += 32) {
        const uint8_t *from = source + (size_t)i * size;
        uint8_t padded[32 * 4];
        if (i + 32 > count) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, from, (size_t)(count - i) * size);
            from = padded;
        }
        __m256i *to = (__m256i *)(words + 2 * i);
        _mm256_store_si256(to, dw_load_words(from, dtype));
        _mm256_store_si256(to + 1, dw_load_words(from + 16 * size, dtype));
    }
}

#endif
