/* Row blocks: words of the source, scales, elements. The AVX-512 side of what cpu/avx2/x86_*.h need. */
#ifndef DW_BLOCKS_AVX512_H
#define DW_BLOCKS_AVX512_H

#include "cpu/avx512/encode_avx512.h"

typedef dw_encoding512 dw_coder;
enum { DW_VECTOR_BYTES = 64 }; /* alignment of streamed stores */

DW_INLINE dw_coder dw_coder_of(dw_dtype element, dw_rounding rounding) {
    return dw_encoding512_of(element, rounding);
}

/* The part that concerns scales. */
DW_INLINE const dw_encoding *dw_coder_scales(const dw_coder *coder) {
    return &coder->narrow;
}

DW_INLINE void dw_store64(uint8_t *out, __m512i bytes, bool stream) {
    if (stream)
        _mm512_stream_si512((void *)out, bytes);
    else
        _mm512_storeu_si512(out, bytes);
}

/* Copies `count` bytes, a multiple of 64, from an aligned buffer. */
DW_INLINE void dw_copy_run(uint8_t *out, const uint8_t *from, int64_t count, bool stream) {
    for (int64_t i = 0; i < count; i += 64)
        dw_store64(out + i, _mm512_load_si512(from + i), stream);
}

/* The scales of sixteen segments from the words of `used` of them. */
DW_INLINE void dw_scale_words(dw_blocks *blocks, const dw_coder *coder, const uint8_t *words, int64_t block, int used) {
    __m256i top[16];
    for (int b = 0; b < 16; b++) {
        top[b] = _mm256_setzero_si256();
        if (b >= used) continue;
        __m512i magnitudes = dw_magnitudes512(_mm512_loadu_si512(words + b * 64), coder);
        top[b] = _mm256_max_epu16(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64(magnitudes, 1));
    }
    dw_scale_tops(blocks, &coder->narrow, top, block);
}

/* Encodes `count` words, a multiple of 32, in segments with biases bias[0], bias[1], ... A stream takes multiples of
 * 64. */
DW_INLINE void dw_encode_run(const uint8_t *words, const uint32_t *bias, int64_t count, const dw_coder *coder,
                             uint8_t *out, bool stream) {
    int64_t i = 0;
#pragma GCC unroll 4
    for (; i + 64 <= count; i += 64) {
        __m512i low_bias = _mm512_set1_epi32((int)bias[i / 32]);
        __m512i high_bias = _mm512_set1_epi32((int)bias[i / 32 + 1]);
        __m512i low = _mm512_loadu_si512(words + 2 * i), high = _mm512_loadu_si512(words + 2 * i + 64);
        dw_store64(out + i, dw_encode64(low, high, low_bias, high_bias, coder), stream);
    }
    if (i < count) {
        __m512i last_bias = _mm512_set1_epi32((int)bias[i / 32]);
        __m512i elements =
            dw_encode64(_mm512_loadu_si512(words + 2 * i), _mm512_setzero_si512(), last_bias, last_bias, coder);
        _mm256_storeu_si256((__m256i *)(out + i), _mm512_castsi512_si256(elements));
    }
}

/* The same where no element is small: a multiple of 128 words. Returns whether one is. */
DW_INLINE bool dw_encode_normal_run(const uint8_t *words, const uint32_t *bias, int64_t count, const dw_coder *coder,
                                    uint8_t *out, bool stream) {
    __mmask64 small = 0;
#pragma GCC unroll 2
    for (int64_t i = 0; i < count; i += 64) {
        __m512i low_bias = _mm512_set1_epi32((int)bias[i / 32]);
        __m512i high_bias = _mm512_set1_epi32((int)bias[i / 32 + 1]);
        __m512i low = _mm512_loadu_si512(words + 2 * i), high = _mm512_loadu_si512(words + 2 * i + 64);
        dw_store64(out + i, dw_encode64_normal(low, high, low_bias, high_bias, coder, &small), stream);
    }
    return small != 0;
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
        _mm512_store_si512(words + 2 * i, dw_load_words512(from, dtype));
    }
}

#endif
