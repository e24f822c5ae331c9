/* Cross-entropy over a vocabulary on the GPU: loss and gradient from logits in their own type. */
#ifndef DEEPWELL_CROSS_ENTROPY_H
#define DEEPWELL_CROSS_ENTROPY_H

#include "deepwell/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device addresses except where a tensor view is given. */
typedef struct dw_cross_entropy_args {
    dw_tensor logits;      /* [rows, vocabulary] F32, F16 or BF16 on a GPU, inner stride 1 */
    const int64_t *labels; /* [rows] */
    int64_t ignore_index;  /* rows with this label have loss and gradient 0 */
    float *lse;            /* [rows] log(sum(exp(logits))); written forward, read backward */
    float *loss;           /* [rows] lse - logits[label]; forward */
    const float *dloss;    /* [rows] gradient of each row's loss; backward */
    int64_t dloss_stride;  /* in floats; 0 for one value shared by all rows */
    dw_tensor dlogits;     /* backward: as logits; may be the same memory */
} dw_cross_entropy_args;

/* loss and lse of every row, in one read of the logits. A label outside [0, vocabulary) that is not `ignore_index`
 * gives NaN; NaN and infinity among the logits reach the loss. Enqueued on `stream` (a CUstream); nothing is
 * synchronized. Errors: INVALID_ARGUMENT (shapes, types, device), UNSUPPORTED (no CUDA kernels here), DEVICE. */
DW_API dw_status dw_cross_entropy_forward(dw_context *context, const dw_cross_entropy_args *args, void *stream);

/* dlogits = (softmax(logits) - onehot(label)) * dloss, rounded once to the logits' type. Errors as above. */
DW_API dw_status dw_cross_entropy_backward(dw_context *context, const dw_cross_entropy_args *args, void *stream);

#ifdef __cplusplus
}
#endif
#endif
