/* What the AVX2 and AVX-512 kernels share outside their vector code: where scales go, when stores bypass the caches,
 * and the exact scalar treatment of rare blocks. */
#ifndef DW_X86_TILES_H
#define DW_X86_TILES_H

#include <string.h>

#include "cpu/cpu_kernel.h"
#include "formats/block_scale.h"

#define DW_INLINE static inline __attribute__((always_inline))
#define DW_RARELY(condition) __builtin_expect(!!(condition), 0)

DW_INLINE int64_t dw_least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Walks along the scales of one line of the grid, whatever the layout: code k + 1 is `step` after code k, but `leap`
 * after it where k % 4 is 3. */
typedef struct dw_scale_walk {
    uint8_t *at;
    int64_t k, step, leap;
} dw_scale_walk;

DW_INLINE dw_scale_walk dw_scale_walk_from(const dw_scale_map *map, int64_t r, int64_t k) {
    bool atoms = map->atoms_per_row != 0;
    return (dw_scale_walk){dw_scale_at(map, r, k), k, atoms ? 1 : map->col_stride, atoms ? 512 - 3 : map->col_stride};
}

DW_INLINE uint8_t *dw_scale_next(dw_scale_walk *walk) {
    uint8_t *at = walk->at;
    walk->at += (walk->k & 3) == 3 ? walk->leap : walk->step;
    walk->k++;
    return at;
}

/* Non-temporal stores save reading each output line before it is overwritten, but send it to memory. That pays once the
 * output would not stay in the caches anyway: above a quarter of the 32 MiB that eight cores share on the processors
 * this was measured on (EPYC 7003). Whole vectors must be aligned. */
enum { DW_STREAM_BYTES = 8 << 20 };
DW_INLINE bool dw_streams(const uint8_t *data, int64_t ld, int64_t bytes, int alignment) {
    return bytes >= DW_STREAM_BYTES && (((uint64_t)(uintptr_t)data | (uint64_t)ld) & (uint64_t)(alignment - 1)) == 0;
}

/* A block whose elements the vector code cannot make: `count` elements from (r, c), each (dr, dc) after the last, with
 * this code (DW_SCALE_NAN for a NaN or an infinity), to consecutive bytes. */
static __attribute__((noinline, cold, unused)) void dw_encode_exactly(const dw_quantize_job *job, int64_t r, int64_t c,
                                                                      int dr, int dc, int64_t count, int code,
                                                                      uint8_t *out) {
    if (code == DW_SCALE_NAN) {
        memset(out, DW_FP8_NAN, (size_t)count);
        return;
    }
    dw_fp8_format format = dw_fp8(job->element);
    for (int64_t i = 0; i < count; i++) {
        int64_t index = (r + i * dr) * job->source_ld + c + i * dc;
        out[i] = dw_fp8_encode(format, dw_load_f32_bits(job->source, job->source_dtype, index), code - DW_SCALE_BIAS);
    }
}

/* Bits of an infinity as a word (encode_avx2.h): a block whose amax has these or more is not finite. */
enum { DW_WORD_INFINITY = 0x7F80 };

/* Sixteen segments of 32 words: each a block of 32, or four of them a block of 128. Their scales are computed side by
 * side, so that nothing waits for a single block's reduction; the segments of a block have the same. */
typedef struct dw_blocks {
    _Alignas(32) uint32_t bias[16]; /* what encoding subtracts, in both halves: spreading 32 bits needs no shuffle */
    _Alignas(32) uint16_t amax[16]; /* bits of words */
    _Alignas(16) uint8_t code[16];
    uint32_t rare; /* bits 2i and 2i + 1: segment i goes through dw_encode_exactly */
} dw_blocks;

/* Encodes those of the segments from `first` that are rare anew; segment `first` begins at (r, c) of the source and at
 * `out`, and `count` elements are wanted. */
static __attribute__((noinline, cold, unused)) void dw_mend_blocks(dw_blocks *blocks, int first,
                                                                   const dw_quantize_job *job, int64_t r, int64_t c,
                                                                   int64_t count, uint8_t *out) {
    for (int64_t at = 0; at < count; at += 32) {
        int64_t b = first + at / 32;
        if (!(blocks->rare >> (2 * b) & 1)) continue;
        if (blocks->amax[b] >= DW_WORD_INFINITY) blocks->code[b] = DW_SCALE_NAN;
        dw_encode_exactly(job, r, c + at, 0, 1, dw_least(32, count - at), blocks->code[b], out + at);
    }
}

/* Writes the codes of the blocks that `count` elements from segment `first` make up. The first is at a multiple of 128
 * elements, so that four codes of blocks of 32 lie side by side in the row and tcgen05 layouts. */
DW_INLINE void dw_write_codes(const dw_blocks *blocks, int first, int64_t block, int64_t count, dw_scale_walk *scales) {
    int step = (int)(block / 32), last = first + (int)((count + 31) / 32);
    int b = first;
    if (step == 1 && scales->step == 1) {
        for (; b + 4 <= last; b += 4) {
            memcpy(scales->at, blocks->code + b, 4);
            scales->at += 3 + scales->leap;
            scales->k += 4;
        }
    }
    for (; b < last; b += step)
        *dw_scale_next(scales) = blocks->code[b];
}

#endif
