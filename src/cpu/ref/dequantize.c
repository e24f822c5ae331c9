#include "cpu/ref/kernels.h"
#include "formats/decode.h"

void dw_dequantize__ref(const dw_dequantize_job *job, const dw_tile *tile) {
    dw_fp8_format format = dw_fp8(job->element);
    dw_float_format target = dw_float(job->target_dtype);
    int64_t across = dw_block_cols(job->block), down = dw_block_rows(job->block);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        for (int64_t c = tile->col0; c < tile->col1; c++) {
            uint8_t scale = *dw_scale_at(&job->scale, r / down, c / across);
            uint32_t bits = dw_decode(format, job->data[r * job->data_ld + c], scale, target);
            dw_store_bits(job->target, job->target_dtype, r * job->target_ld + c, bits);
        }
    }
}
