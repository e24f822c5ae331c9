/* Quantization with square blocks of 128 x 128 elements, row-wise, transposed or both. One scale serves both
 * orientations, so the transpose has the same bytes and each element is encoded once.
 *
 * Floor: as x86_columns.h. Work: about 30 operations for 32 elements, and 5 for the transposition.
 *
 * Plan: a cell (x86_cell.h) is a block. It is read, searched for amax, and encoded in groups of 32 rows into a dense
 * buffer, from which the rows leave as they are and the columns after a transposition. */
#ifndef DW_X86_SQUARE_H
#define DW_X86_SQUARE_H

#include "cpu/avx2/x86_cell.h"

static __attribute__((noinline, cold)) void dw_encode_cell_exactly(const dw_cell *cell, const dw_quantize_job *job,
                                                                   bool row, bool transposed, int code) {
    for (int64_t r = cell->row0; row && r < cell->row0 + cell->rows; r++)
        dw_encode_exactly(job, r, cell->col0, 0, 1, cell->cols, code, job->row_data + r * job->row_ld + cell->col0);
    for (int64_t c = cell->col0; transposed && c < cell->col0 + cell->cols; c++)
        dw_encode_exactly(job, cell->row0, c, 1, 0, cell->rows, code, job->col_data + c * job->col_ld + cell->row0);
}

/* Writes the rows of the cell from `first` whose elements are in the buffer. */
DW_INLINE void dw_write_rows(const dw_cell *cell, const dw_quantize_job *job, int64_t first, const uint8_t *elements,
                             bool stream) {
    for (int64_t i = 0; i < dw_least(32, cell->rows - first); i++) {
        uint8_t *out = job->row_data + (cell->row0 + first + i) * job->row_ld + cell->col0;
        if (cell->cols == DW_CELL)
            dw_copy_run(out, elements + i * DW_CELL, DW_CELL, stream);
        else
            memcpy(out, elements + i * DW_CELL, (size_t)cell->cols);
    }
}

DW_INLINE void dw_encode_cell(dw_cell *cell, const dw_quantize_job *job, const dw_coder *coder, int64_t size, bool row,
                              bool transposed, int code, bool stream) {
    dw_blocks blocks;
    dw_scale_alike(&blocks, dw_coder_scales(coder), code);
    for (int64_t first = 0; first < cell->rows; first += 32) {
        _Alignas(64) uint8_t elements[32 * DW_CELL];
        for (int64_t i = 0; i < 32; i++) {
            for (int64_t c = 0; c < DW_CELL; c += 32)
                dw_cell_prefetch(cell, first + i, c, size);
            dw_encode_run(dw_cell_words(cell, first + i, 0), blocks.bias, DW_CELL, coder, elements + i * DW_CELL,
                          false);
        }
        if (row) dw_write_rows(cell, job, first, elements, stream);
        for (int64_t c = 0; transposed && c < cell->cols; c += DW_COLUMN_STEP)
            dw_transpose_rows(elements + c, DW_CELL, cell->columns + c * DW_CELL + first);
    }
}

DW_INLINE void dw_quantize_square(const dw_quantize_job *job, const dw_tile *tile, bool row, bool transposed,
                                  dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, outputs = job->rows * job->cols;
    dw_coder coder = dw_coder_of(job->element, job->rounding);
    bool stream_rows = row && dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = transposed && dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    dw_cell cell;
    int64_t cells = dw_cell_count(tile);
    for (int64_t i = 0; i < cells; i++) {
        dw_cell_place(&cell, job, tile, size, i);
        dw_cell_read(&cell, job, dtype, 0, DW_CELL);
        int amax = dw_cell_amax(&cell, &coder), code = dw_code(amax, dw_coder_scales(&coder));
        if (DW_RARELY(dw_is_rare(amax, dw_coder_scales(&coder)))) {
            if (amax >= DW_WORD_INFINITY) code = DW_SCALE_NAN;
            dw_encode_cell_exactly(&cell, job, row, transposed, code);
        } else {
            dw_encode_cell(&cell, job, &coder, size, row, transposed, code, stream_rows);
            if (transposed) dw_cell_write_columns(&cell, job, stream_columns);
        }
        int64_t down = cell.row0 / DW_CELL, along = cell.col0 / DW_CELL;
        if (row) *dw_scale_at(&job->row_scale, down, along) = (uint8_t)code;
        if (transposed) *dw_scale_at(&job->col_scale, along, down) = (uint8_t)code;
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

DW_INLINE void dw_quantize_square_any(const dw_quantize_job *job, const dw_tile *tile, bool row, bool transposed) {
    if (job->source_dtype == DW_F32)
        dw_quantize_square(job, tile, row, transposed, DW_F32);
    else if (job->source_dtype == DW_F16)
        dw_quantize_square(job, tile, row, transposed, DW_F16);
    else
        dw_quantize_square(job, tile, row, transposed, DW_BF16);
}

#endif
