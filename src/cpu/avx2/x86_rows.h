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
#ifndef DW_X86_ROWS_H
#define DW_X86_ROWS_H

enum { DW_AHEAD = 2048 }; /* bytes between the block in work and the lines prefetched */

/* A group of sixteen blocks in work. */
typedef struct dw_group {
    dw_blocks blocks;
    const uint8_t *words;
    _Alignas(64) uint8_t staged[16 * 128 * 2]; /* where words are made when the source is not BF16, or ends */
} dw_group;

/* Blocks that `count` elements, at most sixteen blocks of them, begin. */
DW_INLINE int dw_blocks_used(int64_t count, int64_t block) {
    return (int)((count + block - 1) / block);
}

/* Reads `count` elements at `source` and finds their scales. */
DW_INLINE void dw_open_group(dw_group *g, const dw_coder *coder, const uint8_t *source, dw_dtype dtype, int64_t block,
                             int64_t count) {
    int64_t ragged = count % block;
    g->words = source;
    if (ragged) memset(g->staged + (count - ragged) * 2, 0, (size_t)(block * 2));
    if (dtype != DW_BF16 || ragged) {
        dw_stage_words(g->staged, source, dtype, count);
        g->words = g->staged;
    }
    dw_scale_blocks(&g->blocks, coder, g->words, block, dw_blocks_used(count, block));
}

/* Writes the `count` elements at (r, c), and their codes. */
DW_INLINE void dw_close_group(dw_group *g, const dw_quantize_job *job, const dw_coder *coder, int64_t r, int64_t c,
                              int64_t block, int64_t count, dw_scale_walk *scales, bool stream) {
    uint8_t *out = job->row_data + r * job->row_ld + c;
    int used = dw_blocks_used(count, block);
    if (count == 16 * block) { /* a constant, for the compiler */
        dw_encode_run(g->words, g->blocks.bias, block, 16 * block, coder, out, stream);
    } else if (count % 32 == 0) {
        dw_encode_run(g->words, g->blocks.bias, block, count, coder, out, stream);
    } else {
        _Alignas(64) uint8_t whole[16 * 128];
        dw_encode_run(g->words, g->blocks.bias, block, used * block, coder, whole, false);
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

DW_INLINE void dw_quantize_rows(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, end = tile->col1, whole = 16 * block;
    dw_coder coder = dw_coder_of(job->element, job->rounding);
    bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, DW_VECTOR_BYTES);
    dw_group groups[2];
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *source = (const uint8_t *)job->source + r * job->source_ld * size;
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r, tile->col0 / block);
        int64_t c = tile->col0;
        int turn = 0;
        dw_open_group(&groups[0], &coder, source + c * size, dtype, block, dw_least(whole, end - c));
        for (; c + whole < end; c += whole, turn ^= 1) {
            const uint8_t *next = source + (c + whole) * size;
            for (int64_t i = 0; i < whole * size; i += 64)
                _mm_prefetch((const char *)(next + DW_AHEAD + i), _MM_HINT_T0);
            dw_open_group(&groups[turn ^ 1], &coder, next, dtype, block, dw_least(whole, end - c - whole));
            dw_close_group(&groups[turn], job, &coder, r, c, block, whole, &scales, stream);
        }
        dw_close_group(&groups[turn], job, &coder, r, c, block, end - c, &scales, stream);
    }
    if (stream) _mm_sfence();
}

DW_INLINE void dw_quantize_rows_any(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    if (job->source_dtype == DW_F32)
        dw_quantize_rows(job, tile, block, DW_F32);
    else if (job->source_dtype == DW_F16)
        dw_quantize_rows(job, tile, block, DW_F16);
    else
        dw_quantize_rows(job, tile, block, DW_BF16);
}

#endif
