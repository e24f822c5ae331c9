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

DW_INLINE void quantize_row(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_dtype dtype,
                            dw_encoding encoding) {
    int64_t size = dtype == DW_F32 ? 4 : 2;
    bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, 32);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *source = (const uint8_t *)job->source + r * job->source_ld * size;
        dw_scale_line scales = dw_scale_line_at(&job->row_scale, r);
        int64_t c = tile->col0, k = c / block;
        _Alignas(32) uint8_t staged[128 * 2];
        for (; c + block <= tile->col1; c += block, k++) {
            const uint8_t *words = source + c * size;
            for (int64_t i = 0; i < block * size; i += 64)
                _mm_prefetch((const char *)(words + AHEAD + i), _MM_HINT_T0);
            if (dtype != DW_BF16) {
                dw_stage_words(staged, words, dtype, block);
                words = staged;
            }
            *dw_scale_in_line(&scales, k) = dw_quantize_row_block(job, &encoding, r, c, block, words, stream);
        }
        if (c < tile->col1) {
            dw_stage_words(staged, source + c * size, dtype, tile->col1 - c);
            *dw_scale_in_line(&scales, k) = dw_quantize_row_block(job, &encoding, r, c, tile->col1 - c, staged, false);
        }
    }
    if (stream) _mm_sfence();
}

/* The commonest request is compiled with its encoding known; the others share a body for each source. */
DW_INLINE void quantize_row_any(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    dw_encoding encoding = dw_encoding_of(job->element, job->rounding);
    if (job->source_dtype == DW_F32)
        quantize_row(job, tile, block, DW_F32, encoding);
    else if (job->source_dtype == DW_F16)
        quantize_row(job, tile, block, DW_F16, encoding);
    else if (job->element == DW_E4M3 && job->rounding == DW_ROUND_RCEIL)
        quantize_row(job, tile, block, DW_BF16, dw_encoding_of(DW_E4M3, DW_ROUND_RCEIL));
    else
        quantize_row(job, tile, block, DW_BF16, encoding);
}

void dw_quantize_row_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row_any(job, tile, 32);
}

void dw_quantize_row_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row_any(job, tile, 128);
}
