/* Quantization with square blocks of 128 x 128 elements, row-wise, transposed or both. One scale serves both
 * orientations, so the transpose has the same bytes and each element is encoded once.
 *
 * Floor: as quantize_columns_avx2.c. Work: about 30 operations for 32 elements, and 5 for the transposition.
 *
 * Plan: a cell (cell_avx2.h) is a block. Reading it also finds amax. It is encoded in groups of 32 rows; a row's 128
 * bytes leave at once, and are kept in the order of packing for the transposition. */
#include "cpu/avx2/cell_avx2.h"
#include "cpu/avx2/kernels_avx2.h"

DW_INLINE int cell_amax(const dw_cell *cell, const dw_encoding *encoding) {
    __m256i top = _mm256_setzero_si256();
    for (int64_t r = 0; r < cell->rows; r++)
        for (int64_t c = 0; c < cell->cols; c += 32) {
            const __m256i *words = dw_cell_words(cell, r, c);
            top = _mm256_max_epu16(
                top, _mm256_max_epu16(dw_magnitudes(words[0], encoding), dw_magnitudes(words[1], encoding)));
        }
    return dw_largest(top);
}

static __attribute__((noinline, cold)) void encode_cell_exactly(const dw_cell *cell, const dw_quantize_job *job,
                                                                bool row, bool transposed, int code) {
    for (int64_t r = cell->row0; row && r < cell->row0 + cell->rows; r++)
        dw_encode_exactly(job, r, cell->col0, 0, 1, cell->cols, code, job->row_data + r * job->row_ld + cell->col0);
    for (int64_t c = cell->col0; transposed && c < cell->col0 + cell->cols; c++)
        dw_encode_exactly(job, cell->row0, c, 1, 0, cell->rows, code, job->col_data + c * job->col_ld + cell->row0);
}

/* Writes the whole elements of one row, in order. */
DW_INLINE void write_row(const dw_cell *cell, const dw_quantize_job *job, int64_t r, __m256i elements[][32],
                         bool stream) {
    uint8_t *out = job->row_data + (cell->row0 + r) * job->row_ld + cell->col0;
    for (int64_t c = 0; c < cell->cols; c += 32) {
        __m256i ordered = dw_in_order(elements[c / 32][r % 32]);
        if (c + 32 <= cell->cols) {
            dw_store32(out + c, ordered, stream);
        } else {
            uint8_t rest[32];
            _mm256_storeu_si256((__m256i *)rest, ordered);
            memcpy(out + c, rest, (size_t)(cell->cols - c));
        }
    }
}

DW_INLINE void encode_cell(dw_cell *cell, const dw_quantize_job *job, const dw_encoding *encoding, int64_t size,
                           bool row, bool transposed, int code, bool stream) {
    __m256i bias = dw_bias(code, encoding);
    for (int64_t first = 0; first < cell->rows; first += 32) {
        __m256i elements[DW_CELL / 32][32];
        for (int64_t r = first; r < first + 32; r++) {
            for (int64_t c = 0; c < cell->cols; c += 32) {
                const __m256i *words = dw_cell_words(cell, r, c);
                elements[c / 32][r - first] = dw_encode32(words[0], words[1], bias, bias, encoding);
                dw_cell_prefetch(cell, r, c, size);
            }
            if (row && r < cell->rows) write_row(cell, job, r, elements, stream);
        }
        if (transposed)
            for (int64_t c = 0; c < cell->cols; c += 32)
                dw_transpose32(elements[c / 32], cell->columns + c * DW_CELL + first);
    }
}

DW_INLINE void quantize_square(const dw_quantize_job *job, const dw_tile *tile, bool row, bool transposed,
                               dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, outputs = job->rows * job->cols;
    dw_encoding encoding = dw_encoding_of(job->element, job->rounding);
    bool stream_rows = row && dw_streams(job->row_data, job->row_ld, outputs, 32);
    bool stream_columns = transposed && dw_streams(job->col_data, job->col_ld, outputs, 32);
    dw_cell cell;
    int64_t cells = dw_cell_count(tile);
    for (int64_t i = 0; i < cells; i++) {
        dw_cell_place(&cell, job, tile, size, i);
        dw_cell_read(&cell, job, dtype, 0, DW_CELL);
        int amax = cell_amax(&cell, &encoding), code = dw_code(amax, &encoding);
        if (DW_RARELY(dw_is_rare(amax, &encoding))) {
            if (amax >= DW_WORD_INFINITY) code = DW_SCALE_NAN;
            encode_cell_exactly(&cell, job, row, transposed, code);
        } else {
            encode_cell(&cell, job, &encoding, size, row, transposed, code, stream_rows);
            if (transposed) dw_cell_write_columns(&cell, job, stream_columns);
        }
        int64_t down = cell.row0 / DW_CELL, along = cell.col0 / DW_CELL;
        if (row) *dw_scale_at(&job->row_scale, down, along) = (uint8_t)code;
        if (transposed) *dw_scale_at(&job->col_scale, along, down) = (uint8_t)code;
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

DW_INLINE void quantize_square_any(const dw_quantize_job *job, const dw_tile *tile, bool row, bool transposed) {
    if (job->source_dtype == DW_F32)
        quantize_square(job, tile, row, transposed, DW_F32);
    else if (job->source_dtype == DW_F16)
        quantize_square(job, tile, row, transposed, DW_F16);
    else
        quantize_square(job, tile, row, transposed, DW_BF16);
}

void dw_quantize_row_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_square_any(job, tile, true, false);
}

void dw_quantize_transposed_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_square_any(job, tile, false, true);
}

void dw_quantize_both_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_square_any(job, tile, true, true);
}
