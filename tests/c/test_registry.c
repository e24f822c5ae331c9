/* The table, the dispatcher, and the self-test: every row passes it, broken kernels do not. */
#include "support.h"

#include <string.h>

#include "cpu/ref/kernels.h"
#include "registry/table.h"

static void rows_are_well_formed(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    size_t count = dw_kernel_count(context);
    assert_true(count >= 10);
    for (size_t i = 0; i < count; i++) {
        dw_kernel_info info;
        ASSERT_OK(dw_kernel_get(context, i, &info));
        const bool multiplies = info.operation == DW_OP_GEMM, scaled = info.elements != 1u << DW_BF16;
        assert_true(info.sources && info.elements);
        assert_int_equal(info.blocks != 0, scaled);
        if (!scaled) assert_true(multiplies);
        if (!multiplies) assert_true(info.roundings && info.layouts && info.orientations);
        assert_int_equal(*info.form != 0, multiplies);
        assert_int_equal(info.available, !*info.reason);
        /* operation[_orientation_block]__target */
        char wanted[96];
        if (info.operation == DW_OP_QUANTIZE)
            snprintf(wanted, sizeof wanted, "quantize_%s_%s__%s",
                     dw_orientation_name((dw_orientation)__builtin_ctz(info.orientations)),
                     dw_block_name((dw_block)__builtin_ctz(info.blocks)), info.target);
        else if (info.operation == DW_OP_DEQUANTIZE)
            snprintf(wanted, sizeof wanted, "dequantize__%s", info.target);
        if (strncmp(info.target, "sm", 2) != 0) assert_string_equal(info.name, wanted);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(info.name, dw_kernel_table[j].info.name);
    }
    dw_kernel_info info;
    assert_failure(dw_kernel_get(context, count, &info), DW_ERROR_INVALID_ARGUMENT, "out of range");
    assert_failure(dw_kernel_get(context, 0, NULL), DW_ERROR_INVALID_ARGUMENT, "NULL");
    assert_string_equal(dw_operation_name(DW_OP_DEQUANTIZE), "dequantize");
    assert_string_equal(dw_operation_name((dw_operation)9), "?");
    assert_string_equal(dw_orientation_name((dw_orientation)9), "?");
    dw_context_destroy(context);
}

static const dw_request plain_request = {
    .operation = DW_OP_QUANTIZE,
    .orientation = DW_ORIENT_BOTH,
    .source = DW_BF16,
    .spec = {.element = DW_E4M3, .block = DW_BLOCK_1X128, .layout = DW_SCALE_MN_MAJOR},
    .rows = 100,
    .cols = 200,
    .device_type = DW_DEVICE_CPU};

static void dispatch_follows_the_instruction_set(void **state) {
    (void)state;
    const char *isas[3];
    int count = runnable_isas(isas);
    for (int i = 0; i < count; i++) {
        dw_context *context = make_context(1, isas[i]);
        size_t index = 999;
        char text[8192];
        ASSERT_OK(dw_dispatch(context, &plain_request, &index, text, sizeof text));
        dw_kernel_info info;
        ASSERT_OK(dw_kernel_get(context, index, &info));
        assert_string_equal(info.target, isas[i]);
        char line[128];
        snprintf(line, sizeof line, "chosen   quantize_both_1x128__%s:", isas[i]);
        assert_non_null(strstr(text, line));
        assert_non_null(strstr(text, "rejected quantize_row_1x32__ref: does not serve the orientation"));
        if (i == 0 && count > 1) assert_non_null(strstr(text, "__avx2: not available: the context is limited"));
        if (i > 0) assert_non_null(strstr(text, "rejected quantize_both_1x128__ref: priority 0 is not the highest"));
        assert_null(strstr(text, "dequantize"));
        /* One line for each row of the operation. */
        size_t lines = 0, rows = 0;
        for (const char *at = text; *at; at++)
            lines += *at == '\n';
        for (size_t k = 0; k < dw_kernel_table_size; k++)
            rows += dw_kernel_table[k].info.operation == DW_OP_QUANTIZE;
        assert_int_equal(lines, rows);
        dw_context_destroy(context);
    }
}

static void no_processor_kernel_writes_square_transposes_beside_rows(void **state) {
    (void)state;
    dw_context *context = make_context(1, "ref");
    dw_request request = plain_request;
    request.spec.transposed_square = true;
    size_t index = 999;
    char text[8192];
    assert_failure(dw_dispatch(context, &request, &index, text, sizeof text), DW_ERROR_UNSUPPORTED, "no CPU kernel");
    assert_non_null(strstr(text, "quantize_both_1x128__ref: does not serve the square transposed form"));
    dw_context_destroy(context);
}

static void explanations_are_cut_to_fit(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    char full[8192], text[8192];
    size_t index;
    ASSERT_OK(dw_dispatch(context, &plain_request, &index, full, sizeof full));
    static const size_t capacities[] = {0, 1, 2, 10, 100, 1000};
    for (size_t i = 0; i < sizeof capacities / sizeof *capacities; i++) {
        size_t capacity = capacities[i];
        memset(text, '#', sizeof text);
        ASSERT_OK(dw_dispatch(context, &plain_request, &index, text, capacity));
        if (capacity) {
            assert_int_equal(strlen(text), capacity - 1);
            assert_memory_equal(text, full, capacity - 1);
        }
        assert_int_equal(text[capacity], '#');
    }
    ASSERT_OK(dw_dispatch(context, &plain_request, &index, NULL, 0));
    dw_context_destroy(context);
}

static void impossible_requests_are_refused(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    size_t index = 999;
    char text[8192];
    dw_request request = plain_request;
    request.device_type = DW_DEVICE_CUDA;
    dw_status status = dw_dispatch(context, &request, &index, text, sizeof text);
    if (status != DW_OK) assert_failure(status, DW_ERROR_UNSUPPORTED, "CUDA");
    assert_non_null(strstr(text, "quantize_row_1x32__ref: does not serve the device type"));
    index = 999;
    request = plain_request;
    request.spec.layout = DW_SCALE_TCGEN05;
    assert_failure(dw_dispatch(context, &request, &index, text, sizeof text), DW_ERROR_UNSUPPORTED, "1x32 only");
    assert_non_null(strstr(text, "quantize_both_1x128__ref: does not serve the scale layout"));
    request = plain_request;
    request.source = DW_E4M3;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT,
                   "request.source is e4m3");
    request = plain_request;
    request.operation = (dw_operation)5;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT,
                   "request.operation is 5");
    request = plain_request;
    request.orientation = (dw_orientation)5;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT, "request.orientation");
    request = plain_request;
    request.device_type = (dw_device_type)5;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT, "request.device_type");
    request = plain_request;
    request.rows = -1;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT, "negative");
    assert_failure(dw_dispatch(context, NULL, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT, "NULL");
    assert_int_equal(index, 999);
    dw_context_destroy(context);
}

/* On three threads, so that the larger shapes come in several tiles. */
static void every_available_row_passes(void **state) {
    (void)state;
    dw_context *context = make_context(3, NULL);
    dw_selftest_result result;
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info info;
        ASSERT_OK(dw_kernel_get(context, i, &info));
        dw_status status = dw_kernel_selftest(context, i, test_seed, &result);
        if (!info.available) {
            printf("%s: %s\n", info.name, info.reason);
            assert_int_equal(status, DW_ERROR_UNSUPPORTED);
            continue;
        }
        if (status != DW_OK) fail_msg("%s: %s", info.name, result.first_mismatch);
        assert_true(result.cases > 100);
        assert_int_equal(result.mismatches, 0);
        assert_string_equal(result.first_mismatch, "");
    }
    assert_failure(dw_kernel_selftest(context, 9999, 1, &result), DW_ERROR_INVALID_ARGUMENT, "out of range");
    dw_context_destroy(context);
}

/* ---- kernels with one fault each ---- */

static void leaves_last_column_unwritten(const dw_quantize_job *job, const dw_tile *tile) {
    uint8_t saved[2048];
    if (!job->row_data) return;
    for (int64_t r = tile->row0; r < tile->row1; r++)
        saved[r - tile->row0] = job->row_data[r * job->row_ld + job->cols - 1];
    dw_quantize__ref(job, tile);
    for (int64_t r = tile->row0; r < tile->row1; r++)
        job->row_data[r * job->row_ld + job->cols - 1] = saved[r - tile->row0];
}

static void writes_beyond_the_last_column(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize__ref(job, tile);
    if (tile->row1 == job->rows && tile->col1 == job->cols)
        job->row_data[(job->rows - 1) * job->row_ld + job->cols] = 0;
}

static void ignores_the_rounding(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_job other = *job;
    other.rounding = DW_ROUND_RCEIL;
    dw_quantize__ref(&other, tile);
}

static void loses_the_sign_of_zero(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize__ref(job, tile);
    for (int64_t r = tile->row0; r < tile->row1; r++)
        for (int64_t c = tile->col0; c < tile->col1; c++)
            if (job->row_data[r * job->row_ld + c] == 0x80) job->row_data[r * job->row_ld + c] = 0;
}

static void reads_beyond_the_edge(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_job wider = *job;
    if (tile->col1 == job->cols && job->cols % 32) {
        dw_tile area = {tile->row0, tile->row1, tile->col0, tile->col1 + 1};
        wider.cols++;
        uint8_t *beyond = malloc((size_t)(job->rows * (job->cols + 1)));
        wider.row_data = beyond;
        wider.row_ld = job->cols + 1;
        dw_quantize__ref(&wider, &area);
        for (int64_t r = tile->row0; r < tile->row1; r++)
            memcpy(job->row_data + r * job->row_ld + tile->col0, beyond + r * wider.row_ld + tile->col0,
                   (size_t)(tile->col1 - tile->col0));
        free(beyond);
    } else {
        dw_quantize__ref(job, tile);
    }
}

static void puts_scales_in_row_layout(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize_job other = *job;
    if (!other.row_scale.atoms_per_row && other.row_scale.col_stride > 1) {
        other.row_scale.row_stride = (job->cols + 31) / 32;
        other.row_scale.col_stride = 1;
    }
    dw_quantize__ref(&other, tile);
}

static void forgets_faults(const dw_quantize_job *job, const dw_tile *tile) {
    dw_quantize__ref(job, tile);
    for (int64_t r = tile->row0; r < tile->row1; r++)
        for (int64_t c = tile->col0; c < tile->col1; c += 32) {
            uint8_t *code = dw_scale_at(&job->row_scale, r, c / 32);
            if (*code == 255) *code = 254;
        }
}

static void decodes_with_the_wrong_bias(const dw_dequantize_job *job, const dw_tile *tile) {
    dw_dequantize_job other = *job;
    if (job->element == DW_E5M2 && job->target_dtype == DW_F16) other.element = DW_E4M3;
    dw_dequantize__ref(&other, tile);
}

static dw_kernel_row find(const char *name) {
    for (size_t i = 0; i < dw_kernel_table_size; i++)
        if (!strcmp(dw_kernel_table[i].info.name, name)) return dw_kernel_table[i];
    fail_msg("no row %s", name);
    return dw_kernel_table[0];
}

static void the_selftest_finds_faults(void **state) {
    (void)state;
    static const struct {
        const char *name;
        dw_quantize_kernel kernel;
    } broken[] = {{"leaves_last_column_unwritten", leaves_last_column_unwritten},
                  {"writes_beyond_the_last_column", writes_beyond_the_last_column},
                  {"ignores_the_rounding", ignores_the_rounding},
                  {"loses_the_sign_of_zero", loses_the_sign_of_zero},
                  {"reads_beyond_the_edge", reads_beyond_the_edge},
                  {"puts_scales_in_row_layout", puts_scales_in_row_layout},
                  {"forgets_faults", forgets_faults}};
    dw_context *context = make_context(2, "ref");
    dw_selftest_result result;
    dw_kernel_row row = find("quantize_row_1x32__ref");
    ASSERT_OK(dw_row_selftest(context, &row, test_seed, &result));
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        row.entry.cpu_quantize = broken[i].kernel;
        dw_status status = dw_row_selftest(context, &row, test_seed, &result);
        printf("%s: %lld of %lld cases' bytes; %s\n", broken[i].name, (long long)result.mismatches,
               (long long)result.cases, result.first_mismatch);
        assert_failure(status, DW_ERROR_SELFTEST, "quantize_row_1x32__ref");
        assert_true(result.mismatches > 0);
        assert_non_null(strstr(result.first_mismatch, "seed"));
    }
    row = find("dequantize__ref");
    row.entry.cpu_dequantize = decodes_with_the_wrong_bias;
    assert_failure(dw_row_selftest(context, &row, test_seed, &result), DW_ERROR_SELFTEST, "e5m2");
    /* A row that this context may not run is not tested at all. */
    row = find("quantize_row_1x32__ref");
    row.isa = DW_ISA_AVX2;
    assert_failure(dw_row_selftest(context, &row, test_seed, &result), DW_ERROR_UNSUPPORTED, "not available");
    dw_context_destroy(context);
}

static void forcing_a_kernel(void **state) {
    (void)state;
    dw_context *context = make_context(1, "ref");
    uint16_t source[64] = {0};
    uint8_t data[64], scale[64];
    dw_quantize_spec spec = {
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
    dw_tensor from = dw_matrix(source, DW_BF16, 2, 32);
    dw_quantized to = {dw_matrix(data, DW_E4M3, 2, 32), dw_matrix(scale, DW_E8M0, 2, 1)};
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info info;
        ASSERT_OK(dw_kernel_get(context, i, &info));
        dw_status status = dw_quantize_with(context, i, &spec, &from, &to, NULL, NULL);
        if (!strcmp(info.name, "quantize_row_1x32__ref"))
            assert_int_equal(status, DW_OK);
        else
            assert_failure(status, DW_ERROR_UNSUPPORTED, info.name);
        status = dw_dequantize_with(context, i, &spec, &to, &from, NULL);
        if (!strcmp(info.name, "dequantize__ref"))
            assert_int_equal(status, DW_OK);
        else
            assert_failure(status, DW_ERROR_UNSUPPORTED, info.name);
    }
    assert_failure(dw_quantize_with(context, 9999, &spec, &from, &to, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "9999");
    assert_failure(dw_dequantize_with(context, 9999, &spec, &to, &from, NULL), DW_ERROR_INVALID_ARGUMENT, "9999");
    dw_context_destroy(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_well_formed),
        cmocka_unit_test(dispatch_follows_the_instruction_set),
        cmocka_unit_test(no_processor_kernel_writes_square_transposes_beside_rows),
        cmocka_unit_test(explanations_are_cut_to_fit),
        cmocka_unit_test(impossible_requests_are_refused),
        cmocka_unit_test(every_available_row_passes),
        cmocka_unit_test(the_selftest_finds_faults),
        cmocka_unit_test(forcing_a_kernel),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
