/* Cross-entropy over a vocabulary, forward and backward.
 *
 * loss[r] = log(sum_j exp(x[r, j])) - x[r, label[r]], and d x[r, j] = (softmax(x[r])[j] - [j == label[r]]) * g[r].
 * A framework's own composition upcasts the logits to FP32 and passes over them six to eight times; here they are read
 * once forward, and read and written once backward, in their own type.
 *
 * Floor, bytes per logit of BF16: 2 forward, 4 backward; at 8192 x 32000 that is 0.52 and 1.05 GB.
 *
 * Plan: one block of 512 threads per row. Each thread keeps a running maximum and a sum of exponentials relative to it,
 * over 16-byte units at a stride of the block, so that a warp reads 512 contiguous bytes; sums are merged through
 * shuffles and one shared-memory exchange. Backward needs only the stored log-sum-exp: no reduction, a plain stream.
 * Rows whose base is not on 16 bytes go element by element in the same kernel. A label equal to `ignore` gives loss and
 * gradient zero; a label outside the vocabulary gives NaN in both, so that the fault is seen. NaN or infinity among the
 * logits reaches the loss. */
#include "common/cross_entropy_params.h"
#include "common/ptx.cuh"
#include "deepwell/types.h"

#define THREADS 512
#define LOG2E 1.4426950408889634f

/* A sum of exponentials, `sum` * 2^`top`, of logits times log2(e). Empty: {-inf, 0}. */
typedef struct exp_sum {
    float top, sum;
} exp_sum;

/* What exponents are taken relative to: the maximum, or 0 while everything is -inf (inf - inf would be NaN). */
DW_DEVICE float base_of(float top) {
    return top == -INFINITY ? 0.0f : top;
}

/* Maxima are taken by comparison, which passes NaN by; it stays visible through the sums. */
DW_DEVICE exp_sum merge(exp_sum a, exp_sum b) {
    float top = a.top > b.top ? a.top : b.top;
    float base = base_of(top);
    exp_sum out = {top, a.sum * exp2f(a.top - base) + b.sum * exp2f(b.top - base)};
    return out;
}

DW_DEVICE float element(const void *row, int64_t i, int type) {
    if (type == DW_F32) return ((const float *)row)[i];
    uint32_t bits = ((const uint16_t *)row)[i];
    return type == DW_BF16 ? __uint_as_float(bits << 16) : cvt_f32_f16(bits);
}

/* Element `i` of 16 bytes. */
DW_DEVICE float unit_value(uint4 v, int i, int type) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    if (type == DW_F32) return __uint_as_float(words[i]);
    uint32_t half = words[i / 2] >> (i % 2 * 16) & 0xFFFFu;
    return type == DW_BF16 ? __uint_as_float(half << 16) : cvt_f32_f16(half);
}

DW_DEVICE uint32_t pack_pair(float low, float high, int type) {
    return type == DW_BF16 ? cvt_rn_bf16x2_f32(high, low) : cvt_rn_f16x2_f32(high, low);
}

DW_DEVICE void store_element(void *row, int64_t i, float x, int type) {
    if (type == DW_F32) {
        ((float *)row)[i] = x;
    } else {
        ((uint16_t *)row)[i] = (uint16_t)(pack_pair(x, 0.0f, type) & 0xFFFFu);
    }
}

/* Joins `count` logits to a running sum: one rescaling for all of them. */
DW_DEVICE void add(exp_sum *s, const float *logits, int count) {
    float x[8];
    float top = s->top;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        x[i] = logits[i] * LOG2E;
        top = x[i] > top ? x[i] : top;
    }
    const float base = base_of(top);
    float sum = s->top == top ? s->sum : s->sum * exp2f(s->top - base);
#pragma unroll
    for (int i = 0; i < count; ++i) {
        sum += exp2f(x[i] - base);
    }
    s->top = top;
    s->sum = sum;
}

DW_DEVICE void add_unit(exp_sum *s, uint4 v, int type) {
    float x[8];
#pragma unroll
    for (int i = 0; i < (type == DW_F32 ? 4 : 8); ++i) {
        x[i] = unit_value(v, i, type);
    }
    add(s, x, type == DW_F32 ? 4 : 8);
}

DW_DEVICE void forward(const dw_cuda_cross_entropy_params *p, int type) {
    const int unit = type == DW_F32 ? 4 : 8;
    const int64_t r = blockIdx.x;
    const char *row = (const char *)p->logits + r * p->logits_ld * (type == DW_F32 ? 4 : 2);
    exp_sum s = {-INFINITY, 0.0f};
    int64_t tail = 0;
    if (p->vector) {
        const int64_t units = p->vocabulary / unit;
        int64_t u = threadIdx.x;
        for (; u + 3 * THREADS < units; u += 4 * THREADS) {
            uint4 v[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                v[k] = ld_global_no_allocate_v4(row + (u + k * THREADS) * 16);
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                add_unit(&s, v[k], type);
            }
        }
        for (; u < units; u += THREADS) {
            add_unit(&s, ld_global_no_allocate_v4(row + u * 16), type);
        }
        tail = units * unit;
    }
    for (int64_t i = tail + threadIdx.x; i < p->vocabulary; i += THREADS) {
        float x = element(row, i, type);
        add(&s, &x, 1);
    }

    __shared__ exp_sum partial[THREADS / 32];
#pragma unroll
    for (int step = 16; step; step /= 2) {
        exp_sum other = {__shfl_xor_sync(0xFFFFFFFFu, s.top, step), __shfl_xor_sync(0xFFFFFFFFu, s.sum, step)};
        s = merge(s, other);
    }
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < THREADS / 32; ++w) {
            s = merge(s, partial[w]);
        }
        float lse = (s.top + log2f(s.sum)) * (1.0f / LOG2E);
        int64_t label = p->labels[r];
        float loss = __uint_as_float(0x7FC00000u);
        if (label == p->ignore) {
            loss = 0.0f;
        } else if (label >= 0 && label < p->vocabulary) {
            loss = lse - element(row, label, type);
        }
        p->lse[r] = lse;
        p->loss[r] = loss;
    }
}

DW_DEVICE void backward(const dw_cuda_cross_entropy_params *p, int type) {
    const int unit = type == DW_F32 ? 4 : 8;
    const int64_t r = blockIdx.x;
    const int64_t bytes = type == DW_F32 ? 4 : 2;
    const char *row = (const char *)p->logits + r * p->logits_ld * bytes;
    char *out = (char *)p->dlogits + r * p->dlogits_ld * bytes;
    const int64_t label = p->labels[r];
    const bool inside = label >= 0 && label < p->vocabulary;
    const bool ignored = label == p->ignore;
    const float g = inside ? p->dloss[r * p->dloss_stride] : __uint_as_float(0x7FC00000u);
    const float top = p->lse[r] * LOG2E;
    /* Several blocks per row; this block's units start at `u`. An ignored row is zero even where the logits are not
     * finite, as in the frameworks' own loss. */
    int64_t u = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    const int64_t stride = (int64_t)gridDim.y * THREADS;
    int64_t tail = 0;
    if (p->vector) {
        const int64_t units = p->vocabulary / unit;
        for (; u < units; u += stride) {
            uint4 v = *(const uint4 *)(row + u * 16);
            float d[8];
#pragma unroll
            for (int i = 0; i < unit; ++i) {
                float probability = exp2f(unit_value(v, i, type) * LOG2E - top);
                d[i] = ignored ? 0.0f : (probability - (u * unit + i == label ? 1.0f : 0.0f)) * g;
            }
            if (type == DW_F32) {
                v = make_uint4(__float_as_uint(d[0]), __float_as_uint(d[1]), __float_as_uint(d[2]),
                               __float_as_uint(d[3]));
            } else {
                v = make_uint4(pack_pair(d[0], d[1], type), pack_pair(d[2], d[3], type), pack_pair(d[4], d[5], type),
                               pack_pair(d[6], d[7], type));
            }
            st_global_v4(out + u * 16, v);
        }
        tail = units * unit;
    }
    for (int64_t i = tail + (int64_t)blockIdx.y * THREADS + threadIdx.x; i < p->vocabulary; i += stride) {
        float probability = exp2f(element(row, i, type) * LOG2E - top);
        store_element(out, i, ignored ? 0.0f : (probability - (i == label ? 1.0f : 0.0f)) * g, type);
    }
}

#define CROSS_ENTROPY(name, type)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        cross_entropy_##name(const __grid_constant__ dw_cuda_cross_entropy_params p) {                                 \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        forward(&p, type);                                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        cross_entropy_backward_##name(const __grid_constant__ dw_cuda_cross_entropy_params p) {                        \
        griddepcontrol_wait();                                                                                         \
        griddepcontrol_launch_dependents();                                                                            \
        backward(&p, type);                                                                                            \
    }

CROSS_ENTROPY(bf16, DW_BF16)
CROSS_ENTROPY(f16, DW_F16)
CROSS_ENTROPY(f32, DW_F32)
