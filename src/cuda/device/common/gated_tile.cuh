/* Gated activations on the units of a square tile, forward and backward.
 *
 * With s = sigmoid(alpha g):  a = g s (u + offset)
 *   da/du = g s               da/dg = (u + offset) s (1 + alpha g (1 - s))
 * where g was clamped to at most `limit` and u to +-limit, which zeroes the derivative outside. Plain SwiGLU is alpha
 * 1, limit infinity, offset 0. Clamping keeps NaNs. All of it in FP32 from BF16 inputs, rounded once to BF16: what is
 * quantized is exactly the BF16 result. */
#ifndef DW_DEVICE_GATED_TILE_CUH
#define DW_DEVICE_GATED_TILE_CUH

#include "common/bf16_unit.cuh"
#include "common/square_tile.cuh"

typedef struct gate_form {
    float alpha, limit; /* of the clamped form */
} gate_form;

/* 1 / (1 + e^(-alpha g)). What it flushes to zero is below 2^-126. */
DW_DEVICE float gate_sigmoid(float alpha, float g) {
    return rcp_approx_ftz_f32(1.0f + ex2_approx_ftz_f32(-1.44269504f * alpha * g));
}

/* `clamped` is a constant of the calling code: the plain form has half the instructions. */
DW_DEVICE float gated(gate_form form, bool clamped, float g, float u) {
    if (clamped) {
        g = min_nan_f32(g, form.limit);
        u = max_nan_f32(min_nan_f32(u, form.limit), -form.limit) + 1.0f;
    }
    return g * gate_sigmoid(clamped ? form.alpha : 1.0f, g) * u;
}

DW_DEVICE void gated_backward(gate_form form, bool clamped, float g, float u, float dy, float *dg, float *du) {
    const bool inside_g = !clamped || !(g > form.limit), inside_u = !clamped || !(fabsf(u) > form.limit);
    if (clamped) {
        g = min_nan_f32(g, form.limit);
        u = max_nan_f32(min_nan_f32(u, form.limit), -form.limit) + 1.0f;
    }
    const float alpha = clamped ? form.alpha : 1.0f;
    const float s = gate_sigmoid(alpha, g), gs = g * s;
    *dg = inside_g ? dy * u * fmaf(alpha * gs, 1.0f - s, s) : 0.0f;
    *du = inside_u ? dy * gs : 0.0f;
}

#endif
