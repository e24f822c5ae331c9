/* From matrices to what the quantization kernels of src/cuda/device/common take: parameters and launch shapes. Pure
 * functions, but for dw_cuda_quantize. */
#ifndef DW_CUDA_QUANTIZE_LAUNCH_H
#define DW_CUDA_QUANTIZE_LAUNCH_H

#include "cpu/cpu_kernel.h"
#include "cuda/device/common/quantize_params.h"
#include "cuda/host/launch.h"
#include "deepwell/kernels.h"
#include "formats/scale_layout.h"

/* Rows and columns of a tile of the tiled kernels. */
#define DW_CUDA_TILE 128

/* Extents a kernel can take: its indexes of rows and columns are 32 bits wide. */
#define DW_CUDA_EXTENT_MAX ((int64_t)1 << 30)

typedef struct dw_cuda_shape {
    int64_t blocks; /* of the grid; 0: nothing to do */
    uint32_t threads;
    uint32_t groups;       /* of so many threads in a block, one above the other; 0: one */
    uint32_t shared_bytes; /* dynamic */
} dw_cuda_shape;

/* Scales of a [rows, cols] matrix: dense codes in a layout, or FP32 factors as dw_gemm reads them. */
dw_cuda_scale dw_cuda_scale_codes(const dw_quantize_spec *spec, int64_t rows, int64_t cols, void *codes);
dw_cuda_scale dw_cuda_scale_factors(dw_block block, int64_t rows, int64_t cols, float *factors);

/* One result [rows, cols] of a quantization by `spec`: FP32 factors where those are given, else codes. */
dw_cuda_quantized dw_cuda_quantized_of(const dw_quantize_spec *spec, bool transposed, int64_t rows, int64_t cols,
                                       uint8_t *data, int64_t ld, void *codes, float *factors);

/* The walk over the tiles of a [rows, cols] matrix. */
dw_cuda_raster dw_cuda_raster_of(int64_t rows, int64_t cols);

/* What `rounding` adds to amax's bits before the exponent is read (block_scale.cuh). */
uint32_t dw_cuda_round_add(dw_rounding rounding);

/* True when every row of the matrix starts at a multiple of 16 bytes. */
bool dw_cuda_rows_aligned(const void *data, int64_t ld, int64_t element_size);

/* Launch shapes. quantize_row with 1xB blocks also covers the rows that only the scales have. */
dw_cuda_shape dw_cuda_quantize_row_shape(dw_dtype source, int64_t padded_rows, int64_t cols, int32_t *tile_cols);
dw_cuda_shape dw_cuda_tile_shape(const dw_cuda_raster *raster, uint32_t shared_bytes);

/* The launch function of every quantization row of the table for GPUs. */
dw_status dw_cuda_quantize(dw_context *context, const dw_request *request, const dw_quantize_job *job, void *stream);

/* "" when this process sees a GPU of the target ("sm90", "sm100") that the library has device code for, else why not.
 * Asked of the driver once. Static storage. */
const char *dw_cuda_target_reason(const char *target);

/* Whether the target's kernels are for GPU `device`. True for a device that nothing is known of: the launch will say
 * what is wrong. Asked of the driver once. */
bool dw_cuda_device_takes(int device, const char *target);

/* Launches a kernel whose only parameter is a struct. */
dw_status dw_cuda_launch_shape(int device, dw_cuda_kernel *kernel, const dw_cuda_shape *shape, void *params,
                               void *stream);

#endif
