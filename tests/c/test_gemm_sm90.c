/* The choice of the Hopper matrix kernels: pure functions, so no device and no driver are needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/device/sm90/gemm_split.h"
#include "cuda/host/gemm_sm90.h"
#include "cuda/host/images.h"
#include "deepwell/deepwell.h"

#define H100_MULTIPROCESSORS 132
#define MOST_SHARED_BYTES 232448

static void rows_fit_the_multiprocessor(void **state) {
    (void)state;
    assert_true(dw_gemm_sm90_count() > 0);
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get(i);
        assert_true(dw_gemm_sm90_shared_bytes(row) <= MOST_SHARED_BYTES);
        assert_int_equal(row->warpgroups % row->k_split, 0);
        assert_int_equal(row->tile_m % (64 * row->warpgroups / row->k_split), 0);
        assert_int_equal(row->tile_n % row->chunk_n, 0);
        assert_true(row->tile_m <= 256 && row->tile_n <= 256); /* a copy's box */
        assert_true(row->stages >= 2);
        assert_int_equal(row->stages % row->k_split, 0);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(row->name, dw_gemm_sm90_get(j)->name);
    }
    assert_null(dw_gemm_sm90_get(dw_gemm_sm90_count()));
}

static void every_row_has_its_device_code(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        char image[160];
        snprintf(image, sizeof image, "sm90/%s", dw_gemm_sm90_get(i)->name);
        if (!dw_cuda_image_find(image)) fail_msg("%s is not in the library", image);
    }
}

/* Every combination of formats that dw_gemm and dw_grouped_gemm accept has a kernel, and one of those formats. */
static void every_form_has_a_kernel(void **state) {
    (void)state;
    for (int grouping = 0; grouping <= 2; grouping++)
        for (int bits = 0; bits < 8; bits++) {
            dw_gemm_sm90_shape shape = {.m = 512,
                                        .n = 512,
                                        .k = 512,
                                        .groups = grouping ? 4 : 1,
                                        .grouping = (dw_gemm_grouping)grouping,
                                        .scale_f32 = bits & 1,
                                        .b_vector = bits & 2,
                                        .out_f32 = bits & 4};
            int chosen = dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, SIZE_MAX, NULL);
            bool offered = grouping != DW_GEMM_GROUPED_M || !(shape.b_vector || shape.out_f32);
            assert_int_equal(chosen >= 0, offered);
            if (!offered) continue;
            const dw_gemm_sm90_row *row = dw_gemm_sm90_get((size_t)chosen);
            assert_int_equal(row->grouping, shape.grouping);
            assert_int_equal(row->scale_f32, shape.scale_f32);
            assert_int_equal(row->b_vector, shape.b_vector);
            assert_int_equal(row->out_f32, shape.out_f32);
            int serving = 0;
            for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
                serving += dw_gemm_sm90_serves(dw_gemm_sm90_get(i), &shape);
            if (grouping == DW_GEMM_GROUPED_K) assert_int_equal(serving, 1); /* dw_gemm_sm90_pick counts on it */
        }
}

static const dw_gemm_sm90_row *chosen_for(int64_t m, int64_t n, int64_t k) {
    dw_gemm_sm90_shape shape = {.m = m, .n = n, .k = k, .groups = 1, .scale_f32 = true};
    int chosen = dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, SIZE_MAX, NULL);
    assert_true(chosen >= 0);
    return dw_gemm_sm90_get((size_t)chosen);
}

/* What was measured to win (docs/measured-facts.md) is what is chosen. */
static void tiles_follow_the_shape(void **state) {
    (void)state;
    static const struct {
        int64_t m, n, k;
        int tile_m, tile_n;
    } shapes[] = {{8192, 4096, 4096, 128, 256}, {8192, 14336, 4096, 192, 128}, {8192, 4096, 14336, 192, 128},
                  {8192, 8192, 8192, 192, 128}, {16384, 6144, 2048, 192, 128}, {4096, 7168, 2048, 128, 256},
                  {16, 4096, 4096, 64, 32},     {64, 4096, 4096, 64, 32},      {128, 4096, 4096, 64, 64},
                  {256, 4096, 4096, 128, 64},   {512, 4096, 4096, 128, 128},   {16, 14336, 4096, 64, 64},
                  {64, 14336, 4096, 64, 64},    {128, 14336, 4096, 128, 128},  {256, 14336, 4096, 128, 256},
                  {512, 14336, 4096, 128, 256}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const dw_gemm_sm90_row *row = chosen_for(shapes[i].m, shapes[i].n, shapes[i].k);
        print_message("%d x %d x %d: %s\n", (int)shapes[i].m, (int)shapes[i].n, (int)shapes[i].k, row->name);
        assert_int_equal(row->tile_m, shapes[i].tile_m);
        assert_int_equal(row->tile_n, shapes[i].tile_n);
    }
}

/* A stage instead of store buffers where each multiprocessor has one tile at most. */
static void single_tiles_have_a_stage_more(void **state) {
    (void)state;
    static const struct {
        int64_t m, n;
        bool deep;
    } shapes[] = {{256, 14336, true},
                  {128 * 12, 256 * 11, true},
                  {128 * 12, 256 * 11 + 8, false},
                  {512, 14336, false},
                  {8192, 4096, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const dw_gemm_sm90_row *row = chosen_for(shapes[i].m, shapes[i].n, 4096);
        print_message("%d x %d: %s\n", (int)shapes[i].m, (int)shapes[i].n, row->name);
        assert_int_equal(strstr(row->name, "_deep") != NULL, shapes[i].deep);
        if (shapes[i].deep) assert_true(row->stages == 4 && row->store_buffers == 0);
    }
}

/* Of groups along M, tiles of 192 columns where these come out even and the reduction is short. */
static void tiles_of_groups_follow_the_shape(void **state) {
    (void)state;
    static const struct {
        int64_t m, groups, n, k;
        bool narrow;
    } shapes[] = {{65536, 128, 1536, 2048, true},  {65536, 128, 768, 2048, true},  {65536, 128, 2048, 768, false},
                  {65536, 128, 1536, 4096, false}, {32768, 8, 28672, 4096, false}, {32768, 8, 4096, 14336, false},
                  {65536, 64, 4096, 7168, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int scale_f32 = 0; scale_f32 < 2; scale_f32++) {
            const dw_gemm_sm90_shape shape = {.m = shapes[i].m,
                                              .n = shapes[i].n,
                                              .k = shapes[i].k,
                                              .groups = shapes[i].groups,
                                              .grouping = DW_GEMM_GROUPED_M,
                                              .scale_f32 = scale_f32};
            const int chosen = dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, SIZE_MAX, NULL);
            assert_true(chosen >= 0);
            const dw_gemm_sm90_row *row = dw_gemm_sm90_get((size_t)chosen);
            print_message("%d rows, %d groups, %d x %d: %s\n", (int)shape.m, (int)shape.groups, (int)shape.n,
                          (int)shape.k, row->name);
            assert_int_equal(row->tile_n == 192, shapes[i].narrow);
        }
}

/* `tiles` of the row's tiles, or of its pair's, in 12 columns, with a reduction worth splitting. */
static dw_gemm_sm90_shape shape_of_tiles(const dw_gemm_sm90_row *row, int64_t tiles) {
    const int64_t span_m = row->tile_m * (row->multicast == DW_GEMM_SHARES_B ? 2 : 1);
    const int64_t span_n = row->tile_n * (row->multicast == DW_GEMM_SHARES_A ? 2 : 1);
    return (dw_gemm_sm90_shape){.m = tiles / 12 * span_m,
                                .n = 12 * span_n,
                                .k = 4096,
                                .groups = row->grouping == DW_GEMM_GROUPED_NONE ? 1 : 8,
                                .grouping = row->grouping,
                                .scale_f32 = row->scale_f32,
                                .b_vector = row->b_vector,
                                .out_f32 = row->out_f32};
}

static void workspaces_follow_the_tiles(void **state) {
    (void)state;
    int splitting = 0;
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get(i);
        const dw_gemm_sm90_shape whole = shape_of_tiles(row, 2 * H100_MULTIPROCESSORS);
        const dw_gemm_sm90_shape over = shape_of_tiles(row, 2 * H100_MULTIPROCESSORS + 12);
        const dw_gemm_sm90_shape few = shape_of_tiles(row, 36);
        const size_t bytes = H100_MULTIPROCESSORS * (size_t)DW_GEMM_PART_BYTES(row->tile_m, row->tile_n);
        const bool splits = row->splits, grouped = row->grouping != DW_GEMM_GROUPED_NONE;
        splitting += splits;
        if (row->grouping == DW_GEMM_GROUPED_K) { /* whose tiles are dealt, however many there are */
            const size_t wanted = (splits ? bytes : 0) + DW_GEMM_DEAL_BYTES;
            assert_int_equal(dw_gemm_sm90_workspace(row, &over, H100_MULTIPROCESSORS), wanted);
            assert_int_equal(dw_gemm_sm90_workspace(row, &few, H100_MULTIPROCESSORS), wanted);
            assert_true(wanted <= DW_GEMM_WORKSPACE_MAX);
            continue;
        }
        assert_int_equal(dw_gemm_sm90_workspace(row, &over, H100_MULTIPROCESSORS), splits ? bytes : 0);
        /* Of a pair, none for the multiprocessor that is left over. */
        if (row->multicast != DW_GEMM_SHARES_NOTHING)
            assert_int_equal(dw_gemm_sm90_workspace(row, &over, H100_MULTIPROCESSORS + 1), splits ? bytes : 0);
        /* The host does not know the tiles of groups. */
        assert_int_equal(dw_gemm_sm90_workspace(row, &whole, H100_MULTIPROCESSORS), splits && grouped ? bytes : 0);
        assert_int_equal(dw_gemm_sm90_workspace(row, &few, H100_MULTIPROCESSORS), splits && grouped ? bytes : 0);
        assert_true(bytes <= DW_GEMM_WORKSPACE_MAX);
        if (row->b_vector || row->out_f32) assert_false(splits);
    }
    assert_true(splitting > 0 && splitting < (int)dw_gemm_sm90_count());
}

/* Without a workspace kernels are compared as they run without one. */
static void the_choice_knows_the_workspace(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = {.m = 8192, .n = 4096, .k = 14336, .groups = 1, .scale_f32 = true};
    const int with = dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, SIZE_MAX, NULL);
    const dw_gemm_sm90_row *row = dw_gemm_sm90_get((size_t)with);
    assert_true(row->splits);
    const size_t bytes = dw_gemm_sm90_workspace(row, &shape, H100_MULTIPROCESSORS);
    assert_true(bytes > 0);
    assert_int_equal(dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, bytes, NULL), with);
    const int without = dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, 0, NULL);
    assert_false(dw_gemm_sm90_get((size_t)without)->splits);
    shape = (dw_gemm_sm90_shape){
        .m = 32768, .n = 4096, .k = 14336, .groups = 8, .grouping = DW_GEMM_GROUPED_M, .scale_f32 = true};
    assert_true(dw_gemm_sm90_get((size_t)dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, SIZE_MAX, NULL))->splits);
    assert_false(dw_gemm_sm90_get((size_t)dw_gemm_sm90_choose(&shape, H100_MULTIPROCESSORS, 0, NULL))->splits);
}

static const dw_gemm_sm90_row *row_named(const char *name) {
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        if (strcmp(dw_gemm_sm90_get(i)->name, name) == 0) return dw_gemm_sm90_get(i);
    fail_msg("no kernel %s", name);
    return NULL;
}

/* 12 x 12 tiles: 12 more than multiprocessors, or two waves of 72; and with a reduction too short to be split. */
static void workspaces_in_figures(void **state) {
    (void)state;
    const dw_gemm_sm90_row *row = row_named("gemm_nt_e4m3_f32_1x128_128x128_bf16__sm90_192x128_split");
    dw_gemm_sm90_shape shape = {.m = 2304, .n = 1536, .k = 1536, .groups = 1, .scale_f32 = true};
    assert_int_equal(dw_gemm_sm90_workspace(row, &shape, H100_MULTIPROCESSORS), 132 * (192 * 128 * 4 + 8));
    assert_int_equal(dw_gemm_sm90_workspace(row, &shape, 72), 0);
    shape.k = 512;
    assert_int_equal(dw_gemm_sm90_workspace(row, &shape, H100_MULTIPROCESSORS), 0);
    row = row_named("gemm_grouped_m_e4m3_f32_1x128_128x128_bf16__sm90_128x256_split");
    shape.grouping = DW_GEMM_GROUPED_M;
    shape.groups = 16;
    assert_int_equal(dw_gemm_sm90_workspace(row, &shape, H100_MULTIPROCESSORS), 132 * (128 * 256 * 4 + 8));
}

static dw_gemm_args arguments(dw_dtype scale, dw_gemm_scaling b, dw_scale_layout layout, dw_dtype d) {
    return (dw_gemm_args){
        .a = {.data = {.dtype = DW_E4M3}, .scaling = DW_GEMM_1X128, .scale = {.dtype = scale}, .layout = layout},
        .b = {.data = {.dtype = DW_E4M3}, .scaling = b, .scale = {.dtype = scale}, .layout = layout},
        .d = {.dtype = d}};
}

static void refusals_say_why(void **state) {
    (void)state;
    const dw_gemm_problem whole = {.m = 512, .n = 512, .k = 512}, odd = {.m = 6, .n = 512, .k = 512};
    dw_gemm_args args = arguments(DW_F32, DW_GEMM_128X128, DW_SCALE_ROW, DW_BF16);
    assert_string_equal(dw_gemm_sm90_refusal(&args, &whole), "");
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &odd), "multiples of 4"));
    args = arguments(DW_E8M0, DW_GEMM_1X128, DW_SCALE_MN_MAJOR, DW_F32);
    assert_string_equal(dw_gemm_sm90_refusal(&args, &odd), "");
    args = arguments(DW_E8M0, DW_GEMM_1X128, DW_SCALE_ROW, DW_F32);
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "mn_major"));
    args = arguments(DW_F32, DW_GEMM_128X128, DW_SCALE_ROW, DW_F16);
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "bf16"));
    args = arguments(DW_F32, DW_GEMM_TENSOR, DW_SCALE_ROW, DW_BF16);
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "scaling"));
    args = arguments(DW_F32, DW_GEMM_128X128, DW_SCALE_ROW, DW_BF16);
    args.a.data.dtype = DW_E5M2;
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "e4m3"));
    args = arguments(DW_F32, DW_GEMM_128X128, DW_SCALE_ROW, DW_BF16);
    args.a.scale.data = (void *)(uintptr_t)8;
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "16 bytes"));
    args = arguments(DW_F32, DW_GEMM_128X128, DW_SCALE_ROW, DW_BF16);
    args.b.scale.dtype = DW_E8M0;
    assert_non_null(strstr(dw_gemm_sm90_refusal(&args, &whole), "e8m0"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_fit_the_multiprocessor),    cmocka_unit_test(every_row_has_its_device_code),
        cmocka_unit_test(every_form_has_a_kernel),        cmocka_unit_test(tiles_follow_the_shape),
        cmocka_unit_test(single_tiles_have_a_stage_more), cmocka_unit_test(tiles_of_groups_follow_the_shape),
        cmocka_unit_test(workspaces_follow_the_tiles),    cmocka_unit_test(the_choice_knows_the_workspace),
        cmocka_unit_test(workspaces_in_figures),          cmocka_unit_test(refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
