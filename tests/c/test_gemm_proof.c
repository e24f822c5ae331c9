/* The self-test of the Hopper matrix kernels and what follows from it: against the stand-in driver, whose launches are
 * carried out here from the kernels' own parameters, with one fault or none. */
#include "cache_folder.h"

#include <dlfcn.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "core/status.h"
#include "cuda/device/sm90/gemm_params.h"
#include "cuda/host/gemm_sm90.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "registry/table.h"

typedef enum fault {
    NONE,
    NOTHING,       /* writes nothing */
    LAST_COLUMN,   /* leaves it */
    BEYOND_ROW,    /* writes one element after a row */
    NEXT_SCALE,    /* takes the scale of the row below */
    RING,          /* forgets the blocks of the reduction from the ring's size on */
    ONE_MORE,      /* adds the smallest integer to one element */
    NO_BIAS,       /* forgets it */
    NO_OLD,        /* stores where it should add */
    ROWS_OF_OTHERS /* writes a row beyond the last group, or the empty group's D not at all */
} fault;

static fake_cuda_state *fake;
static fake_get_capture_mode_function get_capture_mode;
static dw_context *context;
static char cache[64], warning[1024];
static int launches, helped_launches, dealt_launches, warnings; /* with a workspace; whose tiles are dealt to two */
static fault present;
static const char *faulty; /* part of the name of the kernels that have it */

static void keep_warning(const char *text, void *data) {
    (void)data;
    snprintf(warning, sizeof warning, "%s", text);
    warnings++;
}

/* ---- a kernel ---- */

static float elements[256];

static float bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static double scale_at(const dw_gemm_sm90_row *row, const void *scales, int64_t at) {
    if (row->scale_f32) return (double)((const float *)scales)[at];
    uint8_t code = ((const uint8_t *)scales)[at];
    return code == 255 ? (double)INFINITY : ldexp(1, code - 127);
}

typedef struct part {
    int64_t begin, end; /* rows, or the reduction */
    int64_t group;
} part;

static void multiply(const dw_gemm_sm90_row *row, const dw_gemm_sm90_params *p, const part *of, fault wrong) {
    const bool along_m = row->grouping == DW_GEMM_GROUPED_M, along_k = row->grouping == DW_GEMM_GROUPED_K;
    const uint8_t *a = (const uint8_t *)(uintptr_t)p->a.opaque[0], *b = (const uint8_t *)(uintptr_t)p->b.opaque[0];
    const int64_t a_ld = (int64_t)p->a.opaque[11], b_ld = (int64_t)p->b.opaque[11];
    const void *a_scales = (const void *)(uintptr_t)p->a_scale_map.opaque[0];
    const void *b_scales = row->b_vector ? (const void *)(uintptr_t)p->b_scale_map.opaque[0] : p->b_scale;
    const int64_t scale_bytes = row->scale_f32 ? 4 : 1;
    const int64_t a_scale_ld = (int64_t)p->a_scale_map.opaque[11] / scale_bytes;
    const int64_t b_scale_ld = (int64_t)p->b_scale_map.opaque[11] / scale_bytes;
    const int64_t row0 = along_k ? 0 : of->begin, row1 = along_k ? p->m : of->end;
    const int64_t k0 = along_k ? of->begin : 0, k1 = along_k ? of->end : p->k;
    const int64_t b_row = along_m ? of->group * p->n : 0, blocks = (p->n + 127) / 128;
    for (int64_t i = row0; i < row1; i++)
        for (int64_t j = 0; j < p->n - (wrong == LAST_COLUMN); j++) {
            double sum = 0;
            for (int64_t block = k0 / 128; block * 128 < k1; block++) {
                if (wrong == RING && block - k0 / 128 >= row->stages) continue;
                float dot = 0;
                for (int64_t k = block * 128; k < k1 && k < block * 128 + 128; k++)
                    dot += elements[a[i * a_ld + k]] * elements[b[(b_row + j) * b_ld + k]];
                int64_t a_row = wrong == NEXT_SCALE && i + 1 < p->m ? i + 1 : i;
                double a_scale = scale_at(row, a_scales, block * a_scale_ld + a_row);
                int64_t square = (along_m ? of->group * blocks : 0) + j / 128;
                double b_scale = scale_at(row, b_scales,
                                          row->b_vector ? block * b_scale_ld + j
                                                        : square * p->b_scale_row_step + block * p->b_scale_k_step);
                sum += (double)dot * a_scale * b_scale;
            }
            if (p->bias && wrong != NO_BIAS) sum += (double)bf16(((const uint16_t *)p->bias)[j]);
            if (wrong == ONE_MORE && i == row1 - 1 && j == p->n - 1) sum += 1;
            const int64_t at = ((along_k ? of->group * p->m : 0) + i) * p->out_ld + j;
            const bool adds = p->accumulate && wrong != NO_OLD;
            if (row->out_f32) {
                float *d = (float *)p->out + at;
                *d = (float)(sum + (adds ? (double)*d : 0));
                if (wrong == BEYOND_ROW && j == p->n - 1) d[1] = 0;
            } else {
                uint16_t *d = (uint16_t *)p->out + at;
                *d = adds ? to_bf16(bf16(to_bf16((float)sum)) + bf16(*d)) : to_bf16((float)sum);
                if (wrong == BEYOND_ROW && j == p->n - 1) d[1] = 0;
            }
        }
}

static void on_launch(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    const dw_gemm_sm90_row *row = NULL;
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        if (strcmp(dw_gemm_sm90_get(i)->name, symbol) == 0) row = dw_gemm_sm90_get(i);
    assert_non_null(row);
    launches++;
    const dw_gemm_sm90_params *p = arguments[0];
    helped_launches += p->workspace != NULL;
    dealt_launches += row->grouping == DW_GEMM_GROUPED_K && p->workspace && config->grid[0] == 2;
    const fault wrong = faulty && strstr(symbol, faulty) ? present : NONE;
    if (wrong == NOTHING) return;
    if (row->grouping == DW_GEMM_GROUPED_NONE) {
        multiply(row, p, &(part){0, p->m, 0}, wrong);
        return;
    }
    for (int g = 0; g < p->groups; g++) {
        part of = {g ? p->ends[g - 1] : 0, p->ends[g], g};
        if (wrong == ROWS_OF_OTHERS && row->grouping == DW_GEMM_GROUPED_K && of.begin == of.end) continue;
        if (wrong == ROWS_OF_OTHERS && row->grouping == DW_GEMM_GROUPED_M && g == p->groups - 1) of.end++;
        multiply(row, p, &of, wrong);
    }
}

static int set_up(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) return 0;
    make_cache(cache);
    fake->fail = NULL;
    fake->fail_times = 0;
    fake->on_launch = on_launch;
    faulty = NULL;
    launches = warnings = 0;
    context = make_context(1, NULL);
    dw_set_warning_handler(keep_warning, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) return 0;
    dw_set_warning_handler(NULL, NULL);
    dw_context_destroy(context);
    remove_cache(cache);
    assert_int_equal(fake->allocations, 0);
    assert_int_equal(fake->streams, 0);
    assert_int_equal(get_capture_mode(), 0);
    return 0;
}

static void needs_images(void) {
    if (dw_cuda_image_total == 0) {
        print_message("built without device code\n");
        skip();
    }
}

/* ---- the self-test ---- */

static dw_status selftest(size_t gemm, bool few, dw_selftest_result *result) {
    int stream;
    void *workspace = aligned_alloc(256, dw_gemm_selftest_workspace());
    const dw_selftest_device device = {0, workspace, &stream};
    dw_status status = dw_gemm_selftest(gemm, few, test_seed, &device, result);
    free(workspace);
    return status;
}

static void right_kernels_pass(void **state) {
    (void)state;
    needs_images();
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        dw_selftest_result result;
        const bool few = i % 6 != test_seed % 6;
        const int split = dw_gemm_sm90_get(i)->splits ? (few ? 1 : 2) : 0; /* cases with split tiles */
        helped_launches = dealt_launches = 0;
        if (selftest(i, few, &result) != DW_OK) fail_msg("%s: %s", dw_gemm_sm90_get(i)->name, result.first_mismatch);
        assert_int_equal(result.cases, (few ? 2 : 16) + split);
        const bool deals = dw_gemm_sm90_get(i)->grouping == DW_GEMM_GROUPED_K;
        const int dealt = deals ? (few ? 1 : 8) + split : 0;
        assert_int_equal(helped_launches, deals && !split ? result.cases : deals ? dealt : split);
        assert_int_equal(dealt_launches, dealt);
        assert_string_equal(result.first_mismatch, "");
    }
}

/* The smallest of the kernels whose names begin so. */
static size_t index_of(const char *form) {
    size_t found = dw_gemm_sm90_count();
    int least = 0;
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get(i);
        const int area = row->tile_m * row->tile_n;
        if (strncmp(row->name, form, strlen(form)) != 0 || (found < dw_gemm_sm90_count() && area >= least)) continue;
        found = i;
        least = area;
    }
    if (found == dw_gemm_sm90_count()) fail_msg("no kernel %s...", form);
    return found;
}

static int count_of(const char *form) {
    int count = 0;
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        count += strncmp(dw_gemm_sm90_get(i)->name, form, strlen(form)) == 0;
    return count;
}

#define DENSE "gemm_nt_e4m3_f32_1x128_128x128_bf16__"
#define DENSE_TO_F32 "gemm_nt_e4m3_f32_1x128_128x128_f32__"
#define DENSE_CODES "gemm_nt_e4m3_e8m0_1x128_128x128_bf16__"
#define CODES_TO_F32 "gemm_nt_e4m3_e8m0_1x128_1x128_f32__"
#define VECTORS "gemm_nt_e4m3_f32_1x128_1x128_f32__"
#define ROWS_GROUPED "gemm_grouped_m_e4m3_e8m0_1x128_128x128_bf16__"
#define REDUCTION_GROUPED "gemm_grouped_k_e4m3_f32_1x128_1x128_f32__"

static void faults_are_found(void **state) {
    (void)state;
    needs_images();
    static const struct {
        const char *form;
        fault wrong;
        bool few; /* the cases of a first use find it too */
    } cases[] = {{DENSE, NOTHING, true},
                 {DENSE_CODES, LAST_COLUMN, true},
                 {DENSE, BEYOND_ROW, false},
                 {DENSE_CODES, NEXT_SCALE, true},
                 {DENSE, RING, true},
                 {VECTORS, RING, true},
                 {REDUCTION_GROUPED, RING, true},
                 {DENSE, ONE_MORE, false},
                 {DENSE_CODES, NO_BIAS, false},
                 {VECTORS, NO_OLD, false},
                 {ROWS_GROUPED, ROWS_OF_OTHERS, true},
                 {REDUCTION_GROUPED, ROWS_OF_OTHERS, false},
                 {REDUCTION_GROUPED, NO_OLD, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        present = cases[i].wrong;
        const size_t gemm = index_of(cases[i].form);
        faulty = dw_gemm_sm90_get(gemm)->name;
        dw_selftest_result result;
        dw_status status = selftest(gemm, cases[i].few, &result);
        printf("%s, fault %d: %lld, %s\n", faulty, (int)present, (long long)result.mismatches, result.first_mismatch);
        assert_failure(status, DW_ERROR_SELFTEST, faulty);
        assert_true(result.mismatches > 0);
        assert_non_null(strstr(result.first_mismatch, "seed"));
    }
}

/* ---- what runs ---- */

static uint8_t *memory; /* of the operands below; the stand-in's device memory is the host's */

static dw_tensor on_gpu(void *data, dw_dtype dtype, int64_t rows, int64_t cols) {
    dw_tensor tensor = dw_matrix(data, dtype, rows, cols);
    tensor.device_type = DW_DEVICE_CUDA;
    return tensor;
}

/* [256, 256] by [256, 256], all ones with scales of one. */
static dw_gemm_args product(dw_dtype scales, dw_dtype d, dw_gemm_scaling b) {
    uint8_t *data = memory, *out = memory + 0x10000, *scale = memory + 0x80000;
    memset(data, 0x38, 0x10000);
    memset(out, 0, 0x70000);
    for (int i = 0; i < 0x1000; i++)
        if (scales == DW_F32)
            ((float *)(void *)scale)[i] = 1;
        else
            scale[i] = 127;
    dw_gemm_operand a = {.data = on_gpu(data, DW_E4M3, 256, 256), .scaling = DW_GEMM_1X128}, other = a;
    a.scale = scales == DW_F32 ? on_gpu(scale, DW_F32, 256, 2) : on_gpu(scale, DW_E8M0, 2, 256);
    a.layout = DW_SCALE_MN_MAJOR;
    if (scales == DW_F32) {
        a.scale.strides[0] = 1;
        a.scale.strides[1] = 256;
    }
    other.scale = a.scale;
    other.layout = a.layout;
    other.scaling = b;
    if (b == DW_GEMM_128X128) {
        other.scale = on_gpu(scale, scales, 2, scales == DW_F32 ? 2 : 16);
        if (scales == DW_F32) other.scale.strides[0] = 4;
    }
    return (dw_gemm_args){.a = a, .b = other, .d = on_gpu(out, d, 256, 256)};
}

static double first_of(const dw_gemm_args *args) {
    return args->d.dtype == DW_F32 ? (double)*(const float *)args->d.data
                                   : (double)bf16(*(const uint16_t *)args->d.data);
}

static void first_use_is_tested_once(void **state) {
    (void)state;
    needs_images();
    dw_gemm_args args = product(DW_E8M0, DW_F32, DW_GEMM_1X128);
    dw_fail(DW_ERROR_IO, "what was before");
    size_t bytes = 99;
    ASSERT_OK(dw_gemm_workspace_size(context, &args, &bytes));
    assert_int_equal(bytes, 0);
    assert_int_equal(launches, 2); /* the two cases of the kernel chosen */
    for (int i = 0; i < 2; i++)
        ASSERT_OK(dw_gemm(context, &args, NULL));
    assert_int_equal(launches, 4);
    assert_int_equal(warnings, 0);
    assert_string_equal(dw_last_error(), "what was before");
    assert_true(first_of(&args) == 256);
    char command[256];
    snprintf(command, sizeof command, "grep -q ^" CODES_TO_F32 " %s/deepwell/*.txt", cache);
    assert_int_equal(system(command), 0);
}

/* The kernel chosen fails, the next one is tested and runs; where none is left, cuBLASLt, or nobody. */
static void failing_kernels_make_way(void **state) {
    (void)state;
    needs_images();
    dw_gemm_args args = product(DW_F32, DW_F32, DW_GEMM_128X128); /* several kernels have these formats */
    assert_true(count_of(DENSE_TO_F32) > 1);
    const dw_gemm_sm90_shape shape = {.m = 256, .n = 256, .k = 256, .groups = 1, .scale_f32 = true, .out_f32 = true};
    const int multiprocessors = 16000; /* the stand-in's */
    int first = dw_gemm_sm90_choose(&shape, multiprocessors, 0, dw_gemm_proofs(0));
    present = ONE_MORE;
    faulty = dw_gemm_sm90_get((size_t)first)->name;
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(dw_gemm(context, &args, NULL));
        assert_int_equal(warnings, 1);
    }
    assert_non_null(strstr(warning, faulty));
    assert_non_null(strstr(warning, "failed its self-test on GPU 0"));
    int second = dw_gemm_sm90_choose(&shape, multiprocessors, 0, dw_gemm_proofs(0));
    assert_true(second >= 0 && second != first);
    assert_int_equal(dw_gemm_sm90_choose(&shape, multiprocessors, 0, NULL), first); /* what is known counts, not luck */

    /* All of one form. */
    args = product(DW_F32, DW_F32, DW_GEMM_1X128);
    faulty = VECTORS;
    args.backend = DW_GEMM_OWN;
    assert_failure(dw_gemm(context, &args, NULL), DW_ERROR_UNSUPPORTED, "failed its self-test");
    assert_int_equal(warnings, 1 + count_of(VECTORS));
    args.backend = DW_GEMM_AUTO;
    size_t bytes = 0;
    ASSERT_OK(dw_gemm_workspace_size(context, &args, &bytes)); /* cuBLASLt's */
    void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    args.workspace = workspace;
    args.workspace_bytes = bytes;
    launches = 0;
    ASSERT_OK(dw_gemm(context, &args, NULL));
    assert_int_equal(launches, 0);
    assert_true(first_of(&args) == 256);
    free(workspace);
    /* Forced, it runs all the same; a kernel for other formats does not. */
    ASSERT_OK(dw_gemm_with_row((int)index_of(VECTORS), 0, &args, NULL));
    assert_int_equal(launches, 1);
    assert_failure(dw_gemm_with_row((int)index_of(DENSE), 0, &args, NULL), DW_ERROR_UNSUPPORTED, "other formats");
    assert_failure(dw_gemm_with_row(9999, 0, &args, NULL), DW_ERROR_UNSUPPORTED, "other formats");
}

static void groups_have_no_second_source(void **state) {
    (void)state;
    needs_images();
    dw_gemm_args of = product(DW_F32, DW_F32, DW_GEMM_1X128);
    int32_t ends[1] = {256};
    dw_grouped_gemm_args args = {.a = of.a, .b = of.b, .d = of.d, .ends = ends, .groups = 1, .axis = DW_GROUP_K};
    args.d.rank = 3;
    for (int i = 0; i < 3; i++) {
        args.d.shape[i] = i ? 256 : 1;
        args.d.strides[i] = i == 2 ? 1 : i == 1 ? 256 : 65536;
    }
    present = NOTHING;
    faulty = REDUCTION_GROUPED;
    assert_failure(dw_grouped_gemm(context, &args, NULL), DW_ERROR_UNSUPPORTED, "failed its self-test on GPU 0");
    assert_int_equal(warnings, count_of(REDUCTION_GROUPED));
    faulty = NULL;
    ASSERT_OK(dw_grouped_gemm_with_row((int)index_of(REDUCTION_GROUPED), 0, &args, NULL));
    assert_true(*(float *)args.d.data == 256);
}

/* As if the device code of the kernel chosen were not for this GPU. */
static void a_kernel_without_its_image_makes_way(void **state) {
    (void)state;
    needs_images();
    dw_gemm_args args = product(DW_E8M0, DW_F32, DW_GEMM_128X128);
    fake->fail = "cuModuleLoadFatBinary";
    fake->fail_result = DW_CU_ERROR_NO_BINARY_FOR_GPU;
    fake->fail_times = 2; /* each of the self-test's cases */
    ASSERT_OK(dw_gemm(context, &args, NULL));
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, "device code sm90/gemm_nt_e4m3_e8m0"));
    assert_int_equal(launches, 3);
    assert_true(first_of(&args) == 256);
}

/* A first use while a CUDA graph is captured: the tests run in a stream of their own, in the mode that leaves captures
 * alone, and only the product itself goes to the caller's stream. */
static int in_own_stream;

static void watch_launch(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    if (config->stream == (void *)memory)
        assert_int_equal(get_capture_mode(), 0);
    else
        assert_int_equal(get_capture_mode(), DW_CU_CAPTURE_MODE_RELAXED);
    in_own_stream += config->stream != (void *)memory;
    on_launch(symbol, config, arguments);
}

static void first_use_while_capturing(void **state) {
    (void)state;
    needs_images();
    fake->on_launch = watch_launch;
    in_own_stream = 0;
    dw_gemm_args args = product(DW_E8M0, DW_BF16, DW_GEMM_1X128);
    for (int i = 0; i < 2; i++)
        ASSERT_OK(dw_gemm(context, &args, memory));
    assert_int_equal(launches, 4);
    assert_int_equal(in_own_stream, 2);
    assert_true(first_of(&args) == 256);
}

int main(void) {
    setenv("DEEPWELL_LIBCUDA", FAKE_LIBCUDA, 1);
    setenv("DEEPWELL_LIBCUBLASLT", FAKE_LIBCUBLASLT, 1);
    void *library = dlopen(FAKE_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    fake = dlsym(library, "fake_cuda");
    *(void **)&get_capture_mode = dlsym(library, "fake_get_capture_mode");
    memory = aligned_alloc(256, 1 << 20);
    for (int i = 0; i < 256; i++) {
        int exponent = i >> 3 & 15, fraction = i & 7;
        float value = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : ldexpf((float)fraction, -9);
        elements[i] = (i & 0x7F) == 0x7F ? NAN : i & 0x80 ? -value : value;
    }
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    /* The one without its image goes first: what is loaded stays loaded. */
    const struct CMUnitTest tests[] = {
        TEST(a_kernel_without_its_image_makes_way),
        TEST(right_kernels_pass),
        TEST(faults_are_found),
        TEST(first_use_is_tested_once),
        TEST(failing_kernels_make_way),
        TEST(groups_have_no_second_source),
        TEST(first_use_while_capturing),
    };
    int failed = cmocka_run_group_tests(tests, choose_seed, NULL);
    free(memory);
    return failed;
}
