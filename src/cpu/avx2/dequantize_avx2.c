/* Dequantization of every block shape and format.
 *
 * Floor: one byte read and two or four written per element: 96 bytes for 32 elements to BF16, 14 cycles of 3.4 GHz at
 * 23 GB/s. Work: about 35 operations.
 *
 * Plan: a row at a time, 32 elements at a time. FP8 shifted left is FP16 (E5M2 exactly; E4M3 at 2^-8 of its value),
 * whose conversion to FP32 in hardware normalizes subnormals; one multiplication by a power of two applies the scale.
 * That product is exact, so rounding it to the target is the only rounding. NaN elements, and the few scales whose
 * power of two is no FP32 number, go through the exact scalar code of src/formats. */
#include <immintrin.h>

#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/x86_tiles.h"
#include "formats/decode.h"

/* Below this code results can be inexact in BF16: the last bit of E5M2, 2^(code - 127 - 16), is under BF16's, 2^-133.
 */
enum { BF16_EXACT = 10 };

static __attribute__((noinline, cold)) void decode_exactly(const dw_dequantize_job *job, const uint8_t *data,
                                                           uint8_t *target, int code, int64_t count) {
    dw_fp8_format format = dw_fp8(job->element);
    dw_float_format wide = dw_float(job->target_dtype);
    for (int64_t i = 0; i < count; i++)
        dw_store_bits(target, job->target_dtype, i, dw_decode(format, data[i], (uint8_t)code, wide));
}

/* Eight elements as FP32, from their bytes in the upper halves of 16-bit lanes. */
DW_INLINE __m256i decode8(__m128i upper, __m256 scale, dw_dtype element) {
    /* The arithmetic shift leaves a copy of the sign beside it, where FP16's exponent starts. */
    if (element == DW_E4M3) upper = _mm_and_si128(_mm_srai_epi16(upper, 1), _mm_set1_epi16((short)0xBFFF));
    return _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtph_ps(upper), scale));
}

DW_INLINE __m256i to_bf16(__m256i a, __m256i b, bool exact) {
    if (!exact) { /* to nearest even; no NaN comes here, and infinity stays */
        __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7FFF);
        a = _mm256_add_epi32(_mm256_add_epi32(a, half), _mm256_and_si256(_mm256_srli_epi32(a, 16), one));
        b = _mm256_add_epi32(_mm256_add_epi32(b, half), _mm256_and_si256(_mm256_srli_epi32(b, 16), one));
    }
    __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    return _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
}

DW_INLINE void store(uint8_t *target, __m256i value, bool stream) {
    if (stream)
        _mm256_stream_si256((__m256i *)target, value);
    else
        _mm256_storeu_si256((__m256i *)target, value);
}

/* Decodes 32 elements with one scale. */
DW_INLINE void decode32(const dw_dequantize_job *job, const uint8_t *data, uint8_t *target, int code, __m256 scale,
                        dw_dtype element, dw_dtype dtype, bool stream) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)data);
    __m256i magnitudes = _mm256_and_si256(bytes, _mm256_set1_epi8(0x7F));
    __m256i nans = _mm256_cmpgt_epi8(magnitudes, _mm256_set1_epi8(element == DW_E5M2 ? 0x7C : 0x7E));
    if (DW_RARELY(!_mm256_testz_si256(nans, nans))) {
        decode_exactly(job, data, target, code, 32);
        return;
    }
    for (int i = 0; i < 2; i++, target += dtype == DW_F32 ? 64 : 32) {
        __m128i half = i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
        __m256i a = decode8(_mm_unpacklo_epi8(_mm_setzero_si128(), half), scale, element);
        __m256i b = decode8(_mm_unpackhi_epi8(_mm_setzero_si128(), half), scale, element);
        if (dtype == DW_F32) {
            store(target, a, stream);
            store(target + 32, b, stream);
        } else if (dtype == DW_BF16) {
            store(target, to_bf16(a, b, code >= BF16_EXACT), stream);
        } else {
            __m128i low = _mm256_cvtps_ph(_mm256_castsi256_ps(a), _MM_FROUND_TO_NEAREST_INT);
            __m128i high = _mm256_cvtps_ph(_mm256_castsi256_ps(b), _MM_FROUND_TO_NEAREST_INT);
            store(target, _mm256_set_m128i(high, low), stream);
        }
    }
}

/* Decodes `count` elements of a row, at most a block, with one scale. */
DW_INLINE void decode_block(const dw_dequantize_job *job, const uint8_t *data, uint8_t *target, int code, int64_t count,
                            dw_dtype element, dw_dtype dtype, bool stream) {
    int64_t size = dtype == DW_F32 ? 4 : 2;
    /* The exponent field of the power of two; 2^-127 is a subnormal. Above 254 (and for NaN) there is none. */
    int field = code + (element == DW_E4M3 ? 8 : 0);
    if (DW_RARELY(field >= 255)) {
        decode_exactly(job, data, target, code, count);
        return;
    }
    __m256 scale = _mm256_castsi256_ps(_mm256_set1_epi32(field > 0 ? field << 23 : 1 << 22));
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        decode32(job, data + i, target + i * size, code, scale, element, dtype, stream);
    if (i < count) {
        uint8_t padded[32] = {0};
        _Alignas(32) uint8_t decoded[32 * 4];
        memcpy(padded, data + i, (size_t)(count - i));
        decode32(job, padded, decoded, code, scale, element, dtype, false);
        memcpy(target + i * size, decoded, (size_t)((count - i) * size));
    }
}

DW_INLINE void dequantize(const dw_dequantize_job *job, const dw_tile *tile, dw_dtype element, dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, block = dw_block_cols(job->block), down = dw_block_rows(job->block);
    bool stream = dw_streams(job->target, job->target_ld * size, job->rows * job->cols * size, 32);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *data = job->data + r * job->data_ld;
        uint8_t *target = (uint8_t *)job->target + r * job->target_ld * size;
        int64_t c = tile->col0, end = tile->col1;
        dw_scale_walk scales = dw_scale_walk_from(&job->scale, r / down, c / block);
        if (block == 32) {
            for (; c + 32 <= end; c += 32)
                decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), 32, element, dtype, stream);
        } else {
            for (; c + 128 <= end; c += 128)
                decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), 128, element, dtype, stream);
        }
        if (c < end)
            decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), end - c, element, dtype, stream);
    }
    if (stream) _mm_sfence();
}

DW_INLINE void dequantize_element(const dw_dequantize_job *job, const dw_tile *tile, dw_dtype element) {
    if (job->target_dtype == DW_F32)
        dequantize(job, tile, element, DW_F32);
    else if (job->target_dtype == DW_F16)
        dequantize(job, tile, element, DW_F16);
    else
        dequantize(job, tile, element, DW_BF16);
}

void dw_dequantize__avx2(const dw_dequantize_job *job, const dw_tile *tile) {
    if (job->element == DW_E4M3)
        dequantize_element(job, tile, DW_E4M3);
    else
        dequantize_element(job, tile, DW_E5M2);
}
