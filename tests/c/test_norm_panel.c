/* RMSNorm in both forms: how panels are spread over clusters, and which kernels a request becomes on a stand-in
 * driver. */
#include "support.h"

#include <dlfcn.h>
#include <string.h>

#include "cuda/host/images.h"
#include "cuda/host/norm_panel.h"
#include "deepwell/cross_entropy.h"
#include "deepwell/deepwell.h"
#include "fake/fake_cuda.h"
#include "stand_in.h"

#define H100_SHARED_BYTES 233472 /* of a multiprocessor; each block takes 1 KiB for the system */

static fake_cuda_state *fake;
static dw_context *context;

static void panels_cover_the_row_and_fit(void **state) {
    (void)state;
    dw_norm_panel p;
    assert_false(dw_norm_panel_of(0, &p));
    assert_false(dw_norm_panel_of(1, &p));
    for (int64_t tiles = 2; tiles <= 112; tiles++) {
        assert_true(dw_norm_panel_of(tiles, &p));
        assert_in_range(p.cluster, 2, DW_CUDA_PANEL_RANKS);
        assert_true(p.cluster * p.block_tiles >= tiles);
        assert_true(p.ring || (p.cluster - 1) * p.block_tiles < tiles); /* no block without a tile */
        assert_true(!p.ring || p.cluster == DW_CUDA_PANEL_RANKS);       /* which share the tiles evenly */
        assert_int_equal(p.ring, tiles > 32);
        assert_in_range(p.block_tiles, 1, p.ring ? DW_CUDA_RING_TILES : DW_CUDA_PANEL_TILES);
        const uint32_t ring = DW_CUDA_RING_SLOTS * 32768 + DW_CUDA_RING_SHARED;
        assert_int_equal(p.shared_bytes, p.ring ? ring : (uint32_t)p.block_tiles * 33280 + DW_CUDA_PANEL_SHARED);
        const uint32_t rows_owned = (127 + p.cluster) / p.cluster;
        assert_true(!p.ring || p.cluster * rows_owned <= DW_CUDA_RING_PARTIALS);
        assert_true((uint32_t)p.blocks_per_multiprocessor * (p.shared_bytes + 1024) <= H100_SHARED_BYTES);
    }
    assert_false(dw_norm_panel_of(113, &p));
}

/* ---- requests ---- */

static char launched[4][128];
static unsigned int clusters[4], launched_clusters;
static dw_cuda_rmsnorm_panel_params panel;
static dw_cuda_rmsnorm_backward_params backward;
static dw_cu_launch_config backward_config;
static int launches;

static void record(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    assert_in_range(launches, 0, 3);
    snprintf(launched[launches], sizeof launched[launches], "%s", symbol);
    clusters[launches] = 1;
    assert_true(fake_is_programmatic(config));
    for (unsigned int i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == DW_CU_LAUNCH_CLUSTER_DIMENSION)
            clusters[launches] = config->attributes[i].value.cluster[0];
    assert_int_equal(config->grid[0] % clusters[launches], 0);
    const bool ring = strstr(symbol, "ring") != NULL;
    if (ring || strstr(symbol, "panel")) {
        memcpy(&panel, arguments[0], sizeof panel);
        launched_clusters = config->grid[0] / clusters[launches];
        if (!ring) assert_int_equal(launched_clusters, panel.norm.raster.tile_rows);
        assert_int_equal(config->block[0], ring ? 768 : 256);
    }
    if (strstr(symbol, "rmsnorm_backward")) {
        memcpy(&backward, arguments[0], sizeof backward);
        backward_config = *config;
    }
    launches++;
}

static void *device_memory(int number, int64_t offset) {
    return (void *)(uintptr_t)((0x100 + number) * (int64_t)0x10000000 + offset);
}

static dw_tensor on_gpu(dw_tensor tensor, int device) {
    tensor.device_type = DW_DEVICE_CUDA;
    tensor.device_id = device;
    return tensor;
}

static dw_tensor matrix(int number, int64_t offset, dw_dtype dtype, int64_t rows, int64_t cols, int device) {
    return on_gpu(dw_matrix(device_memory(number, offset), dtype, rows, cols), device);
}

static dw_tensor vector(int number, dw_dtype dtype, int64_t length, int device) {
    dw_tensor made = {.data = device_memory(number, 0), .dtype = dtype, .rank = 1, .shape = {length}, .strides = {1}};
    return on_gpu(made, device);
}

/* The kernels that [rows, cols] become; `offset` bytes off alignment. */
static void request(int64_t rows, int64_t cols, int64_t offset, dw_block block, bool both, int device) {
    dw_quantize_spec spec = {.element = DW_E4M3, .block = block, .layout = DW_SCALE_ROW};
    dw_quantized forms[2];
    for (int i = 0; i < 2; i++) {
        const int64_t m = i ? cols : rows, n = i ? rows : cols;
        int64_t shape[2];
        ASSERT_OK(dw_scale_shape(&spec, m, n, shape));
        forms[i] = (dw_quantized){matrix(4 + i, 0, DW_E4M3, m, n, device),
                                  matrix(6 + i, 0, DW_E8M0, shape[0], shape[1], device)};
    }
    dw_rmsnorm_quantize_args args = {.x = matrix(0, offset, DW_BF16, rows, cols, device),
                                     .weight = vector(1, DW_BF16, cols, device),
                                     .eps = 1e-5f,
                                     .spec = spec,
                                     .row = &forms[0],
                                     .transposed = both ? &forms[1] : NULL,
                                     .y = matrix(2, 0, DW_BF16, rows, cols, device),
                                     .rstd = vector(3, DW_F32, rows, device)};
    launches = 0;
    memset(&panel, 0, sizeof panel);
    ASSERT_OK(dw_rmsnorm_quantize(context, &args, NULL));
}

static void expect_two_kernels(void) {
    assert_int_equal(launches, 2);
    assert_non_null(strstr(launched[0], "rmsnorm_quantize_row"));
    assert_non_null(strstr(launched[1], "rmsnorm_quantize_tile"));
}

static void expect_panel(const char *symbol, unsigned int cluster, int block_tiles) {
    assert_int_equal(launches, 1);
    assert_string_equal(launched[0], symbol);
    assert_int_equal(clusters[0], cluster);
    assert_int_equal(panel.block_tiles, block_tiles);
}

#define PANEL(block, blocks) "rmsnorm_quantize_panel_bf16_e4m3_" block "__sm90_" blocks
#define RING(block) "rmsnorm_quantize_ring_bf16_e4m3_" block "__sm90"

static void widths_choose_the_kernel(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    request(16, 128, 0, DW_BLOCK_1X128, true, 0); /* one tile is no cluster */
    expect_two_kernels();
    request(16, 256, 0, DW_BLOCK_1X128, true, 0);
    expect_panel(PANEL("1x128", "2"), 2, 1);
    request(300, 2048, 0, DW_BLOCK_1X32, true, 0);
    expect_panel(PANEL("1x32", "2"), 8, 2);
    request(256, 4096, 0, DW_BLOCK_1X128, true, 0);
    expect_panel(PANEL("1x128", "3"), 16, 2);
    assert_int_equal(fake->map_type, DW_CU_TENSOR_BFLOAT16);
    assert_int_equal(fake->map_swizzle, DW_CU_SWIZZLE_NONE);
    request(16, 4104, 0, DW_BLOCK_1X128, true, 0);
    expect_panel(RING("1x128"), 16, 3);
    request(129, 7168, 0, DW_BLOCK_1X32, true, 0);
    expect_panel(RING("1x32"), 16, 4);
    assert_int_equal(launched_clusters, 1); /* for two panels: the stand-in holds no more */
    request(16, 8192, 0, DW_BLOCK_1X128, true, 0);
    expect_panel(RING("1x128"), 16, 4);
    request(16, 8200, 0, DW_BLOCK_1X128, true, 0);
    expect_panel(RING("1x128"), 16, 5);
    request(16, 14336, 0, DW_BLOCK_1X32, true, 0);
    expect_panel(RING("1x32"), 16, 7);
    request(16, 14344, 0, DW_BLOCK_1X32, true, 0);
    expect_two_kernels();
}

static void what_copies_cannot_take_goes_to_two_kernels(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    request(16, 1001, 0, DW_BLOCK_1X128, true, 0); /* rows of 2002 bytes */
    expect_two_kernels();
    request(16, 4096, 2, DW_BLOCK_1X128, true, 0);
    expect_two_kernels();
    request(16, 4096, 0, DW_BLOCK_1X128, false, 0); /* rows alone */
    assert_int_equal(launches, 1);
    assert_non_null(strstr(launched[0], "rmsnorm_quantize_row"));
}

/* As many clusters as the device holds, which share the panels, however many; how many it holds is asked once. A width
 * that the other tests leave alone, since the answers are kept. */
static void a_ring_fills_the_device_once(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    fake->largest_cluster = 132;
    const int before = fake->occupancies;
    static const int64_t panels[] = {1, 9, 10, 11, 64};
    for (size_t i = 0; i < sizeof panels / sizeof *panels; i++) {
        request(panels[i] * 128 - 5, 6528, 0, DW_BLOCK_1X128, true, 0);
        expect_panel(RING("1x128"), 16, 4);
        assert_int_equal(panel.norm.raster.tile_rows, panels[i]);
        assert_int_equal(launched_clusters, 8);
    }
    assert_int_equal(fake->occupancies - before, 1);
    fake->largest_cluster = 16;
}

/* On a device that the other tests leave alone, since the answers are kept. */
static void clusters_must_fit_the_device(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    fake->largest_cluster = 15;
    const int before = fake->occupancies;
    request(16, 4096, 0, DW_BLOCK_1X128, true, 1);
    expect_two_kernels();
    request(64, 4096, 0, DW_BLOCK_1X128, true, 1);
    expect_two_kernels();
    assert_int_equal(fake->occupancies - before, 1); /* asked once */
    request(16, 3840, 0, DW_BLOCK_1X128, true, 1);
    expect_panel(PANEL("1x128", "3"), 15, 2);
    assert_int_equal(fake->occupancies - before, 2);
    fake->largest_cluster = 16;
}

/* Groups of threads for every width: whole warps that cover the row, named barriers and shared memory enough, rings of
 * two rows at least, which the sums of dweight fit later; as many blocks as the workspace has rows, none without work.
 */
static void the_backward_pass_fits_its_blocks(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    static const int64_t widths[] = {1, 8, 24, 64, 512, 1001, 1536, 2048, 4096, 7168, 8200, 14336, 16384};
    static const int64_t heights[] = {1, 3, 100, 100000};
    for (size_t n = 0; n < 2 * sizeof widths / sizeof *widths * 4; n++) {
        const int64_t cols = widths[n / 8], rows = heights[n / 2 % 4], matrices = 2 + (int64_t)(n % 2);
        size_t bytes;
        ASSERT_OK(dw_rmsnorm_backward_workspace_size(0, rows, cols, &bytes));
        dw_rmsnorm_backward_args args = {.dy = matrix(0, 0, DW_BF16, rows, cols, 0),
                                         .h = matrix(1, 0, DW_BF16, rows, cols, 0),
                                         .weight = vector(2, DW_BF16, cols, 0),
                                         .rstd = vector(3, DW_F32, rows, 0),
                                         .dx = matrix(4, 0, DW_BF16, rows, cols, 0),
                                         .dweight = vector(5, DW_BF16, cols, 0),
                                         .workspace = device_memory(6, 0),
                                         .workspace_bytes = bytes};
        if (matrices == 3) args.dresidual = matrix(7, 0, DW_BF16, rows, cols, 0);
        launches = 0;
        ASSERT_OK(dw_rmsnorm_backward(context, &args, NULL));
        assert_int_equal(launches, 2);
        const int64_t threads = backward_config.block[0], groups = backward_config.block[1];
        assert_int_equal(threads % 32, 0);
        assert_true(threads * 16 >= cols);
        assert_in_range(groups, 1, DW_CUDA_NORM_GROUPS);
        assert_true(threads * groups <= 1024 && (threads * (groups + 1) > 1024 || groups == DW_CUDA_NORM_GROUPS));
        assert_true(backward_config.shared_bytes + 256 <= H100_SHARED_BYTES - 1024);
        assert_int_equal(backward_config.shared_bytes, groups * backward.group_shared);
        assert_int_equal(backward.group_shared % 16, 0);
        assert_in_range(backward.stages, 2, 8);
        assert_true(backward.group_shared >= 64 + backward.stages * matrices * cols * 2);
        assert_true(backward.group_shared >= 64 + cols * 4);
        assert_int_equal(bytes, (size_t)backward_config.grid[0] * (size_t)cols * 4);
        assert_true(((int64_t)backward_config.grid[0] - 1) * groups < rows);
    }
}

/* `record` looks at how. Quantization and the other fused kernels take the way of the norms' row kernel. */
static void the_loss_may_start_early_too(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    const dw_cross_entropy_args args = {.logits = matrix(0, 0, DW_BF16, 16, 1000, 0),
                                        .dlogits = matrix(1, 0, DW_BF16, 16, 1000, 0),
                                        .labels = device_memory(2, 0),
                                        .lse = device_memory(3, 0),
                                        .loss = device_memory(4, 0),
                                        .dloss = device_memory(5, 0)};
    launches = 0;
    ASSERT_OK(dw_cross_entropy_forward(context, &args, NULL));
    ASSERT_OK(dw_cross_entropy_backward(context, &args, NULL));
    assert_int_equal(launches, 2);
    assert_string_equal(launched[0], "cross_entropy_bf16");
    assert_string_equal(launched[1], "cross_entropy_backward_bf16");
}

int main(void) {
    void *library = open_stand_in();
    fake = dlsym(library, "fake_cuda");
    fake->on_launch = record;
    if (dw_context_create(NULL, &context) != DW_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_cover_the_row_and_fit),
        cmocka_unit_test(widths_choose_the_kernel),
        cmocka_unit_test(what_copies_cannot_take_goes_to_two_kernels),
        cmocka_unit_test(a_ring_fills_the_device_once),
        cmocka_unit_test(clusters_must_fit_the_device),
        cmocka_unit_test(the_backward_pass_fits_its_blocks),
        cmocka_unit_test(the_loss_may_start_early_too),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dw_context_destroy(context);
    return failed;
}
