/* Row quantization with blocks of 32 or 128 elements: the plans are in rows_avx2.h for whole groups of BF16 and in
 * x86_rows.h for the rest, the arithmetic in encode_avx2.h. */
#include "cpu/avx2/blocks_avx2.h"
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/rows_avx2.h"

static void quantize_row(const dw_quantize_job *job, const dw_tile *tile, int64_t block, dw_quantize_kernel store,
                         dw_quantize_kernel stream) {
    dw_tile left = *tile;
    if (job->source_dtype == DW_BF16 && left.col1 - left.col0 >= DW_GROUP) {
        bool streams = dw_streams(job->row_data, job->row_ld, job->rows * job->cols, DW_VECTOR_BYTES);
        (streams ? stream : store)(job, tile);
        left.col0 = left.col1 - (left.col1 - left.col0) % DW_GROUP;
    }
    if (left.col0 < left.col1) dw_quantize_rows_any(job, &left, block);
}

void dw_quantize_row_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row(job, tile, 32, dw_store_groups_1x32, dw_stream_groups_1x32);
}

void dw_quantize_row_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    quantize_row(job, tile, 128, dw_store_groups_1x128, dw_stream_groups_1x128);
}
