/* Row quantization with blocks of 32 or 128 elements.
 *
 * Floor: two or four bytes read and one written per element, and one scale byte per block. At 23 GB/s that is 14 cycles
 * of 3.4 GHz for 32 elements of BF16; the vector code needs about 45 operations on four pipes for them, so the memory
 * is the limit if it is kept busy.
 *
 * Plan: along each row in groups of sixteen blocks. A group's words are read twice, the second time from the nearest
 * cache: once for the scales, once to encode. The scales of the next group are computed before this one is encoded, so
 * that nothing waits for the long chain from amax to scale. Lines well ahead are prefetched, since the hardware's
 * prefetcher stops at every page. Large outputs bypass the caches. */
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/row_block_avx2.h"

enum { AHEAD = 2048 }; /* bytes between the block in work and the lines prefetched */

/* A group of sixteen blocks in work. */
typedef struct group {
    dw_blocks blocks;
    const uint8_t *words;
    _Alignas(32) uint8_t staged[16 * 128 * 2]; /* where words are made when the source is not BF16, or ends */
} group;

/* Reads `count` elements at `source` and finds their scales. */
DW_INLINE void open_group(group *g, const dw_encoding *encoding, const uint8_t *source, dw_dtype dtype, int64_t block,
                          int64_t count) {
    g->words = source;
    if (count < 16 * block) memset(g->staged, 0, (size_t)(16 * block * 2));
    if (dtype != DW_BF16 || count < 16 * block) {
        dw_stage_words(g->staged, source, dtype, count);
        g->words = g->staged;
    }
    dw_scale_blocks(&g->blocks, encoding, g->words, block);
}

/* Writes the `count` elements at (r, c), and their codes. */
DW_INLINE void close_group(group *g, const dw_quantize_job *job, const dw_encoding *encoding, int64_t r, int64_t c,
                           int64_t block, int64_t count, dw_scale_walk *scales, bool stream) {
    uint8_t *out = job->row_data + r * job->row_ld + c;
    int used = (int)((count + block - 1) / block);
    if (count == 16 * block) {
        dw_encode_run(g->words, g->blocks.bias, block, count, encoding, out, stream);
    } else {
        _Alignas(32) uint8_t whole[16 * 128];
        dw_encode_run(g->words, g->blocks.bias, block, used * block, encoding, whole, false);
        memcpy(out, whole, (size_t)count);
    }
    if (DW_RARELY(g->blocks.rare)) dw_mend_blocks(&g->blocks, 0, used, job, r, c, block, count, out);
    if (used == 16 && scales->step == 1 && scales->leap == 1) {
        memcpy(scales->at, g->blocks.code, 16);
        scales->at += 16;
    } else {
        for (int i = 0; i < used; i++)
            *dw_scale_next(scales) = g->blocks.code[i];
    }
}

DW_INLINE void quantize_rows(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, end = tile->col1, whole = 16 * block;
    dw_encoding encoding = dw_encoding_of(job->element, job->rounding);
    bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, 32);
    group groups[2];
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *source = (const uint8_t *)job->source + r * job->source_ld * size;
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r, tile->col0 / block);
        int64_t c = tile->col0;
        int turn = 0;
        open_group(&groups[0], &encoding, source + c * size, dtype, block, dw_least(whole, end - c));
        for (; c + whole < end; c += whole, turn ^= 1) {
            const uint8_t *next = source + (c + whole) * size;
            for (int64_t i = 0; i < whole * size; i += 64)
                _mm_prefetch((const char *)(next + AHEAD + i), _MM_HINT_T0);
            open_group(&groups[turn ^ 1], &encoding, next, dtype, block, dw_least(whole, end - c - whole));
            close_group(&groups[turn], job, &encoding, r, c, block, whole, &scales, stream);
        }
        close_group(&groups[turn], job, &encoding, r, c, block, end - c, &scales, stream);
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
