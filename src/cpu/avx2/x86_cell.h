/* Cells: pieces of at most 128 x 128 elements, from which transposed output is made.
 *
 * Rows of a large matrix often lie a power of two apart, so that the rows of a cell compete for a few sets of every
 * cache level. A cell is therefore read from the source once, into a dense copy of its words, and all further passes
 * use that. The transposed elements are gathered in a second dense buffer and leave it as whole cache lines. */
#ifndef DW_X86_CELL_H
#define DW_X86_CELL_H

#include <immintrin.h>

#include "cpu/avx2/x86_tiles.h"

/* From the instruction set: words of `count` source elements, padded with zeros to a multiple of 32; and a copy of
 * `count` bytes, a multiple of DW_VECTOR_BYTES, from an aligned buffer. */
DW_INLINE void dw_stage_words(uint8_t *words, const uint8_t *source, dw_dtype dtype, int64_t count);
DW_INLINE void dw_copy_run(uint8_t *out, const uint8_t *from, int64_t count, bool stream);

enum { DW_CELL = 128 };

typedef struct dw_cell {
    _Alignas(64) uint8_t words[DW_CELL * DW_CELL * 2]; /* row r of the strip at r * DW_CELL * 2 */
    _Alignas(64) uint8_t columns[DW_CELL * DW_CELL];   /* column c at c * DW_CELL */
    int64_t row0, col0, rows, cols;                    /* the piece of the matrix */
    int64_t top, height;                               /* the strip of it that `words` holds: first row and rows */
    const uint8_t *next;                               /* source of the next cell; NULL after the last */
    int64_t next_ld;                                   /* bytes between its rows */
} dw_cell;

DW_INLINE int64_t dw_up32(int64_t value) {
    return (value + 31) & ~(int64_t)31;
}

/* Points the cell at cell `index` of the tile; cells follow one another along rows. */
DW_INLINE void dw_cell_place(dw_cell *cell, const dw_quantize_job *job, const dw_tile *tile, int64_t size,
                             int64_t index) {
    int64_t across = (tile->col1 - tile->col0 + DW_CELL - 1) / DW_CELL;
    cell->row0 = tile->row0 + index / across * DW_CELL;
    cell->col0 = tile->col0 + index % across * DW_CELL;
    cell->rows = dw_least(DW_CELL, tile->row1 - cell->row0);
    cell->cols = dw_least(DW_CELL, tile->col1 - cell->col0);
    bool last_across = cell->col0 + DW_CELL >= tile->col1;
    int64_t next_row = last_across ? cell->row0 + DW_CELL : cell->row0;
    int64_t next_col = last_across ? tile->col0 : cell->col0 + DW_CELL;
    cell->next_ld = job->source_ld * size;
    bool last = next_row + cell->rows > tile->row1;
    cell->next = last ? NULL : (const uint8_t *)job->source + next_row * cell->next_ld + next_col * size;
}

DW_INLINE int64_t dw_cell_count(const dw_tile *tile) {
    return (tile->row1 - tile->row0 + DW_CELL - 1) / DW_CELL * ((tile->col1 - tile->col0 + DW_CELL - 1) / DW_CELL);
}

/* Asks for the part of the next cell that has the place of elements [c, c + 32) of row r of the strip in this one. */
DW_INLINE void dw_cell_prefetch(const dw_cell *cell, int64_t r, int64_t c, int64_t size) {
    if (!cell->next) return;
    const char *at = (const char *)cell->next + (cell->top + r) * cell->next_ld + c * size;
    _mm_prefetch(at, _MM_HINT_T0);
    if (size == 4) _mm_prefetch(at + 64, _MM_HINT_T0);
}

/* Reads the strip of at most `height` rows from `top`: words, padded with zeros to whole rows and a multiple of 32
 * rows. */
DW_INLINE void dw_cell_read(dw_cell *cell, const dw_quantize_job *job, dw_dtype dtype, int64_t top, int64_t height) {
    int64_t size = dtype == DW_F32 ? 4 : 2, rows = dw_least(height, cell->rows - top), step = job->source_ld * size;
    const uint8_t *source = (const uint8_t *)job->source + (cell->row0 + top) * step + cell->col0 * size;
    cell->top = top;
    cell->height = rows;
    if (cell->cols == DW_CELL) {
        for (int64_t r = 0; r < rows; r++)
            dw_stage_words(cell->words + r * DW_CELL * 2, source + r * step, dtype, DW_CELL);
    } else {
        memset(cell->words, 0, (size_t)(rows * DW_CELL * 2));
        for (int64_t r = 0; r < rows; r++)
            dw_stage_words(cell->words + r * DW_CELL * 2, source + r * step, dtype, cell->cols);
    }
    memset(cell->words + rows * DW_CELL * 2, 0, (size_t)((dw_up32(rows) - rows) * DW_CELL * 2));
}

/* Row r of the strip from column c. */
DW_INLINE const uint8_t *dw_cell_words(const dw_cell *cell, int64_t r, int64_t c) {
    return cell->words + (r * DW_CELL + c) * 2;
}

/* Copies the cell's columns to the transposed output. */
DW_INLINE void dw_cell_write_columns(const dw_cell *cell, const dw_quantize_job *job, bool stream) {
    for (int64_t c = 0; c < cell->cols; c++) {
        const uint8_t *from = cell->columns + c * DW_CELL;
        uint8_t *to = job->col_data + (cell->col0 + c) * job->col_ld + cell->row0;
        if (cell->rows == DW_CELL)
            dw_copy_run(to, from, DW_CELL, stream);
        else
            memcpy(to, from, (size_t)cell->rows);
    }
}

#endif
