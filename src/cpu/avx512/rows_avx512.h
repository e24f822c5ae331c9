/* Row quantization of BF16 with blocks of 32 or 128 elements, in whole groups of 512.
 *
 * Floor: 96 bytes for 32 elements, 1.9 ns at the 51 GB/s that a loop without arithmetic moves on a core of Zen 5. Work:
 * some 25 vector operations for 64 elements, 7 cycles of 4.2 GHz, or 0.9 ns for 32 elements.
 *
 * Plan: the arithmetic of split_avx512.h. Groups follow one another through all rows of the tile, asking for the source
 * 4 KiB further on; their planes take turns in two places of the nearest cache. What a row has beyond whole groups is
 * left to x86_rows.h. */
#ifndef DW_ROWS_AVX512_H
#define DW_ROWS_AVX512_H

#include "cpu/avx512/split_avx512.h"

#include "cpu/avx2/x86_rows.h"

/* Writes a group's codes. */
DW_INLINE void dw_write_group_codes(const dw_row_group *g, const dw_quantize_job *job, int64_t block) {
    if (job->row_scale.col_stride == 1) {
        dw_store_codes(&job->row_scale, g->r, g->c / block, g->code, block);
        return;
    }
    dw_scale_walk scales = dw_scale_walk_from(&job->row_scale, g->r, g->c / block);
    for (int64_t b = 0; b < 16; b += block / 32)
        *dw_scale_next(&scales) = g->code[b];
}

/* The whole groups of a tile's rows, of which each has at least one. */
DW_INLINE void dw_quantize_groups(const dw_quantize_job *job, const dw_tile *tile, int64_t block, bool saturates,
                                  bool stream) {
    dw_split split;
    dw_split_of(&split, job->element, job->rounding);
    const dw_split copy = split, *s = &copy; /* nothing that is stored changes it */
    dw_stage stage = {.across = DW_GROUP_VECTORS, .apart = 1, .saturates = saturates, .stream = stream};
    dw_planes planes[2][DW_GROUP_VECTORS];
    dw_row_group groups[2], *g = groups, *done = groups + 1;
    g->planes = planes[0];
    done->planes = planes[1];
    int small = 0;
    int64_t end = tile->col0 + (tile->col1 - tile->col0) / DW_GROUP * DW_GROUP;
    int64_t gap = (job->source_ld - (end - tile->col0)) * 2; /* from the end of a row's groups to the next row's */
    const uint8_t *words = (const uint8_t *)job->source + (tile->row0 * job->source_ld + tile->col0) * 2;
    for (int64_t r = tile->row0; r < tile->row1; r++, words += gap) {
        for (int64_t c = tile->col0; c < end; c += DW_GROUP, words += 2 * DW_GROUP) {
            g->r = r;
            g->c = c;
            g->words = words;
            g->out = job->row_data + r * job->row_ld + c;
            const uint8_t *ahead = words + DW_AHEAD + (c + DW_AHEAD / 2 < end ? 0 : gap);
            bool begun = r > tile->row0 || c > tile->col0;
            small = dw_next_group(job, s, stage, block, g, NULL, ahead, begun ? done : NULL, small);
            if (begun) dw_write_group_codes(done, job, block);
            dw_row_group *swap = g;
            g = done;
            done = swap;
        }
    }
    dw_last_group(job, s, stage, block, done);
    dw_write_group_codes(done, job, block);
    if (stream) _mm_sfence();
}

/* A function for each way: in one body with everything around it the hot loop loses its registers. */
static __attribute__((noinline)) void dw_store_groups(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    dw_quantize_groups(job, tile, block, false, false);
}

static __attribute__((noinline)) void dw_stream_groups(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    dw_quantize_groups(job, tile, block, false, true);
}

static __attribute__((noinline)) void dw_store_groups_floor(const dw_quantize_job *job, const dw_tile *tile,
                                                            int64_t block) {
    dw_quantize_groups(job, tile, block, true, false);
}

static __attribute__((noinline)) void dw_stream_groups_floor(const dw_quantize_job *job, const dw_tile *tile,
                                                             int64_t block) {
    dw_quantize_groups(job, tile, block, true, true);
}

#endif
