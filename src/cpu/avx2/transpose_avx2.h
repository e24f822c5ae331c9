/* Transposition of bytes in registers. */
#ifndef DW_TRANSPOSE_AVX2_H
#define DW_TRANSPOSE_AVX2_H

#include "cpu/avx2/blocks_avx2.h"
#include "cpu/avx2/x86_cell.h"

/* Transposes 16 x 16 bytes in each half: row i of the result's half is column i of the argument's. Interleaving
 * register i with register i + 8 rotates the eight bits of an element's place (register, byte) by one; four times swaps
 * them. */
DW_INLINE void dw_transpose16(__m256i x[16]) {
    for (int pass = 0; pass < 4; pass++) {
        __m256i y[16];
        for (int i = 0; i < 8; i++) {
            y[2 * i] = _mm256_unpacklo_epi8(x[i], x[i + 8]);
            y[2 * i + 1] = _mm256_unpackhi_epi8(x[i], x[i + 8]);
        }
        for (int i = 0; i < 16; i++)
            x[i] = y[i];
    }
}

/* Writes 32 x 32 elements, rows `pitch` bytes apart, as columns of 32 bytes, DW_CELL bytes apart. */
DW_INLINE void dw_transpose32(const uint8_t *rows, int64_t pitch, bool packed, uint8_t *columns) {
    for (int part = 0; part < 2; part++) {
        __m256i x[16];
        for (int i = 0; i < 16; i++)
            x[i] = _mm256_load_si256((const __m256i *)(rows + (16 * part + i) * pitch));
        dw_transpose16(x);
        for (int i = 0; i < 16; i++) {
            /* Packing puts columns 0-7 and 16-23 into the lower half, those 8 further on into the upper. */
            uint8_t *to = columns + (packed && i >= 8 ? i + 8 : i) * DW_CELL + 16 * part;
            _mm_store_si128((__m128i *)to, _mm256_castsi256_si128(x[i]));
            _mm_store_si128((__m128i *)(to + (packed ? 8 : 16) * DW_CELL), _mm256_extracti128_si256(x[i], 1));
        }
    }
}

#endif
