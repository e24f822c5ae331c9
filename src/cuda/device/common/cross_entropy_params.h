/* What the host passes to the cross-entropy kernels: one plain C struct, by value. */
#ifndef DW_CUDA_CROSS_ENTROPY_PARAMS_H
#define DW_CUDA_CROSS_ENTROPY_PARAMS_H

#include <stdint.h>

/* Pointers are device addresses; strides count elements. Forward writes lse and loss; backward reads lse and dloss and
 * writes dlogits, which may be logits itself. */
typedef struct dw_cuda_cross_entropy_params {
    const void *logits; /* [rows, vocabulary], inner stride 1 */
    void *dlogits;      /* the same type */
    const int64_t *labels;
    float *lse, *loss;  /* [rows] */
    const float *dloss; /* [rows] at dloss_stride, which is 0 for one gradient shared by all rows */
    int64_t logits_ld, dlogits_ld, dloss_stride;
    int64_t rows, vocabulary;
    int64_t ignore;
    int32_t vector; /* bases and row strides are multiples of 16 bytes */
} dw_cuda_cross_entropy_params;

#endif
