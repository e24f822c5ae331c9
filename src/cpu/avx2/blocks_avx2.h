/* Row blocks: words of the source, scales, elements. */
#ifndef DW_BLOCKS_AVX2_H
#define DW_BLOCKS_AVX2_H

#include "cpu/avx2/encode_avx2.h"

/* What the shared plans (x86_*.h) know of an instruction set: these names, and functions over them. */
typedef dw_encoding dw_coder;
enum { DW_VECTOR_BYTES = 32 }; /* alignment of streamed stores */

DW_INLINE dw_coder dw_coder_of(dw_dtype element, dw_rounding rounding) {
    return dw_encoding_of(element, rounding);
}

/* The part that concerns scales. */
DW_INLINE const dw_encoding *dw_coder_scales(const dw_coder *coder) {
    return coder;
}

DW_INLINE void dw_store32(uint8_t *out, __m256i bytes, bool stream) {
    if (stream)
        _mm256_stream_si256((__m256i *)out, bytes);
    else
        _mm256_storeu_si256((__m256i *)out, bytes);
}

/* Copies `count` bytes, a multiple of 32, from an aligned buffer. */
DW_INLINE void dw_copy_run(uint8_t *out, const uint8_t *from, int64_t count, bool stream) {
    for (int64_t i = 0; i < count; i += 32)
        dw_store32(out + i, _mm256_load_si256((const __m256i *)(from + i)), stream);
}

/* The scales of `used` blocks of words, at most sixteen. */
DW_INLINE void dw_scale_blocks(dw_blocks *blocks, const dw_encoding *encoding, const uint8_t *words, int64_t block,
                               int used) {
    __m256i top[16];
    for (int b = 0; b < 16; b++) {
        top[b] = _mm256_setzero_si256();
        if (b >= used) continue;
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
