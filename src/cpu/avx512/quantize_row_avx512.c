/* Row quantization with blocks of 32 or 128 elements: the plan is in x86_rows.h, the arithmetic in encode_avx512.h. */
#include "cpu/avx512/blocks_avx512.h"
#include "cpu/avx512/kernels_avx512.h"

#include "cpu/avx2/x86_rows.h"

void dw_quantize_row_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_rows_any(job, tile, 32);
}

void dw_quantize_row_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_rows_any(job, tile, 128);
}
