/* Quantization with square blocks: the plan is in x86_square.h, the arithmetic in encode_avx512.h. */
#include "cpu/avx512/kernels_avx512.h"
#include "cpu/avx512/transpose_avx512.h"

DW_INLINE int dw_cell_amax(const dw_cell *cell, const dw_coder *coder) {
    __m512i top_a = _mm512_setzero_si512(), top_b = _mm512_setzero_si512();
    for (int64_t i = 0; i < cell->rows * DW_CELL * 2; i += 128) {
        top_a = _mm512_max_epu16(top_a, dw_magnitudes512(_mm512_load_si512(cell->words + i), coder));
        top_b = _mm512_max_epu16(top_b, dw_magnitudes512(_mm512_load_si512(cell->words + i + 64), coder));
    }
    __m512i top = _mm512_max_epu16(top_a, top_b);
    return dw_largest(_mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1)));
}

#include "cpu/avx2/x86_square.h"

void dw_quantize_row_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, true, false);
}

void dw_quantize_transposed_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, false, true);
}

void dw_quantize_both_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, true, true);
}
