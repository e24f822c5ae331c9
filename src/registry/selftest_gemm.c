/* Proves one Hopper matrix kernel against sums in double precision that are computed here: shapes around its tile and
 * its ring of stages, groups of any size, sums of small integers, which must be exact, and random operands, whose
 * result may be off by what the tensor core and the roundings cost. Everything around the operands is NaN, and every
 * byte that is not an element of the result must be what it was. The operands come from the kernel's form. */
#include "registry/selftest_gemm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

enum { WORKSPACE = 8 << 20, FENCE = 256, POISON = 0x5A };

/* ---- memory ---- */

uint8_t *dw_gemm_bench_take(dw_gemm_bench *on, size_t bytes) {
    size_t at = (on->used + FENCE + 255) / 256 * 256;
    on->full |= at + bytes + FENCE > WORKSPACE;
    if (on->full) return on->before;
    on->used = at + bytes + FENCE;
    return on->before + at;
}

/* What the kernel is given for an address in `before`. */
static void *address(const dw_gemm_bench *on, const uint8_t *host) {
    return (uint8_t *)on->device->workspace + (host - on->before);
}

dw_tensor dw_gemm_bench_view(const dw_gemm_bench *on, const uint8_t *host, dw_dtype dtype, int64_t rows, int64_t cols,
                             int64_t ld) {
    dw_tensor tensor = dw_matrix(address(on, host), dtype, rows, cols);
    tensor.strides[0] = ld;
    tensor.device_type = DW_DEVICE_CUDA;
    tensor.device_id = on->device->id;
    return tensor;
}

dw_tensor dw_gemm_bench_stack(const dw_gemm_bench *on, const uint8_t *host, dw_dtype dtype, int64_t groups,
                              int64_t rows, int64_t cols) {
    dw_tensor tensor = dw_gemm_bench_view(on, host, dtype, groups, rows, cols);
    tensor.rank = 3;
    tensor.shape[2] = cols;
    tensor.strides[0] = rows * cols;
    tensor.strides[1] = cols;
    tensor.strides[2] = 1;
    return tensor;
}

/* ---- numbers ---- */

double dw_gemm_bench_unit(dw_gemm_bench *on) {
    return (double)(dw_random_next(&on->random) >> 11) * 0x1p-53;
}

double dw_gemm_bench_normal(dw_gemm_bench *on) {
    double sum = -2;
    for (int i = 0; i < 4; i++)
        sum += dw_gemm_bench_unit(on);
    return sum;
}

uint32_t dw_gemm_bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint16_t dw_gemm_to_bf16(double value) {
    uint32_t bits = dw_gemm_bits_of((float)value);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

double dw_gemm_from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* What a number becomes in the result's type. */
static double rounded(const dw_gemm_bench *on, double value) {
    return on->form.out_f32 ? (double)(float)value : dw_gemm_from_bf16(dw_gemm_to_bf16(value));
}

static double load(const dw_gemm_bench *on, const uint8_t *d, int64_t index) {
    if (!on->form.out_f32) {
        uint16_t half;
        memcpy(&half, d + 2 * index, sizeof half);
        return dw_gemm_from_bf16(half);
    }
    float value;
    memcpy(&value, d + 4 * index, sizeof value);
    return (double)value;
}

static void store(const dw_gemm_bench *on, uint8_t *d, int64_t index, double value) {
    if (on->form.out_f32) {
        uint32_t bits = dw_gemm_bits_of((float)value);
        memcpy(d + 4 * index, &bits, sizeof bits);
    } else {
        uint16_t half = dw_gemm_to_bf16(value);
        memcpy(d + 2 * index, &half, sizeof half);
    }
}

/* ---- results ---- */

typedef struct result_matrix {
    uint8_t *memory;
    int64_t rows, cols, ld;
    double error, expected, size, rounding; /* squared norms over all products */
    double first_rounding;                  /* of what was rounded once before it was added */
} result_matrix;

/* One of the products a case is made of: these rows and this stretch of the reduction. */
typedef struct product {
    int64_t a_row, rows, k, depth, b_row, d_row;
} product;

static void mismatch(dw_gemm_bench *on, const char *text) {
    if (on->result->mismatches++ == 0)
        snprintf(on->result->first_mismatch, sizeof on->result->first_mismatch, "%.90s: %.70s, seed %llu", on->what,
                 text, (unsigned long long)on->seed);
}

static void check_element(dw_gemm_bench *on, const dw_gemm_case *c, result_matrix *d, int64_t row, int64_t col,
                          double sum, double size, double bias) {
    const int64_t at = row * d->ld + col;
    const double rounding = on->form.out_f32 ? 0x1p-22 : 0x1p-8;
    const double old = c->accumulate ? load(on, d->memory, at) : 0;
    const double got = load(on, on->after + (d->memory - on->before), at);
    const double wanted = sum + bias + old, error = fabs(got - wanted);
    size += fabs(bias) + fabs(old);
    bool good;
    if (isnan(wanted)) {
        good = isnan(got);
    } else if (c->exact) {
        good = got == rounded(on, wanted);
    } else {
        good = error <= size * (on->form.worst(c->k) + 2 * rounding) + 1e-30;
        const double slack = on->form.out_f32 ? 4 : 1; /* FP32 sums are rounded more than once */
        const double off = slack * (rounded(on, wanted) - wanted), first = slack * (rounded(on, sum) - sum);
        d->error += error * error;
        d->expected += wanted * wanted;
        d->size += size * size;
        d->rounding += off * off;
        if (c->accumulate) d->first_rounding += first * first;
    }
    if (good) return;
    if (on->result->mismatches > 0) { /* the first one is told */
        on->result->mismatches++;
        return;
    }
    char text[96];
    snprintf(text, sizeof text, "d[%lld, %lld] is %.9g, expected %.9g", (long long)row, (long long)col, got, wanted);
    mismatch(on, text);
}

/* Multiplies in double precision and compares. */
static void check_product(dw_gemm_bench *on, const dw_gemm_case *c, const product *p, const dw_gemm_matrix *a,
                          const dw_gemm_matrix *b, const double *bias, double *sums, result_matrix *d) {
    double *sizes = sums + d->cols;
    for (int64_t i = 0; i < p->rows; i++) {
        memset(sums, 0, (size_t)(2 * d->cols) * sizeof *sums);
        for (int64_t k = p->k; k < p->k + p->depth; k++) {
            const double x = a->values[(p->a_row + i) * a->cols + k];
            const double *line = b->values + k * b->rows + p->b_row;
            for (int64_t j = 0; j < d->cols; j++)
                sums[j] += x * line[j];
            for (int64_t j = 0; j < d->cols && !c->exact; j++)
                sizes[j] += fabs(x * line[j]);
        }
        for (int64_t j = 0; j < d->cols; j++)
            check_element(on, c, d, p->d_row + i, j, sums[j], sizes[j], bias ? bias[j] : 0);
    }
}

/* How far a number is from the nearest one of the result's type changes by no more than the number does, so sums that
 * are off by `off` end up within what rounding the exact ones costs and twice `off`; and where they go through the type
 * once more after something was added, that, in turn, is what they are then off by. */
static void check_norm(dw_gemm_bench *on, const dw_gemm_case *c, const result_matrix *d) {
    const double expected = sqrt(d->expected), size = sqrt(d->size) / 8, error = sqrt(d->error);
    double off = on->form.in_norm(c->k) * (expected > size ? expected : size);
    if (c->accumulate) off = sqrt(d->first_rounding) + 2 * off;
    const double bound = sqrt(d->rounding) + 2 * off;
    if (error <= bound) return;
    char text[96];
    snprintf(text, sizeof text, "the error's norm is %.4g, expected at most %.4g", error, bound);
    mismatch(on, text);
}

/* Every byte but those of D's elements in `written` rows is what it was. */
static void check_surroundings(dw_gemm_bench *on, const result_matrix *d, const bool *written) {
    const size_t size = on->form.out_f32 ? 4 : 2, begin = (size_t)(d->memory - on->before);
    for (int64_t r = 0; r < d->rows; r++)
        if (written[r]) {
            const size_t at = begin + (size_t)(r * d->ld) * size;
            memcpy(on->before + at, on->after + at, (size_t)d->cols * size);
        }
    if (memcmp(on->before, on->after, on->used) == 0) return;
    size_t at = 0;
    while (on->before[at] == on->after[at])
        at++;
    char text[96];
    snprintf(text, sizeof text, "a byte %lld from the start of d was written", (long long)at - (long long)begin);
    mismatch(on, text);
}

/* ---- a case ---- */

static dw_status run_on_device(dw_gemm_bench *on, const dw_gemm_case *c, const dw_gemm_matrix *a,
                               const dw_gemm_matrix *b, const result_matrix *d, const uint8_t *bias,
                               const uint8_t *ends) {
    const dw_cuda_driver *driver = on->scope.driver;
    const dw_cu_pointer there = (dw_cu_pointer)(uintptr_t)on->device->workspace;
    const dw_dtype type = on->form.out_f32 ? DW_F32 : DW_BF16;
    const int grouping = on->form.grouping;
    void *stream = on->device->stream;
    const uintptr_t begin = (uintptr_t)on->device->workspace, rest_at = (begin + on->used + 255) / 256 * 256;
    void *rest = (void *)rest_at; /* what follows is the product's own */
    const size_t rest_bytes = begin + WORKSPACE > rest_at ? begin + WORKSPACE - rest_at : 0;
    DW_TRY(dw_cuda_check(driver, driver->copy_to_device(there, on->before, on->used, stream), "cuMemcpyHtoDAsync",
                         "self-test on device %d", on->device->id));
    dw_status status;
    if (grouping == DW_GEMM_GROUPED_NONE) {
        dw_gemm_args args = {.a = a->view,
                             .b = b->view,
                             .d = dw_gemm_bench_view(on, d->memory, type, d->rows, d->cols, d->ld),
                             .accumulate = c->accumulate,
                             .workspace = rest,
                             .workspace_bytes = rest_bytes,
                             .backend = DW_GEMM_OWN};
        if (bias) {
            args.bias = dw_gemm_bench_view(on, bias, DW_BF16, c->n, 1, 1);
            args.bias.rank = 1;
        }
        status = dw_gemm_with_row(on->form.index, c->multiprocessors, &args, stream);
    } else {
        const bool along_m = grouping == DW_GEMM_GROUPED_M;
        dw_grouped_gemm_args args = {
            .a = a->view,
            .b = b->view,
            .d = along_m ? dw_gemm_bench_view(on, d->memory, type, d->rows, d->cols, d->ld)
                         : dw_gemm_bench_stack(on, d->memory, type, DW_GEMM_TEST_GROUPS, c->m, c->n),
            .ends = address(on, ends),
            .groups = DW_GEMM_TEST_GROUPS,
            .axis = along_m ? DW_GROUP_M : DW_GROUP_K,
            .accumulate = c->accumulate,
            .workspace = rest,
            .workspace_bytes = rest_bytes};
        status = on->form.grouped(on->form.index, c->multiprocessors, &args, stream);
    }
    if (status != DW_OK) return status;
    DW_TRY(dw_cuda_check(driver, driver->copy_to_host(on->after, there, on->used, stream), "cuMemcpyDtoHAsync",
                         "self-test on device %d", on->device->id));
    return dw_cuda_check(driver, driver->stream_synchronize(stream), "cuStreamSynchronize", "self-test on device %d",
                         on->device->id);
}

/* The products a case is made of, and where its groups end. */
static int products_of(const dw_gemm_bench *on, const dw_gemm_case *c, product products[DW_GEMM_TEST_GROUPS],
                       int32_t ends[DW_GEMM_TEST_GROUPS]) {
    if (on->form.grouping == DW_GEMM_GROUPED_NONE) {
        products[0] = (product){.rows = c->m, .depth = c->k};
        return 1;
    }
    const bool along_m = on->form.grouping == DW_GEMM_GROUPED_M;
    int64_t begin = 0;
    for (int g = 0; g < DW_GEMM_TEST_GROUPS; g++) {
        products[g] =
            along_m ? (product){.a_row = begin, .rows = c->sizes[g], .depth = c->k, .b_row = g * c->n, .d_row = begin}
                    : (product){.rows = c->m, .k = begin, .depth = c->sizes[g], .d_row = g * c->m};
        begin += c->sizes[g];
        ends[g] = (int32_t)begin;
    }
    return DW_GEMM_TEST_GROUPS;
}

/* D poisoned, or, to be added to, with numbers. */
static void make_result(dw_gemm_bench *on, const dw_gemm_case *c, result_matrix *d) {
    const int64_t size = on->form.out_f32 ? 4 : 2;
    d->memory = dw_gemm_bench_take(on, (size_t)(d->rows * d->ld * size));
    if (on->full) return;
    memset(d->memory, POISON, (size_t)(d->rows * d->ld * size));
    for (int64_t i = 0; i < d->rows && c->accumulate; i++)
        for (int64_t j = 0; j < d->cols; j++) {
            double old =
                c->exact ? (double)dw_random_between(&on->random, -64, 64) : 4096 * (dw_gemm_bench_unit(on) - 0.5);
            store(on, d->memory, i * d->ld + j, old);
        }
}

typedef struct case_memory {
    dw_gemm_matrix a, b;
    double *bias, *sums;
    bool *written;
} case_memory;

static dw_status draw_operand(dw_gemm_bench *on, dw_gemm_matrix *o, const dw_gemm_case *c) {
    o->values = malloc((size_t)(o->rows * o->cols) * sizeof *o->values);
    if (!o->values) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for the self-test of %s", on->form.name);
    on->form.draw(on, o, c);
    return DW_OK;
}

static dw_status run_case(dw_gemm_bench *on, const dw_gemm_case *c, case_memory *of) {
    const bool along_m = on->form.grouping == DW_GEMM_GROUPED_M, along_k = on->form.grouping == DW_GEMM_GROUPED_K;
    product products[DW_GEMM_TEST_GROUPS];
    int32_t ends[DW_GEMM_TEST_GROUPS];
    const int count = products_of(on, c, products, ends);
    memset(on->before, 0xFF, WORKSPACE); /* NaN in every type */
    on->used = 0;
    of->a = (dw_gemm_matrix){.rows = c->m, .cols = c->k};
    of->b = (dw_gemm_matrix){.rows = along_m ? DW_GEMM_TEST_GROUPS * c->n : c->n,
                             .cols = c->k,
                             .is_b = true,
                             .group_rows = along_m ? c->n : 0};
    const int64_t pad = along_k ? 0 : 8 * dw_random_between(&on->random, 0, 3);
    result_matrix d = {.rows = along_k ? DW_GEMM_TEST_GROUPS * c->m : c->m, .cols = c->n, .ld = c->n + pad};
    DW_TRY(draw_operand(on, &of->a, c));
    DW_TRY(draw_operand(on, &of->b, c));
    make_result(on, c, &d);
    uint8_t *bias = c->has_bias ? dw_gemm_bench_take(on, (size_t)c->n * 2) : NULL,
            *there = dw_gemm_bench_take(on, sizeof ends);
    of->sums = malloc((size_t)(2 * c->n) * sizeof *of->sums);
    of->bias = malloc((size_t)c->n * sizeof *of->bias);
    of->written = calloc((size_t)d.rows, sizeof *of->written);
    if (on->full || !of->sums || !of->bias || !of->written)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for the self-test of %s, %s", on->form.name, on->what);
    memcpy(there, ends, sizeof ends);
    for (int64_t j = 0; bias && j < c->n; j++) {
        uint16_t half = dw_gemm_to_bf16(c->exact ? (double)dw_random_between(&on->random, -8, 8)
                                                 : 256 * (dw_gemm_bench_unit(on) - 0.5));
        memcpy(bias + 2 * j, &half, sizeof half);
        of->bias[j] = dw_gemm_from_bf16(half);
    }
    DW_TRY(run_on_device(on, c, &of->a, &of->b, &d, bias, there));
    for (int i = 0; i < count; i++) {
        check_product(on, c, &products[i], &of->a, &of->b, bias ? of->bias : NULL, of->sums, &d);
        for (int64_t r = 0; r < products[i].rows; r++)
            of->written[products[i].d_row + r] = true;
    }
    if (!c->exact) check_norm(on, c, &d);
    check_surroundings(on, &d, of->written);
    return DW_OK;
}

/* Fills in what a case leaves open and runs it: with a bias, accumulating and neither in turn. A kernel that cannot be
 * started has failed. */
static dw_status run(dw_gemm_bench *on, dw_gemm_case c, bool has_nan) {
    const dw_gemm_form *form = &on->form;
    const int64_t turn = on->result->cases++ % 3;
    c.row_layout = dw_random_next(&on->random) & 1;
    c.has_bias = turn == 0 && form->grouping == DW_GEMM_GROUPED_NONE;
    /* Where BF16 is added to, the sum has gone through BF16 before: tested with a tolerance only. */
    c.accumulate =
        turn == 1 && (form->adds_to_rows || form->grouping != DW_GEMM_GROUPED_M) && (form->out_f32 || !c.exact);
    c.m = dw_gemm_round_up(c.m, form->m_unit);
    c.n = dw_gemm_round_up(c.n, form->out_f32 ? 4 : 8);
    c.nan_row = has_nan ? dw_random_between(&on->random, 0, c.m - 1) : -1;
    const char *few_blocks = form->grouping == DW_GEMM_GROUPED_K ? " on two multiprocessors" : " in parts";
    snprintf(on->what, sizeof on->what, "%s [%lld, %lld, %lld]%s%s%s", c.exact ? "integers" : "random", (long long)c.m,
             (long long)c.n, (long long)c.k, c.multiprocessors ? few_blocks : "", c.has_bias ? " with bias" : "",
             c.accumulate ? ", accumulating" : "");
    case_memory of = {0};
    dw_status status = run_case(on, &c, &of);
    free(of.a.values);
    free(of.b.values);
    free(of.sums);
    free(of.bias);
    free(of.written);
    if (status == DW_OK || status == DW_ERROR_OUT_OF_MEMORY) return status;
    mismatch(on, dw_last_error());
    return DW_OK;
}

/* Rows of A in groups: a ragged one, an empty one, a small one, and in `depth` what is left but the last few rows,
 * which belong to none. Or the reduction: a small group, an empty one, one of more than the ring holds, a small one,
 * and what belongs to none. */
static dw_gemm_case grouped(const dw_gemm_form *form, int64_t m, int64_t n, int64_t depth) {
    const int tile_m = form->tile_m;
    dw_gemm_case c = {.m = m, .n = n, .k = depth};
    if (form->grouping == DW_GEMM_GROUPED_M) {
        const int64_t sizes[DW_GEMM_TEST_GROUPS] = {tile_m + 5, 0, 3, m > tile_m + 30 ? m - tile_m - 20 : 0};
        memcpy(c.sizes, sizes, sizeof sizes);
        c.m = sizes[0] + sizes[2] + sizes[3] + 9;
    } else if (form->grouping == DW_GEMM_GROUPED_K) {
        const int64_t sizes[DW_GEMM_TEST_GROUPS] = {form->group_first, 0, dw_gemm_round_up(depth, form->group_unit),
                                                    form->group_last};
        memcpy(c.sizes, sizes, sizeof sizes);
        c.k = sizes[0] + sizes[2] + sizes[3] + 48;
    }
    return c;
}

/* Three tiles of few rows for two workers, so that one is left over: with the longer reduction it alone is split, with
 * the shorter one all are. */
static dw_status run_parts(dw_gemm_bench *on, bool few) {
    const int64_t span_n = on->form.tile_n * (on->form.shares_a ? 2 : 1);
    const bool along_m = on->form.grouping == DW_GEMM_GROUPED_M;
    for (int exact = few; exact < 2; exact++) {
        dw_gemm_case c = {.m = 20, .n = along_m ? span_n - 8 : 2 * span_n + 16, .k = exact ? 2560 + 32 : 34 * 128};
        const int64_t sizes[DW_GEMM_TEST_GROUPS] = {9, 0, 7, 3};
        if (along_m) memcpy(c.sizes, sizes, sizeof sizes);
        c.exact = exact;
        c.multiprocessors = on->form.shares_a || on->form.shares_b ? 4 : 2;
        DW_TRY(run(on, c, false));
    }
    return DW_OK;
}

/* One long group, and others of the reduction, a tile each, on two multiprocessors: the long one's tile is split. */
static dw_status run_long(dw_gemm_bench *on, bool few) {
    for (int exact = few; exact < 2; exact++) {
        dw_gemm_case c = {.m = 20, .n = on->form.tile_n - 8, .k = 128 + 34 * 128 + 256 + 48};
        const int64_t sizes[DW_GEMM_TEST_GROUPS] = {128, 0, 34 * 128, 256};
        memcpy(c.sizes, sizes, sizeof sizes);
        c.exact = exact;
        c.multiprocessors = 2;
        DW_TRY(run(on, c, false));
    }
    return DW_OK;
}

static dw_status run_shapes(dw_gemm_bench *on, bool few) {
    const int64_t tm = on->form.tile_m, tn = on->form.tile_n, ring = on->form.ring;
    const int64_t wide_m = on->form.shares_b ? tm + 72 : 0, wide_n = on->form.shares_a ? tn : 0;
    /* For a first use: integers in two tiles along each axis, round the ring, and random numbers in a ragged tile. */
    const int64_t shapes[][3] = {
        {tm + 8 + wide_m, tn + 16 + wide_n, ring + 16},
        {tm - 3, tn - 8, 144},
        {1, 8, 16},
        {4, tn, 128},
        {tm, tn, 128},
        {tm + 1, 8, 272},
        {2 * tm + 5, 2 * tn + 8, 640},
        {dw_random_between(&on->random, 1, 2 * tm), 8 * dw_random_between(&on->random, 1, tn / 4),
         16 * dw_random_between(&on->random, 1, 70)},
    };
    enum { SHAPES = sizeof shapes / sizeof *shapes };
    for (int i = 0; i < (few ? 2 : SHAPES); i++)
        for (int exact = 0; exact < 2; exact++) {
            if (few && exact != (i == 0)) continue;
            dw_gemm_case c = grouped(&on->form, shapes[i][0], shapes[i][1], shapes[i][2]);
            c.exact = exact;
            /* So few that most tiles are dealt, by a kernel that deals them. */
            if (exact && on->form.grouping == DW_GEMM_GROUPED_K) c.multiprocessors = 2;
            DW_TRY(run(on, c, !few && !exact && i % 2));
        }
    if (on->form.splits) DW_TRY(on->form.grouping == DW_GEMM_GROUPED_K ? run_long(on, few) : run_parts(on, few));
    return DW_OK;
}

size_t dw_gemm_selftest_workspace(void) {
    return WORKSPACE;
}

dw_status dw_gemm_selftest(size_t gemm, bool few, uint64_t seed, const dw_selftest_device *device,
                           dw_selftest_result *result) {
    *result = (dw_selftest_result){0};
    const size_t scaled = dw_gemm_sm90_count();
    dw_gemm_bench on = {.form = gemm < scaled ? dw_gemm_scaled_form(gemm) : dw_gemm_bf16_form(gemm - scaled),
                        .seed = seed,
                        .random = {seed},
                        .device = device,
                        .result = result};
    uint8_t *memory = malloc(2 * (size_t)WORKSPACE);
    if (!memory) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for the self-test of %s", on.form.name);
    on.before = memory;
    on.after = memory + WORKSPACE;
    dw_status status = dw_cuda_enter(device->id, &on.scope);
    if (status == DW_OK) {
        status = run_shapes(&on, few);
        dw_cuda_leave(&on.scope);
    }
    free(memory);
    if (status == DW_OK && result->mismatches)
        return dw_fail(DW_ERROR_SELFTEST, "kernel %s differs from the reference in %lld elements; first %s",
                       on.form.name, (long long)result->mismatches, result->first_mismatch);
    return status;
}
