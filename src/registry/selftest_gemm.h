/* What the self-tests of the matrix kernels share, and what each kind of them brings: its operands and its tolerance.
 * Internal to the registry. */
#ifndef DW_REGISTRY_SELFTEST_GEMM_H
#define DW_REGISTRY_SELFTEST_GEMM_H

#include "cuda/host/gemm_sm90.h"
#include "registry/selftest_data.h"
#include "registry/table.h"

enum { DW_GEMM_TEST_GROUPS = 4 };

typedef struct dw_gemm_case {
    int64_t m, n, k;
    int64_t sizes[DW_GEMM_TEST_GROUPS]; /* of groups */
    bool exact, has_bias, accumulate, row_layout;
    int64_t nan_row;     /* of A, whose first elements are NaN; -1: none */
    int multiprocessors; /* at most so many; 0: all there are */
} dw_gemm_case;

typedef struct dw_gemm_matrix {
    double *values;       /* decoded: A by rows, B transposed */
    dw_gemm_operand view; /* as the kernel gets it */
    bool is_b;
    int64_t rows, cols;
    int64_t group_rows; /* rows of one of B's groups, each of which begins anew; 0: it is one matrix */
} dw_gemm_matrix;

struct dw_gemm_bench;

/* A kernel, as far as its self-test knows it. */
typedef struct dw_gemm_form {
    const char *name;
    int index; /* among its kind */
    dw_gemm_grouping grouping;
    int tile_m, tile_n;
    int64_t ring; /* steps of the reduction: what its stages hold, and one more */
    /* Of a reduction in groups: the sizes of the first and the last, and what those of others are multiples of. */
    int64_t group_first, group_last, group_unit;
    int m_unit;                                  /* what M is a multiple of */
    bool shares_a, shares_b;                     /* two blocks do, so that they make one tile */
    bool out_f32, scale_f32, b_vector, b_across; /* as in the rows */
    bool adds_to_rows;                           /* accumulation is tested along M too */
    bool splits;                                 /* tiles along the reduction, where they fill no wave */
    /* Random sums over `k` are off by at most `worst` of their terms' magnitudes, and in norm by `in_norm` of the
     * larger of the result's and an eighth of the magnitudes'. */
    double (*worst)(int64_t k);
    double (*in_norm)(int64_t k);
    /* Writes an operand where the kernel will read it, and fills in `values`, which are there, and `view`. */
    void (*draw)(struct dw_gemm_bench *on, dw_gemm_matrix *o, const dw_gemm_case *c);
    dw_status (*grouped)(int index, int multiprocessors, const dw_grouped_gemm_args *args, void *stream);
} dw_gemm_form;

typedef struct dw_gemm_bench {
    dw_gemm_form form;
    uint64_t seed;
    dw_random random;
    const dw_selftest_device *device;
    dw_cuda_scope scope;
    dw_selftest_result *result;
    char what[96];           /* the case in words */
    uint8_t *before, *after; /* the workspace as it is sent, and as it comes back */
    size_t used;
    bool full; /* a case did not fit */
} dw_gemm_bench;

/* Those of each kind, by their index in gemm_sm90.h and gemm_bf16.h. */
dw_gemm_form dw_gemm_scaled_form(size_t index);
dw_gemm_form dw_gemm_bf16_form(size_t index);

/* Memory of the workspace, in the host's buffer; sets `full` where there is none left. */
uint8_t *dw_gemm_bench_take(dw_gemm_bench *on, size_t bytes);

/* What the kernel is given for an address in the host's buffer: a matrix, and matrices one after another. */
dw_tensor dw_gemm_bench_view(const dw_gemm_bench *on, const uint8_t *host, dw_dtype dtype, int64_t rows, int64_t cols,
                             int64_t ld);
dw_tensor dw_gemm_bench_stack(const dw_gemm_bench *on, const uint8_t *host, dw_dtype dtype, int64_t groups,
                              int64_t rows, int64_t cols);

/* Uniform in [0, 1), and about normal with a standard deviation of 1 / sqrt(3). */
double dw_gemm_bench_unit(dw_gemm_bench *on);
double dw_gemm_bench_normal(dw_gemm_bench *on);

/* An operand's value at a row and a place in the reduction. */
static inline double *dw_gemm_value(const dw_gemm_matrix *o, int64_t row, int64_t k) {
    return &o->values[o->is_b ? k * o->rows + row : row * o->cols + k];
}

static inline int64_t dw_gemm_round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

uint32_t dw_gemm_bits_of(float value);
uint16_t dw_gemm_to_bf16(double value);
double dw_gemm_from_bf16(uint16_t half);

#endif
