#include "cuda/host/norm_panel.h"

#include <string.h>

#include "cuda/host/tensor_map.h"

#define TILE_BYTES (DW_CUDA_TILE * DW_CUDA_TILE * 2)
#define PORTABLE_CLUSTER 8
#define MOST_TILES 64 /* of the widest row: 16 blocks of 4 */
#define MOST_DEVICES 32
#define THREADS 256

/* Two tiles for each block wherever that is enough, the fewest for which the cost of a block's start and of its wait
 * for the cluster is small; three blocks on a multiprocessor then overlap best, but for small clusters, where two were
 * 1% faster. Measured on an H100 (2026-11-23; docs/measured-facts.md). One tile is no cluster: launched without one the
 * kernel ended in an illegal instruction there. */
bool dw_norm_panel_of(int64_t tile_cols, dw_norm_panel *panel) {
    if (tile_cols < 2 || tile_cols > MOST_TILES) return false;
    const int64_t most = DW_CUDA_PANEL_RANKS;
    const int64_t tiles = tile_cols == 2 ? 1 : tile_cols <= 2 * most ? 2 : tile_cols <= 3 * most ? 3 : 4;
    const int64_t cluster = (tile_cols + tiles - 1) / tiles;
    *panel = (dw_norm_panel){.block_tiles = (int32_t)tiles,
                             .held = tiles == 4,
                             .blocks_per_multiprocessor = tiles <= 2 && cluster > PORTABLE_CLUSTER ? 3 : 2,
                             .cluster = (uint32_t)cluster};
    panel->shared_bytes = (uint32_t)((tiles - panel->held) * TILE_BYTES + DW_CUDA_PANEL_SHARED +
                                     tiles * DW_CUDA_TILE * (int64_t)sizeof(float));
    return true;
}

#define KERNELS(image, tile)                                                                                           \
    {                                                                                                                  \
        [DW_BLOCK_1X32] = DW_CUDA_KERNEL(image, "rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_" tile),                  \
        [DW_BLOCK_1X128] = DW_CUDA_KERNEL(image, "rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_" tile),                \
    }
static dw_cuda_kernel kernels_256[] = KERNELS("common/rmsnorm_quantize_panel", "128x256");
static dw_cuda_kernel kernels_384[] = KERNELS("common/rmsnorm_quantize_panel", "128x384");
static dw_cuda_kernel kernels_512[] = KERNELS("common/rmsnorm_quantize_panel_held", "128x512");

/* Whether the GPU holds a cluster of this launch. */
static dw_status cluster_fits(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, const dw_cuda_launch_config *config,
                              int block, int32_t tile_cols, bool *fits) {
    enum { UNASKED = 0, YES = 1, NO = 2 };
    static atomic_uchar known[MOST_DEVICES][2][MOST_TILES];
    const bool kept = scope->device >= 0 && scope->device < MOST_DEVICES;
    atomic_uchar *mine = &known[kept ? scope->device : 0][block == DW_BLOCK_1X32][tile_cols - 1];
    unsigned char answer = kept ? atomic_load_explicit(mine, memory_order_relaxed) : UNASKED;
    if (answer == UNASKED) {
        int clusters = 0;
        DW_TRY(dw_cuda_active_clusters(scope, kernel, config, &clusters));
        answer = clusters > 0 ? YES : NO;
        if (kept) atomic_store_explicit(mine, answer, memory_order_relaxed);
    }
    *fits = answer == YES;
    return DW_OK;
}

static dw_status launch_in(const dw_cuda_scope *scope, dw_block block, const dw_norm_panel *panel,
                           const dw_cuda_rmsnorm_params *params, void *stream, bool *launched) {
    dw_cuda_kernel *kernel = panel->held                             ? &kernels_512[block]
                             : panel->blocks_per_multiprocessor == 3 ? &kernels_256[block]
                                                                     : &kernels_384[block];
    const dw_cuda_launch_config config = {.grid = {panel->cluster * (uint32_t)params->raster.tile_rows, 1, 1},
                                          .block = {THREADS, 1, 1},
                                          .cluster = {panel->cluster, 1, 1},
                                          .shared_bytes = panel->shared_bytes};
    *launched = true;
    DW_TRY(cluster_fits(scope, kernel, &config, block, params->raster.tile_cols, launched));
    if (!*launched) return DW_OK;
    const dw_cuda_tensor_map_spec spec = {.address = params->x,
                                          .extents = {(uint64_t)params->cols, (uint64_t)params->rows},
                                          .strides = {(uint64_t)params->x_ld * 2},
                                          .box = {DW_CUDA_TILE, DW_CUDA_TILE},
                                          .rank = 2,
                                          .type = DW_CU_TENSOR_BFLOAT16,
                                          .swizzle = DW_CU_SWIZZLE_NONE,
                                          .promotion = DW_CU_L2_PROMOTE_256B};
    dw_cu_tensor_map map;
    DW_TRY(dw_cuda_tensor_map(scope, &spec, &map));
    dw_cuda_rmsnorm_panel_params all = {
        .norm = *params, .block_tiles = panel->block_tiles, .slots = panel->block_tiles - panel->held};
    memcpy(&all.x_map, &map, sizeof all.x_map);
    void *arguments[] = {&all};
    return dw_cuda_launch(scope, kernel, &config, stream, arguments);
}

dw_status dw_norm_panel_launch(int device, dw_block block, const dw_cuda_rmsnorm_params *params, void *stream,
                               bool *launched) {
    dw_norm_panel panel;
    *launched = false;
    if (!params->source_vector || !dw_norm_panel_of(params->raster.tile_cols, &panel)) return DW_OK;
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(device, &scope));
    dw_status status = launch_in(&scope, block, &panel, params, stream, launched);
    dw_cuda_leave(&scope);
    return status;
}
