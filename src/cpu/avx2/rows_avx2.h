/* Row quantization of BF16 with blocks of 32 or 128 elements: the plan of x86_rows.h, with nothing in its loop that
 * whole groups of BF16 do not need.
 *
 * Floor: 96 bytes for 32 elements, 13 cycles of 3.2 GHz at 24 GB/s; 30 vector operations on four pipes, 8 cycles. The
 * two overlap only as far as the reorder buffer reaches, some six times 32 elements, so each operation saved shows.
 *
 * Plan: groups follow one another through all rows of the tile. A group is encoded, asking for the source 4 KiB further
 * on, then the scales of the next one are computed. What is rare is in functions of its own, and there is a loop for
 * each block and each way of storing: in one body with all of it the hot loop loses its registers. What a row has
 * beyond whole groups is left to x86_rows.h. */
#ifndef DW_ROWS_AVX2_H
#define DW_ROWS_AVX2_H

#include "cpu/avx2/x86_rows.h"

/* A second find of small elements within this number of groups calls for the longer form, for as many groups. */
enum { DW_FINDS = 4 };

/* The scales of a group, and what the hot loop subtracts: the offsets of dw_encode16_normal, doubled, in both halves.
 */
typedef struct dw_word_group {
    dw_blocks blocks;
    _Alignas(32) uint32_t offset[16];
} dw_word_group;

/* Constants of dw_encode16_normal for words shifted left by one: the sign drops out without a constant. */
typedef struct dw_doubled {
    __m256i step, tail, half, limit, sign, above;
} dw_doubled;

DW_INLINE dw_doubled dw_doubled_of(const dw_encoding *encoding) {
    __m256i tail = _mm256_add_epi16(encoding->tail, encoding->tail);
    return (dw_doubled){.step = dw_pinned(_mm256_srli_epi16(encoding->step, 1)),
                        .tail = dw_pinned(_mm256_add_epi16(tail, _mm256_set1_epi16(1))),
                        .half = dw_pinned(_mm256_add_epi16(encoding->half, encoding->half)),
                        .limit = encoding->limit,
                        .sign = encoding->sign,
                        .above = encoding->above};
}

/* Finds the scales of the group at `words`. */
DW_INLINE void dw_scale_group_words(dw_word_group *g, const dw_encoding *encoding, const uint8_t *words,
                                    int64_t block) {
    __m256i top[16];
    for (int b = 0; b < 16; b++) {
        const __m256i *segment = (const __m256i *)(words + b * 64);
        top[b] = _mm256_max_epu16(dw_magnitudes(_mm256_loadu_si256(segment), encoding),
                                  dw_magnitudes(_mm256_loadu_si256(segment + 1), encoding));
    }
    __m256i offsets = _mm256_add_epi16(dw_scale_tops(&g->blocks, encoding, top, block), encoding->eight);
    dw_keep_biases(g->offset, _mm256_add_epi16(offsets, offsets));
}

/* As dw_encode16_normal. */
DW_INLINE __m256i dw_encode16_doubled(__m256i words, __m256i offsets, const dw_doubled *doubled) {
    __m256i exact = _mm256_subs_epu16(_mm256_add_epi16(words, words), offsets);
    __m256i tie = _mm256_cmpeq_epi16(_mm256_and_si256(exact, doubled->tail), doubled->half);
    return _mm256_add_epi16(_mm256_mulhrs_epi16(exact, doubled->step), tie);
}

/* As dw_encode_normal_run for DW_RUN words. */
DW_INLINE bool dw_encode_words(const uint8_t *words, const uint32_t *offset, const dw_doubled *doubled, uint8_t *out,
                               bool stream) {
    __m256i least = doubled->above; /* magnitude of an element whose word is not zero */
#pragma GCC unroll 4
    for (int i = 0; i < DW_RUN; i += 32) {
        __m256i offsets = _mm256_set1_epi32((int)offset[i / 32]), a, b;
        dw_load_to_pack(words + 2 * i, &a, &b);
        __m256i packed = _mm256_packs_epi16(a, b); /* 0 where the word is, and with its sign */
        __m256i zeros = _mm256_cmpeq_epi8(packed, _mm256_setzero_si256());
        __m256i magnitudes =
            _mm256_packus_epi16(dw_encode16_doubled(a, offsets, doubled), dw_encode16_doubled(b, offsets, doubled));
        least = _mm256_min_epu8(least, _mm256_or_si256(magnitudes, zeros));
        magnitudes = _mm256_min_epu8(magnitudes, doubled->limit);
        dw_store32(out + i, _mm256_or_si256(magnitudes, _mm256_and_si256(packed, doubled->sign)), stream);
    }
    __m256i small = _mm256_xor_si256(least, doubled->above);
    return !_mm256_testz_si256(small, small);
}

/* As dw_encode_run for DW_RUN words. */
static __attribute__((noinline)) void dw_lengthen_words(const uint8_t *words, const uint32_t *bias,
                                                        const dw_encoding *encoding, uint8_t *out, bool stream) {
    if (stream)
        dw_encode_run(words, bias, DW_RUN, encoding, out, true);
    else
        dw_encode_run(words, bias, DW_RUN, encoding, out, false);
}

/* Writes the elements of the group at `words`, and asks for as many from `ahead`. `finds` counts recent finds of small
 * elements, DW_FINDS each. */
DW_INLINE void dw_encode_group_words(const dw_word_group *g, const dw_encoding *encoding, const dw_doubled *doubled,
                                     const uint8_t *words, const uint8_t *ahead, uint8_t *out, int *finds,
                                     bool stream) {
    bool longer = *finds > DW_FINDS;
    if (*finds > 0) --*finds;
    for (int i = 0; i < DW_GROUP; i += DW_RUN) {
        for (int line = 0; line < DW_RUN * 2; line += 64)
            _mm_prefetch((const char *)ahead + 2 * i + line, _MM_HINT_T0);
        if (!longer) {
            if (!dw_encode_words(words + 2 * i, g->offset + i / 32, doubled, out + i, stream)) continue;
            *finds += DW_FINDS;
        }
        dw_lengthen_words(words + 2 * i, g->blocks.bias + i / 32, encoding, out + i, stream);
    }
}

/* The whole groups of a tile's rows, of which each has at least one. */
DW_INLINE void dw_quantize_groups(const dw_quantize_job *job, const dw_tile *tile, int64_t block, bool stream) {
    const dw_encoding encoding = dw_encoding_of(job->element, job->rounding);
    const dw_doubled doubled = dw_doubled_of(&encoding);
    int64_t end = tile->col0 + (tile->col1 - tile->col0) / DW_GROUP * DW_GROUP;
    int64_t gap = (job->source_ld - (end - tile->col0)) * 2; /* from the end of a row's groups to the next row's */
    const uint8_t *words = (const uint8_t *)job->source + (tile->row0 * job->source_ld + tile->col0) * 2;
    dw_word_group g;
    int finds = 0;
    dw_scale_group_words(&g, &encoding, words, block);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r, tile->col0 / block);
        for (int64_t c = tile->col0; c < end; c += DW_GROUP) {
            uint8_t *out = job->row_data + r * job->row_ld + c;
            const uint8_t *ahead = words + DW_AHEAD + (c + DW_AHEAD / 2 < end ? 0 : gap);
            dw_encode_group_words(&g, &encoding, &doubled, words, ahead, out, &finds, stream);
            if (DW_RARELY(g.blocks.rare)) dw_mend_blocks(&g.blocks, 0, job, r, c, DW_GROUP, out);
            dw_write_codes(&g.blocks, 0, block, DW_GROUP, &scales);
            bool last = c + DW_GROUP == end;
            if (last && r + 1 == tile->row1) break;
            words += DW_GROUP * 2 + (last ? gap : 0);
            dw_scale_group_words(&g, &encoding, words, block);
        }
    }
    if (stream) _mm_sfence();
}

static __attribute__((noinline)) void dw_store_groups_1x32(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_groups(job, tile, 32, false);
}

static __attribute__((noinline)) void dw_store_groups_1x128(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_groups(job, tile, 128, false);
}

static __attribute__((noinline)) void dw_stream_groups_1x32(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_groups(job, tile, 32, true);
}

static __attribute__((noinline)) void dw_stream_groups_1x128(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_groups(job, tile, 128, true);
}

#endif
