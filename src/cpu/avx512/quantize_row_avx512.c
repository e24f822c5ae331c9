/* Row quantization with blocks of 32 or 128 elements: the plans are in rows_avx512.h for whole groups of BF16 and in
 * x86_rows.h for the rest, the arithmetic in split_avx512.h and encode_avx512.h. */
#include "cpu/avx512/kernels_avx512.h"
#include "cpu/avx512/rows_avx512.h"

static void quantize_row(const dw_quantize_job *job, const dw_tile *tile, int64_t block) {
    dw_tile left = *tile;
    if (job->source_dtype == DW_BF16 && left.col1 - left.col0 >= DW_GROUP) {
        bool stream = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, DW_VECTOR_BYTES);
        if (job->rounding == DW_ROUND_RCEIL)
            (stream ? dw_stream_groups : dw_store_groups)(job, tile, block);
        else
            (stream ? dw_stream_groups_floor : dw_store_groups_floor)(job, tile, block);
        left.col0 = left.col1 - (left.col1 - left.col0) % DW_GROUP;
    }
    if (left.col0 < left.col1) dw_quantize_rows_any(job, &left, block);
}

void dw_quantize_row_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row(job, tile, 32);
}

void dw_quantize_row_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row(job, tile, 128);
}
