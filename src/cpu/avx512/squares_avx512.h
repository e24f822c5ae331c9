/* Quantization of BF16 with square blocks of 128 x 128 elements, in whole blocks: rows, columns or both.
 *
 * Floor: 96 bytes for 32 elements in one orientation, 128 in both: 1.9 and 3.2 ns on a core of Zen 5. Work: some 30
 * vector operations of 64 bytes for 64 elements, 8 cycles of 4.2 GHz, or 1 ns for 32 elements; 4 more for columns.
 *
 * Plan: a block's scale is known when all of it is read. So the words of a strip, 128 rows high, are kept in the
 * second-level cache while the largest magnitude of each of its blocks is found. They are encoded when the next strip
 * is read, a group of four rows and 128 columns at a time, with the arithmetic of split_avx512.h: a group leaves just
 * before the new strip's words take its place. So memory is read and written all the time, the kept words lie in the
 * order of their use whatever the distance of the source's rows, and each element is encoded once.
 *
 * For columns the elements of 16 rows are also kept, in the nearest cache, turned, and gathered until 256 rows are
 * complete (turned_avx512.h). Turning groups of 16 rows and 64 columns in registers instead would read memory in an
 * order that costs twice as much. */
#ifndef DW_SQUARES_AVX512_H
#define DW_SQUARES_AVX512_H

#include "cpu/avx512/turned_avx512.h"

enum {
    /* Columns of a strip: what pays best beside the buffers for columns, and without them. */
    DW_TURNED_STRIP_COLS = 512,
    DW_STRIP_COLS = 1024,
    DW_STRIP_BLOCKS = DW_STRIP_COLS / DW_CELL,
    DW_SQUARE_ROWS = DW_GROUP_VECTORS * DW_CHUNK / DW_CELL /* of a group */
};

/* A strip from (r, c). */
typedef struct dw_strip {
    __m512i top[DW_STRIP_BLOCKS];  /* magnitudes of each block, the largest among them */
    __m512i bias[DW_STRIP_BLOCKS]; /* its bias, in every byte */
    int code[DW_STRIP_BLOCKS];
    bool rare[DW_STRIP_BLOCKS];
    int64_t r, c, cols;
    int64_t slot; /* of its first rows in `turned` */
} dw_strip;

typedef struct dw_squares {
    _Alignas(64) uint8_t words[DW_CELL * DW_STRIP_COLS * 2]; /* group after group, in each row after row */
    _Alignas(64) uint8_t elements[DW_TURNED_STRIP_COLS / DW_CHUNK][16][DW_CHUNK];
    dw_turned turned[DW_TURNED_STRIP_COLS / DW_CHUNK];
    dw_strip strips[2];
} dw_squares;

/* What is made of a strip. Compile-time constants, as the loop below is the hot one. */
typedef struct dw_square_stage {
    bool rows, columns, stream;
} dw_square_stage;

/* The elements of a block's group by the form that looks at each vector first. Returns in how many one is small. */
static __attribute__((noinline)) int dw_encode_carefully(const uint8_t *words, int code, __m512i bias,
                                                         const dw_split *s, __m512i elements[DW_GROUP_VECTORS]) {
    __m512i codes = _mm512_set1_epi16((short)code), low;
    int count = 0;
    for (int v = 0; v < DW_GROUP_VECTORS; v++, words += 2 * DW_CHUNK) {
        dw_fields x = dw_fields64(_mm512_load_si512(words), _mm512_load_si512(words + 64), s, &low);
        __mmask64 nonzero = _mm512_test_epi8_mask(x.exponents, x.exponents);
        if (_mm512_mask_cmple_epu8_mask(nonzero, x.exponents, bias)) {
            elements[v] = dw_lengthen64(words, codes, codes, s);
            count++;
        } else {
            elements[v] = dw_join_fields(_mm512_subs_epu8(x.exponents, bias), x.rest, s, true);
        }
    }
    return count;
}

/* The elements of a block's group of words. `small` is what the last call returned, and this one returns. */
DW_INLINE int dw_encode_group(const uint8_t *words, const dw_strip *strip, int64_t b, const dw_split *s,
                              __m512i x[DW_GROUP_VECTORS], int small) {
    __m512i bias = strip->bias[b], least = s->one, low;
    if (small <= DW_MANY_SMALL) {
#pragma GCC unroll 8
        for (int v = 0; v < DW_GROUP_VECTORS; v++) {
            const uint8_t *from = words + v * 2 * DW_CHUNK;
            dw_fields y = dw_fields64(_mm512_load_si512(from), _mm512_load_si512(from + 64), s, &low);
            __m512i fields = _mm512_subs_epu8(y.exponents, bias);
            least = _mm512_mask_min_epu8(least, _mm512_test_epi8_mask(y.exponents, y.exponents), least, fields);
            x[v] = dw_join_fields(fields, y.rest, s, true); /* saturating always: it costs next to nothing here */
        }
        if (!DW_RARELY(dw_has_zero(least))) return 0;
    }
    __m512i careful[DW_GROUP_VECTORS]; /* x itself stays in registers */
    small = dw_encode_carefully(words, strip->code[b], bias, s, careful);
#pragma GCC unroll 8
    for (int v = 0; v < DW_GROUP_VECTORS; v++)
        x[v] = careful[v];
    return small;
}

/* Keeps a group of the source's rows, which are `step` bytes apart, asking for as much from `ahead`. Returns the
 * largest of `top` and its magnitudes. */
DW_INLINE __m512i dw_keep_group(uint8_t *kept, const uint8_t *words, int64_t step, const uint8_t *ahead,
                                const dw_split *s, __m512i top) {
#pragma GCC unroll 8
    for (int v = 0; v < DW_GROUP_VECTORS; v++, kept += 2 * DW_CHUNK) {
        int64_t at = v / 2 * step + v % 2 * 2 * DW_CHUNK;
        _mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
        _mm_prefetch((const char *)ahead + at + 64, _MM_HINT_T0);
        __m512i a = _mm512_loadu_si512(words + at), b = _mm512_loadu_si512(words + at + 64);
        _mm512_store_si512(kept, a);
        _mm512_store_si512(kept + 64, b);
        top = _mm512_max_epu16(top, dw_magnitudes512(a, &s->coder));
        top = _mm512_max_epu16(top, dw_magnitudes512(b, &s->coder));
    }
    return top;
}

/* Encodes the strip `out` and keeps `in` in its place; one of them may be NULL. `next` is the source that is read
 * after it. */
DW_INLINE void dw_pass_strip(dw_squares *squares, dw_strip *in, const dw_strip *out, const dw_quantize_job *job,
                             const dw_split *all, const uint8_t *next, dw_square_stage stage) {
    const dw_split copy = *all, *s = &copy; /* nothing that is stored changes it */
    int64_t step = job->source_ld * 2, cols = in ? in->cols : out->cols;
    uint8_t *kept = squares->words;
    int small = 0;
    for (int64_t first = 0; first < DW_CELL; first += DW_SQUARE_ROWS) {
        for (int64_t k = 0; k < cols; k += DW_CELL, kept += DW_GROUP_VECTORS * 2 * DW_CHUNK) {
            if (out) {
                __m512i x[DW_GROUP_VECTORS];
                small = dw_encode_group(kept, out, k / DW_CELL, s, x, small);
                uint8_t *to = job->row_data + (out->r + first) * job->row_ld + out->c + k;
#pragma GCC unroll 8
                for (int v = 0; v < DW_GROUP_VECTORS; v++) {
                    int64_t i = v / 2, h = v % 2;
                    if (stage.rows) dw_store64(to + i * job->row_ld + h * DW_CHUNK, x[v], stage.stream);
                    if (stage.columns) _mm512_store_si512(squares->elements[k / DW_CHUNK + h][first % 16 + i], x[v]);
                }
            }
            if (in) {
                const uint8_t *words = (const uint8_t *)job->source + (in->r + first) * step + (in->c + k) * 2;
                const uint8_t *ahead = first + DW_SQUARE_ROWS < DW_CELL ? words + DW_SQUARE_ROWS * step : next + k * 2;
                in->top[k / DW_CELL] = dw_keep_group(kept, words, step, ahead, s, in->top[k / DW_CELL]);
            }
        }
        if (!stage.columns || !out || (first + DW_SQUARE_ROWS) % 16) continue;
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

/* Finds the scales of a strip that is kept. */
static void dw_scale_strip(dw_strip *strip, const dw_split *s) {
    const dw_encoding *encoding = &s->coder.narrow;
    for (int64_t b = 0; b < strip->cols / DW_CELL; b++) {
        __m512i top = strip->top[b];
        int amax = dw_largest(_mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1)));
        int code = dw_code(amax, encoding), bias = code > s->unbiased ? code - s->unbiased : 0;
        strip->rare[b] = dw_is_rare(amax, encoding);
        strip->code[b] = amax >= DW_WORD_INFINITY ? DW_SCALE_NAN : code;
        /* What is made of a rare block is replaced, and nothing in it must count as small. */
        strip->bias[b] = _mm512_set1_epi8((char)(strip->rare[b] ? 0 : bias));
    }
}

/* Replaces a rare block's elements. */
static __attribute__((noinline)) void dw_encode_rare_square(dw_squares *squares, const dw_strip *strip, int64_t b,
                                                            const dw_quantize_job *job, bool rows, bool columns) {
    int64_t c = strip->c + b * DW_CELL;
    int code = strip->code[b];
    for (int64_t r = strip->r; rows && r < strip->r + DW_CELL; r++)
        dw_encode_exactly(job, r, c, 0, 1, DW_CELL, code, job->row_data + r * job->row_ld + c);
    for (int64_t j = 0; columns && j < DW_CELL; j++) {
        uint8_t column[DW_CELL];
        dw_encode_exactly(job, strip->r, c + j, 1, 0, DW_CELL, code, column);
        int64_t k = b * DW_CELL + j;
        dw_replace_turned(&squares->turned[k / DW_CHUNK], strip->slot, k % DW_CHUNK, column, DW_CELL);
    }
}

/* What is left to do for a strip that is encoded. `whole` are the tile's whole blocks. */
static void dw_finish_strip(dw_squares *squares, const dw_strip *strip, const dw_quantize_job *job,
                            const dw_tile *whole, bool rows, bool columns, bool stream) {
    for (int64_t b = 0; b < strip->cols / DW_CELL; b++) {
        int64_t down = strip->r / DW_CELL, along = strip->c / DW_CELL + b;
        if (rows) *dw_scale_at(&job->row_scale, down, along) = (uint8_t)strip->code[b];
        if (columns) *dw_scale_at(&job->col_scale, along, down) = (uint8_t)strip->code[b];
        if (DW_RARELY(strip->rare[b])) dw_encode_rare_square(squares, strip, b, job, rows, columns);
    }
    int64_t row1 = strip->r + DW_CELL, height = strip->slot * 16 + DW_CELL;
    if (!columns || (height < DW_PIECE_ROWS && row1 < whole->row1)) return;
    dw_tile part = {row1 - height, row1, strip->c, strip->c + strip->cols};
    if (stream)
        dw_send_columns(squares->turned, job, &part, true);
    else
        dw_send_columns(squares->turned, job, &part, false);
}

/* Points a strip at number `index` of the whole blocks: strips of a piece, `height` high, follow one another, and so do
 * pieces along rows. */
static void dw_place_strip(dw_strip *strip, const dw_tile *whole, int64_t height, int64_t width, int64_t index) {
    int64_t across = (whole->col1 - whole->col0 + width - 1) / width, in_band = across * (height / DW_CELL);
    int64_t row0 = whole->row0 + index / in_band * height;
    int64_t high = dw_least(height, whole->row1 - row0) / DW_CELL;
    strip->slot = index % in_band % high * (DW_CELL / 16);
    strip->r = row0 + strip->slot * 16;
    strip->c = whole->col0 + index % in_band / high * width;
    strip->cols = dw_least(width, whole->col1 - strip->c);
}

/* The whole blocks of a tile. */
static void dw_quantize_squares(const dw_quantize_job *job, const dw_tile *whole, bool rows, bool columns) {
    int64_t outputs = job->rows * job->cols, height = columns ? DW_PIECE_ROWS : DW_CELL;
    int64_t width = columns ? DW_TURNED_STRIP_COLS : DW_STRIP_COLS;
    bool stream_rows = rows && dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = columns && dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    dw_strip_pass pass = stream_rows ? dw_pass_streaming : dw_pass_storing;
    if (columns && rows)
        pass = stream_rows ? dw_pass_both_streaming : dw_pass_both_storing;
    else if (columns)
        pass = dw_pass_turning;
    dw_split split;
    dw_squares squares;
    dw_split_of(&split, job->element, job->rounding);
    dw_strip *in = squares.strips, *out = NULL;
    int64_t count = (whole->col1 - whole->col0 + width - 1) / width * ((whole->row1 - whole->row0) / DW_CELL);
    for (int64_t i = 0; i < count; i++) {
        dw_strip after;
        dw_place_strip(in, whole, height, width, i);
        dw_place_strip(&after, whole, height, width, dw_least(i + 1, count - 1));
        const uint8_t *next = (const uint8_t *)job->source + (after.r * job->source_ld + after.c) * 2;
        memset(in->top, 0, sizeof in->top);
        if (out && out->cols == in->cols) {
            pass(&squares, in, out, job, &split, next);
        } else {
            if (out) pass(&squares, NULL, out, job, &split, next);
            pass(&squares, in, NULL, job, &split, next);
        }
        if (out) dw_finish_strip(&squares, out, job, whole, rows, columns, stream_columns);
        dw_scale_strip(in, &split);
        out = in;
        in = squares.strips + (in == squares.strips);
    }
    if (out) {
        pass(&squares, NULL, out, job, &split, NULL);
        dw_finish_strip(&squares, out, job, whole, rows, columns, stream_columns);
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

#endif
