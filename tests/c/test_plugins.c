/* Kernels from outside: proved, refused, chosen, run. */
#include "support.h"

#include <dlfcn.h>
#include <string.h>

static dw_context *context;

static int open_context(void **state) {
    (void)state;
    context = make_context(1, NULL);
    return 0;
}

static int close_context(void **state) {
    (void)state;
    dw_context_destroy(context);
    return 0;
}

static dw_status load(const char *wish, size_t *count) {
    setenv("DEEPWELL_TEST_PLUGIN", wish, 1);
    return dw_plugin_load(context, TEST_PLUGIN, count);
}

static const dw_request decoding = {.operation = DW_OP_DEQUANTIZE,
                                    .orientation = DW_ORIENT_ROW,
                                    .source = DW_F32,
                                    .spec = {DW_E4M3, DW_BLOCK_1X32, DW_ROUND_RCEIL, DW_SCALE_ROW},
                                    .rows = 3,
                                    .cols = 40,
                                    .device_type = DW_DEVICE_CPU};

static void assert_chosen(dw_request request, const char *name, const char *line) {
    size_t index;
    char text[8192];
    dw_kernel_info info;
    ASSERT_OK(dw_dispatch(context, &request, &index, text, sizeof text));
    ASSERT_OK(dw_kernel_get(context, index, &info));
    if (name) assert_string_equal(info.name, name);
    if (!strstr(text, line)) fail_msg("\"%s\" is not in:\n%s", line, text);
}

static long calls(void) {
    void *object = dlopen(TEST_PLUGIN, RTLD_NOW | RTLD_NOLOAD);
    assert_non_null(object);
    long (*count)(void);
    void *symbol = dlsym(object, "plugin_calls");
    memcpy(&count, &symbol, sizeof count);
    long result = count();
    dlclose(object);
    return result;
}

static void what_is_wrong_is_refused(void **state) {
    (void)state;
    size_t before = dw_kernel_count(context), count = 77;
    assert_failure(load("wrong", &count), DW_ERROR_SELFTEST, "dequantize_1x32__mine differs from the reference");
    assert_failure(load("twice", &count), DW_ERROR_EXISTS, "dequantize__ref");
    assert_failure(load("old", &count), DW_ERROR_INVALID_ARGUMENT, "kernel.size");
    assert_int_equal(load("fails", &count), DW_ERROR_UNSUPPORTED);
    assert_failure(dw_plugin_load(context, "./no-such-plugin.so", &count), DW_ERROR_NOT_FOUND, "no such file");
    assert_failure(dw_plugin_load(context, "plugin.so", &count), DW_ERROR_INVALID_ARGUMENT, "./plugin.so");
    assert_failure(dw_plugin_load(context, "/dev/null", &count), DW_ERROR_IO, "/dev/null");
    assert_failure(dw_plugin_load(context, OTHER_OBJECT, &count), DW_ERROR_INVALID_ARGUMENT, "deepwell_plugin");
    assert_failure(dw_plugin_load(NULL, TEST_PLUGIN, &count), DW_ERROR_INVALID_ARGUMENT, "NULL");
    assert_int_equal(dw_kernel_count(context), before);
    assert_int_equal(count, 77);
}

static dw_status always_fails(void *state, const dw_quantize_spec *spec, const dw_tensor *source,
                              const dw_quantized *row, const dw_quantized *transposed, void *stream) {
    (void)state, (void)spec, (void)source, (void)row, (void)transposed, (void)stream;
    return DW_ERROR_UNSUPPORTED;
}

static dw_status never_called(void *state, const dw_quantize_spec *spec, const dw_quantized *source,
                              const dw_tensor *target, void *stream) {
    (void)state, (void)spec, (void)source, (void)target, (void)stream;
    fail_msg("a kernel that was refused is called");
    return DW_OK;
}

static void fields_are_checked(void **state) {
    (void)state;
    const dw_plugin_kernel good = {.size = sizeof good,
                                   .name = "quantize_row__mine",
                                   .target = "mine",
                                   .orientations = 1u << DW_ORIENT_ROW,
                                   .sources = 1u << DW_F32,
                                   .elements = 1u << DW_E4M3,
                                   .blocks = 1u << DW_BLOCK_1X32,
                                   .roundings = 1u << DW_ROUND_RCEIL,
                                   .layouts = 1u << DW_SCALE_ROW,
                                   .device_type = DW_DEVICE_CPU,
                                   .alignment = 1,
                                   .quantize = always_fails};
    static const char *const parts[] = {"name",    "name",     "target", "no function", "sm90 or sm100", "orientations",
                                        "sources", "elements", "blocks", "roundings",   "layouts",       "alignment"};
    for (int i = 0; i < 12; i++) {
        dw_plugin_kernel kernel = good;
        if (i == 0) kernel.name = NULL;
        if (i == 1) kernel.name = "Quantize row";
        if (i == 2) kernel.target = "a target of more than 15 letters";
        if (i == 3) kernel.quantize = NULL;
        if (i == 4) kernel.device_type = DW_DEVICE_CUDA;
        if (i == 5) kernel.orientations = 1u << DW_ORIENT_COUNT;
        if (i == 6) kernel.sources = 1u << DW_E4M3;
        if (i == 7) kernel.elements = 0;
        if (i == 8) kernel.blocks = 1u << 20;
        if (i == 9) kernel.roundings = 0;
        if (i == 10) kernel.layouts = 0;
        if (i == 11) kernel.alignment = 12;
        assert_failure(dw_kernel_register(context, &kernel), DW_ERROR_INVALID_ARGUMENT, parts[i]);
    }
    dw_plugin_kernel decoder = good;
    decoder.operation = DW_OP_DEQUANTIZE;
    decoder.dequantize = never_called;
    decoder.device_type = DW_DEVICE_CUDA;
    assert_failure(dw_kernel_register(context, &decoder), DW_ERROR_UNSUPPORTED, "dequantizes on a GPU");
    /* And one whose function fails each time does not pass its test. */
    assert_failure(dw_kernel_register(context, &good), DW_ERROR_SELFTEST, "quantize_row__mine");
    assert_failure(dw_kernel_register(NULL, &good), DW_ERROR_INVALID_ARGUMENT, "NULL");
}

static void a_good_one_takes_part(void **state) {
    (void)state;
    size_t before = dw_kernel_count(context), count = 0;
    ASSERT_OK(load("good", &count));
    assert_int_equal(count, 1);
    assert_int_equal(dw_kernel_count(context), before + 1);
    dw_kernel_info info;
    ASSERT_OK(dw_kernel_get(context, before, &info));
    assert_string_equal(info.name, "dequantize_1x32__mine");
    assert_true(info.available && info.priority == 30 && info.alignment == 4);
    assert_failure(load("good", &count), DW_ERROR_EXISTS, "dequantize_1x32__mine"); /* a name is taken once */

    assert_chosen(decoding, "dequantize_1x32__mine", "chosen   dequantize_1x32__mine: highest priority");
    dw_request request = decoding;
    request.source = DW_BF16;
    assert_chosen(request, NULL, "rejected dequantize_1x32__mine: does not serve the target type");
    request = decoding;
    request.alignment = 2;
    assert_chosen(request, NULL, "rejected dequantize_1x32__mine: does not serve the alignment");
    request.alignment = 3;
    size_t index;
    assert_failure(dw_dispatch(context, &request, &index, NULL, 0), DW_ERROR_INVALID_ARGUMENT, "power of two");
}

static void it_runs_where_it_was_chosen(void **state) {
    (void)state;
    uint8_t data[3 * 40], scale[3 * 2];
    _Alignas(16) unsigned char memory[3 * 40 * 4 + 16];
    for (int i = 0; i < 3 * 40; i++)
        data[i] = (uint8_t)(i % 100);
    memset(scale, 120, sizeof scale);
    dw_quantized source = {dw_matrix(data, DW_E4M3, 3, 40), dw_matrix(scale, DW_E8M0, 3, 2)};
    long before = calls();
    dw_tensor target = dw_matrix(memory, DW_F32, 3, 40);
    ASSERT_OK(dw_dequantize(context, &decoding.spec, &source, &target, NULL));
    assert_int_equal(calls(), before + 1);
    unsigned char kept[3 * 40 * 4];
    memcpy(kept, memory, sizeof kept);
    /* An address that it does not take goes to the next candidate, and the result is the same. */
    target = dw_matrix(memory + 2, DW_F32, 3, 40);
    ASSERT_OK(dw_dequantize(context, &decoding.spec, &source, &target, NULL));
    assert_int_equal(calls(), before + 1);
    assert_memory_equal(kept, memory + 2, sizeof kept);
    dw_selftest_result result;
    ASSERT_OK(dw_kernel_selftest(context, dw_kernel_count(context) - 1, 7, &result));
    assert_true(result.cases > 0 && result.mismatches == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_wrong_is_refused),
        cmocka_unit_test(fields_are_checked),
        cmocka_unit_test(a_good_one_takes_part),
        cmocka_unit_test(it_runs_where_it_was_chosen),
    };
    return cmocka_run_group_tests(tests, open_context, close_context);
}
