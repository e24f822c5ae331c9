/* The arithmetic of block quantization in 16-bit integer lanes.
 *
 * Everything works on "words": a sign, 8 exponent and 7 fraction bits. A BF16 number is its own word. FP32 (and FP16,
 * by way of FP32) becomes a word by dropping 16 bits and setting the last bit if any of them was set ("rounding to
 * odd"). Since a word keeps at least four bits more than an element, rounding the word gives the element that rounding
 * the number would give, ties included; the largest word of a block has the exponent of the largest number, and is
 * above 1.75 * 2^p exactly when the number is.
 *
 * Scaling by a power of two subtracts from the exponent field, in the same subtraction that changes the bias:
 *   bits of |word| - ((code - K) << 7), K = 7 for E4M3 and 15 for E5M2,
 * which, shifted so that the element's seven bits are the upper byte and what rounding drops is the lower, needs one
 * rounding. An element below the smallest normal is the significand (hidden bit made explicit) times a power of two,
 * found by a byte shuffle that the exponent indexes; the shuffle's power is 0 where the element underflows. The larger
 * of the two candidates is the right one: for a normal element the second is below 2^emin, for a small one the first
 * lacks the hidden bit.
 *
 * Elements that small lie at least 14 powers of two below the block's largest and are one in ten thousand in ordinary
 * data. So there is a second form that makes all elements by the first way, with half the operations, and reports
 * whether one came out at or below the smallest normal though its word is not zero.
 *
 * Two kinds of block are beyond this and go through the exact scalar code of src/formats: those with a NaN or an
 * infinity, and those whose code is so small (below `base`: amax below 2^-89 at most) that subnormal words matter. */
#ifndef DW_ENCODE_AVX2_H
#define DW_ENCODE_AVX2_H

#include <immintrin.h>

#include "cpu/avx2/x86_tiles.h"

/* One element format with one rounding of the scale, as the vector code wants it. */
typedef struct dw_encoding {
    int carry;   /* added to the bits of amax: reaches the exponent exactly when rceil rounds up */
    int largest; /* exponent of the largest element: code = exponent field of amax - largest */
    int base;    /* smallest code the vector code serves: K + 8, for the shuffle's eight entries below 1 */
    int floor;   /* smallest nonzero amax, as the bits of a word, that has such a code */
    __m256i gain, powers, limit, magnitude, eight, hidden, fraction, sign;
    __m256i step, tail,
        half;      /* rounding, without `gain`: 128 times it, what is dropped and the last bit, half of that */
    __m256i above; /* bytes: one above the smallest normal element */
} dw_encoding;

/* Keeps a constant in a register: GCC would rather make it anew in every iteration, with several instructions. */
DW_INLINE __m256i dw_pinned(__m256i constant) {
    __asm__("" : "+x"(constant));
    return constant;
}

DW_INLINE dw_encoding dw_encoding_of(dw_dtype element, dw_rounding rounding) {
    bool wide = element == DW_E5M2;
    dw_encoding e = {.carry = rounding == DW_ROUND_RCEIL ? 0x1F : 0, .largest = wide ? 15 : 8, .base = wide ? 23 : 15};
    e.floor = ((e.base + e.largest) << 7) - e.carry;
    e.gain = dw_pinned(_mm256_set1_epi16(wide ? 8 : 16)); /* brings an element's seven bits to the upper byte */
    /* Powers for element exponents 1 - bias - n, n = 3, 2, 1, 0 at 5..8 (E4M3), and n = 2, 1, 0 at 6..8 (E5M2). */
    e.powers =
        dw_pinned(_mm256_broadcastsi128_si256(wide ? _mm_setr_epi8(0, 0, 0, 0, 0, 0, 1, 2, 4, 0, 0, 0, 0, 0, 0, 0)
                                                   : _mm_setr_epi8(0, 0, 0, 0, 0, 1, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0)));
    e.limit = dw_pinned(_mm256_set1_epi8(wide ? 0x7B : 0x7E)); /* the largest element */
    e.magnitude = dw_pinned(_mm256_set1_epi16(0x7FFF));
    e.eight = dw_pinned(_mm256_set1_epi16(8 << 7)); /* eight exponents */
    e.hidden = dw_pinned(_mm256_set1_epi16(0x80));
    e.fraction = dw_pinned(_mm256_set1_epi16(0x1FF));
    e.sign = dw_pinned(_mm256_set1_epi8((char)0x80));
    e.step = dw_pinned(_mm256_set1_epi16(wide ? 8 * 128 : 16 * 128));
    e.tail = dw_pinned(_mm256_set1_epi16(wide ? 0x3F : 0x1F));
    e.half = dw_pinned(_mm256_set1_epi16(wide ? 0x10 : 0x08));
    e.above = dw_pinned(_mm256_set1_epi8(wide ? 0x05 : 0x09));
    return e;
}

/* Whether the vector code does not serve a block with this amax. */
DW_INLINE bool dw_is_rare(int amax, const dw_encoding *encoding) {
    return (unsigned)(amax - encoding->floor) >= (unsigned)(DW_WORD_INFINITY - encoding->floor) && amax != 0;
}

DW_INLINE int dw_code(int amax, const dw_encoding *encoding) {
    int code = ((amax + encoding->carry) >> 7) - encoding->largest;
    return code > 0 ? code : 0;
}

/* What dw_encode16 subtracts for a block of this code. */
DW_INLINE __m256i dw_bias(int code, const dw_encoding *encoding) {
    int above = code - encoding->base;
    return _mm256_set1_epi16((short)((above > 0 ? above : 0) << 7));
}

/* The same three for 16 blocks side by side; dw_rare has all ones in the lanes of rare blocks. */
DW_INLINE __m256i dw_codes(__m256i amax, const dw_encoding *encoding) {
    __m256i exponent = _mm256_srli_epi16(_mm256_add_epi16(amax, _mm256_set1_epi16((short)encoding->carry)), 7);
    return _mm256_subs_epu16(exponent, _mm256_set1_epi16((short)encoding->largest));
}

DW_INLINE __m256i dw_biases(__m256i codes, const dw_encoding *encoding) {
    return _mm256_slli_epi16(_mm256_subs_epu16(codes, _mm256_set1_epi16((short)encoding->base)), 7);
}

DW_INLINE __m256i dw_rare(__m256i amax, const dw_encoding *encoding) {
    __m256i low = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)encoding->floor), amax);
    __m256i high = _mm256_cmpgt_epi16(amax, _mm256_set1_epi16(DW_WORD_INFINITY - 1));
    return _mm256_or_si256(_mm256_andnot_si256(_mm256_cmpeq_epi16(amax, _mm256_setzero_si256()), low), high);
}

DW_INLINE __m256i dw_magnitudes(__m256i words, const dw_encoding *encoding) {
    return _mm256_and_si256(words, encoding->magnitude);
}

/* The elements of 16 words, without their signs and before saturation: 0 to 0x80 in 16-bit lanes. */
DW_INLINE __m256i dw_encode16(__m256i words, __m256i biases, const dw_encoding *encoding) {
    __m256i scaled = _mm256_subs_epu16(dw_magnitudes(words, encoding), biases); /* eight exponents too high */
    __m256i normal = _mm256_mullo_epi16(_mm256_subs_epu16(scaled, encoding->eight), encoding->gain);
    __m256i power = _mm256_shuffle_epi8(encoding->powers, _mm256_srli_epi16(scaled, 7));
    __m256i small = _mm256_maddubs_epi16(_mm256_or_si256(words, encoding->hidden), power);
    __m256i exact = _mm256_max_epu16(normal, small);
    /* Multiplying by 128 shifts right by 8 and rounds halves up; a half above an even element (fraction and last bit
     * are 0x080) comes down again. `hidden` is 128, too. */
    __m256i rounded = _mm256_mulhrs_epi16(exact, encoding->hidden);
    __m256i tie = _mm256_cmpeq_epi16(_mm256_and_si256(exact, encoding->fraction), encoding->hidden);
    return _mm256_add_epi16(rounded, tie);
}

/* Loads 32 words such that packing the two vectors brings them in order: words 0-7 and 16-23, 8-15 and 24-31. Three
 * loads and two blends cost less than permuting the packed bytes. */
DW_INLINE void dw_load_to_pack(const uint8_t *words, __m256i *a, __m256i *b) {
    __m256i first = _mm256_loadu_si256((const __m256i *)words);
    __m256i middle = _mm256_loadu_si256((const __m256i *)(words + 16)); /* 8-23 */
    __m256i last = _mm256_loadu_si256((const __m256i *)(words + 32));
    *a = _mm256_blend_epi32(first, middle, 0xF0);
    *b = _mm256_blend_epi32(middle, last, 0xF0);
}

/* The 32 elements of two vectors of words. Bytes come out in the order of packing: words 0-7 of a, 0-7 of b, 8-15 of a,
 * 8-15 of b. */
DW_INLINE __m256i dw_encode32(__m256i a, __m256i b, __m256i biases_a, __m256i biases_b, const dw_encoding *encoding) {
    __m256i magnitudes = _mm256_packus_epi16(dw_encode16(a, biases_a, encoding), dw_encode16(b, biases_b, encoding));
    magnitudes = _mm256_min_epu8(magnitudes, encoding->limit); /* binds only with floor */
    return _mm256_or_si256(magnitudes, _mm256_and_si256(_mm256_packs_epi16(a, b), encoding->sign));
}

/* As dw_encode16 where no element is small; `offsets` are eight exponents more than the biases. */
DW_INLINE __m256i dw_encode16_normal(__m256i words, __m256i offsets, const dw_encoding *encoding) {
    __m256i exact = _mm256_subs_epu16(dw_magnitudes(words, encoding), offsets);
    __m256i tie = _mm256_cmpeq_epi16(_mm256_and_si256(exact, encoding->tail), encoding->half);
    return _mm256_add_epi16(_mm256_mulhrs_epi16(exact, encoding->step), tie);
}

/* As dw_encode32 with one bias where no element is small. `least` becomes the least magnitude of an element whose word
 * is not zero, if that is less. */
DW_INLINE __m256i dw_encode32_normal(__m256i a, __m256i b, __m256i biases, const dw_encoding *encoding,
                                     __m256i *least) {
    __m256i offsets = _mm256_add_epi16(biases, encoding->eight);
    __m256i packed = _mm256_packs_epi16(a, b); /* 0 where the word is, and with its sign */
    __m256i zeros = _mm256_cmpeq_epi8(packed, _mm256_setzero_si256());
    __m256i magnitudes =
        _mm256_packus_epi16(dw_encode16_normal(a, offsets, encoding), dw_encode16_normal(b, offsets, encoding));
    *least = _mm256_min_epu8(*least, _mm256_or_si256(magnitudes, zeros));
    magnitudes = _mm256_min_epu8(magnitudes, encoding->limit);
    return _mm256_or_si256(magnitudes, _mm256_and_si256(packed, encoding->sign));
}

/* Undoes the order of packing. */
DW_INLINE __m256i dw_in_order(__m256i packed) {
    return _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
}

/* The larger of the magnitudes that lie in the two halves of a and of b; a's results in the lower half. */
DW_INLINE __m256i dw_fold_halves(__m256i a, __m256i b) {
    return _mm256_max_epu16(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* The same within each half for quarters, eighths (of two arguments), and single words. */
DW_INLINE __m256i dw_fold_quarters(__m256i a, __m256i b) {
    return _mm256_max_epu16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

DW_INLINE __m256i dw_fold_eighths(__m256i a, __m256i b) {
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_max_epu16(_mm256_castps_si256(_mm256_shuffle_ps(x, y, _MM_SHUFFLE(2, 0, 2, 0))),
                            _mm256_castps_si256(_mm256_shuffle_ps(x, y, _MM_SHUFFLE(3, 1, 3, 1))));
}

DW_INLINE __m256i dw_fold_words(__m256i a, __m256i b) {
    return _mm256_max_epu16(_mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA),
                            _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xAA));
}

/* The largest word of each of 16 vectors of magnitudes, in order. */
DW_INLINE __m256i dw_largest16(const __m256i x[16]) {
    __m256i y[8];
    for (int i = 0; i < 8; i++)
        y[i] = dw_fold_halves(x[i], x[i + 8]);
    __m256i even = dw_fold_eighths(dw_fold_quarters(y[0], y[2]), dw_fold_quarters(y[4], y[6]));
    __m256i odd = dw_fold_eighths(dw_fold_quarters(y[1], y[3]), dw_fold_quarters(y[5], y[7]));
    return dw_fold_words(even, odd);
}

/* Each the largest of its four neighbours, which start at multiples of four. */
DW_INLINE __m256i dw_largest_of_four(__m256i x) {
    __m256i pairs = _mm256_max_epu16(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_srli_epi32(x, 16)));
    return _mm256_max_epu16(pairs, _mm256_shuffle_epi32(pairs, _MM_SHUFFLE(2, 3, 0, 1)));
}

/* The largest of 16 magnitudes. */
DW_INLINE int dw_largest(__m256i magnitudes) {
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
    /* There is a horizontal minimum only. */
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return 0xFFFF - _mm_extract_epi16(least, 0);
}

/* 16 words, in order, from 16 FP32 numbers. */
DW_INLINE __m256i dw_words_of_f32(__m256i a, __m256i b) {
    __m256i zero = _mm256_setzero_si256();
    __m256i upper = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    __m256i lower = _mm256_packus_epi32(_mm256_blend_epi16(a, zero, 0xAA), _mm256_blend_epi16(b, zero, 0xAA));
    __m256i words = _mm256_or_si256(upper, _mm256_min_epu16(lower, _mm256_set1_epi16(1)));
    return dw_in_order(words);
}

/* 16 words, in order, from source elements at any address. */
DW_INLINE __m256i dw_load_words(const uint8_t *source, dw_dtype dtype) {
    if (dtype == DW_BF16) return _mm256_loadu_si256((const __m256i *)source);
    if (dtype == DW_F32)
        return dw_words_of_f32(_mm256_loadu_si256((const __m256i *)source),
                               _mm256_loadu_si256((const __m256i *)(source + 32)));
    __m256 a = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)source));
    __m256 b = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + 16)));
    return dw_words_of_f32(_mm256_castps_si256(a), _mm256_castps_si256(b));
}

#endif
