/* Row quantization with blocks of 32 or 128 elements.
 *
 * Floor: two or four bytes read and one written per element, and one scale byte per block. At 23 GB/s that is 14 cycles
 * of 3.4 GHz for 32 elements of BF16; the vector code needs about 45 operations on four pipes for them, so the memory
 * is the limit if it is kept busy.
 *
 * Plan: one pass along each row. A block's words are read twice, the second time from the nearest cache: once for amax,
 * once to encode. Neighbouring blocks are independent, so out-of-order execution hides the chain from amax to the
 * scale. Lines well ahead are prefetched, since the hardware's prefetcher stops at every page. Large outputs bypass the
 * caches. */
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/row_block_avx2.h"

enum { AHEAD = 2048 }; /* bytes between the block in work and the lines prefetched */

/* Quantizes `count` elements, at most 16 blocks, at (r, c). `words` has words for 16 blocks. */
DW_INLINE void quantize_16(const dw_quantize_job *job, const dw_encoding *encoding, int64_t r, int64_t c, int64_t count,
                           int64_t block, const uint8_t *words, dw_scale_walk *scales, bool stream) {
    dw_blocks blocks;
    uint8_t *out = job->row_data + r * job->row_ld + c;
    dw_scale_blocks(&blocks, encoding, words, block);
    int b = 0;
    for (; (b + 1) * block <= count; b++)
        dw_encode_block(&blocks, b, job, encoding, r, c + b * block, block, words + b * block * 2, out + b * block,
                        stream);
    if (b * block < count) {
        dw_encode_block(&blocks, b, job, encoding, r, c + b * block, count - b * block, words + b * block * 2,
                        out + b * block, false);
        b++;
    }
    if (b == 16 && scales->step == 1 && scales->leap == 1) {
        memcpy(scales->at, blocks.code, 16);
        scales->at += 16;
    } else {
        for (int i = 0; i < b; i++) *dw_scale_next(scales) = blocks.code[i];
    }
}

DW_INLINE void quantize_rows(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, end = tile->col1, group = 16 * block;
    dw_encoding encoding = dw_encoding_of(job->element, job->rounding);
    bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, 32);
    _Alignas(32) uint8_t staged[16 * 128 * 2];
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *source = (const uint8_t *)job->source + r * job->source_ld * size;
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r, tile->col0 / block);
        int64_t c = tile->col0;
        for (; c + group <= end; c += group) {
            const uint8_t *words = source + c * size;
            for (int64_t i = 0; i < group * size; i += 64)
                _mm_prefetch((const char *)(words + AHEAD + i), _MM_HINT_T0);
            if (dtype != DW_BF16) {
                dw_stage_words(staged, words, dtype, group);
                words = staged;
            }
            quantize_16(job, &encoding, r, c, group, block, words, &scales, stream);
        }
        if (c < end) {
            memset(staged, 0, (size_t)(group * 2));
            dw_stage_words(staged, source + c * size, dtype, end - c);
            quantize_16(job, &encoding, r, c, end - c, block, staged, &scales, stream);
        }
    }
    if (stream) _mm_sfence();
}

DW_INLINE void quantize_rows_any(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    if (job->source_dtype == DW_F32)
        quantize_rows(job, tile, block, DW_F32);
    else if (job->source_dtype == DW_F16)
        quantize_rows(job, tile, block, DW_F16);
    else
        quantize_rows(job, tile, block, DW_BF16);
}

void dw_quantize_row_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_rows_any(job, tile, 32);
}

void dw_quantize_row_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_rows_any(job, tile, 128);
}
