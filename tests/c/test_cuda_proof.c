/* First use of a GPU row: tested once, remembered, left out when it fails. Against the stand-in driver, whose device
 * memory is the host's, with rows whose launch functions compute here. */
#include "cache_folder.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"
#include "cpu/drive.h"
#include "cpu/ref/kernels.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "formats/scale_layout.h"
#include "registry/table.h"
#include "stand_in.h"

static fake_cuda_state *fake;
static fake_get_current_function get_current;
static fake_get_capture_mode_function get_capture_mode;
static dw_context *context;
static char cache[64], warning[1024];
static int launches, warnings;
static bool whole; /* the self-test is run by the test, not by a first use */

static void keep_warning(const char *text, void *data) {
    assert_ptr_equal(data, &warnings);
    snprintf(warning, sizeof warning, "%s", text);
    warnings++;
}

/* ---- launch functions ---- */

static float factor_of(uint8_t code) {
    uint32_t bits = code == 255 ? 0x7FC00000u : code ? (uint32_t)code << 23 : 0x00400000u;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Codes of a [rows, cols] result, turned into the factors that were asked for. */
static void store_factors(dw_block block, const uint8_t *codes, int64_t rows, int64_t cols, float *factors) {
    dw_grid grid = dw_block_grid(block, rows, cols);
    int64_t width = (grid.cols + 3) / 4 * 4;
    for (int64_t r = 0; r < grid.rows; r++)
        for (int64_t c = 0; c < (block == DW_BLOCK_128X128 ? width : grid.cols); c++) {
            float value = c < grid.cols ? factor_of(codes[r * grid.cols + c]) : 0.0f;
            factors[block == DW_BLOCK_128X128 ? r * width + c : c * grid.rows + r] = value;
        }
}

static dw_status launch_right(dw_context *in, const dw_request *request, const dw_quantize_job *given, void *stream) {
    assert_non_null(stream); /* a stream of its own */
    if (!whole) assert_int_equal(get_capture_mode(), DW_CU_CAPTURE_MODE_RELAXED);
    launches++;
    dw_quantize_job job = *given;
    dw_quantize_spec spec = request->spec;
    uint8_t *codes[2] = {calloc(1, 1 << 16), calloc(1, 1 << 16)};
    if (job.row_factors) job.row_scale = dw_make_scale_map(&spec, job.rows, job.cols, codes[0]);
    if (job.col_factors) job.col_scale = dw_make_scale_map(&spec, job.cols, job.rows, codes[1]);
    dw_cpu_quantize(in, dw_quantize__ref, spec.layout, &job);
    if (job.row_factors) store_factors(spec.block, codes[0], job.rows, job.cols, job.row_factors);
    if (job.col_factors) store_factors(spec.block, codes[1], job.cols, job.rows, job.col_factors);
    free(codes[0]);
    free(codes[1]);
    return DW_OK;
}

static dw_status launch_wrong(dw_context *in, const dw_request *request, const dw_quantize_job *job, void *stream) {
    dw_status status = launch_right(in, request, job, stream);
    if (job->rows > 100) job->row_data[100 * job->row_ld] ^= 0x80;
    return status;
}

/* Right but for the factors' padding, which only the training path reads. */
static dw_status launch_wrong_factors(dw_context *in, const dw_request *request, const dw_quantize_job *job,
                                      void *stream) {
    dw_status status = launch_right(in, request, job, stream);
    if (job->row_factors) job->row_factors[3] += 1.0f;
    return status;
}

static dw_kernel_row row_of(const char *name, dw_block block, int priority, dw_quantize_launch launch,
                            dw_row_proofs *proofs) {
    for (size_t i = 0; i < dw_kernel_table_size; i++) {
        dw_kernel_row row = dw_kernel_table[i];
        if (strcmp(row.info.target, "sm90") || row.info.blocks != 1u << block ||
            row.info.orientations != 1u << DW_ORIENT_ROW)
            continue;
        row.info.name = name;
        row.info.priority = priority;
        row.entry.launch_quantize = launch;
        row.proofs = proofs;
        return row;
    }
    fail_msg("no sm90 row of block %d", (int)block);
    return dw_kernel_table[0];
}

static const dw_request request = {.operation = DW_OP_QUANTIZE,
                                   .orientation = DW_ORIENT_ROW,
                                   .source = DW_BF16,
                                   .spec = {DW_E4M3, DW_BLOCK_128X128, DW_ROUND_RCEIL, DW_SCALE_ROW},
                                   .rows = 256,
                                   .cols = 256,
                                   .device_type = DW_DEVICE_CUDA};

/* ---- the cache folder ---- */

static bool cache_file(char path[512]) {
    char folder[128];
    snprintf(folder, sizeof folder, "%s/deepwell", cache);
    return only_file(folder, path);
}

static int set_up(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) return 0;
    make_cache(cache);
    fake->fail = NULL;
    fake->fail_result = FAKE_RESULT;
    fake->on_launch = NULL;
    fake->uuid = 7;
    launches = warnings = 0;
    *warning = 0;
    context = make_context(1, NULL);
    dw_set_warning_handler(keep_warning, &warnings);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) return 0;
    dw_set_warning_handler(NULL, NULL);
    dw_context_destroy(context);
    remove_cache(cache);
    /* Nothing is left on the device or in the thread. */
    assert_int_equal(fake->allocations, 0);
    assert_int_equal(fake->streams, 0);
    assert_null(get_current());
    assert_int_equal(get_capture_mode(), 0);
    return 0;
}

static void needs_images(void) {
    if (dw_cuda_image_total == 0) {
        print_message("built without device code\n");
        skip();
    }
}

/* ---- tests ---- */

static void the_whole_selftest_knows_factors(void **state) {
    (void)state;
    needs_images();
    static const dw_block blocks[] = {DW_BLOCK_1X32, DW_BLOCK_1X128, DW_BLOCK_128X128};
    void *workspace = aligned_alloc(256, (dw_kernel_selftest_workspace() + 255) / 256 * 256);
    int stream;
    dw_selftest_device device = {0, workspace, &stream};
    whole = true;
    fake_context *before = get_current();
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        dw_selftest_result result;
        dw_row_proofs proofs = {.known = {{{0}}}};
        dw_kernel_row row = row_of("row", blocks[i], 1, launch_right, &proofs);
        dw_selftest_part part = {DW_F16, DW_E5M2};
        ASSERT_OK(dw_row_selftest_cuda(context, &row, &part, test_seed, &device, &result));
        /* Three shapes, two roundings; 1x32 has three layouts, the others two and factors. */
        assert_int_equal(result.cases, 18);
        row.entry.launch_quantize = launch_wrong_factors;
        dw_status status = dw_row_selftest_cuda(context, &row, NULL, test_seed, &device, &result);
        if (blocks[i] == DW_BLOCK_1X32)
            assert_int_equal(status, DW_OK);
        else
            assert_failure(status, DW_ERROR_SELFTEST, "f32 scales");
    }
    whole = false;
    assert_ptr_equal(get_current(), before);
    free(workspace);
}

static void first_use_is_tested_once(void **state) {
    (void)state;
    needs_images();
    dw_row_proofs proofs = {.known = {{{0}}}};
    dw_kernel_row row = row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs);
    dw_fail(DW_ERROR_IO, "what was before");
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    int once = launches;
    assert_true(once >= 18);
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    assert_int_equal(launches, once);
    /* Another pair of types is another kernel. */
    dw_request other = request;
    other.source = DW_F32;
    assert_ptr_equal(dw_choose_row(context, &row, 1, &other), &row);
    assert_int_equal(launches, 2 * once);
    assert_int_equal(warnings, 0);
    assert_string_equal(dw_last_error(), "what was before");

    /* Another process: nothing known, but the file. */
    dw_row_proofs fresh = {.known = {{{0}}}};
    row.proofs = &fresh;
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    assert_ptr_equal(dw_choose_row(context, &row, 1, &other), &row);
    assert_int_equal(launches, 2 * once);
    char path[512], text[4096];
    assert_true(cache_file(path));
    read_file(path, text, sizeof text);
    assert_non_null(strstr(text, "device Fake GPU 0, 0708090a0b0c0d0e0f10111213141516\n"));
    assert_non_null(strstr(text, "driver 13000, "));
    assert_non_null(strstr(text, "\nright bf16 e4m3\nright f32 e4m3\nend "));

    /* Another GPU in its place. */
    dw_row_proofs again = {.known = {{{0}}}};
    row.proofs = &again;
    fake->uuid = 99;
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    assert_int_equal(launches, 3 * once);
    unlink(path); /* so that the folder holds one file again */
}

static void a_failing_row_makes_way(void **state) {
    (void)state;
    needs_images();
    dw_row_proofs proofs[2] = {{.known = {{{0}}}}, {.known = {{{0}}}}};
    dw_kernel_row rows[2] = {row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs[0]),
                             row_of("wrong", DW_BLOCK_128X128, 2, launch_wrong, &proofs[1])};
    for (int i = 0; i < 2; i++) {
        assert_ptr_equal(dw_choose_row(context, rows, 2, &request), &rows[0]);
        assert_int_equal(warnings, 1);
    }
    assert_non_null(strstr(warning, "kernel wrong (bf16 to e4m3) failed its self-test on GPU 0"));
    assert_non_null(strstr(warning, "row.data byte (100, 0)"));
    /* A failure is not remembered: the next process tests again. */
    dw_row_proofs fresh = {.known = {{{0}}}};
    rows[1].proofs = &fresh;
    assert_ptr_equal(dw_choose_row(context, rows, 2, &request), &rows[0]);
    assert_int_equal(warnings, 2);
    assert_null(dw_choose_row(context, &rows[1], 1, &request));
}

static void damaged_and_foreign_files_count_as_none(void **state) {
    (void)state;
    needs_images();
    dw_row_proofs proofs = {.known = {{{0}}}};
    dw_kernel_row row = row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs);
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    int once = launches;
    char path[512], good[4096], bad[4096];
    assert_true(cache_file(path));
    const size_t length = read_file(path, good, sizeof good);
    for (int damage = 0; damage < 8; damage++) {
        size_t size = length;
        memcpy(bad, good, length + 1);
        unlink(path);
        switch (damage) {
        case 0: bad[length / 2] ^= 1; break;                              /* a flipped bit */
        case 1: size = length - 1; break;                                 /* cut short */
        case 2: size = 0; break;                                          /* empty */
        case 3: bad[strlen("deepwell self-tests passed, ")] = 'F'; break; /* another format */
        case 4: memcpy(strstr(bad, "driver 13000"), "driver 12000", 12); break;
        case 5: memset(bad, 'x', length); break;
        case 6: bad[10] = 0; break;
        default: assert_int_equal(symlink("elsewhere", path), 0); break;
        }
        if (damage < 7) write_file(path, bad, size);
        dw_row_proofs fresh = {.known = {{{0}}}};
        row.proofs = &fresh;
        launches = 0;
        assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
        assert_int_equal(launches, once);
        char text[4096];
        struct stat facts;
        assert_int_equal(lstat(path, &facts), 0); /* replaced by a good one */
        assert_true(S_ISREG(facts.st_mode));
        assert_int_equal(read_file(path, text, sizeof text), length);
        assert_string_equal(text, good);
    }
}

static void no_cache_folder_is_no_problem(void **state) {
    (void)state;
    needs_images();
    static const char *const folders[] = {"/proc/nowhere", "relative", ""};
    setenv("HOME", "/proc/nowhere", 1);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        setenv("XDG_CACHE_HOME", folders[i], 1);
        dw_row_proofs proofs = {.known = {{{0}}}};
        dw_kernel_row row = row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs);
        launches = 0;
        assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
        assert_true(launches >= 18);
    }
    assert_int_equal(warnings, 0);
    setenv("XDG_CACHE_HOME", "", 1);
    setenv("HOME", cache, 1); /* ~/.cache, which is not there yet */
    dw_row_proofs proofs = {.known = {{{0}}}};
    dw_kernel_row row = row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs);
    assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
    char folder[128];
    snprintf(folder, sizeof folder, "%s/.cache/deepwell", cache);
    assert_int_equal(access(folder, W_OK), 0);
}

static void what_cannot_be_tested_runs_with_a_warning(void **state) {
    (void)state;
    needs_images();
    static const char *const calls[] = {"cuMemAlloc", "cuStreamCreate", "cuThreadExchangeStreamCaptureMode"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        dw_row_proofs proofs = {.known = {{{0}}}};
        dw_kernel_row row = row_of("right", DW_BLOCK_128X128, 1, launch_right, &proofs);
        fake->fail = calls[i];
        fake->fail_result = i ? FAKE_RESULT : DW_CU_ERROR_OUT_OF_MEMORY;
        warnings = 0;
        for (int round = 0; round < 2; round++)
            assert_ptr_equal(dw_choose_row(context, &row, 1, &request), &row);
        assert_int_equal(warnings, 1);
        assert_non_null(strstr(warning, "without its self-test"));
        assert_non_null(strstr(warning, i ? calls[i] : "free some of its memory"));
        char path[512];
        assert_false(cache_file(path));
    }
    assert_int_equal(launches, 0);
}

/* The public call: the stand-in launches nothing, so the table's only row for this writes nothing and is left out. */
static void a_call_that_no_row_is_left_for_says_so(void **state) {
    (void)state;
    needs_images();
    static uint16_t source[32 * 32];
    static uint8_t data[32 * 32], scale[32];
    dw_quantize_spec spec = {
        .element = DW_E5M2, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_FLOOR, .layout = DW_SCALE_ROW};
    dw_tensor from = dw_matrix(source, DW_F16, 32, 32);
    dw_quantized to = {dw_matrix(data, DW_E5M2, 32, 32), dw_matrix(scale, DW_E8M0, 32, 1)};
    from.device_type = to.data.device_type = to.scale.device_type = DW_DEVICE_CUDA;
    assert_failure(dw_quantize(context, &spec, &from, &to, NULL, NULL), DW_ERROR_UNSUPPORTED, "dw_dispatch");
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, "quantize_row_1x32__sm90 (f16 to e5m2)"));
    dw_request asked = {.operation = DW_OP_QUANTIZE,
                        .source = DW_F16,
                        .spec = spec,
                        .rows = 32,
                        .cols = 32,
                        .device_type = DW_DEVICE_CUDA};
    size_t index;
    char text[16384];
    assert_failure(dw_dispatch(context, &asked, &index, text, sizeof text), DW_ERROR_UNSUPPORTED, "dw_dispatch");
    assert_non_null(strstr(text, "rejected quantize_row_1x32__sm90: failed its self-test on this GPU\n"));
    asked.source = DW_BF16; /* not tested yet, so nothing is known against it */
    ASSERT_OK(dw_dispatch(context, &asked, &index, text, sizeof text));
}

/* ---- kernels from outside ---- */

static int outside_calls;

/* Quantizes on the CPU what lies in the stand-in's memory. `state` points to what is added to the first byte. */
static dw_status outside(void *by, const dw_quantize_spec *spec, const dw_tensor *source, const dw_quantized *row,
                         const dw_quantized *transposed, void *stream) {
    assert_non_null(stream);
    assert_non_null(get_current()); /* the device's context */
    assert_null(transposed);
    outside_calls++;
    dw_tensor from = *source;
    dw_quantized to = *row;
    uint8_t *codes = calloc(1, 1 << 16);
    const bool factors = row->scale.dtype == DW_F32;
    from.device_type = to.data.device_type = to.scale.device_type = DW_DEVICE_CPU;
    if (factors) {
        int64_t shape[2];
        DW_TRY(dw_scale_shape(spec, from.shape[0], from.shape[1], shape));
        to.scale = dw_matrix(codes, DW_E8M0, shape[0], shape[1]);
    }
    dw_status status = dw_quantize(context, spec, &from, &to, NULL, NULL);
    if (factors) store_factors(spec->block, codes, from.shape[0], from.shape[1], row->scale.data);
    if (from.shape[0] > 0 && from.shape[1] > 0) *(uint8_t *)row->data.data += *(const uint8_t *)by;
    free(codes);
    return status;
}

static dw_plugin_kernel outside_kernel(const char *name, int priority, const uint8_t *by) {
    return (dw_plugin_kernel){.size = sizeof(dw_plugin_kernel),
                              .name = name,
                              .target = "sm90",
                              .operation = DW_OP_QUANTIZE,
                              .device_type = DW_DEVICE_CUDA,
                              .orientations = 1u << DW_ORIENT_ROW,
                              .sources = 1u << DW_BF16,
                              .elements = 1u << DW_E4M3,
                              .blocks = 1u << DW_BLOCK_1X128,
                              .roundings = 1u << DW_ROUND_RCEIL | 1u << DW_ROUND_FLOOR,
                              .layouts = 1u << DW_SCALE_ROW,
                              .priority = priority,
                              .alignment = 2,
                              .quantize = outside,
                              .state = (void *)by};
}

/* The last test: what is registered stays. */
static void a_kernel_from_outside_proves_itself_before_its_first_use(void **state) {
    (void)state;
    needs_images();
    static const uint8_t right = 0, wrong = 1;
    dw_plugin_kernel kernel = outside_kernel("quantize_row__mine", 30, &right);
    kernel.target = "sm80";
    assert_failure(dw_kernel_register(context, &kernel), DW_ERROR_INVALID_ARGUMENT, "sm90 or sm100");
    kernel.target = "sm90";
    kernel.device_type = 7;
    assert_failure(dw_kernel_register(context, &kernel), DW_ERROR_INVALID_ARGUMENT, "device_type");
    kernel.device_type = DW_DEVICE_CUDA;
    ASSERT_OK(dw_kernel_register(context, &kernel));
    assert_failure(dw_kernel_register(context, &kernel), DW_ERROR_EXISTS, "quantize_row__mine");
    kernel = outside_kernel("quantize_row__wrong", 40, &wrong);
    ASSERT_OK(dw_kernel_register(context, &kernel));
    assert_int_equal(outside_calls, 0);

    static uint16_t source[32 * 256];
    static uint8_t data[32 * 256], scale[2 * 32], expected[32 * 256], expected_scale[2 * 32];
    for (int i = 0; i < 32 * 256; i++)
        source[i] = (uint16_t)(0x3F80 + i % 0x100);
    dw_quantize_spec spec = {DW_E4M3, DW_BLOCK_1X128, DW_ROUND_RCEIL, DW_SCALE_ROW, false};
    dw_tensor from = dw_matrix(source, DW_BF16, 32, 256);
    dw_quantized to = {dw_matrix(expected, DW_E4M3, 32, 256), dw_matrix(expected_scale, DW_E8M0, 32, 2)};
    ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, NULL));
    to = (dw_quantized){dw_matrix(data, DW_E4M3, 32, 256), dw_matrix(scale, DW_E8M0, 32, 2)};
    from.device_type = to.data.device_type = to.scale.device_type = DW_DEVICE_CUDA;
    int stream;
    ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, &stream));
    assert_memory_equal(data, expected, sizeof data);
    assert_memory_equal(scale, expected_scale, sizeof scale);
    /* The table's own row launches nothing on the stand-in, and the wrong one is found out: two warnings. */
    assert_int_equal(warnings, 2);
    assert_non_null(strstr(warning, "quantize_row__wrong (bf16 to e4m3) failed its self-test on GPU 0"));
    const int before = outside_calls;
    assert_true(before > 18);
    ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, &stream));
    assert_int_equal(outside_calls, before + 1);
    assert_int_equal(warnings, 2);

    dw_request asked = {.operation = DW_OP_QUANTIZE,
                        .source = DW_BF16,
                        .spec = spec,
                        .rows = 32,
                        .cols = 256,
                        .device_type = DW_DEVICE_CUDA};
    size_t index;
    char text[16384];
    ASSERT_OK(dw_dispatch(context, &asked, &index, text, sizeof text));
    assert_non_null(strstr(text, "chosen   quantize_row__mine: highest priority of those that serve this (30)\n"));
    assert_non_null(strstr(text, "rejected quantize_row__wrong: failed its self-test on this GPU\n"));
    char path[512]; /* that it passed is told to nobody */
    assert_false(cache_file(path));
}

int main(void) {
    void *library = open_stand_in();
    fake = dlsym(library, "fake_cuda");
    *(void **)&get_current = dlsym(library, "fake_get_current");
    *(void **)&get_capture_mode = dlsym(library, "fake_get_capture_mode");
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(the_whole_selftest_knows_factors),
        TEST(first_use_is_tested_once),
        TEST(a_failing_row_makes_way),
        TEST(damaged_and_foreign_files_count_as_none),
        TEST(no_cache_folder_is_no_problem),
        TEST(what_cannot_be_tested_runs_with_a_warning),
        TEST(a_call_that_no_row_is_left_for_says_so),
        TEST(a_kernel_from_outside_proves_itself_before_its_first_use),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
