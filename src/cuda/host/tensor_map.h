/* Tensor maps: what the bulk tensor copy engine needs to know of a tensor in device memory. */
#ifndef DW_CUDA_TENSOR_MAP_H
#define DW_CUDA_TENSOR_MAP_H

#include "cuda/host/driver.h"

#define DW_TENSOR_MAP_MAX_RANK 5

/* Dimension 0 is the innermost, with stride of one element. Constraints are the driver's: address and strides multiples
 * of 16 bytes, box extents at most 256, the box's inner bytes a multiple of 16 and within the swizzle's span. */
typedef struct dw_cuda_tensor_map_spec {
    const void *address;
    uint64_t extents[DW_TENSOR_MAP_MAX_RANK];
    uint64_t strides[DW_TENSOR_MAP_MAX_RANK - 1]; /* bytes, of dimensions 1, 2, ... */
    uint32_t box[DW_TENSOR_MAP_MAX_RANK];
    uint32_t rank;     /* 1 to 5 */
    int32_t type;      /* DW_CU_TENSOR_... */
    int32_t swizzle;   /* DW_CU_SWIZZLE_... */
    int32_t promotion; /* DW_CU_L2_PROMOTE_... */
} dw_cuda_tensor_map_spec;

/* Copies the map into `map`; encoded by the driver or taken from a cache of the last few hundred, keyed on the context
 * and every field of `spec` (set the unused ones to zero: use an initializer). Reads outside the tensor give zeros.
 * Errors: INVALID_ARGUMENT for a bad rank, DEVICE with the driver's text for anything else it refuses. */
dw_status dw_cuda_tensor_map(const dw_cuda_scope *scope, const dw_cuda_tensor_map_spec *spec, dw_cu_tensor_map *map);

#endif
