/* Quantization of BF16 in both orientations with blocks of 32 or 128, in pieces of 256 x 512 elements.
 *
 * Floor: 128 bytes for 32 elements, 3.2 ns at the 40 GB/s of a Zen 5 core. Work: some 35 vector operations of 64 bytes
 * for 64 elements, half of them on two of the four pipes, 10 cycles of 4.2 GHz, or 1.2 ns for 32 elements.
 *
 * Plan: the arithmetic of split_avx512.h. A strip is a block's height and the piece's width. It is read in groups of
 * four rows and 128 columns across its whole width, asking for the four rows below, and split into planes, while the
 * rows of the group before leave. Then the strip's columns are encoded from the planes and turned: 16 x 16 bytes in
 * each quarter of a vector, kept in this order in the piece's buffer. When a piece is complete, four quarters at a time
 * become lines of columns, in runs of 256 bytes. Narrower pieces are read more slowly, wider or taller ones need more
 * of the second-level cache. Codes are collected and leave side by side. For the columns alone the same is done without
 * rows.
 */
#ifndef DW_PIECES_AVX512_H
#define DW_PIECES_AVX512_H

#include "cpu/avx2/x86_columns.h"
#include "cpu/avx512/split_avx512.h"
#include "cpu/avx512/turned_avx512.h"

enum { DW_PIECE_COLS = 512, DW_GROUP_ROWS = 4 };

typedef struct dw_piece {
    dw_planes planes[DW_PIECE_COLS / DW_CHUNK][DW_CELL]; /* of the strip's rows */
    dw_turned turned[DW_PIECE_COLS / DW_CHUNK];
    _Alignas(64) uint8_t top[DW_PIECE_COLS];                                 /* the strip's columns' scales */
    _Alignas(64) uint8_t row_codes[DW_CELL][DW_PIECE_COLS / 32];             /* of the strip's segments */
    dw_column_codes codes[DW_PIECE_ROWS / DW_CELL][DW_PIECE_COLS / DW_CELL]; /* of 128 rows and 128 columns */
} dw_piece;

/* The same for 16 rows of 64 columns. */
static __attribute__((noinline)) void dw_lengthen_columns(const dw_planes *planes, const uint8_t *words, int64_t step,
                                                          __m512i codes, const dw_split *s, __m512i elements[16]) {
    __m512i biases = _mm512_subs_epu8(codes, _mm512_set1_epi8((char)s->unbiased));
    __m512i codes_a = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(codes));
    __m512i codes_b = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(codes, 1));
    for (int i = 0; i < 16; i++)
        if (dw_has_small(planes + i, biases)) elements[i] = dw_lengthen64(words + i * step, codes_a, codes_b, s);
}

/* The odd columns of 64 from (r, c) in the same way, to the piece's buffer from slot `slot`. */
static __attribute__((noinline)) void dw_mend_turned(const dw_quantize_job *job, const dw_split *s, int64_t block,
                                                     int64_t r, int64_t c, uint64_t odd, uint8_t *codes,
                                                     dw_turned *turned, int64_t slot) {
    __m512i a = _mm512_setzero_si512(), b = a, magnitude = _mm512_set1_epi16(0x7FFF);
    for (int64_t i = 0; i < block; i++) {
        const uint8_t *words = (const uint8_t *)job->source + ((r + i) * job->source_ld + c) * 2;
        a = _mm512_or_si512(a, _mm512_loadu_si512(words));
        b = _mm512_or_si512(b, _mm512_loadu_si512(words + 64));
    }
    odd &= _mm512_test_epi16_mask(a, magnitude) | (uint64_t)_mm512_test_epi16_mask(b, magnitude) << 32;
    for (; odd; odd &= odd - 1) {
        int64_t j = __builtin_ctzll(odd);
        uint8_t column[DW_CELL];
        int code = dw_exact_code(job, r, c + j, 1, 0, block, &s->coder.narrow);
        codes[j] = (uint8_t)code;
        dw_encode_exactly(job, r, c + j, 1, 0, block, code, column);
        dw_replace_turned(turned, slot, j, column, block);
    }
}

/* Keeps the codes of a group of the strip at (r, c). */
DW_INLINE void dw_keep_row_codes(dw_piece *piece, const dw_row_group *g, int64_t r, int64_t c) {
    for (int64_t i = 0; i < DW_GROUP_ROWS; i++)
        memcpy(piece->row_codes[g->r - r + i] + (g->c - c) / 32, g->code + 4 * i, 4);
}

/* Writes the codes of a strip's rows. */
DW_INLINE void dw_write_row_codes(const dw_piece *piece, const dw_quantize_job *job, int64_t block, int64_t r,
                                  int64_t c, int64_t cols) {
    bool side_by_side = job->row_scale.col_stride == 1 && cols == DW_PIECE_COLS;
    for (int64_t i = 0; i < block; i++) {
        const uint8_t *codes = piece->row_codes[i];
        if (side_by_side) {
            dw_store_codes(&job->row_scale, r + i, c / block, codes, block);
            continue;
        }
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r + i, c / block);
        for (int64_t k = 0; k < cols; k += block)
            *dw_scale_next(&scales) = codes[k / 32];
    }
}

/* Splits the strip at (r, c) into the planes, finds its columns' scales, and writes its rows. `next` is the source of
 * the strip after this one. */
DW_INLINE void dw_stage_strip(dw_piece *piece, const dw_quantize_job *job, const dw_split *all, int64_t block,
                              int64_t r, int64_t c, int64_t cols, const uint8_t *next, bool saturates, bool stream) {
    const dw_split copy = *all, *s = &copy; /* nothing that is stored changes it */
    int64_t step = job->source_ld * 2;
    dw_stage stage = {.across = DW_CELL / DW_CHUNK, .apart = DW_CELL, .columns = true};
    stage.saturates = saturates;
    stage.stream = stream;
    int small = 0;
    dw_row_group groups[2], *g = groups, *done = groups + 1;
    memset(piece->top, 0, sizeof piece->top);
    for (int64_t first = 0; first < block; first += DW_GROUP_ROWS) {
        const uint8_t *words = (const uint8_t *)job->source + (r + first) * step + c * 2;
        const uint8_t *ahead = first + DW_GROUP_ROWS < block ? words + DW_GROUP_ROWS * step : next;
        uint8_t *out = job->row_data + (r + first) * job->row_ld + c;
        for (int64_t k = 0; k < cols; k += DW_CELL) {
            g->r = r + first;
            g->c = c + k;
            g->words = words + k * 2;
            g->planes = piece->planes[k / DW_CHUNK] + first;
            g->out = out + k;
            bool begun = first + k > 0;
            small = dw_next_group(job, s, stage, block, g, piece->top + k, ahead + k * 2, begun ? done : NULL, small);
            if (begun) dw_keep_row_codes(piece, done, r, c);
            dw_row_group *swap = g;
            g = done;
            done = swap;
        }
    }
    dw_last_group(job, s, stage, block, done);
    dw_keep_row_codes(piece, done, r, c);
    dw_write_row_codes(piece, job, block, r, c, cols);
}

/* The same without rows. */
static __attribute__((noinline)) void dw_stage_reading(dw_piece *piece, const dw_quantize_job *job, const dw_split *all,
                                                       int64_t block, int64_t r, int64_t c, int64_t cols,
                                                       const uint8_t *next) {
    const dw_split copy = *all, *s = &copy;
    int64_t step = job->source_ld * 2;
    memset(piece->top, 0, sizeof piece->top);
    for (int64_t first = 0; first < block; first += DW_GROUP_ROWS) {
        const uint8_t *words = (const uint8_t *)job->source + (r + first) * step + c * 2;
        const uint8_t *ahead = first + DW_GROUP_ROWS < block ? words + DW_GROUP_ROWS * step : next;
        for (int64_t k = 0; k < cols; k += DW_CHUNK) {
            __m512i top = _mm512_load_si512(piece->top + k);
#pragma GCC unroll 4
            for (int64_t i = 0; i < DW_GROUP_ROWS; i++) {
                int64_t at = i * step + k * 2;
                _mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
                _mm_prefetch((const char *)ahead + at + 64, _MM_HINT_T0);
                top = _mm512_max_epu8(top, dw_split64(words + at, s, piece->planes[k / DW_CHUNK] + first + i));
            }
            _mm512_store_si512(piece->top + k, top);
        }
    }
}

/* Encodes the columns of the strip at (r, c) into the piece's buffer from slot `slot`. `codes` is the strip's place of
 * the first 128. */
DW_INLINE void dw_turn_strip(dw_piece *piece, const dw_quantize_job *job, const dw_split *all, int64_t block, int64_t r,
                             int64_t c, int64_t cols, int64_t slot, uint8_t *codes, bool saturates) {
    const dw_split copy = *all, *s = &copy;
    for (int64_t k = 0; k < cols; k += DW_CHUNK) {
        __m512i scales = _mm512_load_si512(piece->top + k);
        __m512i code = _mm512_subs_epu8(scales, _mm512_set1_epi8((char)s->largest));
        __m512i biases = _mm512_subs_epu8(code, _mm512_set1_epi8((char)s->unbiased));
        uint8_t *to_codes = codes + k / DW_CELL * (int64_t)sizeof(dw_column_codes) + k % DW_CELL;
        _mm512_store_si512(to_codes, code);
        for (int64_t first = 0; first < block; first += 16) {
            __m512i x[16], least = s->one;
            const dw_planes *planes = piece->planes[k / DW_CHUNK] + first;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                x[i] = dw_join64(planes + i, biases, s, saturates, &least);
            if (DW_RARELY(dw_has_zero(least))) {
                __m512i mended[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++)
                    mended[i] = x[i];
                const uint8_t *words = (const uint8_t *)job->source + ((r + first) * job->source_ld + c + k) * 2;
                dw_lengthen_columns(planes, words, job->source_ld * 2, code, s, mended);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++)
                    x[i] = mended[i];
            }
            dw_keep_turned(&piece->turned[k / DW_CHUNK], slot + first / 16, x);
        }
        __m512i place = _mm512_sub_epi8(scales, _mm512_set1_epi8((char)s->lowest));
        uint64_t odd = _mm512_cmpge_epu8_mask(place, _mm512_set1_epi8((char)(255 - s->lowest)));
        if (DW_RARELY(odd)) dw_mend_turned(job, s, block, r, c + k, odd, to_codes, &piece->turned[k / DW_CHUNK], slot);
    }
}

/* A function for each way: in one body with everything around it the hot loops lose their registers. */
typedef void (*dw_strip_stage)(dw_piece *piece, const dw_quantize_job *job, const dw_split *split, int64_t block,
                               int64_t r, int64_t c, int64_t cols, const uint8_t *next);
typedef void (*dw_strip_turn)(dw_piece *piece, const dw_quantize_job *job, const dw_split *split, int64_t block,
                              int64_t r, int64_t c, int64_t cols, int64_t slot, uint8_t *codes);

static __attribute__((noinline)) void dw_stage_storing(dw_piece *piece, const dw_quantize_job *job,
                                                       const dw_split *split, int64_t block, int64_t r, int64_t c,
                                                       int64_t cols, const uint8_t *next) {
    dw_stage_strip(piece, job, split, block, r, c, cols, next, false, false);
}

static __attribute__((noinline)) void dw_stage_streaming(dw_piece *piece, const dw_quantize_job *job,
                                                         const dw_split *split, int64_t block, int64_t r, int64_t c,
                                                         int64_t cols, const uint8_t *next) {
    dw_stage_strip(piece, job, split, block, r, c, cols, next, false, true);
}

static __attribute__((noinline)) void dw_stage_storing_floor(dw_piece *piece, const dw_quantize_job *job,
                                                             const dw_split *split, int64_t block, int64_t r, int64_t c,
                                                             int64_t cols, const uint8_t *next) {
    dw_stage_strip(piece, job, split, block, r, c, cols, next, true, false);
}

static __attribute__((noinline)) void dw_stage_streaming_floor(dw_piece *piece, const dw_quantize_job *job,
                                                               const dw_split *split, int64_t block, int64_t r,
                                                               int64_t c, int64_t cols, const uint8_t *next) {
    dw_stage_strip(piece, job, split, block, r, c, cols, next, true, true);
}

static __attribute__((noinline)) void dw_turn(dw_piece *piece, const dw_quantize_job *job, const dw_split *split,
                                              int64_t block, int64_t r, int64_t c, int64_t cols, int64_t slot,
                                              uint8_t *codes) {
    dw_turn_strip(piece, job, split, block, r, c, cols, slot, codes, false);
}

static __attribute__((noinline)) void dw_turn_floor(dw_piece *piece, const dw_quantize_job *job, const dw_split *split,
                                                    int64_t block, int64_t r, int64_t c, int64_t cols, int64_t slot,
                                                    uint8_t *codes) {
    dw_turn_strip(piece, job, split, block, r, c, cols, slot, codes, true);
}

/* Writes the codes of the columns of the piece `part`. Lines of codes lie far apart, so that each store costs a miss:
 * where a column's codes lie side by side they go at once. */
DW_INLINE void dw_write_piece_codes(const dw_piece *piece, const dw_quantize_job *job, int64_t block,
                                    const dw_tile *part) {
    int64_t rows = part->row1 - part->row0, cols = part->col1 - part->col0, count = DW_CELL / block;
    const dw_scale_map *map = &job->col_scale;
    if (map->atoms_per_row || map->col_stride != 1 || rows != DW_PIECE_ROWS) {
        for (int64_t r = 0; r < rows; r += DW_CELL)
            for (int64_t c = 0; c < cols; c += DW_CELL)
                dw_write_column_codes(job, part->row0 + r, part->col0 + c, DW_CELL,
                                      &piece->codes[r / DW_CELL][c / DW_CELL], block, count);
        return;
    }
    for (int64_t c = 0; c < cols; c += DW_CHUNK) {
        __m512i x[16];
        for (int64_t b = 0; b < 16; b++)
            x[b] = b < DW_PIECE_ROWS / block
                       ? _mm512_load_si512(piece->codes[b / count][c / DW_CELL].code[b % count] + c % DW_CELL)
                       : _mm512_setzero_si512();
        dw_transpose16_512(x);
        for (int64_t i = 0; i < DW_CHUNK; i++)
            memcpy(dw_scale_at(map, part->col0 + c + i, part->row0 / block), (const uint8_t *)&x[i % 16] + i / 16 * 16,
                   (size_t)(DW_PIECE_ROWS / block));
    }
}

/* One piece: rows and columns are multiples of 128. `after` is the source that is read after it. */
static void dw_quantize_piece(dw_piece *piece, const dw_quantize_job *job, const dw_split *split, dw_strip_stage stage,
                              dw_strip_turn turn, int64_t block, const dw_tile *part, const uint8_t *after,
                              bool stream) {
    int64_t rows = part->row1 - part->row0, cols = part->col1 - part->col0;
    for (int64_t first = 0; first < rows; first += block) {
        int64_t r = part->row0 + first;
        const uint8_t *next = after;
        if (r + block < part->row1)
            next = (const uint8_t *)job->source + ((r + block) * job->source_ld + part->col0) * 2;
        stage(piece, job, split, block, r, part->col0, cols, next);
        uint8_t *codes = piece->codes[first / DW_CELL][0].code[first % DW_CELL / block];
        turn(piece, job, split, block, r, part->col0, cols, first / 16, codes);
    }
    if (block == 32)
        dw_write_piece_codes(piece, job, 32, part);
    else
        dw_write_piece_codes(piece, job, 128, part);
    if (stream)
        dw_send_columns(piece->turned, job, part, true);
    else
        dw_send_columns(piece->turned, job, part, false);
}

/* Both orientations, or the transposed one alone. */
DW_INLINE void dw_quantize_pieces(const dw_quantize_job *job, const dw_tile *tile, bool both, int64_t block) {
    int64_t outputs = job->rows * job->cols;
    bool stream_rows = both && dw_streams(job->row_data, job->row_ld, outputs, DW_VECTOR_BYTES);
    bool stream_columns = dw_streams(job->col_data, job->col_ld, outputs, DW_VECTOR_BYTES);
    bool saturates = job->rounding != DW_ROUND_RCEIL;
    dw_strip_stage stage = dw_stage_reading;
    if (both && saturates)
        stage = stream_rows ? dw_stage_streaming_floor : dw_stage_storing_floor;
    else if (both)
        stage = stream_rows ? dw_stage_streaming : dw_stage_storing;
    dw_strip_turn turn = saturates ? dw_turn_floor : dw_turn;
    dw_split split;
    dw_piece piece;
    dw_split_of(&split, job->element, job->rounding);
    int64_t row1 = tile->row1 - (tile->row1 - tile->row0) % DW_CELL;
    int64_t col1 = tile->col1 - (tile->col1 - tile->col0) % DW_CELL;
    for (int64_t r = tile->row0; r < row1; r += DW_PIECE_ROWS) {
        for (int64_t c = tile->col0; c < col1; c += DW_PIECE_COLS) {
            dw_tile part = {r, dw_least(r + DW_PIECE_ROWS, row1), c, dw_least(c + DW_PIECE_COLS, col1)};
            /* At the tile's edge there is nothing to ask for: what is in the cache already costs least. */
            int64_t after = part.col1 < col1 ? part.col1 : c;
            dw_quantize_piece(&piece, job, &split, stage, turn, block, &part,
                              (const uint8_t *)job->source + (r * job->source_ld + after) * 2, stream_columns);
        }
    }
    if (stream_rows || stream_columns) _mm_sfence();
    /* What whole blocks of 128 leave at the right and below. */
    dw_tile right = {tile->row0, row1, col1, tile->col1}, below = {row1, tile->row1, tile->col0, tile->col1};
    if (right.row0 < right.row1 && right.col0 < right.col1) dw_quantize_cells(job, &right, both, block, DW_BF16);
    if (below.row0 < below.row1) dw_quantize_cells(job, &below, both, block, DW_BF16);
}

#endif
