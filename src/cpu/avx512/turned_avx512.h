/* Columns of elements on their way to transposed output: a buffer for pieces of at most 256 rows, which holds what a
 * transposition in registers leaves, and its last pass, which makes lines of it. */
#ifndef DW_TURNED_AVX512_H
#define DW_TURNED_AVX512_H

#include "cpu/avx512/split_avx512.h"
#include "cpu/avx512/transpose_avx512.h"

enum {
    DW_PIECE_ROWS = 256,
    DW_SLOTS = DW_PIECE_ROWS / 16 + 1 /* 16 rows each; the excess spreads a column over cache sets */
};

/* Elements of 64 columns: 16 rows of columns i, i + 16, i + 32, i + 48 at line[i][row / 16]. */
typedef struct dw_turned {
    _Alignas(64) uint8_t line[16][DW_SLOTS][DW_CHUNK];
} dw_turned;

/* Turns 16 rows of 64 elements and keeps them in slot `slot`. */
DW_INLINE void dw_keep_turned(dw_turned *turned, int64_t slot, __m512i x[16]) {
    dw_transpose16_512(x);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        _mm512_store_si512(turned->line[i][slot], x[i]);
}

/* Puts `rows` elements of column j, a multiple of 16, in place of what is kept from slot `slot`. */
DW_INLINE void dw_replace_turned(dw_turned *turned, int64_t slot, int64_t j, const uint8_t *column, int64_t rows) {
    for (int64_t i = 0; i < rows / 16; i++)
        memcpy(turned->line[j % 16][slot + i] + j / 16 * 16, column + 16 * i, 16);
}

/* Writes the columns of the piece `part`: quarter q of a vector belongs to a column 16 q further on. */
DW_INLINE void dw_send_columns(const dw_turned *turned, const dw_quantize_job *job, const dw_tile *part, bool stream) {
    int64_t rows = part->row1 - part->row0, cols = part->col1 - part->col0, step = 16 * job->col_ld;
    for (int64_t k = 0; k < cols; k += DW_CHUNK) {
        for (int64_t i = 0; i < 16; i++) {
            uint8_t *out = job->col_data + (part->col0 + k + i) * job->col_ld + part->row0;
            const uint8_t *from = turned[k / DW_CHUNK].line[i][0];
            for (int64_t r = 0; r < rows; r += 64, from += 4 * DW_CHUNK) {
                __m512i a = _mm512_load_si512(from), b = _mm512_load_si512(from + DW_CHUNK);
                __m512i c = _mm512_load_si512(from + 2 * DW_CHUNK), d = _mm512_load_si512(from + 3 * DW_CHUNK);
                __m512i low_ab = _mm512_shuffle_i32x4(a, b, 0x44), low_cd = _mm512_shuffle_i32x4(c, d, 0x44);
                __m512i high_ab = _mm512_shuffle_i32x4(a, b, 0xEE), high_cd = _mm512_shuffle_i32x4(c, d, 0xEE);
                dw_store64(out + r, _mm512_shuffle_i32x4(low_ab, low_cd, 0x88), stream);
                dw_store64(out + r + step, _mm512_shuffle_i32x4(low_ab, low_cd, 0xDD), stream);
                dw_store64(out + r + 2 * step, _mm512_shuffle_i32x4(high_ab, high_cd, 0x88), stream);
                dw_store64(out + r + 3 * step, _mm512_shuffle_i32x4(high_ab, high_cd, 0xDD), stream);
            }
        }
    }
}

#endif
