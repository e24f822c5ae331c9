/* Statistics of quantization against sums over the second statement. */
#include "matrices.h"

/* What the header says, computed from the statement's own quantization. */
static dw_quantize_stats state_stats(const dw_quantize_spec *spec, const void *source, dw_dtype dtype, int64_t ld,
                                     int64_t rows, int64_t cols) {
    dw_quantized q = make_quantized(spec, rows, cols);
    const uint8_t *data = q.data.data, *codes = q.scale.data;
    state_quantized(spec, source, dtype, ld, 1, rows, cols, q.data.data, q.scale.data);
    number_format format = format_of(spec->element);
    double largest = format.magnitude[format.finite - 1];
    int64_t wide = spec->block == DW_BLOCK_1X32 ? 32 : 128, high = spec->block == DW_BLOCK_128X128 ? 128 : 1;
    dw_quantize_stats stats = {.elements = rows * cols};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double x = number_at(source, dtype, r * ld + c);
            int code = codes[r / high * ((cols + wide - 1) / wide) + c / wide];
            if (x != 0) stats.nonzero++;
            if (isfinite(x)) stats.amax = fmax(stats.amax, fabs(x));
            if (code == 255) {
                stats.nonfinite++;
                continue;
            }
            double y = ldexp(format.magnitude[data[r * cols + c] & 0x7F], code - 127);
            stats.signal_power += x * x;
            stats.noise_power += (fabs(x) - y) * (fabs(x) - y);
            if (x != 0 && y == 0) stats.underflowed++;
            if (fabs(x) > ldexp(largest, code - 127)) stats.saturated++;
        }
    free(format.magnitude);
    free_quantized(&q);
    return stats;
}

/* Sums of n terms of one sign in another order differ by at most n rounding errors of 2^-53 each. */
static void assert_sums(double got, double wanted, int64_t terms) {
    if (fabs(got - wanted) > (double)terms * 0x1p-53 * wanted) fail_msg("sum is %.17g, expected %.17g", got, wanted);
}

static void assert_stats(const dw_quantize_stats *got, const dw_quantize_stats *wanted) {
    assert_sums(got->signal_power, wanted->signal_power, wanted->elements);
    assert_sums(got->noise_power, wanted->noise_power, wanted->elements);
    assert_int_equal(got->elements, wanted->elements);
    assert_int_equal(got->nonzero, wanted->nonzero);
    assert_int_equal(got->underflowed, wanted->underflowed);
    assert_int_equal(got->saturated, wanted->saturated);
    assert_int_equal(got->nonfinite, wanted->nonfinite);
    assert_true(got->amax == wanted->amax);
}

static void statistics_match(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {1, 40000}, {40000, 1}, {129, 257}, {300, 200}};
    static const dw_dtype sources[] = {DW_F32, DW_F16, DW_BF16};
    dw_random random = {test_seed};
    dw_context *context = make_context(2, NULL);
    bool saw_saturated = false, saw_underflow = false, saw_nonfinite = false;
    for (int i = 0; i < 5; i++)
        for (int n = 0; n < 36; n++) {
            dw_quantize_spec spec = {.element = n & 1 ? DW_E5M2 : DW_E4M3,
                                     .block = (dw_block)(n / 4 % 3),
                                     .rounding = (dw_rounding)(n / 2 % 2),
                                     .layout = DW_SCALE_TCGEN05};
            if (spec.block != DW_BLOCK_1X32) spec.layout = DW_SCALE_MN_MAJOR;
            dw_dtype dtype = sources[n / 12];
            int64_t rows = shapes[i][0], cols = shapes[i][1], ld = cols + 3;
            uint8_t *source = malloc((size_t)(rows * ld) * 4);
            dw_fill_adversarial(&random, source, dtype, rows, cols, ld);
            dw_tensor from = strided(source, dtype, rows, cols, ld);
            dw_quantize_stats got = {0}, wanted = state_stats(&spec, source, dtype, ld, rows, cols);
            ASSERT_OK(dw_quantize_measure(context, &spec, &from, &got));
            assert_stats(&got, &wanted);
            saw_saturated |= got.saturated > 0;
            saw_underflow |= got.underflowed > 0;
            saw_nonfinite |= got.nonfinite > 0;
            if (spec.rounding == DW_ROUND_RCEIL) assert_int_equal(got.saturated, 0);

            /* The same in row panels of 128, added up. */
            dw_quantize_stats panels = {0};
            for (int64_t first = 0; first < rows; first += 128) {
                int64_t height = rows - first < 128 ? rows - first : 128;
                dw_tensor panel = strided(source + first * ld * (int64_t)dw_dtype_size(dtype), dtype, height, cols, ld);
                ASSERT_OK(dw_quantize_measure(context, &spec, &panel, &panels));
            }
            assert_stats(&panels, &wanted);
            free(source);
        }
    assert_true(saw_saturated && saw_underflow && saw_nonfinite);
    dw_context_destroy(context);
}

static void errors_leave_the_statistics_alone(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    float source[32] = {1};
    dw_quantize_spec spec = {
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
    dw_quantize_stats stats = {.elements = 5};
    dw_tensor from = dw_matrix(source, DW_E5M2, 1, 32);
    assert_failure(dw_quantize_measure(context, &spec, &from, &stats), DW_ERROR_INVALID_ARGUMENT, "source has dtype");
    assert_failure(dw_quantize_measure(context, &spec, &from, NULL), DW_ERROR_INVALID_ARGUMENT, "NULL");
    assert_failure(dw_quantize_measure(context, NULL, &from, &stats), DW_ERROR_INVALID_ARGUMENT, "spec is NULL");
    assert_int_equal(stats.elements, 5);
    dw_context_destroy(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statistics_match),
        cmocka_unit_test(errors_leave_the_statistics_alone),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
