/* Transposed quantization with blocks of 32 or 128 elements, alone or with row quantization: the plan is in
 * x86_columns.h, for both orientations of BF16 in pieces_avx2.h, the arithmetic in encode_avx2.h. */
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/transpose_avx2.h"

enum { DW_COLUMN_STEP = 32 };
#include "cpu/avx2/x86_columns.h"

DW_INLINE uint64_t dw_quantize_columns(dw_cell *cell, const dw_encoding *encoding, int64_t size, int64_t c,
                                       uint8_t *codes, uint16_t *amax) {
    __m256i top_a = _mm256_setzero_si256(), top_b = _mm256_setzero_si256();
    int64_t rows = dw_up32(cell->height);
    for (int64_t r = 0; r < rows; r++) {
        const __m256i *words = (const __m256i *)dw_cell_words(cell, r, c);
        top_a = _mm256_max_epu16(top_a, dw_magnitudes(words[0], encoding));
        top_b = _mm256_max_epu16(top_b, dw_magnitudes(words[1], encoding));
    }
    __m256i codes_a = dw_codes(top_a, encoding), codes_b = dw_codes(top_b, encoding);
    _mm256_store_si256((__m256i *)codes, dw_in_order(_mm256_packus_epi16(codes_a, codes_b)));
    __m256i biases_a = dw_biases(codes_a, encoding), biases_b = dw_biases(codes_b, encoding);
    for (int64_t first = 0; first < rows; first += 32) {
        __m256i elements[32];
        for (int64_t i = 0; i < 32; i++) {
            const __m256i *words = (const __m256i *)dw_cell_words(cell, first + i, c);
            elements[i] = dw_encode32(words[0], words[1], biases_a, biases_b, encoding);
            dw_cell_prefetch(cell, first + i, c, size);
        }
        dw_transpose32((const uint8_t *)elements, 32, true, cell->columns + c * DW_CELL + cell->top + first);
    }
    _mm256_store_si256((__m256i *)amax, top_a);
    _mm256_store_si256((__m256i *)amax + 1, top_b);
    __m256i rare = _mm256_packs_epi16(dw_rare(top_a, encoding), dw_rare(top_b, encoding));
    return (uint32_t)_mm256_movemask_epi8(dw_in_order(rare));
}

#include "cpu/avx2/pieces_avx2.h"

void dw_quantize_transposed_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_cells_any(job, tile, false, 32);
}

void dw_quantize_transposed_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_cells_any(job, tile, false, 128);
}

DW_INLINE void quantize_both(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    if (job->source_dtype == DW_BF16)
        dw_quantize_pieces(job, tile, block);
    else
        dw_quantize_cells_any(job, tile, true, block);
}

void dw_quantize_both_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_both(job, tile, 32);
}

void dw_quantize_both_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_both(job, tile, 128);
}
