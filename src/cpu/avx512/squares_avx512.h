/* Quantization of BF16 with square blocks of 128 x 128 elements, in whole blocks: rows, columns or both.
 *
 * Plan: a block's scale is known when all of it is read. So a strip of 128 rows and SC columns is kept, as words, in
 * the second-level cache, while the largest magnitude of each of its blocks is found. When the next strip is read,
 * group by group, each group of the kept one is encoded with the arithmetic of split_avx512.h and leaves just before
 * the new one's words take its place: memory is read and written all the time, and the words lie in the order of their
 * use. A group is four rows of 128 columns; for columns 16 rows of 64, which are turned in registers after the rows
 * have left, and leave as whole lines when 256 rows are complete (turned_avx512.h). */
#ifndef DW_SQUARES_AVX512_H
#define DW_SQUARES_AVX512_H

#include "cpu/avx512/turned_avx512.h"

#ifndef SC
#define SC 1024
#endif
#ifndef RH
#define RH 4
#endif
enum { DW_STRIP_COLS = SC, DW_STRIP_BLOCKS = DW_STRIP_COLS / DW_CELL };

/* A strip of 128 rows and at most 1024 columns, from (r, c). */
typedef struct dw_strip {
    __m512i top[DW_STRIP_BLOCKS], bias[DW_STRIP_BLOCKS]; /* of its blocks */
    int code[DW_STRIP_BLOCKS];
    bool rare[DW_STRIP_BLOCKS];
    int64_t r, c, cols;
    int64_t slot; /* of its first rows in the piece */
} dw_strip;

typedef struct dw_squares {
    _Alignas(64) uint8_t words[DW_CELL * DW_STRIP_COLS * 2];
    _Alignas(64) uint8_t elements[DW_STRIP_COLS / DW_CHUNK][16][DW_CHUNK];
    dw_turned turned[DW_STRIP_COLS / DW_CHUNK];
    dw_strip strips[2];
} dw_squares;

/* What is done with a strip. Compile-time constants. */
typedef struct dw_square_stage {
    bool rows, columns, stream;
} dw_square_stage;

/* Makes those vectors of a block's words anew in which an element is small. */
static __attribute__((noinline)) void dw_lengthen_square(const uint8_t *words, int code, const dw_split *s, int count,
                                                         __m512i *elements) {
    __m512i codes = _mm512_set1_epi16((short)code), bias = _mm512_set1_epi8((char)(code - s->unbiased)), low;
    for (int v = 0; v < count; v++, words += 2 * DW_CHUNK) {
        dw_fields x = dw_fields64(_mm512_load_si512(words), _mm512_load_si512(words + 64), s, &low);
        __mmask64 nonzero = _mm512_test_epi8_mask(x.exponents, x.exponents);
        if (_mm512_mask_cmple_epu8_mask(nonzero, x.exponents, bias)) elements[v] = dw_lengthen64(words, codes, codes, s);
    }
}

/* Encodes the strip `out` and reads `in` in its place; one of them may be NULL. `next` is the source that is read
 * after it. */
DW_INLINE void dw_pass_strip(dw_squares *squares, dw_strip *in, const dw_strip *out, const dw_quantize_job *job,
                             const dw_split *all, const uint8_t *next, dw_square_stage stage) {
    const dw_split copy = *all, *s = &copy; /* nothing that is stored changes it */
    int64_t step = job->source_ld * 2, cols = in ? in->cols : out->cols;
    uint8_t *kept = squares->words;
    for (int64_t first = 0; first < DW_CELL; first += RH) {
        for (int64_t k = 0; k < cols; k += DW_CELL, kept += 2 * RH * 2 * DW_CHUNK) {
            if (out) {
                __m512i x[2 * RH], bias = out->bias[k / DW_CELL], least = s->one, low;
#pragma GCC unroll 16
                for (int v = 0; v < 2 * RH; v++) {
                    const uint8_t *words = kept + v * 2 * DW_CHUNK;
                    dw_fields y = dw_fields64(_mm512_load_si512(words), _mm512_load_si512(words + 64), s, &low);
                    __m512i fields = _mm512_subs_epu8(y.exponents, bias);
                    __mmask64 nonzero = _mm512_test_epi8_mask(y.exponents, y.exponents);
                    least = _mm512_mask_min_epu8(least, nonzero, least, fields);
                    x[v] = dw_join_fields(fields, y.rest, s, true);
                }
                if (DW_RARELY(dw_has_zero(least))) {
                    __m512i mended[2 * RH];
#pragma GCC unroll 16
                    for (int v = 0; v < 2 * RH; v++)
                        mended[v] = x[v];
                    dw_lengthen_square(kept, out->code[k / DW_CELL], s, 2 * RH, mended);
#pragma GCC unroll 16
                    for (int v = 0; v < 2 * RH; v++)
                        x[v] = mended[v];
                }
                uint8_t *to = job->row_data + (out->r + first) * job->row_ld + out->c + k;
#pragma GCC unroll 16
                for (int v = 0; v < 2 * RH; v++) {
                    if (stage.rows) dw_store64(to + v / 2 * job->row_ld + v % 2 * DW_CHUNK, x[v], stage.stream);
                    if (stage.columns) _mm512_store_si512(squares->elements[k / DW_CHUNK + v % 2][first % 16 + v / 2], x[v]);
                }
            }
            if (in) {
                const uint8_t *words = (const uint8_t *)job->source + (in->r + first) * step + (in->c + k) * 2;
                const uint8_t *ahead = first + RH < DW_CELL ? words + RH * step : next + k * 2;
                __m512i top = in->top[k / DW_CELL];
#pragma GCC unroll 16
                for (int v = 0; v < 2 * RH; v++) {
                    int64_t at = v / 2 * step + v % 2 * 2 * DW_CHUNK;
                    _mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
                    _mm_prefetch((const char *)ahead + at + 64, _MM_HINT_T0);
                    __m512i a = _mm512_loadu_si512(words + at), b = _mm512_loadu_si512(words + at + 64);
                    _mm512_store_si512(kept + v * 2 * DW_CHUNK, a);
                    _mm512_store_si512(kept + v * 2 * DW_CHUNK + 64, b);
                    top = _mm512_max_epu16(top, dw_magnitudes512(a, &s->coder));
                    top = _mm512_max_epu16(top, dw_magnitudes512(b, &s->coder));
                }
                in->top[k / DW_CELL] = top;
            }
        }
        if (!stage.columns || !out || first % 16 + RH < 16) continue;
        for (int64_t k = 0; k < cols; k += DW_CHUNK) {
            __m512i x[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                x[i] = _mm512_load_si512(squares->elements[k / DW_CHUNK][i]);
            dw_keep_turned(&squares->turned[k / DW_CHUNK], out->slot + first / 16, x);
        }
    }
}

/* A function for each way: in one body with everything around it the hot loop loses its registers. */
typedef void (*dw_strip_pass)(dw_squares *squares, dw_strip *in, const dw_strip *out, const dw_quantize_job *job,
                              const dw_split *split, const uint8_t *next);

static __attribute__((noinline)) void dw_pass_storing(dw_squares *squares, dw_strip *in, const dw_strip *out,
                                                      const dw_quantize_job *job, const dw_split *split,
                                                      const uint8_t *next) {
    dw_pass_strip(squares, in, out, job, split, next, (dw_square_stage){.rows = true});
}

static __attribute__((noinline)) void dw_pass_streaming(dw_squares *squares, dw_strip *in, const dw_strip *out,
                                                        const dw_quantize_job *job, const dw_split *split,
                                                        const uint8_t *next) {
    dw_pass_strip(squares, in, out, job, split, next, (dw_square_stage){.rows = true, .stream = true});
}

static __attribute__((noinline)) void dw_pass_turning(dw_squares *squares, dw_strip *in, const dw_strip *out,
                                                      const dw_quantize_job *job, const dw_split *split,
                                                      const uint8_t *next) {
    dw_pass_strip(squares, in, out, job, split, next, (dw_square_stage){.columns = true});
}

static __attribute__((noinline)) void dw_pass_both_storing(dw_squares *squares, dw_strip *in, const dw_strip *out,
                                                           const dw_quantize_job *job, const dw_split *split,
                                                           const uint8_t *next) {
    dw_pass_strip(squares, in, out, job, split, next, (dw_square_stage){.rows = true, .columns = true});
}

static __attribute__((noinline)) void dw_pass_both_streaming(dw_squares *squares, dw_strip *in, const dw_strip *out,
                                                             const dw_quantize_job *job, const dw_split *split,
                                                             const uint8_t *next) {
    dw_pass_strip(squares, in, out, job, split, next, (dw_square_stage){.rows = true, .columns = true, .stream = true});
}

/* Finds the scales of a strip that is read. */
static void dw_scale_strip(dw_strip *strip, const dw_encoding *encoding, int unbiased) {
    for (int64_t b = 0; b < strip->cols / DW_CELL; b++) {
        __m512i top = strip->top[b];
        int amax = dw_largest(_mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1)));
        int code = dw_code(amax, encoding), bias = code > unbiased ? code - unbiased : 0;
        strip->rare[b] = dw_is_rare(amax, encoding);
        strip->code[b] = amax >= DW_WORD_INFINITY ? DW_SCALE_NAN : code;
        /* What becomes of a rare block is replaced, and must not count as small. */
        strip->bias[b] = _mm512_set1_epi8((char)(strip->rare[b] ? 0 : bias));
    }
}

static __attribute__((noinline)) void dw_encode_rare_square(dw_squares *squares, const dw_strip *strip, int64_t b,
                                                            const dw_quantize_job *job, bool row, bool transposed) {
    int64_t c = strip->c + b * DW_CELL;
    for (int64_t r = strip->r; row && r < strip->r + DW_CELL; r++)
        dw_encode_exactly(job, r, c, 0, 1, DW_CELL, strip->code[b], job->row_data + r * job->row_ld + c);
    for (int64_t j = 0; transposed && j < DW_CELL; j++) {
        uint8_t column[DW_CELL];
        dw_encode_exactly(job, strip->r, c + j, 1, 0, DW_CELL, strip->code[b], column);
        dw_turned *turned = &squares->turned[(b * DW_CELL + j) / DW_CHUNK];
        dw_replace_turned(turned, strip->slot, j % DW_CHUNK, column, DW_CELL);
    }
}

/* What is left to do for a strip that is encoded. */
static void dw_finish_strip(dw_squares *squares, const dw_strip *strip, const dw_quantize_job *job, int64_t row1,
                            bool row, bool transposed, bool stream) {
    for (int64_t b = 0; b < strip->cols / DW_CELL; b++) {
        int64_t down = strip->r / DW_CELL, along = strip->c / DW_CELL + b;
        if (row) *dw_scale_at(&job->row_scale, down, along) = (uint8_t)strip->code[b];
        if (transposed) *dw_scale_at(&job->col_scale, along, down) = (uint8_t)strip->code[b];
        if (DW_RARELY(strip->rare[b])) dw_encode_rare_square(squares, strip, b, job, row, transposed);
    }
    int64_t end = strip->r + DW_CELL, rows = strip->slot * 16 + DW_CELL;
    if (!transposed || (rows < DW_PIECE_ROWS && end < row1)) return;
    dw_tile part = {end - rows, end, strip->c, strip->c + strip->cols};
    if (stream)
        dw_send_columns(squares->turned, job, &part, true);
    else
        dw_send_columns(squares->turned, job, &part, false);
}

/* The whole blocks of the tile. */
static void dw_quantize_squares(const dw_quantize_job *job, const dw_tile *whole, bool row, bool transposed) {
    int64_t outputs = job->rows * job->cols, height = transposed ? DW_PIECE_ROWS : DW_CELL;
    bool stream_rows = row && dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = transposed && dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    dw_strip_pass pass = stream_rows ? dw_pass_streaming : dw_pass_storing;
    if (transposed && row)
        pass = stream_rows ? dw_pass_both_streaming : dw_pass_both_storing;
    else if (transposed)
        pass = dw_pass_turning;
    dw_split split;
    dw_squares squares;
    dw_strip *in = squares.strips, *out = NULL;
    dw_split_of(&split, job->element, job->rounding);
    for (int64_t top = whole->row0; top < whole->row1; top += height) {
        int64_t row1 = dw_least(top + height, whole->row1);
        for (int64_t c = whole->col0; c < whole->col1; c += DW_STRIP_COLS) {
            for (int64_t r = top; r < row1; r += DW_CELL) {
                in->r = r;
                in->c = c;
                in->cols = dw_least(DW_STRIP_COLS, whole->col1 - c);
                in->slot = (r - top) / 16;
                memset(in->top, 0, sizeof in->top);
                int64_t next_r = r, next_c = c + DW_STRIP_COLS; 
                if (r + DW_CELL < row1) {
                    next_r = r + DW_CELL;
                    next_c = c;
                } else if (next_c < whole->col1) {
                    next_r = top;
                } else {
                    next_c = whole->col0;
                    next_r = row1 < whole->row1 ? row1 : r;
                }
                const uint8_t *next = (const uint8_t *)job->source + (next_r * job->source_ld + next_c) * 2;
                if (out && out->cols != in->cols) {
                    pass(&squares, NULL, out, job, &split, next);
                    pass(&squares, in, NULL, job, &split, next);
                } else {
                    pass(&squares, in, out, job, &split, next);
                }
                if (out) dw_finish_strip(&squares, out, job, whole->row1, row, transposed, stream_columns);
                dw_scale_strip(in, &split.coder.narrow, split.unbiased);
                out = in;
                in = squares.strips + (in == squares.strips);
            }
        }
    }
    if (out) {
        pass(&squares, NULL, out, job, &split, NULL);
        dw_finish_strip(&squares, out, job, whole->row1, row, transposed, stream_columns);
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

#endif
