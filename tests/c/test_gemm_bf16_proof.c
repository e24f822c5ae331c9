/* The self-test of the grouped BF16 kernels and what follows from it: against the stand-in driver, whose launches are
 * carried out here from the kernels' own parameters, with one fault or none. */
#include "cache_folder.h"

#include <dlfcn.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "core/status.h"
#include "cuda/device/sm90/gemm_params.h"
#include "cuda/host/gemm_bf16.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "registry/table.h"
#include "stand_in.h"

typedef enum fault {
    NONE,
    NOTHING,        /* writes nothing */
    LAST_COLUMN,    /* leaves it */
    BEYOND_ROW,     /* writes one element after a row */
    RING,           /* forgets the steps of the reduction from the ring's size on */
    ONE_MORE,       /* adds the smallest integer to one element */
    CUT_OFF,        /* cuts off what BF16 does not hold, where it should round */
    NO_OLD,         /* stores where it should add */
    ROWS_OF_OTHERS, /* writes a row beyond the last group, or the empty group's D not at all */
    WHOLE_STAGES,   /* multiplies to the end of the stage where a group's reduction ends inside */
    WRONG_WEIGHTS   /* takes the last group's for all */
} fault;

static fake_cuda_state *fake;
static dw_context *context;
static char cache[64], warning[1024], launched[128];
static int launches, warnings;
static fault present;
static const char *faulty; /* the kernel that has it */
static bool pair_too;      /* and that of two blocks */

static void keep_warning(const char *text, void *data) {
    (void)data;
    snprintf(warning, sizeof warning, "%s", text);
    warnings++;
}

/* ---- a kernel ---- */

static float bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t to_bf16(float value, fault wrong) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((wrong == CUT_OFF ? bits : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

typedef struct part {
    int64_t begin, end; /* rows, or the reduction */
    int64_t group;
} part;

/* The element of an operand in a row at a place of the reduction, by what its map says of how it lies. */
static float element(const dw_gemm_sm90_map *map, bool across, int64_t group, int64_t row, int64_t k) {
    const uint16_t *data = (const uint16_t *)(uintptr_t)map->opaque[0];
    const int64_t ld = (int64_t)map->opaque[11] / 2, stack = group ? (int64_t)map->opaque[12] / 2 : 0;
    return bf16(data[group * stack + (across ? k * ld + row : row * ld + k)]);
}

static void store(const dw_gemm_bf16_row *row, const dw_gemm_sm90_params *p, int64_t at, bool last, double sum,
                  fault wrong) {
    const bool adds = p->accumulate && wrong != NO_OLD;
    if (row->out_f32) {
        float *d = (float *)p->out + at;
        *d = (float)(sum + (adds ? (double)*d : 0));
        if (wrong == BEYOND_ROW && last) d[1] = 0;
        return;
    }
    uint16_t *d = (uint16_t *)p->out + at;
    const uint16_t rounded = to_bf16((float)sum, wrong);
    *d = adds ? to_bf16(bf16(rounded) + bf16(*d), wrong) : rounded;
    if (wrong == BEYOND_ROW && last) d[1] = 0;
}

static void multiply(const dw_gemm_bf16_row *row, const dw_gemm_sm90_params *p, const part *of, fault wrong) {
    const bool along_k = row->grouping == DW_GEMM_GROUPED_K;
    const int64_t row0 = along_k ? 0 : of->begin, row1 = along_k ? p->m : of->end;
    const int64_t k0 = along_k ? of->begin : 0, ring = DW_GEMM_BF16_STAGES * DW_GEMM_BF16_BLOCK_K;
    int64_t k1 = along_k ? of->end : p->k;
    const int64_t b_group = along_k ? 0 : wrong == WRONG_WEIGHTS ? p->groups - 1 : of->group;
    if (wrong == WHOLE_STAGES && along_k) {
        k1 = k0 + (k1 - k0 + DW_GEMM_BF16_BLOCK_K - 1) / DW_GEMM_BF16_BLOCK_K * DW_GEMM_BF16_BLOCK_K;
        if (k1 > p->k) k1 = p->k;
    }
    if (wrong == RING && k1 - k0 > ring) k1 = k0 + ring;
    for (int64_t i = row0; i < row1; i++)
        for (int64_t j = 0; j < p->n - (wrong == LAST_COLUMN); j++) {
            double sum = 0;
            for (int64_t k = k0; k < k1; k++)
                sum += (double)(element(&p->a, along_k, 0, i, k) * element(&p->b, row->b_across, b_group, j, k));
            if (wrong == ONE_MORE && i == row1 - 1 && j == p->n - 1) sum += 1;
            const int64_t at = ((along_k ? of->group * p->m : 0) + i) * p->out_ld + j;
            store(row, p, at, j == p->n - 1, sum, wrong);
        }
}

static void on_launch(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    (void)config;
    const dw_gemm_bf16_row *row = NULL;
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++)
        if (strcmp(dw_gemm_bf16_get(i)->name, symbol) == 0) row = dw_gemm_bf16_get(i);
    assert_non_null(row);
    launches++;
    snprintf(launched, sizeof launched, "%s", symbol);
    const dw_gemm_sm90_params *p = arguments[0];
    const bool has_it = faulty && strncmp(symbol, faulty, strlen(faulty)) == 0 && (pair_too || !symbol[strlen(faulty)]);
    const fault wrong = has_it ? present : NONE;
    if (wrong == NOTHING) return;
    for (int g = 0; g < p->groups; g++) {
        part of = {g ? p->ends[g - 1] : 0, p->ends[g], g};
        if (wrong == ROWS_OF_OTHERS && row->grouping == DW_GEMM_GROUPED_K && of.begin == of.end) continue;
        if (wrong == ROWS_OF_OTHERS && row->grouping == DW_GEMM_GROUPED_M && g == p->groups - 1) of.end++;
        multiply(row, p, &of, wrong);
    }
}

static int set_up(void **state) {
    (void)state;
    make_cache(cache);
    fake->fail = NULL;
    fake->on_launch = on_launch;
    faulty = NULL;
    pair_too = false;
    launches = warnings = 0;
    context = make_context(1, NULL);
    dw_set_warning_handler(keep_warning, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    dw_set_warning_handler(NULL, NULL);
    dw_context_destroy(context);
    remove_cache(cache);
    assert_int_equal(fake->allocations, 0);
    assert_int_equal(fake->streams, 0);
    return 0;
}

/* ---- the self-test ---- */

static dw_status selftest(size_t index, bool few, dw_selftest_result *result) {
    int stream;
    void *workspace = aligned_alloc(256, dw_gemm_selftest_workspace());
    const dw_selftest_device device = {0, workspace, &stream};
    dw_status status = dw_gemm_selftest(dw_gemm_sm90_count() + index, few, test_seed, &device, result);
    free(workspace);
    return status;
}

static void right_kernels_pass(void **state) {
    (void)state;
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++) {
        dw_selftest_result result;
        const bool few = i % 4 != test_seed % 4;
        if (selftest(i, few, &result) != DW_OK) fail_msg("%s: %s", dw_gemm_bf16_get(i)->name, result.first_mismatch);
        assert_string_equal(launched, dw_gemm_bf16_get(i)->name);
        assert_int_equal(result.cases, few ? 2 : 16);
        assert_string_equal(result.first_mismatch, "");
    }
}

#define ROWS "gemm_grouped_m_bf16_bf16__sm90_128x256"
#define ROWS_PAIR ROWS "_pair"
#define ACROSS "gemm_grouped_m_across_bf16_bf16__sm90_128x256"
#define REDUCTION "gemm_grouped_k_bf16_bf16__sm90_128x256"
#define TO_F32 "gemm_grouped_k_bf16_f32__sm90_128x256"

static size_t index_of(const char *name) {
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++)
        if (strcmp(dw_gemm_bf16_get(i)->name, name) == 0) return i;
    fail_msg("no kernel %s", name);
    return 0;
}

static void faults_are_found(void **state) {
    (void)state;
    static const struct {
        const char *name;
        fault wrong;
        bool few; /* the cases of a first use find it too */
    } cases[] = {{ROWS, NOTHING, true},
                 {ACROSS, LAST_COLUMN, true},
                 {ROWS_PAIR, BEYOND_ROW, true},
                 {ROWS, RING, true},
                 {TO_F32, RING, true},
                 {ACROSS, ONE_MORE, true},
                 {REDUCTION, CUT_OFF, false},
                 {ROWS, NO_OLD, true},
                 {TO_F32, NO_OLD, true},
                 {ROWS_PAIR, ROWS_OF_OTHERS, true},
                 {REDUCTION, ROWS_OF_OTHERS, true},
                 {TO_F32, WHOLE_STAGES, true},
                 {REDUCTION, WHOLE_STAGES, true},
                 {ROWS, WRONG_WEIGHTS, true},
                 {ACROSS, WRONG_WEIGHTS, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        present = cases[i].wrong;
        faulty = cases[i].name;
        dw_selftest_result result;
        dw_status status = selftest(index_of(faulty), cases[i].few, &result);
        printf("%s, fault %d: %lld, %s\n", faulty, (int)present, (long long)result.mismatches, result.first_mismatch);
        assert_failure(status, DW_ERROR_SELFTEST, faulty);
        assert_true(result.mismatches > 0);
        assert_non_null(strstr(result.first_mismatch, "seed"));
    }
}

/* ---- what runs ---- */

static uint16_t *memory; /* of the operands below; the stand-in's device memory is the host's */
static int32_t ends[2] = {100, 256};

enum { EXTENT = 256, ONE = 0x3F80, POISON = 0x4242 };

static dw_tensor on_gpu(void *data, dw_dtype dtype, int64_t groups) {
    dw_tensor tensor = dw_matrix(data, dtype, EXTENT, EXTENT);
    tensor.device_type = DW_DEVICE_CUDA;
    if (groups == 0) return tensor;
    tensor.rank = 3;
    for (int i = 0; i < 3; i++) {
        tensor.shape[i] = i ? EXTENT : groups;
        tensor.strides[i] = i == 2 ? 1 : i == 1 ? EXTENT : EXTENT * EXTENT;
    }
    return tensor;
}

/* Two groups of rows, or of the reduction, all ones. */
static dw_grouped_gemm_args product(dw_group_axis axis, dw_dtype result) {
    enum { WHOLE = EXTENT * EXTENT };
    for (int i = 0; i < 7 * WHOLE; i++)
        memory[i] = i < 3 * WHOLE ? ONE : POISON;
    dw_grouped_gemm_args args = {.ends = ends, .groups = 2, .axis = axis};
    args.a.data = on_gpu(memory, DW_BF16, 0);
    args.b.data = on_gpu(memory + WHOLE, DW_BF16, axis == DW_GROUP_M ? 2 : 0);
    args.d = on_gpu(memory + 3 * WHOLE, result, axis == DW_GROUP_K ? 2 : 0);
    if (axis == DW_GROUP_K)
        for (int i = 0; i < 2; i++) {
            args.a.data.strides[i] = i ? EXTENT : 1;
            args.b.data.strides[i] = i ? EXTENT : 1;
        }
    return args;
}

static double first_of(const dw_grouped_gemm_args *args) {
    return args->d.dtype == DW_F32 ? (double)*(const float *)args->d.data
                                   : (double)bf16(*(const uint16_t *)args->d.data);
}

static int refuted(void) {
    int count = 0;
    for (size_t i = 0; i < dw_gemm_sm90_count() + dw_gemm_bf16_count(); i++)
        count += dw_gemm_proofs(0)[i] == DW_PROOF_REFUTED;
    return count;
}

static void first_use_is_tested_once(void **state) {
    (void)state;
    dw_grouped_gemm_args args = product(DW_GROUP_K, DW_F32);
    dw_fail(DW_ERROR_IO, "what was before");
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_int_equal(launches, 3); /* the two cases of the kernel chosen, and the product */
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_int_equal(launches, 4);
    assert_int_equal(warnings, 0);
    assert_string_equal(dw_last_error(), "what was before");
    assert_true(first_of(&args) == 100);
    char command[256];
    snprintf(command, sizeof command, "grep -q '^%s$' %s/deepwell/*.txt", launched, cache);
    assert_int_equal(system(command), 0);
}

/* The kernel chosen fails, and the other one of its form is tested and runs. */
static void failing_kernels_make_way(void **state) {
    (void)state;
    dw_grouped_gemm_args args = product(DW_GROUP_K, DW_BF16);
    present = WHOLE_STAGES;
    faulty = REDUCTION;
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
        assert_string_equal(launched, REDUCTION "_pair");
        assert_int_equal(launches, 5 + i); /* two cases of each, and the product */
        assert_int_equal(warnings, 1);
    }
    assert_non_null(strstr(warning, "kernel " REDUCTION " failed its self-test on GPU 0"));
    assert_true(first_of(&args) == 100);
    assert_int_equal(refuted(), 1);
    const size_t first = dw_gemm_sm90_count();
    assert_int_equal(dw_gemm_proofs(0)[first + index_of(REDUCTION)], DW_PROOF_REFUTED);
    assert_int_equal(dw_gemm_proofs(0)[first + index_of(REDUCTION "_pair")], DW_PROOF_TRUSTED);
}

/* Where both fail, nothing runs. */
static void there_is_no_second_source(void **state) {
    (void)state;
    dw_grouped_gemm_args args = product(DW_GROUP_M, DW_BF16);
    present = ONE_MORE;
    faulty = ROWS;
    pair_too = true;
    const int before = refuted();
    for (int i = 0; i < 2; i++) {
        assert_failure(dw_grouped_gemm(context, &args, NULL), DW_ERROR_UNSUPPORTED,
                       "each kernel for bf16 of these formats failed its self-test on GPU 0");
        assert_int_equal(launches, 4);
        assert_int_equal(warnings, 2);
    }
    assert_int_equal(memory[3 * EXTENT * EXTENT], POISON);
    assert_int_equal(refuted(), before + 2);
    /* Forced, it runs all the same; a kernel for other formats does not. */
    faulty = NULL;
    ASSERT_OK(dw_grouped_gemm_bf16_with_row((int)index_of(ROWS), 0, &args, NULL));
    assert_true(first_of(&args) == EXTENT);
    assert_failure(dw_grouped_gemm_bf16_with_row((int)index_of(ACROSS), 0, &args, NULL), DW_ERROR_UNSUPPORTED,
                   "other formats");
    assert_failure(dw_grouped_gemm_bf16_with_row(9999, 0, &args, NULL), DW_ERROR_UNSUPPORTED, "other formats");
    /* Weights that lie the other way have kernels of their own. */
    args.b.data.strides[1] = 1;
    args.b.data.strides[2] = EXTENT;
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_string_equal(launched, ACROSS);
}

int main(void) {
    void *library = open_stand_in();
    if (dw_cuda_image_total == 0) {
        printf("built without device code\n");
        return 0;
    }
    fake = dlsym(library, "fake_cuda");
    memory = aligned_alloc(256, sizeof *memory * 7 * EXTENT * EXTENT);
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(right_kernels_pass),       TEST(faults_are_found),          TEST(first_use_is_tested_once),
        TEST(failing_kernels_make_way), TEST(there_is_no_second_source),
    };
    int failed = cmocka_run_group_tests(tests, choose_seed, NULL);
    free(memory);
    return failed;
}
