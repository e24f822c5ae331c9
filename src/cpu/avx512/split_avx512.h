/* Encoding of BF16 in bytes, 64 elements to a vector: what the AVX-512 plans for rows and for pieces share.
 *
 * A word is split into two planes: its exponent, and its sign with the fraction rounded to an element's bits, found in
 * a table of 128 bytes. This does not depend on a scale. An element is then the exponent less the block's, shifted into
 * its place, plus the second plane: three operations. A block's scale is its largest exponent, one more where the
 * fraction is above 1.75.
 *
 * Elements below the smallest normal have an exponent at or below the block's bias while their word is not zero.
 * Vectors that have some are encoded anew from the source (encode_avx512.h). Blocks whose scale says that they may need
 * the exact scalar code (NaN, infinity, tiny amax) are "odd" and looked at again.
 *
 * The planes of a group are written and read again at once, in the nearest cache: registers do not hold them.
 *
 * Groups are sixteen segments of 32 elements, in one row or in four. While a group is split the one before it leaves,
 * so that stores lie between loads and nothing waits for a group's scales. */
#ifndef DW_SPLIT_AVX512_H
#define DW_SPLIT_AVX512_H

#include "cpu/avx512/blocks_avx512.h"

enum {
    DW_CHUNK = 64, /* elements of a vector */
    DW_GROUP_VECTORS = 8,
    /* Vectors of a group with small elements: above this number the next group is written by the form that looks at
     * each vector first, as writing lines twice costs more. */
    DW_MANY_SMALL = 3
};

/* The two planes of 64 elements. */
typedef struct dw_planes {
    _Alignas(64) uint8_t exponents[DW_CHUNK], rest[DW_CHUNK];
} dw_planes;

/* A block's scale in bytes is the exponent field of its amax, one more where that is rounded up. */
typedef struct dw_split {
    dw_coder coder;
    __m512i low_bytes, high_bytes;
    __m512i rounded[2];               /* the fraction of an element for each of a word */
    __m512i above;                    /* twice the largest fraction that is not rounded up */
    __m512i shift;                    /* of an element's exponent, in 16-bit lanes */
    __m512i one, sign, limit;         /* of bytes */
    __m512i order;                    /* of a group's sixteen scales after their reduction */
    __m512i spread[DW_GROUP_VECTORS]; /* of a group's biases */
    int largest;                      /* exponent of the largest element: code = scale - largest */
    int unbiased;                     /* bias = code - unbiased: what an element's exponent field lies below a word's */
    int lowest;                       /* least scale of a block that is not odd */
} dw_split;

/* Sixteen segments: `across` vectors of one row after the other. */
typedef struct dw_row_group {
    _Alignas(16) uint8_t code[16], bias[16];
    int64_t r, c;
    const uint8_t *words;
    dw_planes *planes; /* `apart` from one vector of a row to the next, rows side by side */
    uint8_t *out;
    uint32_t odd; /* segments that may need the exact scalar code */
} dw_row_group;

static void dw_split_of(dw_split *s, dw_dtype element, dw_rounding rounding) {
    s->coder = dw_coder_of(element, rounding);
    const dw_encoding *encoding = &s->coder.narrow;
    int kept = element == DW_E5M2 ? 2 : 3, dropped = 7 - kept;
    uint8_t bytes[128];
    for (int i = 0; i < 128; i++) {
        int down = i >> dropped, tail = i & ((1 << dropped) - 1), half = 1 << (dropped - 1);
        bytes[i] = (uint8_t)(down + (tail > half || (tail == half && (down & 1))));
    }
    s->rounded[0] = _mm512_loadu_si512(bytes);
    s->rounded[1] = _mm512_loadu_si512(bytes + 64);
    s->low_bytes = s->coder.low_bytes;
    s->high_bytes = s->coder.high_bytes;
    s->above = _mm512_set1_epi8((char)(2 * (0x7F - encoding->carry)));
    s->shift = _mm512_set1_epi16((short)kept);
    s->one = _mm512_set1_epi8(1);
    s->sign = _mm512_broadcast_i64x4(encoding->sign);
    s->limit = _mm512_broadcast_i64x4(encoding->limit);
    __m512i halves = _mm512_maskz_set1_epi8(0xFFFFFFFF00000000, 1);
    for (int v = 0; v < DW_GROUP_VECTORS; v++)
        s->spread[v] = _mm512_add_epi8(halves, _mm512_set1_epi8((char)(2 * v)));
    s->order = _mm512_broadcast_i32x4(_mm_setr_epi32(0x30201000, 0x34241404, 0x38281808, 0x3C2C1C0C));
    s->largest = encoding->largest;
    s->unbiased = encoding->base - 8;
    s->lowest = encoding->base + encoding->largest;
}

/* The larger of the scales that lie in the two halves of each half of a and of b; a's results in the lower half. The
 * same within each quarter for its halves and for their halves. */
DW_INLINE __m512i dw_fold_512(__m512i a, __m512i b) {
    return _mm512_max_epu8(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}

DW_INLINE __m512i dw_fold_quarters_512(__m512i a, __m512i b) {
    return _mm512_max_epu8(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

DW_INLINE __m512i dw_fold_eighths_512(__m512i a, __m512i b) {
    __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_max_epu8(_mm512_castps_si512(_mm512_shuffle_ps(x, y, _MM_SHUFFLE(2, 0, 2, 0))),
                           _mm512_castps_si512(_mm512_shuffle_ps(x, y, _MM_SHUFFLE(3, 1, 3, 1))));
}

/* The planes of 64 words in registers. */
typedef struct dw_fields {
    __m512i exponents, rest;
} dw_fields;

/* Splits the 64 words of a and b. `low` becomes their lower bytes. */
DW_INLINE dw_fields dw_fields64(__m512i a, __m512i b, const dw_split *s, __m512i *low) {
    dw_fields x;
    *low = _mm512_permutex2var_epi8(a, s->low_bytes, b);
    __m512i high = _mm512_permutex2var_epi8(a, s->high_bytes, b);
    x.exponents = _mm512_add_epi8(high, high);
    x.exponents = _mm512_mask_add_epi8(x.exponents, _mm512_movepi8_mask(*low), x.exponents, s->one);
    /* Subnormal words are far below any element that is not zero. */
    __m512i fractions = _mm512_maskz_permutex2var_epi8(_mm512_test_epi8_mask(x.exponents, x.exponents), s->rounded[0],
                                                       *low, s->rounded[1]);
    x.rest = _mm512_ternarylogic_epi64(high, s->sign, fractions, 0xEA);
    return x;
}

/* Splits the 64 words at `words` into planes, and returns their scales. */
DW_INLINE __m512i dw_split64(const uint8_t *words, const dw_split *s, dw_planes *planes) {
    __m512i low;
    dw_fields x = dw_fields64(_mm512_loadu_si512(words), _mm512_loadu_si512(words + 64), s, &low);
    _mm512_store_si512(planes->exponents, x.exponents);
    _mm512_store_si512(planes->rest, x.rest);
    __mmask64 up = _mm512_cmpgt_epu8_mask(_mm512_add_epi8(low, low), s->above);
    return _mm512_mask_adds_epu8(x.exponents, up, x.exponents, s->one);
}

/* The elements of exponents less the block's, and the second plane. `saturates`: they may exceed the largest. */
DW_INLINE __m512i dw_join_fields(__m512i fields, __m512i rest, const dw_split *s, bool saturates) {
    fields = _mm512_sllv_epi16(fields, s->shift); /* they have five bits: none comes to the next byte */
    if (!saturates) return _mm512_add_epi8(fields, rest);
    __m512i magnitudes = _mm512_add_epi8(fields, _mm512_andnot_si512(s->sign, rest));
    return _mm512_ternarylogic_epi64(rest, s->sign, _mm512_min_epu8(magnitudes, s->limit), 0xEA);
}

/* The elements of these planes. A byte of `least` becomes 0 where one is small. */
DW_INLINE __m512i dw_join64(const dw_planes *planes, __m512i biases, const dw_split *s, bool saturates,
                            __m512i *least) {
    __m512i exponents = _mm512_load_si512(planes->exponents), rest = _mm512_load_si512(planes->rest);
    __m512i fields = _mm512_subs_epu8(exponents, biases);
    *least = _mm512_mask_min_epu8(*least, _mm512_test_epi8_mask(exponents, exponents), *least, fields);
    return dw_join_fields(fields, rest, s, saturates);
}

/* Whether one of them is small. */
DW_INLINE bool dw_has_small(const dw_planes *planes, __m512i biases) {
    __m512i exponents = _mm512_load_si512(planes->exponents);
    return _mm512_mask_cmple_epu8_mask(_mm512_test_epi8_mask(exponents, exponents), exponents, biases) != 0;
}

DW_INLINE bool dw_has_zero(__m512i bytes) {
    return _mm512_testn_epi8_mask(bytes, bytes) != 0;
}

/* The elements of 64 words by the form that knows small ones. */
DW_INLINE __m512i dw_lengthen64(const uint8_t *words, __m512i codes_a, __m512i codes_b, const dw_split *s) {
    __m512i base = _mm512_set1_epi16((short)s->coder.narrow.base);
    __m512i biases_a = _mm512_slli_epi16(_mm512_subs_epu16(codes_a, base), 7);
    __m512i biases_b = _mm512_slli_epi16(_mm512_subs_epu16(codes_b, base), 7);
    return dw_encode64(_mm512_loadu_si512(words), _mm512_loadu_si512(words + 64), biases_a, biases_b, &s->coder);
}

/* Makes those vectors of a group anew in which an element is small, and returns their number. `all`: nothing of the
 * group is written yet. */
DW_INLINE int dw_write_vectors(const dw_row_group *g, const dw_quantize_job *job, const dw_split *s, int across,
                               int apart, bool all, bool saturates, bool stream) {
    __m512i biases = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)g->bias));
    int count = 0;
    for (int v = 0; v < DW_GROUP_VECTORS; v++) {
        int64_t i = v / across, h = v % across;
        const dw_planes *planes = g->planes + h * apart + i;
        __m512i spread = _mm512_permutexvar_epi8(s->spread[v], biases), elements, least = s->one;
        if (dw_has_small(planes, spread)) {
            __m512i codes_a = _mm512_set1_epi16(g->code[2 * v]), codes_b = _mm512_set1_epi16(g->code[2 * v + 1]);
            const uint8_t *words = g->words + i * job->source_ld * 2 + h * 2 * DW_CHUNK;
            elements = dw_lengthen64(words, codes_a, codes_b, s);
            count++;
        } else if (all) {
            elements = dw_join64(planes, spread, s, saturates, &least);
        } else {
            continue;
        }
        dw_store64(g->out + i * job->row_ld + h * DW_CHUNK, elements, stream);
    }
    return count;
}

static __attribute__((noinline)) int dw_lengthen_rows(const dw_row_group *g, const dw_quantize_job *job,
                                                      const dw_split *s, int across, int apart, bool stream) {
    return dw_write_vectors(g, job, s, across, apart, false, false, stream);
}

static __attribute__((noinline)) int dw_write_carefully(const dw_row_group *g, const dw_quantize_job *job,
                                                        const dw_split *s, int across, int apart, bool saturates,
                                                        bool stream) {
    return dw_write_vectors(g, job, s, across, apart, true, saturates, stream);
}

/* The code of a block of `count` words from (r, c), each (dr, dc) after the last: DW_SCALE_NAN where they are not
 * finite. */
static int dw_exact_code(const dw_quantize_job *job, int64_t r, int64_t c, int dr, int dc, int64_t count,
                         const dw_encoding *encoding) {
    int amax = 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t word;
        memcpy(&word, (const uint8_t *)job->source + ((r + i * dr) * job->source_ld + c + i * dc) * 2, sizeof word);
        if ((word & 0x7FFF) > amax) amax = word & 0x7FFF;
    }
    return amax >= DW_WORD_INFINITY ? DW_SCALE_NAN : dw_code(amax, encoding);
}

/* The odd blocks of a group by the exact code, and their codes. Blocks of zeros are right already. */
static __attribute__((noinline)) void dw_mend_rows(dw_row_group *g, const dw_quantize_job *job, const dw_split *s,
                                                   int across, int64_t block) {
    __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    uint32_t nonzero = 0;
    for (int b = 0; b < 16; b++) {
        const uint8_t *words = g->words + b / (2 * across) * job->source_ld * 2 + b % (2 * across) * 64;
        nonzero |= (uint32_t)(_mm512_test_epi16_mask(_mm512_loadu_si512(words), magnitude) != 0) << b;
    }
    uint32_t odd = g->odd & nonzero, segments = (1u << block / 32) - 1;
    for (int64_t b = 0; b < 16 && odd; b += block / 32) {
        if (!(odd >> b & segments)) continue;
        int64_t r = g->r + b / (2 * across), c = g->c + b % (2 * across) * 32;
        int code = dw_exact_code(job, r, c, 0, 1, block, &s->coder.narrow);
        memset(g->code + b, code, (size_t)block / 32);
        dw_encode_exactly(job, r, c, 0, 1, block, code, job->row_data + r * job->row_ld + c);
    }
}

/* Finds the codes of a group from its vectors' scales. */
DW_INLINE void dw_scale_group(dw_row_group *g, const __m512i top[DW_GROUP_VECTORS], int64_t block, const dw_split *s) {
    __m512i upper = dw_fold_quarters_512(dw_fold_512(top[0], top[1]), dw_fold_512(top[2], top[3]));
    __m512i lower = dw_fold_quarters_512(dw_fold_512(top[4], top[5]), dw_fold_512(top[6], top[7]));
    __m512i x = dw_fold_eighths_512(upper, lower);
    x = _mm512_max_epu8(x, _mm512_srli_epi32(x, 16));
    x = _mm512_max_epu8(x, _mm512_srli_epi32(x, 8));
    __m128i scales = _mm512_castsi512_si128(_mm512_permutexvar_epi8(s->order, x));
    if (block == 128) {
        scales = _mm_max_epu8(scales, _mm_rol_epi32(scales, 16));
        scales = _mm_max_epu8(scales, _mm_rol_epi32(scales, 8));
    }
    __m128i codes = _mm_subs_epu8(scales, _mm_set1_epi8((char)s->largest));
    _mm_store_si128((__m128i *)g->code, codes);
    _mm_store_si128((__m128i *)g->bias, _mm_subs_epu8(codes, _mm_set1_epi8((char)s->unbiased)));
    /* Below the lowest, or 255: in one comparison. */
    __m128i place = _mm_sub_epi8(scales, _mm_set1_epi8((char)s->lowest));
    g->odd = _mm_cmpge_epu8_mask(place, _mm_set1_epi8((char)(255 - s->lowest)));
}

/* Writes the codes of sixteen segments of row r, the first of block k, where codes lie side by side. */
DW_INLINE void dw_store_codes(const dw_scale_map *map, int64_t r, int64_t k, const uint8_t codes[16], int64_t block) {
    __m128i all = _mm_load_si128((const __m128i *)codes);
    uint8_t *to = dw_scale_at(map, r, k);
    if (block == 32)
        _mm_storeu_si128((__m128i *)to, all);
    else
        _mm_storeu_si32(to, _mm_cvtepi32_epi8(all));
}

/* What is done with a group at once. Compile-time constants, as the loop below is the hot one. */
typedef struct dw_stage {
    int across, apart;
    bool writes;  /* the group before, too */
    bool columns; /* their scales are wanted */
    bool saturates, stream;
} dw_stage;

/* Splits a group's words, with its columns' scales added to `top` and as much asked for from `ahead`, and writes the
 * elements of the group `done` before it. Returns in how many of its vectors an element was small. */
DW_INLINE int dw_stage_group(const dw_quantize_job *job, const dw_split *s, dw_stage stage, int64_t block,
                             dw_row_group *g, uint8_t *top, const uint8_t *ahead, dw_row_group *done) {
    int64_t step = job->source_ld * 2, ld = job->row_ld;
    __m512i row_top[DW_GROUP_VECTORS], column_top[2], biases, least = s->one;
    if (stage.writes) biases = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)done->bias));
    if (stage.columns) {
        column_top[0] = _mm512_load_si512(top);
        column_top[1] = _mm512_load_si512(top + DW_CHUNK);
    }
#pragma GCC unroll 8
    for (int v = 0; v < DW_GROUP_VECTORS; v++) {
        int i = v / stage.across, h = v % stage.across;
        int64_t at = i * step + h * 2 * DW_CHUNK;
        _mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
        _mm_prefetch((const char *)ahead + at + 64, _MM_HINT_T0);
        row_top[v] = dw_split64(g->words + at, s, g->planes + h * stage.apart + i);
        if (stage.columns) column_top[h] = _mm512_max_epu8(column_top[h], row_top[v]);
        if (stage.writes) {
            __m512i spread = _mm512_permutexvar_epi8(s->spread[v], biases);
            __m512i elements = dw_join64(done->planes + h * stage.apart + i, spread, s, stage.saturates, &least);
            dw_store64(done->out + i * ld + h * DW_CHUNK, elements, stage.stream);
        }
    }
    int small = 0;
    if (stage.writes && DW_RARELY(dw_has_zero(least)))
        small = dw_lengthen_rows(done, job, s, stage.across, stage.apart, stage.stream);
    if (stage.columns) {
        _mm512_store_si512(top, column_top[0]);
        _mm512_store_si512(top + DW_CHUNK, column_top[1]);
    }
    dw_scale_group(g, row_top, block, s);
    return small;
}

/* Splits a group and writes the one before it, if there is one, whose codes are then final. `small` is what the last
 * call returned, and this one returns. */
DW_INLINE int dw_next_group(const dw_quantize_job *job, const dw_split *s, dw_stage stage, int64_t block,
                            dw_row_group *g, uint8_t *top, const uint8_t *ahead, dw_row_group *done, int small) {
    if (done && small <= DW_MANY_SMALL) {
        stage.writes = true;
        small = dw_stage_group(job, s, stage, block, g, top, ahead, done);
    } else {
        dw_stage_group(job, s, stage, block, g, top, ahead, NULL);
        if (!done) return 0;
        small = dw_write_carefully(done, job, s, stage.across, stage.apart, stage.saturates, stage.stream);
    }
    if (DW_RARELY(done->odd)) dw_mend_rows(done, job, s, stage.across, block);
    return small;
}

/* Writes the last group. */
DW_INLINE void dw_last_group(const dw_quantize_job *job, const dw_split *s, dw_stage stage, int64_t block,
                             dw_row_group *done) {
    dw_write_carefully(done, job, s, stage.across, stage.apart, stage.saturates, stage.stream);
    if (DW_RARELY(done->odd)) dw_mend_rows(done, job, s, stage.across, block);
}

#endif
