/* Operations that produce quantized matrices as they go: RMSNorm and gated activations, forward and backward, on GPUs.
 *
 * Everything high-precision is BF16 with inner stride 1; arithmetic is FP32. What is quantized is exactly the BF16
 * result (rounded once, to nearest even), whether that result is stored or not: the bytes are those dw_quantize gives
 * for it. Elements are E4M3 in blocks 1x32 or 1x128, in the forward operations with a square transposed form if
 * the spec asks for it; scales as dw_quantized says. A tensor that is optional is left out
 * by a zeroed struct (rank 0). Outputs must not overlap inputs or each other, except where said. Empty matrices are a
 * success that launches nothing. Work goes on `stream` (a CUstream; NULL is the default stream); nothing is allocated
 * or waited for. Errors of all: INVALID_ARGUMENT (shapes, dtypes, strides, devices), UNSUPPORTED (no kernel for this,
 * no GPU), DEVICE. */
#ifndef DEEPWELL_FUSED_H
#define DEEPWELL_FUSED_H

#include "deepwell/quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dw_rmsnorm_quantize_args {
    dw_tensor x;        /* [rows, cols] */
    dw_tensor residual; /* optional, as x: h = x + residual, rounded to BF16; without it h is x */
    dw_tensor h;        /* where h goes; given exactly when residual is. May be x or residual themselves. */
    dw_tensor weight;   /* [cols], BF16 or F32, dense */
    float eps;
    float weight_offset; /* y = h * rstd * (weight + weight_offset); 1 for models that store weight - 1 */
    dw_quantize_spec spec;
    const dw_quantized *row;        /* y quantized along its columns; NULL when not wanted */
    const dw_quantized *transposed; /* the transpose of y quantized along the rows of y; NULL when not wanted */
    dw_tensor y;                    /* optional [rows, cols] */
    dw_tensor rstd;                 /* F32 [rows], dense: 1 / sqrt(mean(h^2) + eps) */
} dw_rmsnorm_quantize_args;

/* x, residual, h and y must have one row stride. At least one of row and transposed is wanted. One kernel, which reads
 * x once, when only `row` is wanted and cols is at most 16384, or both are, cols is at most 14336, bases and row
 * strides of the BF16 matrices and weight are multiples of 16 bytes, and the GPU holds the cluster of up to 16 thread
 * blocks it takes; otherwise two, the second of which reads h again. */
DW_API dw_status dw_rmsnorm_quantize(dw_context *context, const dw_rmsnorm_quantize_args *args, void *stream);

typedef struct dw_rmsnorm_backward_args {
    dw_tensor dy, h;     /* [rows, cols] */
    dw_tensor dresidual; /* optional: added to dx (the gradient that reaches h past the norm) */
    dw_tensor weight;
    float weight_offset;
    dw_tensor rstd;    /* as the forward pass wrote it */
    dw_tensor dx;      /* [rows, cols]; may be dy or dresidual themselves */
    dw_tensor dweight; /* [cols], BF16 or F32, dense */
    bool accumulate;   /* adds into dweight */
    /* Device memory, 16-byte aligned, of dw_rmsnorm_backward_workspace_size bytes: partial sums of dweight. */
    void *workspace;
    size_t workspace_bytes;
} dw_rmsnorm_backward_args;

/* dx = rstd * (g - h * rstd^2 * mean(g * h)) + dresidual with g = dy * (weight + offset); dweight = sum of dy * h *
 * rstd, in an order that depends on the device and shapes only. All matrices have one row stride; cols at most 16384.
 */
DW_API dw_status dw_rmsnorm_backward(dw_context *context, const dw_rmsnorm_backward_args *args, void *stream);
DW_API dw_status dw_rmsnorm_backward_workspace_size(int device, int64_t rows, int64_t cols, size_t *bytes);

/* Gated activation. Plain: a = silu(g) * u. Clamped: g = min(g, limit), u = clamp(u, -limit, limit),
 * a = g * sigmoid(alpha * g) * (u + 1); NaNs stay NaNs. */
typedef struct dw_swiglu_form {
    bool interleaved; /* columns of gate_up alternate gate, up, gate, ...; else the first half is the gate */
    bool clamped;
    float alpha, limit; /* of the clamped form */
} dw_swiglu_form;

typedef struct dw_swiglu_quantize_args {
    dw_swiglu_form form;
    dw_tensor gate_up; /* [rows, 2 * inner] */
    dw_quantize_spec spec;
    const dw_quantized *row;        /* a [rows, inner]; NULL when not wanted */
    const dw_quantized *transposed; /* its transpose; NULL when not wanted */
    dw_tensor out;                  /* optional: a in BF16 */
} dw_swiglu_quantize_args;

DW_API dw_status dw_swiglu_quantize(dw_context *context, const dw_swiglu_quantize_args *args, void *stream);

typedef struct dw_swiglu_backward_args {
    dw_swiglu_form form;
    dw_tensor dy;      /* [rows, inner] */
    dw_tensor gate_up; /* [rows, 2 * inner] */
    dw_quantize_spec spec;
    const dw_quantized *row;        /* gradient of gate_up, [rows, 2 * inner]; NULL when not wanted */
    const dw_quantized *transposed; /* its transpose; NULL when not wanted */
    dw_tensor dgate_up;             /* optional: the gradient in BF16 */
} dw_swiglu_backward_args;

/* Halves (form.interleaved false) need inner to be a multiple of 128; UNSUPPORTED otherwise. */
DW_API dw_status dw_swiglu_backward_quantize(dw_context *context, const dw_swiglu_backward_args *args, void *stream);

#ifdef __cplusplus
}
#endif
#endif
