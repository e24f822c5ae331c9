/* Row blocks: words of the source, scales, elements. */
#ifndef DW_BLOCKS_AVX2_H
#define DW_BLOCKS_AVX2_H

#include "cpu/avx2/scales_avx2.h"

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

/* The scales of sixteen segments from the words of `used` of them. */
DW_INLINE void dw_scale_words(dw_blocks *blocks, const dw_encoding *encoding, const uint8_t *words, int64_t block,
                              int used) {
    __m256i top[16];
    for (int b = 0; b < 16; b++) {
        const __m256i *segment = (const __m256i *)(words + b * 64);
        top[b] = _mm256_setzero_si256();
        if (b < used)
            top[b] = _mm256_max_epu16(dw_magnitudes(_mm256_loadu_si256(segment), encoding),
                                      dw_magnitudes(_mm256_loadu_si256(segment + 1), encoding));
    }
    dw_scale_tops(blocks, encoding, top, block);
}

/* Encodes `count` words, a multiple of 32, in segments with biases bias[0], bias[1], ... */
DW_INLINE void dw_encode_run(const uint8_t *words, const uint32_t *bias, int64_t count, const dw_encoding *encoding,
                             uint8_t *out, bool stream) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; i += 32) {
        __m256i biases = _mm256_set1_epi32((int)bias[i / 32]), a, b;
        dw_load_to_pack(words + 2 * i, &a, &b);
        dw_store32(out + i, dw_encode32(a, b, biases, biases, encoding), stream);
    }
}

/* The same where no element is small: a multiple of 128 words. Returns whether one is. */
DW_INLINE bool dw_encode_normal_run(const uint8_t *words, const uint32_t *bias, int64_t count,
                                    const dw_encoding *encoding, uint8_t *out, bool stream) {
    __m256i least = encoding->above;
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; i += 32) {
        __m256i biases = _mm256_set1_epi32((int)bias[i / 32]), a, b;
        dw_load_to_pack(words + 2 * i, &a, &b);
        dw_store32(out + i, dw_encode32_normal(a, b, biases, encoding, &least), stream);
    }
    __m256i small = _mm256_xor_si256(least, encoding->above);
    return !_mm256_testz_si256(small, small);
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
