/* Quantization of BF16 in both orientations with blocks of 32 or 128, in pieces of 256 x 256 elements.
 *
 * The plan of x86_columns.h encodes every element twice, and its stores come in bursts. Here both orientations share
 * what does not depend on the scale. Rounding to an element's fraction does not: a word becomes "units", its exponent
 * and rounded fraction as one number, counted from a base near the strip's scales so that it fits a byte. Encoding is
 * then one saturating subtraction of bytes and the sign.
 *
 * Plan: strips of a block's height and 128 columns. Four rows of a strip are read, asking for the four rows after them,
 * and rounded into two dense planes, units and signs; meanwhile the rows of the group before are encoded from
 * the planes and leave, one store for each 64 bytes read, which keeps reads and writes mixed. Then the strip's columns
 * are encoded and transposed from the planes into the piece's buffer, strip by strip so that its stores are dense.
 * Columns leave in runs of 256 bytes: shorter runs cost more, longer ones need a buffer beyond the second-level cache.
 *
 * Units say nothing of an element below the smallest normal, and fit only blocks near the base. Groups and columns with
 * such elements or blocks are found by the way and encoded anew from the source, as in the other plans. For the columns
 * alone this is no faster than x86_columns.h. */
#ifndef DW_PIECES_AVX2_H
#define DW_PIECES_AVX2_H

#include "cpu/avx2/x86_columns.h"

enum {
    DW_PIECE = 256,
    DW_GROUP_ROWS = 4,
    DW_LANE_BYTES = DW_PIECE * 32 + 64, /* 32 rows of the buffer; the excess spreads a column over cache sets */
    /* Biases of blocks, in units above the base: from DW_BIAS_LEAST on, what is at or below the base is zero as an
     * element; up to DW_BIAS_MOST, the largest element is a byte. A new base makes its strip's largest
     * DW_BIAS_AIM. */
    DW_BIAS_LEAST = 32,
    DW_BIAS_MOST = 128,
    DW_BIAS_AIM = 96
};

/* Constants of units, of words shifted left by one: the sign drops out. */
typedef struct dw_units {
    const dw_encoding *encoding;
    int fraction; /* bits of an element's */
    int base;     /* in units */
    __m256i shifted_base, step, tail, half, above, limit, sign;
} dw_units;

typedef struct dw_piece {
    _Alignas(64) uint8_t units[DW_CELL * DW_CELL], signs[DW_CELL * DW_CELL]; /* the strip, in the order of packing */
    _Alignas(64) uint8_t columns[DW_PIECE / 32][DW_LANE_BYTES];              /* rows / 32, then column c at c * 32 */
    dw_column_codes codes[DW_PIECE / DW_CELL][DW_PIECE / DW_CELL];           /* of 128 rows and 128 columns */
    __m256i top[DW_CELL / 16];                                               /* the strip's columns' amaxes */
} dw_piece;

/* Four rows of a strip, 128 columns: sixteen segments. */
typedef struct dw_row_group {
    _Alignas(32) uint32_t bias[16]; /* in units, of segments 0-15, in all bytes */
    uint8_t code[16];
    bool odd;
} dw_row_group;

static void dw_units_from(dw_units *units, int base) {
    units->base = base > 0 ? base : 0;
    units->shifted_base = _mm256_set1_epi16((short)(units->base << (8 - units->fraction)));
}

static dw_units dw_units_of(const dw_encoding *encoding, dw_dtype element) {
    dw_units u = {.encoding = encoding, .fraction = element == DW_E5M2 ? 2 : 3};
    int dropped = 8 - u.fraction;
    u.step = dw_pinned(_mm256_set1_epi16((short)(1 << (15 - dropped))));
    u.tail = dw_pinned(_mm256_set1_epi16((short)((2 << dropped) - 1)));
    u.half = dw_pinned(_mm256_set1_epi16((short)(1 << (dropped - 1))));
    u.limit = encoding->limit;
    u.sign = encoding->sign;
    u.above = encoding->above;
    dw_units_from(&u, 0);
    return u;
}

/* What is subtracted from units for blocks of these codes: 16-bit lanes. */
DW_INLINE __m256i dw_unit_biases(__m256i codes, const dw_units *units) {
    __m256i above = _mm256_slli_epi16(codes, units->fraction);
    return _mm256_subs_epu16(
        above, _mm256_set1_epi16((short)(units->base + ((units->encoding->base - 8) << units->fraction))));
}

/* All ones in the lanes of blocks that units do not serve. */
DW_INLINE __m256i dw_beyond_units(__m256i amax, __m256i biases, const dw_units *units) {
    __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi16(_mm256_set1_epi16(DW_BIAS_LEAST), biases),
                                      _mm256_cmpgt_epi16(biases, _mm256_set1_epi16(DW_BIAS_MOST)));
    outside = _mm256_or_si256(outside, dw_rare(amax, units->encoding));
    return _mm256_andnot_si256(_mm256_cmpeq_epi16(amax, _mm256_setzero_si256()), outside);
}

/* Rounds the 16 words of `doubled`. */
DW_INLINE __m256i dw_round_units(__m256i doubled, const dw_units *units) {
    __m256i exact = _mm256_subs_epu16(doubled, units->shifted_base);
    __m256i tie = _mm256_cmpeq_epi16(_mm256_and_si256(exact, units->tail), units->half);
    return _mm256_add_epi16(_mm256_mulhrs_epi16(exact, units->step), tie);
}

/* 32 elements from the planes. `least` becomes the least magnitude of one that is not zero, if that is less. */
DW_INLINE __m256i dw_encode_units(const uint8_t *from, const uint8_t *signs, __m256i biases, const dw_units *units,
                                  __m256i *least) {
    __m256i value = _mm256_load_si256((const __m256i *)from);
    __m256i zeros = _mm256_cmpeq_epi8(value, _mm256_setzero_si256());
    __m256i magnitudes = _mm256_subs_epu8(value, biases);
    *least = _mm256_min_epu8(*least, _mm256_or_si256(magnitudes, zeros));
    return _mm256_or_si256(_mm256_min_epu8(magnitudes, units->limit), _mm256_load_si256((const __m256i *)signs));
}

/* Rows (r to r + 3, c to c + 127) anew, by the plan of x86_rows.h. */
static __attribute__((noinline)) void dw_redo_rows(const dw_quantize_job *job, const dw_encoding *encoding,
                                                   int64_t block, int64_t r, int64_t c, bool stream) {
    for (int i = 0; i < DW_GROUP_ROWS; i++) {
        const uint8_t *words = (const uint8_t *)job->source + ((r + i) * job->source_ld + c) * 2;
        uint8_t *out = job->row_data + (r + i) * job->row_ld + c;
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r + i, c / block);
        dw_blocks blocks;
        dw_scale_words(&blocks, encoding, words, block, DW_CELL / 32);
        dw_encode_run(words, blocks.bias, DW_CELL, encoding, out, stream);
        if (DW_RARELY(blocks.rare)) dw_mend_blocks(&blocks, 0, job, r + i, c, DW_CELL, out);
        dw_write_codes(&blocks, 0, block, DW_CELL, &scales);
    }
}

/* Columns [c, c + 32) of a strip of `block` rows from `r` anew, by the plan of x86_columns.h, to the piece's buffer:
 * `columns` and `codes` are their places. */
static __attribute__((noinline)) void dw_redo_columns(const dw_quantize_job *job, const dw_encoding *encoding,
                                                      int64_t block, int64_t r, int64_t c, uint8_t *columns,
                                                      uint8_t *codes) {
    dw_cell cell;
    _Alignas(64) uint16_t amax[DW_COLUMN_STEP];
    cell.row0 = r;
    cell.col0 = c;
    cell.rows = cell.height = block;
    cell.cols = DW_COLUMN_STEP;
    cell.top = 0;
    cell.next = NULL;
    for (int64_t i = 0; i < block; i++)
        dw_stage_words(cell.words + i * DW_CELL * 2, (const uint8_t *)job->source + ((r + i) * job->source_ld + c) * 2,
                       DW_BF16, DW_COLUMN_STEP);
    uint64_t rare = dw_quantize_columns(&cell, encoding, 2, 0, codes, amax);
    if (DW_RARELY(rare)) dw_mend_columns(&cell, job, 0, rare, codes, amax);
    for (int64_t first = 0; first < block; first += 32)
        for (int64_t i = 0; i < DW_COLUMN_STEP; i++)
            dw_copy_run(columns + first / 32 * DW_LANE_BYTES + i * 32, cell.columns + i * DW_CELL + first, 32, false);
}

/* The elements of a group anew, by the form that knows small ones; its codes stand. */
static __attribute__((noinline)) void dw_lengthen_rows(const dw_quantize_job *job, const dw_encoding *encoding,
                                                       const uint8_t code[16], int64_t r, int64_t c, bool stream) {
    _Alignas(32) uint32_t bias[16];
    __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)code));
    dw_keep_biases(bias, dw_biases(codes, encoding));
    for (int i = 0; i < DW_GROUP_ROWS; i++) {
        const uint8_t *words = (const uint8_t *)job->source + ((r + i) * job->source_ld + c) * 2;
        dw_encode_run(words, bias + 4 * i, DW_CELL, encoding, job->row_data + (r + i) * job->row_ld + c, stream);
    }
}

/* 16 rows of 32 columns of the same form, with the codes of the columns. */
static __attribute__((noinline)) void dw_lengthen_columns(const uint8_t *words, int64_t step, __m256i codes_a,
                                                          __m256i codes_b, const dw_encoding *encoding,
                                                          __m256i elements[16]) {
    __m256i biases_a = dw_biases(codes_a, encoding), biases_b = dw_biases(codes_b, encoding);
    for (int i = 0; i < 16; i++) {
        __m256i a, b;
        dw_load_to_pack(words + i * step, &a, &b);
        elements[i] = dw_encode32(a, b, biases_a, biases_b, encoding);
    }
}

DW_INLINE void dw_scale_group(dw_row_group *group, const __m256i top[16], int64_t block, const dw_units *units) {
    __m256i amax = _mm256_srli_epi16(dw_largest16(top), 1);
    if (block == 128) amax = dw_largest_of_four(amax);
    __m256i codes = dw_codes(amax, units->encoding), biases = dw_unit_biases(codes, units);
    __m256i beyond = dw_beyond_units(amax, biases, units);
    group->odd = !_mm256_testz_si256(beyond, beyond);
    dw_keep_biases(group->bias, _mm256_mullo_epi16(biases, _mm256_set1_epi16(0x0101)));
    __m256i packed = dw_in_order(_mm256_packus_epi16(codes, codes));
    _mm_storeu_si128((__m128i *)group->code, _mm256_castsi256_si128(packed));
}

/* Ends a group whose elements are written: its codes, and what units do not serve. */
DW_INLINE void dw_close_rows(const dw_row_group *group, const dw_quantize_job *job, const dw_units *units,
                             int64_t block, int64_t r, int64_t c, __m256i small, bool stream) {
    if (DW_RARELY(group->odd)) {
        dw_redo_rows(job, units->encoding, block, r, c, stream);
        return;
    }
    if (DW_RARELY(!_mm256_testz_si256(small, small))) dw_lengthen_rows(job, units->encoding, group->code, r, c, stream);
    for (int i = 0; i < DW_GROUP_ROWS; i++) {
        if (block == 32 && job->row_scale.col_stride == 1) {
            memcpy(dw_scale_at(&job->row_scale, r + i, c / 32), group->code + 4 * i, 4);
        } else {
            for (int64_t b = 0; b < DW_CELL / block; b++)
                *dw_scale_at(&job->row_scale, r + i, c / block + b) = group->code[4 * i + b];
        }
    }
}

/* What is done with four rows of a strip at once. Compile-time constants, as the loop below is the hot one. */
typedef struct dw_stage {
    bool reads, writes; /* this group; the rows of the group before */
    bool stream;
} dw_stage;

/* Rounds a group's words into the planes at `first` * DW_CELL, with its segments' magnitudes (doubled) in `top`, and
 * writes the elements of the group before it to `out`. Returns bits set where one of those is small. */
DW_INLINE __m256i dw_stage_group(dw_piece *piece, const dw_units *units, dw_stage stage, const uint8_t *words,
                                 int64_t step, const uint8_t *ahead, int64_t first, __m256i top[16],
                                 const dw_row_group *done, uint8_t *out, int64_t ld) {
    __m256i least = units->above;
    uint8_t *to_units = piece->units + first * DW_CELL, *to_signs = piece->signs + first * DW_CELL;
    const uint8_t *from_units = to_units - DW_GROUP_ROWS * DW_CELL, *from_signs = to_signs - DW_GROUP_ROWS * DW_CELL;
    for (int b = 0; b < 4; b++, out += ld) { /* a column block of those read, a row of those written */
        __m256i top_a = piece->top[2 * b], top_b = piece->top[2 * b + 1];
#pragma GCC unroll 4
        for (int i = 0; i < DW_GROUP_ROWS; i++) {
            if (stage.reads) {
                _mm_prefetch((const char *)ahead + i * step + b * 64, _MM_HINT_T0);
                __m256i low, high;
                dw_load_to_pack(words + i * step + b * 64, &low, &high);
                __m256i x = _mm256_add_epi16(low, low), y = _mm256_add_epi16(high, high);
                top[i * 4 + b] = _mm256_max_epu16(x, y);
                top_a = _mm256_max_epu16(top_a, x);
                top_b = _mm256_max_epu16(top_b, y);
                __m256i packed = _mm256_packus_epi16(dw_round_units(x, units), dw_round_units(y, units));
                _mm256_store_si256((__m256i *)(to_units + i * DW_CELL + b * 32), packed);
                packed = _mm256_and_si256(_mm256_packs_epi16(low, high), units->sign);
                _mm256_store_si256((__m256i *)(to_signs + i * DW_CELL + b * 32), packed);
            }
            if (stage.writes) {
                int at = b * DW_CELL + i * 32;
                __m256i bias = _mm256_set1_epi32((int)done->bias[4 * b + i]);
                dw_store32(out + i * 32, dw_encode_units(from_units + at, from_signs + at, bias, units, &least),
                           stage.stream);
            }
        }
        piece->top[2 * b] = top_a;
        piece->top[2 * b + 1] = top_b;
    }
    return _mm256_xor_si256(least, units->above);
}

/* Rounds the strip at (r, c) into the planes, finds its columns' amaxes, and writes its rows. `next` is the source of
 * the strip after this one. */
DW_INLINE void dw_stage_strip(dw_piece *piece, const dw_quantize_job *job, const dw_units *all, int64_t block,
                              int64_t r, int64_t c, const uint8_t *next, bool stream) {
    const dw_units copy = *all, *units = &copy; /* stays in registers */
    int64_t step = job->source_ld * 2;
    const uint8_t *words = (const uint8_t *)job->source + r * step + c * 2;
    uint8_t *out = job->row_data + r * job->row_ld + c;
    dw_row_group groups[2];
    __m256i top[16];
    for (int i = 0; i < DW_CELL / 16; i++)
        piece->top[i] = _mm256_setzero_si256();
    dw_stage stage = {.reads = true, .stream = stream};
    dw_stage_group(piece, units, stage, words, step, words + DW_GROUP_ROWS * step, 0, top, NULL, NULL, 0);
    dw_scale_group(&groups[0], top, block, units);
    stage.writes = true;
    int turn = 0;
    for (int64_t first = DW_GROUP_ROWS; first < block; first += DW_GROUP_ROWS, turn ^= 1) {
        words += DW_GROUP_ROWS * step;
        const uint8_t *ahead = first + DW_GROUP_ROWS < block ? words + DW_GROUP_ROWS * step : next;
        __m256i small =
            dw_stage_group(piece, units, stage, words, step, ahead, first, top, &groups[turn], out, job->row_ld);
        dw_close_rows(&groups[turn], job, units, block, r + first - DW_GROUP_ROWS, c, small, stream);
        dw_scale_group(&groups[turn ^ 1], top, block, units);
        out += DW_GROUP_ROWS * job->row_ld;
    }
    stage.reads = false;
    __m256i small = dw_stage_group(piece, units, stage, NULL, 0, NULL, block, NULL, &groups[turn], out, job->row_ld);
    dw_close_rows(&groups[turn], job, units, block, r + block - DW_GROUP_ROWS, c, small, stream);
}

/* A function for each way of storing: in one body with everything around it the hot loop loses its registers. */
typedef void (*dw_strip_stage)(dw_piece *piece, const dw_quantize_job *job, const dw_units *units, int64_t block,
                               int64_t r, int64_t c, const uint8_t *next);

static __attribute__((noinline)) void dw_stage_storing(dw_piece *piece, const dw_quantize_job *job,
                                                       const dw_units *units, int64_t block, int64_t r, int64_t c,
                                                       const uint8_t *next) {
    dw_stage_strip(piece, job, units, block, r, c, next, false);
}

static __attribute__((noinline)) void dw_stage_streaming(dw_piece *piece, const dw_quantize_job *job,
                                                         const dw_units *units, int64_t block, int64_t r, int64_t c,
                                                         const uint8_t *next) {
    dw_stage_strip(piece, job, units, block, r, c, next, true);
}

/* Encodes the columns of the strip at (r, c) into the piece's buffer. Returns whether all were near the base. */
static __attribute__((noinline)) bool dw_encode_strip(const dw_piece *piece, const dw_quantize_job *job,
                                                      const dw_units *all, int64_t block, int64_t r, int64_t c,
                                                      uint8_t *columns, uint8_t *codes) {
    const dw_units copy = *all, *units = &copy;
    bool near = true;
    for (int64_t b = 0; b < DW_CELL; b += 32) {
        __m256i amax_a = _mm256_srli_epi16(piece->top[b / 16], 1),
                amax_b = _mm256_srli_epi16(piece->top[b / 16 + 1], 1);
        __m256i codes_a = dw_codes(amax_a, units->encoding), codes_b = dw_codes(amax_b, units->encoding);
        __m256i biases_a = dw_unit_biases(codes_a, units), biases_b = dw_unit_biases(codes_b, units);
        __m256i beyond =
            _mm256_or_si256(dw_beyond_units(amax_a, biases_a, units), dw_beyond_units(amax_b, biases_b, units));
        __m256i biases = _mm256_packus_epi16(biases_a, biases_b);
        _mm256_store_si256((__m256i *)(codes + b), _mm256_packus_epi16(codes_a, codes_b));
        for (int64_t first = 0; first < block; first += 16) {
            __m256i x[16], least = units->above;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                int64_t at = (first + i) * DW_CELL + b;
                x[i] = dw_encode_units(piece->units + at, piece->signs + at, biases, units, &least);
            }
            __m256i small = _mm256_xor_si256(least, units->above);
            if (DW_RARELY(!_mm256_testz_si256(small, small))) {
                __m256i longer[16];
                const uint8_t *words = (const uint8_t *)job->source + ((r + first) * job->source_ld + c + b) * 2;
                dw_lengthen_columns(words, job->source_ld * 2, codes_a, codes_b, units->encoding, longer);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++)
                    x[i] = longer[i];
            }
            dw_transpose16(x);
            uint8_t *to = columns + first / 32 * DW_LANE_BYTES + b * 32 + first % 32;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                _mm_store_si128((__m128i *)(to + i * 32), _mm256_castsi256_si128(x[i]));
                _mm_store_si128((__m128i *)(to + (i + 16) * 32), _mm256_extracti128_si256(x[i], 1));
            }
        }
        bool inside = _mm256_testz_si256(beyond, beyond);
        if (DW_RARELY(!inside)) dw_redo_columns(job, units->encoding, block, r, c + b, columns + b * 32, codes + b);
        near = near && inside;
    }
    return near;
}

/* The base for the next strip, from this one's columns. */
static __attribute__((noinline)) void dw_move_base(dw_units *units, const dw_piece *piece) {
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < DW_CELL / 16; i++)
        top = _mm256_max_epu16(top, piece->top[i]);
    int amax = dw_largest(_mm256_srli_epi16(top, 1));
    if (amax == 0 || dw_is_rare(amax, units->encoding)) return;
    int above = dw_code(amax, units->encoding) - (units->encoding->base - 8);
    dw_units_from(units, (above << units->fraction) - DW_BIAS_AIM);
}

/* One piece: rows are a multiple of the block, columns of 128. `after` is the source that is read after it. */
static void dw_quantize_piece(dw_piece *piece, const dw_quantize_job *job, dw_units *units, dw_strip_stage stage,
                              int64_t block, const dw_tile *part, const uint8_t *after, bool stream) {
    const uint8_t *source = job->source;
    int64_t rows = part->row1 - part->row0, cols = part->col1 - part->col0;
    for (int64_t r = 0; r < rows; r += block) {
        for (int64_t c = 0; c < cols; c += DW_CELL) {
            int64_t row = part->row0 + r, col = part->col0 + c, next_col = col + DW_CELL, next_row = row;
            if (next_col == part->col1) {
                next_col = part->col0;
                next_row += block;
            }
            const uint8_t *next = next_row < part->row1 ? source + (next_row * job->source_ld + next_col) * 2 : after;
            stage(piece, job, units, block, row, col, next);
            uint8_t *codes = piece->codes[r / DW_CELL][c / DW_CELL].code[r % DW_CELL / block];
            if (!dw_encode_strip(piece, job, units, block, row, col, piece->columns[r / 32] + c * 32, codes))
                dw_move_base(units, piece);
        }
    }
    for (int64_t r = 0; r < rows; r += DW_CELL)
        for (int64_t c = 0; c < cols; c += DW_CELL)
            dw_write_column_codes(job, part->row0 + r, part->col0 + c, DW_CELL, &piece->codes[r / DW_CELL][c / DW_CELL],
                                  block, dw_least(DW_CELL, rows - r) / block);
    for (int64_t c = 0; c < cols; c++) {
        uint8_t *out = job->col_data + (part->col0 + c) * job->col_ld + part->row0;
        for (int64_t r = 0; r < rows; r += 32)
            dw_copy_run(out + r, piece->columns[r / 32] + c * 32, 32, stream);
    }
}

DW_INLINE void dw_quantize_pieces(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    int64_t outputs = job->rows * job->cols;
    bool stream_rows = dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    dw_strip_stage stage = stream_rows ? dw_stage_streaming : dw_stage_storing;
    dw_coder coder = dw_coder_of(job->element, job->rounding);
    dw_units units = dw_units_of(&coder, job->element);
    dw_piece piece;
    for (int64_t r = tile->row0; r < tile->row1; r += DW_PIECE) {
        for (int64_t c = tile->col0; c < tile->col1; c += DW_PIECE) {
            dw_tile part = {r, dw_least(r + DW_PIECE, tile->row1), c, dw_least(c + DW_PIECE, tile->col1)};
            if ((part.row1 - r) % block || (part.col1 - c) % DW_CELL) {
                dw_quantize_cells(job, &part, true, block, DW_BF16);
                continue;
            }
            /* At the tile's edge there is nothing to ask for: what is in the cache already costs least. */
            int64_t after = part.col1 < tile->col1 ? part.col1 : c;
            dw_quantize_piece(&piece, job, &units, stage, block, &part,
                              (const uint8_t *)job->source + (r * job->source_ld + after) * 2, stream_columns);
        }
    }
    if (stream_rows || stream_columns) _mm_sfence();
}

#endif
