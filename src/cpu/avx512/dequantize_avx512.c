/* Dequantization of every block shape and format: the plan is in x86_dequantize.h; here are 32 elements with one scale.
 */
#include <immintrin.h>

#include "cpu/avx2/x86_dequantize.h"
#include "cpu/avx512/kernels_avx512.h"

enum { DW_VECTOR_BYTES = 64 };

/* Sixteen elements as FP32, from their bytes in the upper halves of 16-bit lanes. */
DW_INLINE __m512i decode16(__m256i upper, __m512 scale, dw_dtype element) {
    /* The arithmetic shift leaves a copy of the sign beside it, where FP16's exponent starts. */
    if (element == DW_E4M3) upper = _mm256_and_si256(_mm256_srai_epi16(upper, 1), _mm256_set1_epi16((short)0xBFFF));
    return _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtph_ps(upper), scale));
}

DW_INLINE __m256i to_bf16(__m512i a, bool exact) {
    if (!exact) { /* to nearest even; no NaN comes here, and infinity stays */
        __m512i last = _mm512_and_si512(_mm512_srli_epi32(a, 16), _mm512_set1_epi32(1));
        a = _mm512_add_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(0x7FFF)), last);
    }
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16));
}

DW_INLINE void store(uint8_t *target, __m512i value, bool stream) {
    if (stream)
        _mm512_stream_si512((void *)target, value);
    else
        _mm512_storeu_si512(target, value);
}

DW_INLINE bool dw_decode32(const uint8_t *data, uint8_t *target, int code, float power, dw_dtype element,
                           dw_dtype dtype, bool stream) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)data);
    __m256i magnitudes = _mm256_and_si256(bytes, _mm256_set1_epi8(0x7F));
    if (_mm256_cmpgt_epi8_mask(magnitudes, _mm256_set1_epi8(element == DW_E5M2 ? 0x7C : 0x7E))) return false;
    __m512i uppers = _mm512_slli_epi16(_mm512_cvtepu8_epi16(bytes), 8);
    __m512 scale = _mm512_set1_ps(power);
    __m512i a = decode16(_mm512_castsi512_si256(uppers), scale, element);
    __m512i b = decode16(_mm512_extracti64x4_epi64(uppers, 1), scale, element);
    if (dtype == DW_F32) {
        store(target, a, stream);
        store(target + 64, b, stream);
        return true;
    }
    __m256i low, high;
    if (dtype == DW_BF16) {
        low = to_bf16(a, code >= DW_BF16_EXACT);
        high = to_bf16(b, code >= DW_BF16_EXACT);
    } else {
        low = _mm512_cvtps_ph(_mm512_castsi512_ps(a), _MM_FROUND_TO_NEAREST_INT);
        high = _mm512_cvtps_ph(_mm512_castsi512_ps(b), _MM_FROUND_TO_NEAREST_INT);
    }
    store(target, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), stream);
    return true;
}

void dw_dequantize__avx512(const dw_dequantize_job *job, const dw_tile *tile) {
    dw_dequantize_any(job, tile, DW_VECTOR_BYTES);
}
