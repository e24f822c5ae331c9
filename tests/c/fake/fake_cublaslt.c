#include "fake/fake_cublaslt.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT fake_lt_state fake_lt = {.version = 130000};

enum { OK = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, R_8F_E4M3 = 28, R_8F_E5M2 = 29 };
enum { SCALAR = 0, VEC32_UE8M0 = 2, VEC128_32F = 4, BLK128x128_32F = 5 };

typedef struct operation {
    int32_t trans_a, trans_b, bias_type, a_mode, b_mode;
    uint32_t epilogue;
    int8_t fast;
    const void *bias, *a_scale, *b_scale;
} operation;

typedef struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
} layout;

typedef struct preference {
    uint64_t workspace;
    uint32_t reduction_mask, alignment[4];
} preference;

typedef struct heuristic_result {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} heuristic_result;

EXPORT size_t cublasLtGetVersion(void);
EXPORT const char *cublasLtGetStatusName(int status);
EXPORT int cublasLtCreate(void **handle);
EXPORT int cublasLtMatmulDescCreate(operation **made, int compute, int scale);
EXPORT int cublasLtMatmulDescDestroy(operation *o);
EXPORT int cublasLtMatmulDescSetAttribute(operation *o, int attribute, const void *value, size_t bytes);
EXPORT int cublasLtMatrixLayoutCreate(layout **made, int type, uint64_t rows, uint64_t cols, int64_t ld);
EXPORT int cublasLtMatrixLayoutDestroy(layout *l);
EXPORT int cublasLtMatmulPreferenceCreate(preference **made);
EXPORT int cublasLtMatmulPreferenceDestroy(preference *p);
EXPORT int cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value, size_t bytes);
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, operation *o, layout *a, layout *b, layout *c, layout *d,
                                          preference *p, int requested, heuristic_result *results, int *returned);
EXPORT int cublasLtMatmul(void *handle, operation *o, const float *alpha, const void *a, layout *al, const void *b,
                          layout *bl, const float *beta, const void *c, layout *cl, void *d, layout *dl,
                          const uint64_t *algorithm, void *workspace, size_t workspace_bytes, void *stream);

size_t cublasLtGetVersion(void) {
    return fake_lt.version;
}

const char *cublasLtGetStatusName(int status) {
    return status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_FAKE";
}

int cublasLtCreate(void **handle) {
    *handle = malloc(1);
    atomic_fetch_add(&fake_lt.handles, 1);
    return OK;
}

int cublasLtMatmulDescCreate(operation **made, int compute, int scale) {
    if (compute != 68 || scale != R_32F) return INVALID_VALUE;
    *made = calloc(1, sizeof **made);
    (*made)->epilogue = 1;
    (*made)->bias_type = -1;
    atomic_fetch_add(&fake_lt.live, 1);
    return OK;
}

int cublasLtMatmulDescDestroy(operation *o) {
    atomic_fetch_sub(&fake_lt.live, 1);
    free(o);
    return OK;
}

int cublasLtMatmulDescSetAttribute(operation *o, int attribute, const void *value, size_t bytes) {
    struct {
        int attribute;
        void *field;
        size_t bytes;
    } known[] = {
        {3, &o->trans_a, 4},  {4, &o->trans_b, 4}, {7, &o->epilogue, 4},   {8, &o->bias, 8},    {17, &o->a_scale, 8},
        {18, &o->b_scale, 8}, {25, &o->fast, 1},   {26, &o->bias_type, 4}, {31, &o->a_mode, 4}, {32, &o->b_mode, 4},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == attribute) {
            if (bytes != known[i].bytes) return INVALID_VALUE;
            if (attribute >= 31 && fake_lt.version < 120800) return INVALID_VALUE;
            memcpy(known[i].field, value, bytes);
            return OK;
        }
    return INVALID_VALUE;
}

int cublasLtMatrixLayoutCreate(layout **made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    *made = malloc(sizeof **made);
    **made = (layout){type, rows, cols, ld};
    atomic_fetch_add(&fake_lt.live, 1);
    return OK;
}

int cublasLtMatrixLayoutDestroy(layout *l) {
    atomic_fetch_sub(&fake_lt.live, 1);
    free(l);
    return OK;
}

int cublasLtMatmulPreferenceCreate(preference **made) {
    *made = malloc(sizeof **made);
    **made = (preference){0, 7, {256, 256, 256, 256}};
    atomic_fetch_add(&fake_lt.live, 1);
    return OK;
}

int cublasLtMatmulPreferenceDestroy(preference *p) {
    atomic_fetch_sub(&fake_lt.live, 1);
    free(p);
    return OK;
}

int cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value, size_t bytes) {
    if (attribute == 1 && bytes == 8) return memcpy(&p->workspace, value, 8), OK;
    if (attribute == 3 && bytes == 4) return memcpy(&p->reduction_mask, value, 4), OK;
    if (attribute >= 5 && attribute <= 8 && bytes == 4) return memcpy(&p->alignment[attribute - 5], value, 4), OK;
    return INVALID_VALUE;
}

static int is_fp8(int type) {
    return type == R_8F_E4M3 || type == R_8F_E5M2;
}

/* What the documentation allows. */
static int supported(const operation *o, const layout *a, const layout *b, const layout *d) {
    int modes_differ = o->a_mode != o->b_mode;
    if (a->rows != b->rows || d->rows != a->cols || d->cols != b->cols) return 0; /* TN: both K x something */
    if (o->trans_a != 1 || o->trans_b != 0) return 0;
    if (is_fp8(a->type) != is_fp8(b->type)) return 0;
    if (!is_fp8(a->type)) return a->type == b->type && !o->a_scale && !o->b_scale && !o->a_mode && !o->b_mode;
    if (!o->a_scale || !o->b_scale || a->rows % 16) return 0;
    if (modes_differ && !(o->a_mode + o->b_mode == VEC128_32F + BLK128x128_32F)) return 0;
    if (o->a_mode == BLK128x128_32F && o->b_mode == BLK128x128_32F) return 0;
    if (o->epilogue == 4 && o->bias_type != (d->type == R_16F ? R_16F : R_16BF)) return 0;
    return 1;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, operation *o, layout *a, layout *b, layout *c, layout *d,
                                   preference *p, int requested, heuristic_result *results, int *returned) {
    if (!handle || requested != 1 || c->type != d->type) return INVALID_VALUE;
    atomic_fetch_add(&fake_lt.heuristics, 1);
    memcpy(fake_lt.alignments, p->alignment, sizeof p->alignment);
    fake_lt.reduction_mask = p->reduction_mask;
    *returned = 0;
    if (fake_lt.no_kernel || !supported(o, a, b, d) || p->workspace < FAKE_LT_WORKSPACE) return NOT_SUPPORTED;
    memset(results, 0, sizeof *results);
    results->algorithm[3] = 0xA160;
    results->workspace = FAKE_LT_WORKSPACE;
    *returned = 1;
    return OK;
}

/* ---- arithmetic ---- */

static double from_bits(uint32_t bits, int exponent_bits, int mantissa_bits, int bias, int has_infinity) {
    uint32_t mantissa = bits & ((1u << mantissa_bits) - 1),
             exponent = bits >> mantissa_bits & ((1u << exponent_bits) - 1);
    uint32_t top = (1u << exponent_bits) - 1;
    double sign = bits >> (mantissa_bits + exponent_bits) & 1 ? -1 : 1, one = (double)(1u << mantissa_bits);
    if (exponent == top && (has_infinity || mantissa + 1 == 1u << mantissa_bits))
        return has_infinity && !mantissa ? sign * INFINITY : NAN;
    if (!exponent) return sign * ldexp(mantissa / one, 1 - bias);
    return sign * ldexp(1 + mantissa / one, (int)exponent - bias);
}

static double load(const void *data, int type, int64_t index) {
    switch (type) {
    case R_32F: return ((const float *)data)[index];
    case R_16F: return from_bits(((const uint16_t *)data)[index], 5, 10, 15, 1);
    case R_16BF: return from_bits(((const uint16_t *)data)[index], 8, 7, 127, 1);
    case R_8F_E4M3: return from_bits(((const uint8_t *)data)[index], 4, 3, 7, 0);
    default: return from_bits(((const uint8_t *)data)[index], 5, 2, 15, 1);
    }
}

static void store(void *data, int type, int64_t index, double value) {
    float f = (float)value;
    if (type == R_32F) {
        ((float *)data)[index] = f;
    } else { /* BF16, to nearest even; F16 results are not used by the tests */
        uint32_t bits;
        memcpy(&bits, &f, 4);
        ((uint16_t *)data)[index] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}

/* The scale of element k of outer index `outer` (m of A, n of B), from the documentation. */
static double scale_of(const void *scale, int mode, int64_t outer, int64_t outers, int64_t k, int64_t ks) {
    int64_t blocks = (ks + 127) / 128, padded = (blocks + 3) / 4 * 4;
    switch (mode) {
    case VEC128_32F: return ((const float *)scale)[outer + outers * (k / 128)];
    case BLK128x128_32F: return ((const float *)scale)[k / 128 + padded * (outer / 128)];
    case VEC32_UE8M0: {
        int64_t inner = k / 32, inner_dimension = ((ks + 31) / 32 + 3) / 4 * 4;
        int64_t tile = (inner / 4 * 4 + outer / 128 * inner_dimension) * 128;
        int64_t offset = tile + (outer % 32) * 16 + (outer % 128 / 32) * 4 + inner % 4;
        int code = ((const uint8_t *)scale)[offset];
        return code == 255 ? NAN : ldexp(1.0, code - 127);
    }
    default: return scale ? *(const float *)scale : 1.0;
    }
}

int cublasLtMatmul(void *handle, operation *o, const float *alpha, const void *a, layout *al, const void *b, layout *bl,
                   const float *beta, const void *c, layout *cl, void *d, layout *dl, const uint64_t *algorithm,
                   void *workspace, size_t workspace_bytes, void *stream) {
    if (!handle || algorithm[3] != 0xA160 || !supported(o, al, bl, dl) || c != d || cl != dl) return INVALID_VALUE;
    if (workspace_bytes < FAKE_LT_WORKSPACE || !workspace || (uintptr_t)workspace % 256) return INVALID_VALUE;
    atomic_fetch_add(&fake_lt.multiplications, 1);
    fake_lt.first_scale = o->a_scale;
    fake_lt.second_scale = o->b_scale;
    fake_lt.bias = o->bias;
    fake_lt.a = a;
    fake_lt.b = b;
    fake_lt.workspace = workspace;
    fake_lt.workspace_bytes = workspace_bytes;
    fake_lt.stream = stream;
    fake_lt.beta = *beta;
    fake_lt.fast = o->fast;
    if (fake_lt.matmul_result) return fake_lt.matmul_result;
    int64_t m = (int64_t)al->cols, n = (int64_t)bl->cols, k = (int64_t)al->rows;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t x = 0; x < k; x++)
                sum += load(a, al->type, i * al->ld + x) * scale_of(o->a_scale, o->a_mode, i, m, x, k) *
                       load(b, bl->type, j * bl->ld + x) * scale_of(o->b_scale, o->b_mode, j, n, x, k);
            sum *= *alpha;
            if (o->epilogue == 4) sum += load(o->bias, o->bias_type < 0 ? dl->type : o->bias_type, i);
            if (*beta != 0) sum += *beta * load(c, cl->type, j * cl->ld + i);
            store(d, dl->type, j * dl->ld + i, sum);
        }
    return OK;
}
