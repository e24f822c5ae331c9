/* Row quantization with blocks of 32 or 128 elements: the plan is in x86_rows.h, the arithmetic in encode_avx2.h. */
#include "cpu/avx2/blocks_avx2.h"
#include "cpu/avx2/kernels_avx2.h"
#include "cpu/avx2/x86_rows.h"

void dw_quantize_row_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_rows_any(job, tile, 32);
}

void dw_quantize_row_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_rows_any(job, tile, 128);
}
