#include "cuda/host/norm_panel.h"

#include <string.h>

#include "cuda/host/tensor_map.h"

#define TILE_BYTES (DW_CUDA_TILE * DW_CUDA_TILE * 2)
#define PORTABLE_CLUSTER 8
#define MOST_TILES (DW_CUDA_PANEL_RANKS * DW_CUDA_RING_TILES)
#define MOST_DEVICES 32
#define PANEL_THREADS 256

static int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

/* Two tiles for each block wherever that is enough, the fewest for which the cost of a block's start and of its wait
 * for the cluster is small; three blocks on a multiprocessor then overlap best, but for small clusters, where two were
 * 1% faster. Beyond that the ring, with the largest clusters, which use the most multiprocessors. Measured on an H100
 * (2026-11-23; docs/measured-facts.md). One tile is no cluster: launched without one the kernel ended in an
 * illegal instruction there. */
bool dw_norm_panel_of(int64_t tile_cols, dw_norm_panel *panel) {
    if (tile_cols < 2 || tile_cols > MOST_TILES) return false;
    const bool ring = tile_cols > DW_CUDA_PANEL_TILES * DW_CUDA_PANEL_RANKS;
    const int64_t tiles = ring ? ceil_div(tile_cols, DW_CUDA_PANEL_RANKS) : tile_cols == 2 ? 1 : DW_CUDA_PANEL_TILES;
    const int64_t cluster = ring ? DW_CUDA_PANEL_RANKS : ceil_div(tile_cols, tiles);
    *panel = (dw_norm_panel){.block_tiles = (int32_t)tiles,
                             .ring = ring,
                             .blocks_per_multiprocessor = ring                         ? 1
                                                          : cluster > PORTABLE_CLUSTER ? 3
                                                                                       : 2,
                             .cluster = (uint32_t)cluster};
    panel->shared_bytes =
        (uint32_t)(ring ? DW_CUDA_RING_SLOTS * TILE_BYTES + DW_CUDA_RING_SHARED
                        : tiles * (TILE_BYTES + DW_CUDA_TILE * (int64_t)sizeof(float)) + DW_CUDA_PANEL_SHARED);
    return true;
}

#define KERNELS(stem, ending)                                                                                          \
    {                                                                                                                  \
        [DW_BLOCK_1X32] = DW_CUDA_KERNEL("common/" stem, stem "_bf16_e4m3_1x32__sm90" ending),                         \
        [DW_BLOCK_1X128] = DW_CUDA_KERNEL("common/" stem, stem "_bf16_e4m3_1x128__sm90" ending),                       \
    }
static dw_cuda_kernel panel_kernels_2[] = KERNELS("rmsnorm_quantize_panel", "_2");
static dw_cuda_kernel panel_kernels_3[] = KERNELS("rmsnorm_quantize_panel", "_3");
static dw_cuda_kernel ring_kernels[] = KERNELS("rmsnorm_quantize_ring", "");

/* How many clusters of this launch the GPU holds at once. */
static dw_status active_clusters(const dw_cuda_scope *scope, dw_cuda_kernel *kernel,
                                 const dw_cuda_launch_config *config, int block, int32_t tile_cols, int *clusters) {
    static atomic_ushort known[MOST_DEVICES][2][MOST_TILES]; /* one more; 0: not asked yet */
    const bool kept = scope->device >= 0 && scope->device < MOST_DEVICES;
    atomic_ushort *mine = &known[kept ? scope->device : 0][block == DW_BLOCK_1X32][tile_cols - 1];
    const unsigned short answer = kept ? atomic_load_explicit(mine, memory_order_relaxed) : 0;
    if (answer > 0) {
        *clusters = answer - 1;
        return DW_OK;
    }
    DW_TRY(dw_cuda_active_clusters(scope, kernel, config, clusters));
    if (kept) atomic_store_explicit(mine, (unsigned short)(*clusters + 1), memory_order_relaxed);
    return DW_OK;
}

static dw_status launch_in(const dw_cuda_scope *scope, dw_block block, const dw_norm_panel *panel,
                           const dw_cuda_rmsnorm_params *params, void *stream, bool *launched) {
    dw_cuda_kernel *kernel = panel->ring                             ? &ring_kernels[block]
                             : panel->blocks_per_multiprocessor == 3 ? &panel_kernels_3[block]
                                                                     : &panel_kernels_2[block];
    const uint32_t panels = (uint32_t)params->raster.tile_rows;
    dw_cuda_launch_config config = {.grid = {panel->cluster * panels, 1, 1},
                                    .block = {panel->ring ? DW_CUDA_RING_THREADS : PANEL_THREADS, 1, 1},
                                    .cluster = {panel->cluster, 1, 1},
                                    .shared_bytes = panel->shared_bytes};
    int clusters = 0;
    DW_TRY(active_clusters(scope, kernel, &config, block, params->raster.tile_cols, &clusters));
    *launched = clusters > 0;
    if (!*launched) return DW_OK;
    if (panel->ring) config.grid[0] = panel->cluster * (uint32_t)clusters;
    config.programmatic = true;
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
    dw_cuda_rmsnorm_panel_params all = {.norm = *params, .block_tiles = panel->block_tiles};
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
