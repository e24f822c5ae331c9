/* Quantization with square blocks: the plan is in x86_square.h, the arithmetic in encode_avx2.h. */
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/transpose_avx2.h"

enum { DW_COLUMN_STEP = 32 };

DW_INLINE int dw_cell_amax(const dw_cell *cell, const dw_encoding *encoding) {
    __m256i top_a = _mm256_setzero_si256(), top_b = _mm256_setzero_si256();
    const __m256i *words = (const __m256i *)cell->words;
    for (int64_t i = 0; i < cell->rows * DW_CELL / 16; i += 2) {
        top_a = _mm256_max_epu16(top_a, dw_magnitudes(words[i], encoding));
        top_b = _mm256_max_epu16(top_b, dw_magnitudes(words[i + 1], encoding));
    }
    return dw_largest(_mm256_max_epu16(top_a, top_b));
}

/* Writes 32 rows of DW_COLUMN_STEP elements as columns. */
DW_INLINE void dw_transpose_rows(const uint8_t *rows, int64_t pitch, uint8_t *columns) {
    dw_transpose32(rows, pitch, false, columns);
}

#include "cpu/avx2/x86_square.h"

void dw_quantize_row_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, true, false);
}

void dw_quantize_transposed_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, false, true);
}

void dw_quantize_both_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_square_any(job, tile, true, true);
}
