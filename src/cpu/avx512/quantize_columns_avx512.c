/* Transposed quantization with blocks of 32 or 128 elements, alone or with row quantization: the plan is in
 * x86_columns.h, for BF16 in pieces_avx512.h, the arithmetic in encode_avx512.h. */
#include "cpu/avx512/kernels_avx512.h"
#include "cpu/avx512/transpose_avx512.h"

#include "cpu/avx2/x86_columns.h"

/* Codes of 32 columns side by side, their biases, and a bit for each that is rare; as the functions for 16 blocks. */
DW_INLINE __m512i codes32(__m512i amax, const dw_encoding *encoding) {
    __m512i exponent = _mm512_srli_epi16(_mm512_add_epi16(amax, _mm512_set1_epi16((short)encoding->carry)), 7);
    return _mm512_subs_epu16(exponent, _mm512_set1_epi16((short)encoding->largest));
}

DW_INLINE __m512i biases32(__m512i codes, const dw_encoding *encoding) {
    return _mm512_slli_epi16(_mm512_subs_epu16(codes, _mm512_set1_epi16((short)encoding->base)), 7);
}

DW_INLINE uint64_t rare32(__m512i amax, const dw_encoding *encoding) {
    __mmask32 low = _mm512_cmpgt_epi16_mask(_mm512_set1_epi16((short)encoding->floor), amax);
    __mmask32 high = _mm512_cmpgt_epi16_mask(amax, _mm512_set1_epi16(DW_WORD_INFINITY - 1));
    return (low & _mm512_test_epi16_mask(amax, amax)) | high;
}

DW_INLINE uint64_t dw_quantize_columns(dw_cell *cell, const dw_coder *coder, int64_t size, int64_t c, uint8_t *codes,
                                       uint16_t *amax) {
    const dw_encoding *encoding = &coder->narrow;
    __m512i top_a = _mm512_setzero_si512(), top_b = _mm512_setzero_si512();
    int64_t rows = dw_up32(cell->height);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *words = dw_cell_words(cell, r, c);
        top_a = _mm512_max_epu16(top_a, dw_magnitudes512(_mm512_load_si512(words), coder));
        top_b = _mm512_max_epu16(top_b, dw_magnitudes512(_mm512_load_si512(words + 64), coder));
    }
    __m512i codes_a = codes32(top_a, encoding), codes_b = codes32(top_b, encoding);
    _mm512_store_si512(codes, _mm512_permutex2var_epi8(codes_a, coder->low_bytes, codes_b));
    __m512i biases_a = biases32(codes_a, encoding), biases_b = biases32(codes_b, encoding);
    for (int64_t first = 0; first < rows; first += 32) {
        __m512i elements[32];
        for (int64_t i = 0; i < 32; i++) {
            const uint8_t *words = dw_cell_words(cell, first + i, c);
            elements[i] =
                dw_encode64(_mm512_load_si512(words), _mm512_load_si512(words + 64), biases_a, biases_b, coder);
            dw_cell_prefetch(cell, first + i, c, size);
            dw_cell_prefetch(cell, first + i, c + 32, size);
        }
        dw_transpose_rows((const uint8_t *)elements, 64, cell->columns + c * DW_CELL + cell->top + first);
    }
    _mm512_store_si512(amax, top_a);
    _mm512_store_si512(amax + 32, top_b);
    return rare32(top_a, encoding) | rare32(top_b, encoding) << 32;
}

#include "cpu/avx512/pieces_avx512.h"

DW_INLINE void quantize(const dw_quantize_job *job, const dw_tile *tile, bool both, int64_t block) {
    if (job->source_dtype == DW_BF16)
        dw_quantize_pieces(job, tile, both, block);
    else
        dw_quantize_cells_any(job, tile, both, block);
}

void dw_quantize_transposed_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, false, 32);
}

void dw_quantize_transposed_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, false, 128);
}

void dw_quantize_both_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, true, 32);
}

void dw_quantize_both_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, true, 128);
}
