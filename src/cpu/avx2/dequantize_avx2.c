/* Dequantization of every block shape and format: the plan is in x86_dequantize.h; here are 32 elements with one scale.
 */
#include <immintrin.h>

#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/x86_dequantize.h"

enum { DW_VECTOR_BYTES = 32 };

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

DW_INLINE bool dw_decode32(const uint8_t *data, uint8_t *target, int code, float power, dw_dtype element,
                           dw_dtype dtype, bool stream) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)data);
    __m256i magnitudes = _mm256_and_si256(bytes, _mm256_set1_epi8(0x7F));
    __m256i nans = _mm256_cmpgt_epi8(magnitudes, _mm256_set1_epi8(element == DW_E5M2 ? 0x7C : 0x7E));
    if (!_mm256_testz_si256(nans, nans)) return false;
    __m256 scale = _mm256_set1_ps(power);
    for (int i = 0; i < 2; i++, target += dtype == DW_F32 ? 64 : 32) {
        __m128i half = i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
        __m256i a = decode8(_mm_unpacklo_epi8(_mm_setzero_si128(), half), scale, element);
        __m256i b = decode8(_mm_unpackhi_epi8(_mm_setzero_si128(), half), scale, element);
        if (dtype == DW_F32) {
            store(target, a, stream);
            store(target + 32, b, stream);
        } else if (dtype == DW_BF16) {
            store(target, to_bf16(a, b, code >= DW_BF16_EXACT), stream);
        } else {
            __m128i low = _mm256_cvtps_ph(_mm256_castsi256_ps(a), _MM_FROUND_TO_NEAREST_INT);
            __m128i high = _mm256_cvtps_ph(_mm256_castsi256_ps(b), _MM_FROUND_TO_NEAREST_INT);
            store(target, _mm256_set_m128i(high, low), stream);
        }
    }
    return true;
}

void dw_dequantize__avx2(const dw_dequantize_job *job, const dw_tile *tile) {
    dw_dequantize_any(job, tile, DW_VECTOR_BYTES);
}
