/* RMSNorm to both quantized forms from one read of x: which kernel of rmsnorm_panel.cuh and rmsnorm_ring.cuh, in what
 * clusters. */
#ifndef DW_CUDA_NORM_PANEL_H
#define DW_CUDA_NORM_PANEL_H

#include "cuda/host/quantize_launch.h"

/* How a panel of 128 rows is spread over a cluster. */
typedef struct dw_norm_panel {
    int32_t block_tiles; /* tiles of 128 columns of a thread block, at most */
    bool ring;           /* else a cluster for each panel */
    int32_t blocks_per_multiprocessor;
    uint32_t cluster; /* thread blocks */
    uint32_t shared_bytes;
} dw_norm_panel;

/* Fills `panel` for a matrix of that many tiles of 128 columns; false when it is too wide for any cluster or of one
 * tile alone. Pure. */
bool dw_norm_panel_of(int64_t tile_cols, dw_norm_panel *panel);

/* Launches the kernel. *launched false, and nothing done, when the rows are too wide or not aligned, or the GPU holds
 * no such cluster (asked of the driver once for each device and shape of cluster). Both results must be wanted. */
dw_status dw_norm_panel_launch(int device, dw_block block, const dw_cuda_rmsnorm_params *params, void *stream,
                               bool *launched);

#endif
