/* The oracle: quantization of a tile, one block at a time, in integer arithmetic. */
#include "cpu/ref/kernels.h"
#include "formats/block_scale.h"

/* Quantizes the rectangle [r0, r1) x [c0, c1) as one block into whichever outputs are given; returns its code. */
static uint8_t quantize_block(const dw_quantize_job *job, dw_tile area, uint8_t *row_data, uint8_t *col_data) {
    dw_fp8_format format = dw_fp8(job->element);
    uint32_t amax = 0;
    for (int64_t r = area.row0; r < area.row1; r++) {
        for (int64_t c = area.col0; c < area.col1; c++) {
            uint32_t magnitude = dw_load_f32_bits(job->source, job->source_dtype, r * job->source_ld + c) & 0x7FFFFFFF;
            if (magnitude > amax) amax = magnitude;
        }
    }
    uint8_t code = dw_scale_code(format, job->rounding, amax);
    for (int64_t r = area.row0; r < area.row1; r++) {
        for (int64_t c = area.col0; c < area.col1; c++) {
            uint32_t bits = dw_load_f32_bits(job->source, job->source_dtype, r * job->source_ld + c);
            uint8_t byte = code == DW_SCALE_NAN ? DW_FP8_NAN : dw_fp8_encode(format, bits, code - DW_SCALE_BIAS);
            if (row_data) row_data[r * job->row_ld + c] = byte;
            if (col_data) col_data[c * job->col_ld + r] = byte;
        }
    }
    return code;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void quantize_rows(const dw_quantize_job *job, const dw_tile *tile) {
    int64_t size = dw_block_cols(job->block);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        for (int64_t c = tile->col0; c < tile->col1; c += size) {
            dw_tile area = {r, r + 1, c, smaller(c + size, tile->col1)};
            *dw_scale_at(&job->row_scale, r, c / size) = quantize_block(job, area, job->row_data, NULL);
        }
    }
}

static void quantize_columns(const dw_quantize_job *job, const dw_tile *tile) {
    int64_t size = dw_block_cols(job->block);
    for (int64_t c = tile->col0; c < tile->col1; c++) {
        for (int64_t r = tile->row0; r < tile->row1; r += size) {
            dw_tile area = {r, smaller(r + size, tile->row1), c, c + 1};
            *dw_scale_at(&job->col_scale, c, r / size) = quantize_block(job, area, NULL, job->col_data);
        }
    }
}

static void quantize_squares(const dw_quantize_job *job, const dw_tile *tile) {
    for (int64_t r = tile->row0; r < tile->row1; r += 128) {
        for (int64_t c = tile->col0; c < tile->col1; c += 128) {
            dw_tile area = {r, smaller(r + 128, tile->row1), c, smaller(c + 128, tile->col1)};
            uint8_t code = quantize_block(job, area, job->row_data, job->col_data);
            if (job->row_data) *dw_scale_at(&job->row_scale, r / 128, c / 128) = code;
            if (job->col_data) *dw_scale_at(&job->col_scale, c / 128, r / 128) = code;
        }
    }
}

void dw_quantize__ref(const dw_quantize_job *job, const dw_tile *tile) {
    if (job->block == DW_BLOCK_128X128) {
        quantize_squares(job, tile);
        return;
    }
    if (job->row_data) quantize_rows(job, tile);
    if (job->col_data) quantize_columns(job, tile);
}
