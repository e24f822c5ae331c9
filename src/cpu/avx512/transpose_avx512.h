/* Transposition of bytes in registers. */
#ifndef DW_TRANSPOSE_AVX512_H
#define DW_TRANSPOSE_AVX512_H

#include "cpu/avx2/x86_cell.h"
#include "cpu/avx512/blocks_avx512.h"

enum { DW_COLUMN_STEP = 64 };

/* Transposes 16 x 16 bytes in each quarter, as dw_transpose16 does in each half. */
DW_INLINE void dw_transpose16_512(__m512i x[16]) {
    for (int pass = 0; pass < 4; pass++) {
        __m512i y[16];
        for (int i = 0; i < 8; i++) {
            y[2 * i] = _mm512_unpacklo_epi8(x[i], x[i + 8]);
            y[2 * i + 1] = _mm512_unpackhi_epi8(x[i], x[i + 8]);
        }
        for (int i = 0; i < 16; i++)
            x[i] = y[i];
    }
}

/* Writes 32 rows of 64 elements, `pitch` bytes apart, as columns of 32 bytes, DW_CELL bytes apart. */
DW_INLINE void dw_transpose_rows(const uint8_t *rows, int64_t pitch, uint8_t *columns) {
    for (int part = 0; part < 2; part++) {
        __m512i x[16];
        for (int i = 0; i < 16; i++)
            x[i] = _mm512_load_si512(rows + (16 * part + i) * pitch);
        dw_transpose16_512(x);
        for (int i = 0; i < 16; i++) {
            uint8_t *to = columns + i * DW_CELL + 16 * part;
            _mm_store_si128((__m128i *)to, _mm512_castsi512_si128(x[i]));
            _mm_store_si128((__m128i *)(to + 16 * DW_CELL), _mm512_extracti32x4_epi32(x[i], 1));
            _mm_store_si128((__m128i *)(to + 32 * DW_CELL), _mm512_extracti32x4_epi32(x[i], 2));
            _mm_store_si128((__m128i *)(to + 48 * DW_CELL), _mm512_extracti32x4_epi32(x[i], 3));
        }
    }
}

#endif
