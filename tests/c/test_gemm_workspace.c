/* The workspace for tiles that are split or dealt, from the caller to the kernel's parameters: against the stand-in
 * driver, which has 16000 multiprocessors, so that products are large; nothing multiplies. */
#include <string.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/device/sm90/gemm_split.h"
#include "cuda/host/gemm_sm90.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "products.h"
#include "stand_in.h"

/* The only kernel of dense products here, and of groups along M those that split tiles, whatever is predicted to be the
 * fastest on such a GPU; M by N are 16384 tiles. */
#define ONLY_DENSE "gemm_nt_e4m3_f32_1x128_128x128_bf16__sm90_192x128_split"
enum { M = 12288, N = 32768, K = 4096, GROUPS = 8, MULTIPROCESSORS = 16000 };

/* Numbered as dw_gemm_grouping. Of the last one tiles are dealt, too. */
typedef enum kind { DENSE, ALONG_M, ALONG_K, KINDS } kind;

static fake_cuda_state *fake;
static dw_context *context;
static int launches;
static dw_gemm_sm90_params parameters; /* of the last launch */

static void keep_parameters(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    (void)symbol;
    (void)config;
    launches++;
    memcpy(&parameters, arguments[0], sizeof parameters);
}

static dw_grouped_gemm_args grouped_of(kind of) {
    return grouped(of == ALONG_M ? DW_GROUP_M : DW_GROUP_K, GROUPS, M, N, K);
}

static dw_status multiply(kind of, void *workspace, size_t bytes) {
    launches = 0;
    if (of == DENSE) {
        dw_gemm_args args = product(M, N, K);
        args.workspace = workspace;
        args.workspace_bytes = bytes;
        return dw_gemm(context, &args, NULL);
    }
    dw_grouped_gemm_args args = grouped_of(of);
    args.workspace = workspace;
    args.workspace_bytes = bytes;
    return dw_grouped_gemm(context, &args, NULL);
}

static size_t bytes_for(kind of) {
    size_t bytes = 99;
    if (of == DENSE) {
        const dw_gemm_args args = product(M, N, K);
        ASSERT_OK(dw_gemm_workspace_size(context, &args, &bytes));
    } else {
        const dw_grouped_gemm_args args = grouped_of(of);
        ASSERT_OK(dw_grouped_gemm_workspace_size(context, &args, &bytes));
    }
    return bytes;
}

static void assert_unsplit(void) {
    assert_int_equal(launches, 1);
    assert_null(parameters.workspace);
    assert_true(parameters.ticket == 0);
}

static void sizes_are_those_of_the_kernel_chosen(void **state) {
    (void)state;
    for (kind of = DENSE; of < KINDS; of++) {
        const dw_gemm_sm90_shape shape = {.m = M,
                                          .n = N,
                                          .k = K,
                                          .groups = of == DENSE ? 1 : GROUPS,
                                          .grouping = (dw_gemm_grouping)of,
                                          .scale_f32 = true};
        const int row = dw_gemm_sm90_choose(&shape, MULTIPROCESSORS, SIZE_MAX, dw_gemm_proofs(0));
        const size_t bytes = dw_gemm_sm90_workspace(dw_gemm_sm90_get((size_t)row), &shape, MULTIPROCESSORS);
        assert_int_equal(bytes_for(of), bytes);
        assert_true(bytes > 0);
    }
    assert_int_equal(bytes_for(ALONG_K), MULTIPROCESSORS * (size_t)DW_GEMM_PART_BYTES(128, 256) + DW_GEMM_DEAL_BYTES);
    assert_int_equal(bytes_for(DENSE), MULTIPROCESSORS * (size_t)DW_GEMM_PART_BYTES(192, 128));
}

static void nothing_is_wanted_where_nothing_splits(void **state) {
    (void)state;
    size_t bytes = 99;
    const dw_gemm_args small = product(512, 512, 512);
    ASSERT_OK(dw_gemm_workspace_size(context, &small, &bytes));
    assert_int_equal(bytes, 0);
    dw_grouped_gemm_args args = grouped(DW_GROUP_M, GROUPS, 0, N, K);
    bytes = 99;
    ASSERT_OK(dw_grouped_gemm_workspace_size(context, &args, &bytes));
    assert_int_equal(bytes, 0);
}

static void sizes_are_refused_as_calls_are(void **state) {
    (void)state;
    size_t bytes;
    dw_grouped_gemm_args args = grouped_of(ALONG_M);
    assert_failure(dw_grouped_gemm_workspace_size(NULL, &args, &bytes), DW_ERROR_INVALID_ARGUMENT, "context is NULL");
    assert_failure(dw_grouped_gemm_workspace_size(context, NULL, &bytes), DW_ERROR_INVALID_ARGUMENT, "args is NULL");
    assert_failure(dw_grouped_gemm_workspace_size(context, &args, NULL), DW_ERROR_INVALID_ARGUMENT, "bytes is NULL");
    args.ends = NULL;
    assert_failure(dw_grouped_gemm_workspace_size(context, &args, &bytes), DW_ERROR_INVALID_ARGUMENT, "ends");
}

static void misaligned_workspaces_are_refused(void **state) {
    (void)state;
    void *const misaligned[] = {NULL, memory + 16, memory + 128};
    for (kind of = DENSE; of < KINDS; of++)
        for (size_t i = 0; i < sizeof misaligned / sizeof *misaligned; i++) {
            assert_failure(multiply(of, misaligned[i], 1), DW_ERROR_INVALID_ARGUMENT, "workspace");
            assert_failure(multiply(of, misaligned[i], SIZE_MAX), DW_ERROR_INVALID_ARGUMENT, "aligned to 256 bytes");
            assert_int_equal(launches, 0);
            ASSERT_OK(multiply(of, misaligned[i], 0));
            assert_unsplit();
        }
}

static void a_workspace_that_is_enough_is_used(void **state) {
    (void)state;
    for (kind of = DENSE; of < KINDS; of++) {
        const size_t bytes = bytes_for(of);
        ASSERT_OK(multiply(of, memory, bytes));
        assert_int_equal(launches, 1);
        assert_ptr_equal(parameters.workspace, memory);
        ASSERT_OK(multiply(of, memory + 256, bytes + 1));
        assert_ptr_equal(parameters.workspace, memory + 256);
        ASSERT_OK(multiply(of, memory, bytes - 1));
        assert_unsplit();
    }
}

/* Sums that an earlier launch left in the same workspace must not be taken for those of a later one, nor tiles that it
 * dealt. Odd: where tiles are dealt the number before a ticket says that their count is being set up. */
static void no_ticket_comes_twice(void **state) {
    (void)state;
    enum { TICKETS = 100 };
    uint64_t tickets[TICKETS];
    const size_t bytes[KINDS] = {bytes_for(DENSE), bytes_for(ALONG_M), bytes_for(ALONG_K)};
    for (int i = 0; i < TICKETS; i++) {
        ASSERT_OK(multiply((kind)(i % KINDS), memory, bytes[i % KINDS]));
        tickets[i] = parameters.ticket;
        assert_int_equal(tickets[i] % 2, 1);
        for (int j = 0; j < i; j++)
            assert_true(tickets[i] != tickets[j]);
    }
}

int main(void) {
    fake = dlsym(open_stand_in(), "fake_cuda");
    if (dw_cuda_image_total == 0) {
        printf("built without device code\n");
        return 0;
    }
    setenv("DEEPWELL_TUNING", "off", 1); /* nothing measured on this machine counts */
    fake->on_launch = keep_parameters;
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get(i);
        const bool known = row->grouping == DW_GEMM_GROUPED_NONE ? strcmp(row->name, ONLY_DENSE) == 0
                                                                 : row->grouping == DW_GEMM_GROUPED_K || row->splits;
        set_proof(i, known ? DW_PROOF_TRUSTED : DW_PROOF_REFUTED);
    }
    context = make_context(1, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_those_of_the_kernel_chosen),
        cmocka_unit_test(nothing_is_wanted_where_nothing_splits),
        cmocka_unit_test(sizes_are_refused_as_calls_are),
        cmocka_unit_test(misaligned_workspaces_are_refused),
        cmocka_unit_test(a_workspace_that_is_enough_is_used),
        cmocka_unit_test(no_ticket_comes_twice),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dw_context_destroy(context);
    return failed;
}
