/* Gated activations on the units of a square tile, forward and backward.
 *
 * With s = sigmoid(alpha g):  a = g s (u + offset)
 *   da/du = g s               da/dg = (u + offset) s (1 + alpha g (1 - s))
 * where g was clamped to at most `limit` and u to +-limit, which zeroes the derivative outside. Plain SwiGLU is alpha
 * 1, limit infinity, offset 0, so one code serves both forms. Clamping keeps NaNs. All of it in FP32 from BF16 inputs,
 * rounded once to BF16: what is quantized is exactly the BF16 result. */
#ifndef DW_DEVICE_GATED_TILE_CUH
#define DW_DEVICE_GATED_TILE_CUH

#include "common/bf16_unit.cuh"
#include "common/square_tile.cuh"

typedef struct gate_form {
    float alpha, limit, offset;
} gate_form;

DW_DEVICE gate_form gate_form_of(const dw_cuda_swiglu_params *p) {
    gate_form form = {1.0f, __uint_as_float(0x7F800000), 0.0f};
    if (p->clamped) {
        form.alpha = p->alpha;
        form.limit = p->limit;
        form.offset = 1.0f;
    }
    return form;
}

DW_DEVICE float gate_sigmoid(float alpha, float g) {
    return rcp_approx_f32(1.0f + ex2_approx_f32(-1.44269504f * alpha * g));
}

DW_DEVICE float gated(const gate_form *form, float g, float u) {
    g = min_nan_f32(g, form->limit);
    u = max_nan_f32(min_nan_f32(u, form->limit), -form->limit) + form->offset;
    return g * gate_sigmoid(form->alpha, g) * u;
}

DW_DEVICE void gated_backward(const gate_form *form, float g, float u, float dy, float *dg, float *du) {
    const bool inside_g = !(g > form->limit), inside_u = !(fabsf(u) > form->limit);
    g = min_nan_f32(g, form->limit);
    u = max_nan_f32(min_nan_f32(u, form->limit), -form->limit) + form->offset;
    const float s = gate_sigmoid(form->alpha, g);
    *dg = inside_g ? dy * u * s * (1.0f + form->alpha * g * (1.0f - s)) : 0.0f;
    *du = inside_u ? dy * g * s : 0.0f;
}

#endif
