/* Quantization with square blocks: the plan is in squares_avx512.h for whole blocks of BF16 and in x86_square.h for
 * the rest, the arithmetic in split_avx512.h and encode_avx512.h. */
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
#include "cpu/avx512/squares_avx512.h"

DW_INLINE void quantize(const dw_quantize_job *job, const dw_tile *tile, bool row, bool transposed) {
    if (job->source_dtype != DW_BF16) {
        dw_quantize_square_any(job, tile, row, transposed);
        return;
    }
    dw_tile whole = *tile;
    whole.row1 -= (tile->row1 - tile->row0) % DW_CELL;
    whole.col1 -= (tile->col1 - tile->col0) % DW_CELL;
    dw_quantize_squares(job, &whole, row, transposed);
    dw_tile right = {tile->row0, whole.row1, whole.col1, tile->col1};
    dw_tile below = {whole.row1, tile->row1, tile->col0, tile->col1};
    if (right.row0 < right.row1 && right.col0 < right.col1) dw_quantize_square(job, &right, row, transposed, DW_BF16);
    if (below.row0 < below.row1) dw_quantize_square(job, &below, row, transposed, DW_BF16);
}

void dw_quantize_row_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, true, false);
}

void dw_quantize_transposed_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, false, true);
}

void dw_quantize_both_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize(job, tile, true, true);
}
