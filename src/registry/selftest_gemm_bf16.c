/* What the self-test of the grouped BF16 kernels brings: operands lying either way, and how far their sums may be off.
 */
#include <math.h>
#include <string.h>

#include "cuda/host/gemm_bf16.h"
#include "registry/selftest_gemm.h"

enum { GROUP_FIRST = 70, GROUP_LAST = 5, NAN_ELEMENTS = 8 };

/* Each step of 16 aligns its products, which are exact, and the sum so far to the largest of them: 17 addends lose less
 * than 2^-23 of it each, so the K / 16 steps lose less than K * 2^-22 of the terms' magnitudes; in norm too, since it
 * holds for every element. */
static double worst(int64_t k) {
    return (double)k * 0x1p-22;
}

static double in_norm(int64_t k) {
    return 8 * worst(k);
}

/* Where an element lies. `across`: with the reduction from row to row, group by group of `height` rows. */
static int64_t place(const dw_gemm_matrix *o, bool across, int64_t height, int64_t ld, int64_t row, int64_t k) {
    return across ? (row / height * o->cols + k) * ld + row % height : row * ld + k;
}

/* Rows of A and steps of the reduction that belong to no group are NaN. So, where a row of A is to be NaN, are its
 * first elements, along K those of the third group, which begins in the middle of a stage, right behind the first. */
static double draw_element(dw_gemm_bench *on, const dw_gemm_matrix *o, const dw_gemm_case *c, int64_t row, int64_t k) {
    const bool along_k = on->form.grouping == DW_GEMM_GROUPED_K;
    const int64_t first = along_k ? c->sizes[0] : 0;
    int64_t grouped = 0;
    for (int g = 0; g < DW_GEMM_TEST_GROUPS; g++)
        grouped += c->sizes[g];
    if (along_k ? k >= grouped : !o->is_b && row >= grouped) return (double)NAN;
    if (!o->is_b && row == c->nan_row && k >= first && k < first + NAN_ELEMENTS) return (double)NAN;
    return c->exact ? (double)dw_random_between(&on->random, -3, 3)
                    : dw_gemm_from_bf16(dw_gemm_to_bf16(dw_gemm_bench_normal(on)));
}

static void draw(dw_gemm_bench *on, dw_gemm_matrix *o, const dw_gemm_case *c) {
    const bool along_k = on->form.grouping == DW_GEMM_GROUPED_K, across = along_k || (o->is_b && on->form.b_across);
    const int64_t height = o->group_rows ? o->group_rows : o->rows, inner = across ? height : o->cols;
    const int64_t ld = o->group_rows ? inner : dw_gemm_round_up(inner, 8) + 8 * dw_random_between(&on->random, 0, 2);
    uint8_t *data = dw_gemm_bench_take(on, (size_t)((across ? o->rows / height * o->cols : o->rows) * ld * 2));
    if (on->full) return;
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t k = 0; k < o->cols; k++) {
            const double value = draw_element(on, o, c, i, k);
            const uint16_t half = isnan(value) ? 0x7FC0 : dw_gemm_to_bf16(value);
            memcpy(data + 2 * place(o, across, height, ld, i, k), &half, sizeof half);
            *dw_gemm_value(o, i, k) = value;
        }
    dw_tensor *view = &o->view.data;
    if (o->group_rows)
        *view = dw_gemm_bench_stack(on, data, DW_BF16, DW_GEMM_TEST_GROUPS, height, o->cols);
    else
        *view = dw_gemm_bench_view(on, data, DW_BF16, o->rows, o->cols, ld);
    if (across) {
        view->strides[view->rank - 2] = 1;
        view->strides[view->rank - 1] = ld;
    }
}

dw_gemm_form dw_gemm_bf16_form(size_t index) {
    const dw_gemm_bf16_row *row = dw_gemm_bf16_get(index);
    return (dw_gemm_form){.name = row->name,
                          .index = (int)index,
                          .grouping = row->grouping,
                          .tile_m = DW_GEMM_BF16_TILE_M,
                          .tile_n = DW_GEMM_BF16_TILE_N,
                          .ring = (DW_GEMM_BF16_STAGES + 1) * DW_GEMM_BF16_BLOCK_K,
                          .group_first = GROUP_FIRST,
                          .group_last = GROUP_LAST,
                          .group_unit = 1,
                          .m_unit = 1,
                          .shares_b = row->pair,
                          .out_f32 = row->out_f32,
                          .b_across = row->b_across,
                          .adds_to_rows = true,
                          .worst = worst,
                          .in_norm = in_norm,
                          .draw = draw,
                          .grouped = dw_grouped_gemm_bf16_with_row};
}
