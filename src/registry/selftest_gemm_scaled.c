/* What the self-test of the block-scaled matrix kernels brings: E4M3 operands with scales of either kind, and how far
 * the tensor core's sums of them may be off. */
#include <math.h>
#include <string.h>

#include "formats/fp8.h"
#include "registry/selftest_gemm.h"

enum { BLOCK = 128 };

/* In each of the four steps of a block the tensor core aligns 32 products and the sum so far to the largest and keeps
 * about 14 bits, rounding toward zero, so each of 33 addends loses less than 2^-13 of the largest: 4 * 33 * 2^-13 <
 * 2^-5.9 of the terms' magnitudes at the very worst for one element, and 2^-11 in norm over many. */
static double worst(int64_t k) {
    (void)k;
    return 0.0168;
}

static double in_norm(int64_t k) {
    (void)k;
    return 0x1p-11;
}

static double decode_e4m3(uint8_t code) {
    int exponent = code >> 3 & 15, fraction = code & 7;
    double value = (code & 0x7F) == 0x7F ? (double)NAN
                   : exponent            ? ldexp(8 + fraction, exponent - 10)
                                         : ldexp(fraction, -9);
    return code & 0x80 ? -value : value;
}

/* An integer in -3..3, or about a normal number whose block reaches a good part of E4M3's range. */
static uint8_t draw_element(dw_gemm_bench *on, bool exact) {
    float value = exact ? (float)dw_random_between(&on->random, -3, 3) : (float)(120 * dw_gemm_bench_normal(on));
    return dw_fp8_encode(dw_fp8(DW_E4M3), dw_gemm_bits_of(value), 0);
}

/* Draws the scale of each block, writes it where the kernel looks for it, and applies it to the decoded values. */
static void draw_scales(dw_gemm_bench *on, dw_gemm_matrix *o, bool square, const dw_gemm_case *c) {
    const int64_t height = square ? BLOCK : 1, groups = square && o->group_rows ? o->rows / o->group_rows : 1;
    const int64_t group_rows = groups > 1 || o->group_rows ? o->group_rows : o->rows;
    const int64_t down = square ? groups * ((group_rows + BLOCK - 1) / BLOCK) : o->rows;
    const int64_t across = (o->cols + BLOCK - 1) / BLOCK;
    const bool f32 = on->form.scale_f32, by_row = !f32 && square && c->row_layout;
    int64_t row_step, col_step, count;
    if (by_row || (f32 && square)) {
        row_step = f32 ? dw_gemm_round_up(across, 4) : across;
        col_step = 1;
        count = down * row_step;
    } else {
        row_step = 1;
        col_step = f32 ? down : dw_gemm_round_up(down, 16);
        count = across * col_step;
    }
    uint8_t *memory = dw_gemm_bench_take(on, (size_t)count * (f32 ? 4 : 1));
    if (on->full) return;
    memset(memory, 0, (size_t)count * (f32 ? 4 : 1));
    for (int64_t r = 0; r < down; r++)
        for (int64_t b = 0; b < across; b++) {
            const int range = c->exact ? 1 : 4;
            const int exponent = (int)dw_random_between(&on->random, -range, range);
            float scale = ldexpf(c->exact || !f32 ? 1 : 1 + (float)dw_gemm_bench_unit(on), exponent);
            const int64_t at = r * row_step + b * col_step;
            const int64_t first = square ? r / ((group_rows + BLOCK - 1) / BLOCK) * group_rows +
                                               r % ((group_rows + BLOCK - 1) / BLOCK) * BLOCK
                                         : r;
            const int64_t group_end = square ? (first / group_rows + 1) * group_rows : o->rows;
            const bool is_nan = !o->is_b && r == c->nan_row && b == 0;
            if (f32) {
                uint32_t bits = is_nan ? 0x7FC00000u : dw_gemm_bits_of(scale);
                memcpy(memory + 4 * at, &bits, sizeof bits);
            } else {
                memory[at] = is_nan ? 255 : (uint8_t)(127 + exponent);
            }
            for (int64_t i = first; i < first + height && i < group_end; i++)
                for (int64_t j = b * BLOCK; j < o->cols && j < (b + 1) * BLOCK; j++)
                    *dw_gemm_value(o, i, j) *= (double)scale;
        }
    o->view.scaling = square ? DW_GEMM_128X128 : DW_GEMM_1X128;
    o->view.layout = f32 || by_row ? DW_SCALE_ROW : DW_SCALE_MN_MAJOR;
    const bool grid_transposed = !f32 && !by_row;
    o->view.scale = dw_gemm_bench_view(on, memory, f32 ? DW_F32 : DW_E8M0, grid_transposed ? across : down,
                                       grid_transposed ? col_step : across, grid_transposed ? col_step : row_step);
    if (f32) o->view.scale.strides[1] = col_step;
}

static void draw(dw_gemm_bench *on, dw_gemm_matrix *o, const dw_gemm_case *c) {
    const int64_t ld = o->cols + (o->group_rows ? 0 : 16 * dw_random_between(&on->random, 0, 2));
    uint8_t *data = dw_gemm_bench_take(on, (size_t)(o->rows * ld));
    if (on->full) return;
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t j = 0; j < o->cols; j++) {
            uint8_t code = !o->is_b && i == c->nan_row && j < BLOCK ? DW_FP8_NAN : draw_element(on, c->exact);
            data[i * ld + j] = code;
            *dw_gemm_value(o, i, j) = decode_e4m3(code);
        }
    draw_scales(on, o, o->is_b && !on->form.b_vector, c);
    o->view.data = o->group_rows ? dw_gemm_bench_stack(on, data, DW_E4M3, DW_GEMM_TEST_GROUPS, o->group_rows, o->cols)
                                 : dw_gemm_bench_view(on, data, DW_E4M3, o->rows, o->cols, ld);
}

dw_gemm_form dw_gemm_scaled_form(size_t index) {
    const dw_gemm_sm90_row *row = dw_gemm_sm90_get(index);
    return (dw_gemm_form){.name = row->name,
                          .index = (int)index,
                          .grouping = row->grouping,
                          .tile_m = row->tile_m,
                          .tile_n = row->tile_n,
                          .ring = (row->stages + 1) * (int64_t)BLOCK,
                          .group_first = BLOCK,
                          .group_last = BLOCK,
                          .group_unit = BLOCK,
                          .m_unit = row->scale_f32 ? 4 : 1,
                          .shares_a = row->multicast == DW_GEMM_SHARES_A,
                          .shares_b = row->multicast == DW_GEMM_SHARES_B,
                          .out_f32 = row->out_f32,
                          .scale_f32 = row->scale_f32,
                          .b_vector = row->b_vector,
                          .splits = row->splits,
                          .worst = worst,
                          .in_norm = in_norm,
                          .draw = draw,
                          .grouped = dw_grouped_gemm_with_row};
}
