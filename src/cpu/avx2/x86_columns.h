/* Transposed quantization with blocks of 32 or 128 elements along the rows' direction, alone or together with row
 * quantization from the same read.
 *
 * Floor: two or four bytes read and one (transposed) or two (both) written per element: 128 bytes for 32 elements of
 * BF16 to both, 19 cycles of 3.4 GHz at 23 GB/s. Work: about 45 operations for row blocks, 30 for columns, 5 for the
 * transposition.
 *
 * Plan: cells (x86_cell.h), in strips of a block's height. The row blocks of a strip are quantized from its dense
 * words as in x86_rows.h. For the columns, 32 at a time: the running maximum over a block's rows gives 32
 * amaxes side by side, so scales are computed and applied lane by lane with no reduction; each 32 rows of elements are
 * transposed in registers. While a cell is encoded the next one is prefetched. */
#ifndef DW_X86_COLUMNS_H
#define DW_X86_COLUMNS_H

#include "cpu/avx2/x86_cell.h"

typedef struct dw_column_codes {
    _Alignas(64) uint8_t code[4][DW_CELL]; /* of block b of column c at [b][c]: four blocks of 32, or one of 128 */
} dw_column_codes;

/* Quantizes columns [c, c + DW_COLUMN_STEP) of the strip, one block each, and returns the rare ones as bits. */
DW_INLINE uint64_t dw_quantize_columns(dw_cell *cell, const dw_coder *coder, int64_t size, int64_t c, uint8_t *codes,
                                       uint16_t *amax);

/* Encodes anew the columns at c whose bits are set. */
static __attribute__((noinline, cold)) void dw_mend_columns(dw_cell *cell, const dw_quantize_job *job, int64_t c,
                                                            uint64_t rare, uint8_t *codes, const uint16_t *amax) {
    for (; rare; rare &= rare - 1) {
        int j = __builtin_ctzll(rare);
        if (c + j >= cell->cols) continue;
        if (amax[j] >= DW_WORD_INFINITY) codes[j] = DW_SCALE_NAN;
        dw_encode_exactly(job, cell->row0 + cell->top, cell->col0 + c + j, 1, 0, cell->height, codes[j],
                          cell->columns + (c + j) * DW_CELL + cell->top);
    }
}

/* Writes the codes of `blocks` blocks of each of `cols` columns, the first at (row0, col0). The grid of the transpose
 * has a line for each column; where the codes of a line lie side by side (row and tcgen05 layouts: a cell starts at a
 * multiple of four) they go as one word.
 */
DW_INLINE void dw_write_column_codes(const dw_quantize_job *job, int64_t row0, int64_t col0, int64_t cols,
                                     const dw_column_codes *codes, int64_t block, int64_t blocks) {
    const dw_scale_map *map = &job->col_scale;
    int64_t k = row0 / block;
    if (map->row_stride == 1) {
        for (int64_t b = 0; b < blocks; b++)
            memcpy(dw_scale_at(map, col0, k + b), codes->code[b], (size_t)cols);
        return;
    }
    for (int64_t c = 0; c < cols; c++) {
        uint8_t *to = dw_scale_at(map, col0 + c, k);
        if (blocks == 4) {
            uint8_t line[4] = {codes->code[0][c], codes->code[1][c], codes->code[2][c], codes->code[3][c]};
            memcpy(to, line, 4);
        } else {
            for (int64_t b = 0; b < blocks; b++)
                to[b] = codes->code[b][c];
        }
    }
}

/* The row blocks of the strip: four rows, or sixteen segments, at a time. */
DW_INLINE void dw_quantize_row_blocks(const dw_cell *cell, const dw_quantize_job *job, const dw_coder *coder,
                                      int64_t block, bool stream) {
    enum { SEGMENTS = DW_CELL / 32 };
    int64_t cols = cell->cols;
    for (int64_t r = 0; r < cell->height; r += 16 / SEGMENTS) {
        dw_blocks blocks;
        const uint8_t *words = cell->words + r * DW_CELL * 2;
        dw_scale_words(&blocks, coder, words, block, 16);
        for (int b = 0; b < 16 && r + b / SEGMENTS < cell->height; b += SEGMENTS) {
            int64_t at = cell->row0 + cell->top + r + b / SEGMENTS;
            uint8_t *out = job->row_data + at * job->row_ld + cell->col0;
            if (cols == DW_CELL) {
                dw_encode_run(words + b * 64, blocks.bias + b, DW_CELL, coder, out, stream);
            } else {
                _Alignas(64) uint8_t whole[DW_CELL];
                dw_encode_run(words + b * 64, blocks.bias + b, DW_CELL, coder, whole, false);
                memcpy(out, whole, (size_t)cols);
            }
            if (DW_RARELY(blocks.rare)) dw_mend_blocks(&blocks, b, job, at, cell->col0, cols, out);
            dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, at, cell->col0 / block);
            dw_write_codes(&blocks, b, block, cols, &scales);
        }
    }
}

DW_INLINE void dw_quantize_cells(const dw_quantize_job *job, const dw_tile *tile, bool both, int64_t block,
                                 dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, outputs = job->rows * job->cols;
    dw_coder coder = dw_coder_of(job->element, job->rounding);
    bool stream_rows = both && dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    dw_cell cell;
    dw_column_codes codes;
    int64_t cells = dw_cell_count(tile);
    for (int64_t i = 0; i < cells; i++) {
        dw_cell_place(&cell, job, tile, size, i);
        int64_t blocks = 0;
        for (int64_t top = 0; top < cell.rows; top += block, blocks++) {
            dw_cell_read(&cell, job, dtype, top, block);
            if (both) dw_quantize_row_blocks(&cell, job, &coder, block, stream_rows);
            for (int64_t c = 0; c < cell.cols; c += DW_COLUMN_STEP) {
                _Alignas(64) uint16_t amax[DW_COLUMN_STEP];
                uint64_t rare = dw_quantize_columns(&cell, &coder, size, c, codes.code[blocks] + c, amax);
                if (DW_RARELY(rare)) dw_mend_columns(&cell, job, c, rare, codes.code[blocks] + c, amax);
            }
        }
        dw_write_column_codes(job, cell.row0, cell.col0, cell.cols, &codes, block, blocks);
        dw_cell_write_columns(&cell, job, stream_columns);
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

DW_INLINE void dw_quantize_cells_any(const dw_quantize_job *job, const dw_tile *tile, bool both, int64_t block) {
    if (job->source_dtype == DW_F32)
        dw_quantize_cells(job, tile, both, block, DW_F32);
    else if (job->source_dtype == DW_F16)
        dw_quantize_cells(job, tile, both, block, DW_F16);
    else
        dw_quantize_cells(job, tile, both, block, DW_BF16);
}

#endif
