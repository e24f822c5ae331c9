/* One row block: its scale, then its elements. */
#ifndef DW_ROW_BLOCK_AVX2_H
#define DW_ROW_BLOCK_AVX2_H

#include "cpu/avx2/encode_avx2.h"

DW_INLINE void dw_store32(uint8_t *out, __m256i bytes, bool stream) {
    if (stream)
        _mm256_stream_si256((__m256i *)out, bytes);
    else
        _mm256_storeu_si256((__m256i *)out, bytes);
}

/* Quantizes the block at (r, c), `count` elements of row r, and returns its code. `words` are its words, with zeros up
 * to a multiple of 32. */
DW_INLINE uint8_t dw_quantize_row_block(const dw_quantize_job *job, const dw_encoding *encoding, int64_t r, int64_t c,
                                        int64_t count, const uint8_t *words, bool stream) {
    __m256i top = _mm256_setzero_si256();
    for (int64_t i = 0; i < count; i += 32) {
        __m256i a = dw_magnitudes(_mm256_loadu_si256((const __m256i *)(words + 2 * i)));
        __m256i b = dw_magnitudes(_mm256_loadu_si256((const __m256i *)(words + 2 * i + 32)));
        top = _mm256_max_epu16(top, _mm256_max_epu16(a, b));
    }
    int amax = dw_largest(top), code = ((amax + encoding->carry) >> 7) - encoding->largest;
    if (code < 0) code = 0;
    uint8_t *out = job->row_data + r * job->row_ld + c;
    int low = dw_encoding_floor(encoding);
    if (DW_RARELY((unsigned)(amax - low) >= (unsigned)(DW_WORD_INFINITY - low) && amax != 0)) {
        if (amax >= DW_WORD_INFINITY) code = DW_SCALE_NAN;
        dw_encode_exactly(job, r, c, 0, 1, count, code, out);
        return (uint8_t)code;
    }
    int above = code - encoding->base;
    __m256i biases = _mm256_set1_epi16((short)((above > 0 ? above : 0) << 7));
    for (int64_t i = 0; i < count; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(words + 2 * i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(words + 2 * i + 32));
        __m256i elements = dw_in_order(dw_encode32(a, b, biases, biases, encoding));
        if (i + 32 <= count) {
            dw_store32(out + i, elements, stream);
        } else {
            uint8_t rest[32];
            _mm256_storeu_si256((__m256i *)rest, elements);
            memcpy(out + i, rest, (size_t)(count - i));
        }
    }
    return (uint8_t)code;
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
