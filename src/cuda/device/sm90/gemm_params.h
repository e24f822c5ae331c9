/* Arguments of the Hopper block-scaled matrix kernels, passed by value; the host fills them (gemm_sm90.c). */
#ifndef DW_DEVICE_SM90_GEMM_PARAMS_H
#define DW_DEVICE_SM90_GEMM_PARAMS_H

#include <stdint.h>

#ifdef __CUDACC__
#define DW_ALIGNED_128 alignas(128)
#else
#define DW_ALIGNED_128 _Alignas(128)
#endif

/* A driver's tensor map. */
typedef struct dw_gemm_sm90_map {
    DW_ALIGNED_128 uint64_t opaque[16];
} dw_gemm_sm90_map;

typedef struct dw_gemm_sm90_params {
    dw_gemm_sm90_map a, b; /* bytes; boxes of 128 columns by the rows one copy loads */
    dw_gemm_sm90_map d;    /* BF16; box 64 columns by 64 rows */
    const void *a_scale;   /* 1x128 blocks: [k blocks, a_scale_ld], contiguous along A's rows */
    const void *b_scale;   /* 1x128: likewise; 128x128: element (block row, k block) lies at the two steps */
    int64_t a_scale_ld, b_scale_ld;
    int64_t b_scale_row_step, b_scale_k_step;
    void *out; /* D's first element */
    int64_t out_ld;
    const void *bias;    /* [n] BF16, or NULL */
    const int32_t *ends; /* grouped: where each group ends, along M or along K; the first starts at 0 */
    int32_t groups;
    int32_t m, n, k; /* of one product; what is grouped: of all together */
    int32_t band;    /* rows of tiles walked before the next column of tiles */
    int32_t accumulate;
} dw_gemm_sm90_params;

#endif
