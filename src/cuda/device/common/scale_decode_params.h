/* What the host passes to scale_decode_f32: a plain C struct, shared by both sides, passed by value. */
#ifndef DW_CUDA_SCALE_DECODE_PARAMS_H
#define DW_CUDA_SCALE_DECODE_PARAMS_H

#include <stdint.h>

/* One grid of scales: code (outer, inner) is codes[outer * code_outer + inner * code_inner]; it goes to
 * scales[outer * inner_padded + inner], and inner positions from `inner` to `inner_padded` become zero. */
typedef struct dw_scale_decode_job {
    const uint8_t *codes;
    float *scales;
    int64_t code_outer, code_inner;
    int64_t outer, inner, inner_padded;
} dw_scale_decode_job;

/* One job for each operand of a GEMM, so that both cost one launch; blockIdx.y chooses. */
typedef struct dw_scale_decode_params {
    dw_scale_decode_job jobs[2];
} dw_scale_decode_params;

#endif
