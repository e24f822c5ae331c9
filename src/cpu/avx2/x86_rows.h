/* Row quantization with blocks of 32 or 128 elements.
 *
 * Floor: two or four bytes read and one written per element, and one scale byte per block. At 23 GB/s that is 14 cycles
 * of 3.4 GHz for 32 elements of BF16; the vector code needs about 35 operations on four pipes for them, so the memory
 * is the limit if it is kept busy.
 *
 * Plan: along each row in groups of 512 elements. A group's words are read twice, the second time from the nearest
 * cache: once for the scales, once to encode. The scales of the next group are computed before this one is encoded, so
 * that nothing waits for the long chain from amax to scale. A core has about 24 lines on their way at a time, so what
 * keeps memory busy is to ask for them evenly, not in bursts, and well ahead, since the hardware's prefetcher stops at
 * every page. Elements are made by the form that knows no small ones; where it met one, the longer form makes 128
 * elements anew and goes on for two groups, so that data full of small elements costs little more than the longer form
 * alone. Large outputs bypass the caches. With AVX2, whole groups of BF16 have a loop of their own (rows_avx2.h). */
#ifndef DW_X86_ROWS_H
#define DW_X86_ROWS_H

enum {
    DW_GROUP = 512,  /* elements */
    DW_RUN = 128,    /* elements between two looks for small ones */
    DW_AHEAD = 4096, /* bytes between those encoded and those asked for */
    DW_CAREFUL = 2   /* groups */
};

/* A group in work. */
typedef struct dw_group {
    dw_blocks blocks;
    const uint8_t *words;
    _Alignas(64) uint8_t staged[DW_GROUP * 2]; /* where words are made when the source is not BF16, or ends */
} dw_group;

/* Reads `count` elements at `source` and finds their scales. */
DW_INLINE void dw_open_group(dw_group *g, const dw_coder *coder, const uint8_t *source, dw_dtype dtype, int64_t block,
                             int64_t count) {
    g->words = source;
    if (dtype != DW_BF16 || count % 32) {
        dw_stage_words(g->staged, source, dtype, count);
        g->words = g->staged;
    }
    dw_scale_words(&g->blocks, coder, g->words, block, (int)((count + 31) / 32));
}

/* Writes the elements of a whole group, and asks for as many of the source from `ahead`. `careful` is for how many
 * groups the longer form is used. */
DW_INLINE void dw_encode_group(const dw_group *g, const dw_coder *coder, uint8_t *out, const uint8_t *ahead,
                               int64_t size, int *careful, bool stream) {
    bool longer = *careful > 0;
    if (longer) --*careful;
    for (int64_t i = 0; i < DW_GROUP; i += DW_RUN) {
        const uint8_t *words = g->words + 2 * i;
        const uint32_t *bias = g->blocks.bias + i / 32;
        for (int64_t line = 0; line < DW_RUN * size; line += 64)
            _mm_prefetch((const char *)ahead + i * size + line, _MM_HINT_T0);
        if (!longer) {
            if (!dw_encode_normal_run(words, bias, DW_RUN, coder, out + i, stream)) continue;
            longer = true;
            *careful = DW_CAREFUL;
        }
        dw_encode_run(words, bias, DW_RUN, coder, out + i, stream);
    }
}

/* Writes the `count` elements at (r, c), and their codes. */
DW_INLINE void dw_close_group(dw_group *g, const dw_quantize_job *job, const dw_coder *coder, int64_t r, int64_t c,
                              int64_t block, int64_t count, const uint8_t *ahead, int64_t size, int *careful,
                              dw_scale_walk *scales, bool stream) {
    uint8_t *out = job->row_data + r * job->row_ld + c;
    if (count == DW_GROUP) {
        dw_encode_group(g, coder, out, ahead, size, careful, stream);
    } else if (count % 32 == 0) {
        dw_encode_run(g->words, g->blocks.bias, count, coder, out, stream);
    } else {
        _Alignas(64) uint8_t whole[DW_GROUP];
        dw_encode_run(g->words, g->blocks.bias, (count + 31) & ~(int64_t)31, coder, whole, false);
        memcpy(out, whole, (size_t)count);
    }
    if (DW_RARELY(g->blocks.rare)) dw_mend_blocks(&g->blocks, 0, job, r, c, count, out);
    dw_write_codes(&g->blocks, 0, block, count, scales);
}

DW_INLINE void dw_quantize_rows(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_dtype dtype) {
    int64_t size = dtype == DW_F32 ? 4 : 2, end = tile->col1;
    dw_coder coder = dw_coder_of(job->element, job->rounding);
    bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, DW_VECTOR_BYTES);
    int64_t gap = (job->source_ld - (end - tile->col0)) * size; /* from the tile's part of a row to that of the next */
    dw_group groups[2];
    int careful = 0;
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *source = (const uint8_t *)job->source + r * job->source_ld * size;
        dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, r, tile->col0 / block);
        int64_t c = tile->col0;
        int turn = 0;
        dw_open_group(&groups[0], &coder, source + c * size, dtype, block, dw_least(DW_GROUP, end - c));
        for (; c + DW_GROUP < end; c += DW_GROUP, turn ^= 1) {
            int64_t next = c + DW_GROUP;
            dw_open_group(&groups[turn ^ 1], &coder, source + next * size, dtype, block,
                          dw_least(DW_GROUP, end - next));
            const uint8_t *ahead = source + c * size + DW_AHEAD + (c * size + DW_AHEAD < end * size ? 0 : gap);
            dw_close_group(&groups[turn], job, &coder, r, c, block, DW_GROUP, ahead, size, &careful, &scales, stream);
        }
        dw_close_group(&groups[turn], job, &coder, r, c, block, end - c, source + c * size + DW_AHEAD + gap, size,
                       &careful, &scales, stream);
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
