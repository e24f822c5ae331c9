/* dw_grouped_gemm of BF16 operands against the stand-in driver: which kernel is launched, what it is told of the
 * operands, and what is refused. */
#include "support.h"

#include <dlfcn.h>
#include <string.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/host/gemm_bf16.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "registry/table.h"
#include "stand_in.h"

#define H100_MULTIPROCESSORS 132
#define MOST_SHARED_BYTES 232448

static fake_cuda_state *fake;
static dw_context *context;
static char launched[128];
static dw_gemm_sm90_params parameters;
static dw_cu_launch_config config;
static int launches;

static void note_launch(const char *symbol, const dw_cu_launch_config *given, void **arguments) {
    snprintf(launched, sizeof launched, "%s", symbol);
    memcpy(&parameters, arguments[0], sizeof parameters);
    config = *given;
    launches++;
}

/* Addresses that nothing reads. */
static char a_memory[64] __attribute__((aligned(256))), b_memory[64] __attribute__((aligned(256))),
    d_memory[64] __attribute__((aligned(256)));
static int32_t ends[64];

static dw_tensor tensor(void *data, dw_dtype dtype, int rank, const int64_t *shape, const int64_t *strides) {
    dw_tensor t = {.data = data, .dtype = dtype, .device_type = DW_DEVICE_CUDA, .rank = rank};
    memcpy(t.shape, shape, sizeof *shape * (size_t)rank);
    memcpy(t.strides, strides, sizeof *strides * (size_t)rank);
    return t;
}
#define TENSOR2(data, dtype, r, c, sr, sc) tensor(data, dtype, 2, (int64_t[]){r, c}, (int64_t[]){sr, sc})
#define TENSOR3(data, dtype, g, r, c, sg, sr, sc) tensor(data, dtype, 3, (int64_t[]){g, r, c}, (int64_t[]){sg, sr, sc})

static dw_grouped_gemm_args along_m(int64_t groups, int64_t rows, int64_t n, int64_t k, bool across) {
    return (dw_grouped_gemm_args){.a = {.data = TENSOR2(a_memory, DW_BF16, rows, k, k + 8, 1)},
                                  .b = {.data = across ? TENSOR3(b_memory, DW_BF16, groups, n, k, n * k, 1, n)
                                                       : TENSOR3(b_memory, DW_BF16, groups, n, k, n * k, k, 1)},
                                  .d = TENSOR2(d_memory, DW_BF16, rows, n, n + 16, 1),
                                  .ends = ends,
                                  .groups = groups,
                                  .axis = DW_GROUP_M};
}

static dw_grouped_gemm_args along_k(int64_t groups, int64_t m, int64_t n, int64_t tokens, dw_dtype result) {
    return (dw_grouped_gemm_args){.a = {.data = TENSOR2(a_memory, DW_BF16, m, tokens, 1, m + 8)},
                                  .b = {.data = TENSOR2(b_memory, DW_BF16, n, tokens, 1, n + 16)},
                                  .d = TENSOR3(d_memory, result, groups, m, n, m * n, n, 1),
                                  .ends = ends,
                                  .groups = groups,
                                  .axis = DW_GROUP_K};
}

/* What a map of the stand-in says. */
static void check_map(const dw_gemm_sm90_map *map, const void *address, int rank, const uint64_t *extents,
                      const uint64_t *strides, const uint64_t *box) {
    assert_int_equal(map->opaque[0], (uintptr_t)address);
    for (int i = 0; i < rank; i++) {
        assert_int_equal(map->opaque[1 + i], extents[i]);
        assert_int_equal(map->opaque[6 + i], box[i]);
        if (i) assert_int_equal(map->opaque[10 + i], strides[i - 1]);
    }
}
#define U(...) ((uint64_t[]){__VA_ARGS__})

static int set_up(void **state) {
    (void)state;
    fake->fail = NULL;
    fake->on_launch = note_launch;
    fake->major[0] = 9;
    fake->minor[0] = 0;
    launches = 0;
    /* As if each had proved itself: test_gemm_bf16_proof.c is about that. */
    atomic_uchar *proofs = (atomic_uchar *)dw_gemm_proofs(0) + dw_gemm_sm90_count();
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++)
        atomic_store(&proofs[i], DW_PROOF_TRUSTED);
    return 0;
}

static void rows_fit_and_have_their_code(void **state) {
    (void)state;
    assert_true(dw_gemm_bf16_count() >= 4);
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++) {
        const dw_gemm_bf16_row *row = dw_gemm_bf16_get(i);
        char image[160];
        snprintf(image, sizeof image, "sm90/%s", row->name);
        if (!dw_cuda_image_find(image)) fail_msg("%s is not in the library", image);
        assert_true(dw_gemm_bf16_shared_bytes(row) <= MOST_SHARED_BYTES);
        assert_int_equal(strstr(row->name, "_pair") != NULL, row->pair);
        assert_int_equal(strstr(row->name, "_f32_") != NULL, row->out_f32);
        assert_int_equal(strstr(row->name, "_grouped_k_") != NULL, row->grouping == DW_GEMM_GROUPED_K);
        assert_int_equal(strstr(row->name, "_across_") != NULL || row->grouping == DW_GEMM_GROUPED_K, row->b_across);
    }
    assert_null(dw_gemm_bf16_get(dw_gemm_bf16_count()));
}

static void every_form_has_a_kernel(void **state) {
    (void)state;
    for (int bits = 0; bits < 8; bits++) {
        dw_gemm_bf16_shape shape = {.m = 4096,
                                    .n = 2048,
                                    .k = 1024,
                                    .groups = 8,
                                    .grouping = bits & 1 ? DW_GEMM_GROUPED_K : DW_GEMM_GROUPED_M,
                                    .b_across = bits & 2,
                                    .out_f32 = bits & 4};
        bool offered = shape.grouping == DW_GEMM_GROUPED_K ? shape.b_across : !shape.out_f32;
        int chosen = dw_gemm_bf16_choose(&shape, H100_MULTIPROCESSORS, NULL);
        assert_int_equal(chosen >= 0, offered);
        if (!offered) continue;
        const dw_gemm_bf16_row *row = dw_gemm_bf16_get((size_t)chosen);
        assert_int_equal(row->grouping, shape.grouping);
        assert_int_equal(row->b_across, shape.b_across);
        assert_int_equal(row->out_f32, shape.out_f32);
    }
}

/* The table's rows for these kernels are numbered behind the block-scaled ones. */
static void the_table_lists_them(void **state) {
    (void)state;
    size_t found = 0;
    for (size_t i = 0; i < dw_kernel_table_size; i++) {
        const dw_kernel_row *listed = &dw_kernel_table[i];
        if (listed->info.operation != DW_OP_GEMM) continue;
        const size_t number = listed->entry.gemm, first = dw_gemm_sm90_count();
        if (number < first) {
            assert_string_equal(listed->info.name, dw_gemm_sm90_get(number)->name);
            continue;
        }
        const dw_gemm_bf16_row *row = dw_gemm_bf16_get(number - first);
        assert_non_null(row);
        assert_string_equal(listed->info.name, row->name);
        assert_int_equal(listed->info.elements, 1u << DW_BF16);
        assert_int_equal(listed->info.sources, 1u << (row->out_f32 ? DW_F32 : DW_BF16));
        assert_int_equal(strstr(listed->info.form, "reduction in groups") != NULL, row->grouping == DW_GEMM_GROUPED_K);
        found++;
    }
    assert_int_equal(found, dw_gemm_bf16_count());
}

/* Two blocks that share B are faster by 1 to 2% where experts are large and slower where they are small (H100,
 * docs/measured-facts.md): the layers measured there, with weights lying either way, and their weight gradients. */
static void pairs_are_for_large_experts(void **state) {
    (void)state;
    static const struct {
        int64_t tokens, experts, n, k;
        bool large;
    } layers[] = {{65536, 128, 1536, 2048, false},
                  {65536, 128, 2048, 768, false},
                  {32768, 8, 28672, 4096, true},
                  {32768, 8, 4096, 14336, true}};
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        for (int product = 0; product < 4; product++) {
            const int64_t tokens = layers[i].tokens, n = layers[i].n, k = layers[i].k;
            dw_gemm_bf16_shape shape = {.m = tokens, .n = n, .k = k, .grouping = DW_GEMM_GROUPED_M};
            if (product == 1) shape = (dw_gemm_bf16_shape){.m = tokens, .n = k, .k = n, .grouping = DW_GEMM_GROUPED_M};
            if (product > 1) shape = (dw_gemm_bf16_shape){.m = n, .n = k, .k = tokens, .grouping = DW_GEMM_GROUPED_K};
            shape.groups = layers[i].experts;
            shape.b_across = product > 0;
            shape.out_f32 = product == 3;
            const int chosen = dw_gemm_bf16_choose(&shape, H100_MULTIPROCESSORS, NULL);
            assert_true(chosen >= 0);
            if (dw_gemm_bf16_get((size_t)chosen)->pair != layers[i].large)
                fail_msg("%s for product %d of layer %zu", dw_gemm_bf16_get((size_t)chosen)->name, product, i);
        }
}

static void refuted_kernels_are_left_out(void **state) {
    (void)state;
    const dw_gemm_bf16_shape shape = {.m = 4096, .n = 2048, .k = 1024, .groups = 8, .grouping = DW_GEMM_GROUPED_M};
    atomic_uchar proofs[64] = {0};
    assert_true(dw_gemm_bf16_count() <= 64);
    int seen = 0;
    for (int chosen; (chosen = dw_gemm_bf16_choose(&shape, H100_MULTIPROCESSORS, proofs)) >= 0; seen++) {
        assert_int_equal(proofs[chosen], DW_PROOF_UNKNOWN);
        assert_true(dw_gemm_bf16_serves(dw_gemm_bf16_get((size_t)chosen), &shape));
        proofs[chosen] = DW_PROOF_REFUTED;
    }
    assert_int_equal(seen, 2);
}

static void the_kernel_is_told_how_operands_lie(void **state) {
    (void)state;
    for (int across = 0; across < 2; across++) {
        dw_grouped_gemm_args args = along_m(5, 700, 328, 208, across);
        args.accumulate = true;
        ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
        const bool pair = strstr(launched, "_pair") != NULL;
        assert_int_equal(strstr(launched, "gemm_grouped_m_across_bf16_bf16") != NULL, across);
        check_map(&parameters.a, a_memory, 2, U(208, 700), U(2 * 216), U(64, 128));
        if (across)
            check_map(&parameters.b, b_memory, 3, U(328, 208, 5), U(2 * 328, 2 * 328 * 208), U(64, 64, 1));
        else
            check_map(&parameters.b, b_memory, 3, U(208, 328, 5), U(2 * 208, 2 * 328 * 208),
                      U(64, pair ? 128 : 256, 1));
        check_map(&parameters.d, d_memory, 2, U(328, 700), U(2 * 344), U(64, 64));
        assert_ptr_equal(parameters.out, d_memory);
        assert_ptr_equal(parameters.ends, ends);
        assert_int_equal(parameters.out_ld, 344);
        assert_int_equal(parameters.groups, 5);
        assert_int_equal(parameters.m, 700);
        assert_int_equal(parameters.n, 328);
        assert_int_equal(parameters.k, 208);
        assert_int_equal(parameters.accumulate, 1);
        assert_true(parameters.band > 0);
        assert_int_equal(config.block[0], 384);
        assert_int_equal(config.grid[0] % (pair ? 2 : 1), 0);
    }
    for (int f32 = 0; f32 < 2; f32++) {
        dw_grouped_gemm_args args = along_k(5, 328, 136, 700, f32 ? DW_F32 : DW_BF16);
        ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
        assert_non_null(strstr(launched, f32 ? "gemm_grouped_k_bf16_f32" : "gemm_grouped_k_bf16_bf16"));
        check_map(&parameters.a, a_memory, 2, U(328, 700), U(2 * 336), U(64, 64));
        check_map(&parameters.b, b_memory, 2, U(136, 700), U(2 * 152), U(64, 64));
        if (!f32) check_map(&parameters.d, d_memory, 2, U(136, 5 * 328), U(2 * 136), U(64, 64));
        assert_int_equal(parameters.out_ld, 136);
        assert_int_equal(parameters.m, 328);
        assert_int_equal(parameters.n, 136);
        assert_int_equal(parameters.k, 700);
    }
    assert_int_equal(launches, 4);
    /* Nothing to do. */
    dw_grouped_gemm_args args = along_m(0, 0, 328, 208, false);
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    args = along_m(3, 0, 328, 208, false);
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_int_equal(launches, 4);
}

/* Along K single blocks are dealt their tiles; all other kernels have no use for a workspace. */
static void workspaces_are_for_dealing(void **state) {
    (void)state;
    for (size_t i = 0; i < dw_gemm_bf16_count(); i++) {
        const dw_gemm_bf16_row *row = dw_gemm_bf16_get(i);
        const bool deals = row->grouping == DW_GEMM_GROUPED_K && !row->pair;
        assert_int_equal(dw_gemm_bf16_workspace(row), deals ? DW_GEMM_DEAL_BYTES : 0);
    }
    const struct {
        dw_grouped_gemm_args args;
        size_t bytes;
    } cases[] = {{along_m(5, 700, 328, 208, false), 0},
                 {along_m(5, 700, 328, 208, true), 0},
                 {along_k(5, 328, 136, 700, DW_BF16), DW_GEMM_DEAL_BYTES},
                 {along_k(5, 328, 136, 700, DW_F32), DW_GEMM_DEAL_BYTES},
                 {along_k(2, 4096, 2048, 32768, DW_BF16), 0},
                 {along_k(0, 328, 136, 700, DW_BF16), 0}};
    static char workspace[512] __attribute__((aligned(256)));
    uint64_t last = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dw_grouped_gemm_args args = cases[i].args;
        size_t bytes = 99;
        ASSERT_OK(dw_grouped_gemm_workspace_size(context, &args, &bytes));
        assert_int_equal(bytes, cases[i].bytes);
        if (args.groups == 0) continue;
        args.workspace = workspace;
        for (size_t given = 15; given <= 17; given++) {
            args.workspace_bytes = given;
            ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
            const bool used = bytes > 0 && given >= bytes;
            assert_ptr_equal(parameters.workspace, used ? workspace : NULL);
            assert_int_equal(parameters.ticket % 2, used);
            if (used) assert_true(parameters.ticket != last);
            if (used) last = parameters.ticket;
        }
        args.workspace = workspace + 16;
        const int before = launches;
        assert_failure(dw_grouped_gemm(context, &args, NULL), DW_ERROR_INVALID_ARGUMENT, "aligned to 256 bytes");
        assert_int_equal(launches, before);
    }
}

static void refusals_say_why(void **state) {
    (void)state;
    struct {
        dw_grouped_gemm_args args;
        dw_status status;
        const char *part;
    } cases[24];
    int count = 0;
#define REFUSED(make, change, wanted, text)                                                                            \
    do {                                                                                                               \
        dw_grouped_gemm_args args = make;                                                                              \
        change;                                                                                                        \
        cases[count].args = args;                                                                                      \
        cases[count].status = wanted;                                                                                  \
        cases[count++].part = text;                                                                                    \
    } while (0)
    const dw_status bad = DW_ERROR_INVALID_ARGUMENT, unsupported = DW_ERROR_UNSUPPORTED;
    REFUSED(along_m(4, 512, 256, 128, false), args.b.data.dtype = DW_F16, unsupported, "b is f16");
    REFUSED(along_m(4, 512, 256, 128, false), args.a.scaling = DW_GEMM_1X128, unsupported, "they have none");
    REFUSED(along_m(4, 512, 256, 128, false), args.d.dtype = DW_F32, unsupported, "d is f32");
    REFUSED(along_m(4, 512, 256, 128, false), args.d.dtype = DW_F16, unsupported, "d is f16");
    REFUSED(along_m(4, 512, 256, 128, false), args.axis = (dw_group_axis)7, bad, "axis 7");
    REFUSED(along_m(4, 512, 256, 128, false), args.ends = NULL, bad, "ends at");
    REFUSED(along_m(4, 512, 256, 128, false), args.groups = 5, bad, "groups");
    REFUSED(along_m(4, 512, 256, 128, false), args.b.data.device_id = 1, bad, "b must be on GPU 0");
    REFUSED(along_m(4, 512, 256, 128, false), args.b.data.rank = 2, bad, "b has rank 2");
    REFUSED(along_m(4, 512, 256, 128, false), args.a.data.data = a_memory + 8, bad, "aligned to 16");
    REFUSED(along_m(4, 512, 256, 128, false), args.a.data.strides[0] = 132, bad, "132 elements apart");
    REFUSED(along_m(4, 512, 256, 128, false), args.a.data.strides[1] = 2, bad, "not contiguous");
    REFUSED(along_m(4, 512, 256, 128, false), args.b.data.strides[0] += 8, bad, "b must be dense");
    REFUSED(along_m(4, 512, 256, 128, true), args.b.data.strides[2] += 8, bad, "b must be dense");
    REFUSED(along_m(4, 512, 252, 128, true), (void)0, bad, "a multiple of 8");
    REFUSED(along_m(4, 512, 256, 0, false), (void)0, unsupported, "reduction is empty");
    REFUSED(along_m(4, 512, 256, 128, false), args.d.shape[0] = 500, bad, "rows of a and d");
    REFUSED(along_k(4, 256, 128, 512, DW_BF16), args.a.data = TENSOR2(a_memory, DW_BF16, 256, 512, 512, 1), bad,
            "a is not contiguous");
    REFUSED(along_k(4, 256, 128, 512, DW_BF16), args.b.data.strides[1] = 130, bad, "130 elements apart");
    REFUSED(along_k(4, 256, 126, 512, DW_F32), args.b.data.strides[1] = 128, bad, "126 elements apart");
    REFUSED(along_k(4, 256, 128, 512, DW_BF16), args.d.strides[0] += 8, bad, "d must be dense");
    REFUSED(along_k(4, 256, 128, 512, DW_BF16), args.b.data.shape[1] = 500, bad, "reductions");
    for (int i = 0; i < count; i++)
        assert_failure(dw_grouped_gemm(context, &cases[i].args, NULL), cases[i].status, cases[i].part);
    dw_grouped_gemm_args args = along_m(4, 512, 256, 128, false);
    dw_gemm_tuned tuned;
    assert_failure(dw_grouped_gemm_tune(context, &args, NULL, &tuned), unsupported, "bf16 are not tuned");
    fake->minor[0] = 1;
    fake->major[1] = 10;
    args.a.data.device_id = args.b.data.device_id = args.d.device_id = 1;
    assert_failure(dw_grouped_gemm(context, &args, NULL), unsupported, "compute capability 9.0");
    assert_int_equal(launches, 0);
}

int main(void) {
    void *library = open_stand_in();
    if (dw_cuda_image_total == 0) {
        printf("built without device code\n");
        return 0;
    }
    fake = dlsym(library, "fake_cuda");
    context = make_context(1, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(rows_fit_and_have_their_code, set_up),
        cmocka_unit_test_setup(every_form_has_a_kernel, set_up),
        cmocka_unit_test_setup(the_table_lists_them, set_up),
        cmocka_unit_test_setup(pairs_are_for_large_experts, set_up),
        cmocka_unit_test_setup(refuted_kernels_are_left_out, set_up),
        cmocka_unit_test_setup(the_kernel_is_told_how_operands_lie, set_up),
        cmocka_unit_test_setup(workspaces_are_for_dealing, set_up),
        cmocka_unit_test_setup(refusals_say_why, set_up),
    };
    int failed = cmocka_run_group_tests(tests, choose_seed, NULL);
    dw_context_destroy(context);
    return failed;
}
