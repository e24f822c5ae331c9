/* Encodings, scales and layouts against the second statement. */
#include "support.h"

#include "formats/decode.h"
#include "formats/scale_layout.h"
#include "registry/selftest_data.h"
#include "statement.h"

static const dw_dtype elements[2] = {DW_E4M3, DW_E5M2};

static void names_and_sizes(void **state) {
    (void)state;
    static const char *const dtypes[] = {"f32", "f16", "bf16", "e4m3", "e5m2", "e8m0"};
    static const size_t sizes[] = {4, 2, 2, 1, 1, 1};
    for (int i = 0; i < DW_DTYPE_COUNT; i++) {
        assert_string_equal(dw_dtype_name((dw_dtype)i), dtypes[i]);
        assert_int_equal(dw_dtype_size((dw_dtype)i), sizes[i]);
    }
    assert_string_equal(dw_block_name(DW_BLOCK_1X32), "1x32");
    assert_string_equal(dw_block_name(DW_BLOCK_1X128), "1x128");
    assert_string_equal(dw_block_name(DW_BLOCK_128X128), "128x128");
    assert_string_equal(dw_rounding_name(DW_ROUND_RCEIL), "rceil");
    assert_string_equal(dw_rounding_name(DW_ROUND_FLOOR), "floor");
    assert_string_equal(dw_scale_layout_name(DW_SCALE_ROW), "row");
    assert_string_equal(dw_scale_layout_name(DW_SCALE_MN_MAJOR), "mn_major");
    assert_string_equal(dw_scale_layout_name(DW_SCALE_TCGEN05), "tcgen05");
    assert_int_equal(dw_dtype_size((dw_dtype)99), 0);
    assert_string_equal(dw_dtype_name((dw_dtype)99), "?");
    assert_string_equal(dw_block_name((dw_block)99), "?");
    assert_string_equal(dw_rounding_name((dw_rounding)99), "?");
    assert_string_equal(dw_scale_layout_name((dw_scale_layout)99), "?");
}

static void known_values(void **state) {
    (void)state;
    number_format e4m3 = format_of(DW_E4M3), e5m2 = format_of(DW_E5M2);
    /* The statement itself, against the OFP8 document's table. */
    assert_true(e4m3.magnitude[0x7E] == 448 && e4m3.magnitude[0x08] == 0x1p-6 && e4m3.magnitude[1] == 0x1p-9);
    assert_true(e5m2.magnitude[0x7B] == 57344 && e5m2.magnitude[0x04] == 0x1p-14 && e5m2.magnitude[1] == 0x1p-16);
    free(e4m3.magnitude);
    free(e5m2.magnitude);
    assert_int_equal(dw_fp8_encode(dw_fp8(DW_E4M3), 0x3F800000, 0), 0x38);
    assert_int_equal(dw_fp8_encode(dw_fp8(DW_E5M2), 0xBF800000, 0), 0xBC);
    assert_int_equal(dw_fp8_encode(dw_fp8(DW_E4M3), 0x7F7FFFFF, 0), 0x7E);
    assert_int_equal(dw_fp8_encode(dw_fp8(DW_E4M3), 0x80000000, 0), 0x80);
}

static void every_half_precision_number_widens_exactly(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        double f16 = number_of(DW_F16, bits), bf16 = number_of(DW_BF16, bits);
        double got16 = (double)dw_f32_from_bits(dw_f16_to_f32_bits((uint16_t)bits));
        double got_bf16 = (double)dw_f32_from_bits(dw_bf16_to_f32_bits((uint16_t)bits));
        assert_true(isnan(f16) ? isnan(got16) : got16 == f16 && signbit(got16) == signbit(f16));
        assert_true(isnan(bf16) ? isnan(got_bf16) : got_bf16 == bf16 && signbit(got_bf16) == signbit(bf16));
    }
}

static void check_encoding(const number_format *format, dw_dtype element, uint32_t bits, int exponent) {
    double x = number_of(DW_F32, bits);
    uint8_t got = dw_fp8_encode(dw_fp8(element), bits, exponent), wanted = element_byte(format, x, exponent);
    if (got != wanted)
        fail_msg("%s of %a * 2^%d is 0x%02X, expected 0x%02X", dw_dtype_name(element), x, -exponent, got, wanted);
}

static void elements_round_to_nearest_even(void **state) {
    (void)state;
    dw_random random = {test_seed};
    for (int f = 0; f < 2; f++) {
        number_format format = format_of(elements[f]);
        for (uint32_t high = 0; high < 65536; high++) {
            if ((high & 0x7F80) == 0x7F80) continue;
            check_encoding(&format, elements[f], high << 16, 0);          /* every BF16 */
            check_encoding(&format, elements[f], high << 16 | 1, 0);      /* just beyond every tie */
            check_encoding(&format, elements[f], high << 16 | 0xFFFF, 0); /* just below the next */
            int exponent = (int)dw_random_between(&random, -127, 120);
            check_encoding(&format, elements[f], high << 16 | (uint32_t)(dw_random_next(&random) & 0xFFFF), exponent);
        }
        for (uint32_t half = 0; half < 65536; half++)
            if ((half & 0x7C00) != 0x7C00) check_encoding(&format, elements[f], dw_f16_to_f32_bits((uint16_t)half), 0);
        free(format.magnitude);
    }
}

static void scale_codes_follow_the_definition(void **state) {
    (void)state;
    dw_random random = {test_seed};
    static const uint32_t fractions[] = {0, 1, 0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF};
    for (int f = 0; f < 2; f++) {
        number_format format = format_of(elements[f]);
        for (int rounding = 0; rounding < DW_ROUND_COUNT; rounding++)
            for (uint32_t field = 0; field < 255; field++)
                for (int i = 0; i < 8; i++) {
                    uint32_t amax = field << 23 | (i < 6 ? fractions[i] : (uint32_t)dw_random_next(&random) & 0x7FFFFF);
                    int wanted = scale_exponent(&format, (dw_rounding)rounding, number_of(DW_F32, amax)) + 127;
                    assert_int_equal(dw_scale_code(dw_fp8(elements[f]), (dw_rounding)rounding, amax), wanted);
                }
        free(format.magnitude);
        assert_int_equal(dw_scale_code(dw_fp8(elements[f]), DW_ROUND_RCEIL, 0x7F800000), 255);
        assert_int_equal(dw_scale_code(dw_fp8(elements[f]), DW_ROUND_FLOOR, 0x7FC00001), 255);
    }
}

/* Every element byte under every scale code, to every type. */
static void decoding_is_exact_and_rounds_once(void **state) {
    (void)state;
    number_format f16 = format_of(DW_F16), bf16 = format_of(DW_BF16);
    for (int f = 0; f < 2; f++) {
        number_format format = format_of(elements[f]);
        for (uint32_t byte = 0; byte < 256; byte++)
            for (int code = 0; code < 256; code++) {
                uint32_t magnitude = byte & 0x7F;
                uint32_t got32 = dw_decode(dw_fp8(elements[f]), (uint8_t)byte, (uint8_t)code, dw_float(DW_F32));
                uint32_t got16 = dw_decode(dw_fp8(elements[f]), (uint8_t)byte, (uint8_t)code, dw_float(DW_F16));
                uint32_t got_bf16 = dw_decode(dw_fp8(elements[f]), (uint8_t)byte, (uint8_t)code, dw_float(DW_BF16));
                bool infinite = elements[f] == DW_E5M2 && magnitude == 0x7C;
                if (code == 255 || (!infinite && magnitude >= (uint32_t)format.finite)) {
                    assert_int_equal(got32, 0x7FC00000);
                    assert_int_equal(got16, 0x7E00);
                    assert_int_equal(got_bf16, 0x7FC0);
                    continue;
                }
                double exact = infinite ? (double)INFINITY : ldexp(format.magnitude[magnitude], code - 127);
                uint32_t sign = byte >> 7;
                float single = sign ? -(float)exact : (float)exact;
                uint32_t single_bits;
                memcpy(&single_bits, &single, 4);
                assert_int_equal(got32, single_bits);
                assert_int_equal(got16, sign << 15 | (uint32_t)nearest_code(&f16, exact));
                assert_int_equal(got_bf16, sign << 15 | (uint32_t)nearest_code(&bf16, exact));
            }
        free(format.magnitude);
    }
    free(f16.magnitude);
    free(bf16.magnitude);
}

static void assert_shape(dw_block block, dw_scale_layout layout, int64_t rows, int64_t cols, int64_t a, int64_t b) {
    dw_quantize_spec spec = {.element = DW_E4M3, .block = block, .rounding = DW_ROUND_RCEIL, .layout = layout};
    int64_t shape[2];
    ASSERT_OK(dw_scale_shape(&spec, rows, cols, shape));
    assert_int_equal(shape[0], a);
    assert_int_equal(shape[1], b);
}

static void scale_shapes(void **state) {
    (void)state;
    assert_shape(DW_BLOCK_1X32, DW_SCALE_ROW, 5, 33, 5, 2);
    assert_shape(DW_BLOCK_1X32, DW_SCALE_MN_MAJOR, 5, 33, 2, 16);
    assert_shape(DW_BLOCK_1X32, DW_SCALE_TCGEN05, 129, 129, 4, 512);
    assert_shape(DW_BLOCK_1X128, DW_SCALE_ROW, 16, 128, 16, 1);
    assert_shape(DW_BLOCK_1X128, DW_SCALE_MN_MAJOR, 17, 129, 2, 32);
    assert_shape(DW_BLOCK_128X128, DW_SCALE_ROW, 129, 1, 2, 1);
    assert_shape(DW_BLOCK_128X128, DW_SCALE_MN_MAJOR, 129, 300, 3, 16);
    assert_shape(DW_BLOCK_1X32, DW_SCALE_ROW, 0, 64, 0, 2);
    assert_shape(DW_BLOCK_1X32, DW_SCALE_TCGEN05, 7, 0, 0, 512);

    dw_quantize_spec spec = {
        .element = DW_E4M3, .block = DW_BLOCK_1X128, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_TCGEN05};
    int64_t shape[2] = {-7, -7};
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_UNSUPPORTED, "1x32 only");
    assert_failure(dw_scale_shape(NULL, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "spec is NULL");
    spec.layout = DW_SCALE_ROW;
    assert_failure(dw_scale_shape(&spec, 1, 1, NULL), DW_ERROR_INVALID_ARGUMENT, "shape is NULL");
    assert_failure(dw_scale_shape(&spec, -1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "negative");
    assert_failure(dw_scale_shape(&spec, INT64_MAX, INT64_MAX, shape), DW_ERROR_INVALID_ARGUMENT, "too large");
    assert_failure(dw_scale_shape(&spec, INT64_MAX, 0, shape), DW_ERROR_INVALID_ARGUMENT, "too large");
    spec.element = DW_BF16;
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "spec.element is bf16");
    spec = (dw_quantize_spec){
        .element = DW_E4M3, .block = (dw_block)7, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "spec.block is 7");
    spec = (dw_quantize_spec){
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = (dw_rounding)7, .layout = DW_SCALE_ROW};
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "spec.rounding is 7");
    spec = (dw_quantize_spec){
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = (dw_scale_layout)7};
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "spec.layout is 7");
    spec = (dw_quantize_spec){.element = DW_E4M3, .block = DW_BLOCK_1X32, .transposed_square = true};
    assert_failure(dw_scale_shape(&spec, 1, 1, shape), DW_ERROR_INVALID_ARGUMENT, "with block 1x128 only");
    assert_int_equal(shape[0], -7); /* no output on failure */
}

/* Every block has a byte of its own within the tensor, and the padding function clears all the others. */
static void scale_offsets_are_distinct(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 3, 4, 5, 15, 16, 17, 127, 128, 129, 260};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    for (int layout = 0; layout < DW_SCALE_LAYOUT_COUNT; layout++)
        for (int i = 0; i < SIZES; i++)
            for (int j = 0; j < SIZES; j++) {
                dw_quantize_spec spec = {.element = DW_E4M3,
                                         .block = DW_BLOCK_1X32,
                                         .rounding = DW_ROUND_RCEIL,
                                         .layout = (dw_scale_layout)layout};
                dw_grid grid = {sizes[i], sizes[j]};
                int64_t shape[2];
                ASSERT_OK(dw_scale_shape(&spec, grid.rows, 32 * grid.cols, shape));
                size_t bytes = (size_t)(shape[0] * shape[1]);
                uint8_t *scale = malloc(bytes);
                memset(scale, 7, bytes);
                dw_scale_zero_padding(spec.layout, grid, scale);
                for (int64_t r = 0; r < grid.rows; r++)
                    for (int64_t c = 0; c < grid.cols; c++) {
                        int64_t at = dw_scale_offset(spec.layout, grid, r, c);
                        assert_in_range(at, 0, bytes - 1);
                        assert_int_not_equal(scale[at], 9);
                        scale[at] = 9;
                    }
                size_t owned = 0;
                for (size_t k = 0; k < bytes; k++) {
                    assert_true(scale[k] == 9 || scale[k] == 0);
                    owned += scale[k] == 9;
                }
                assert_int_equal(owned, grid.rows * grid.cols);
                free(scale);
            }
    /* Spot values of the Blackwell formula, worked out by hand. */
    dw_grid grid = {256, 8};
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 0, 1), 1);
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 1, 0), 16);
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 32, 0), 4);
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 0, 4), 512);
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 128, 0), 1024);
    assert_int_equal(dw_scale_offset(DW_SCALE_TCGEN05, grid, 255, 7), 2047);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_sizes),
        cmocka_unit_test(known_values),
        cmocka_unit_test(every_half_precision_number_widens_exactly),
        cmocka_unit_test(elements_round_to_nearest_even),
        cmocka_unit_test(scale_codes_follow_the_definition),
        cmocka_unit_test(decoding_is_exact_and_rounds_once),
        cmocka_unit_test(scale_shapes),
        cmocka_unit_test(scale_offsets_are_distinct),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
