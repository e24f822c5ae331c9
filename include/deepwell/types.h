/* Plain data passed across the API: element types, block and scale-layout names, tensor views. */
#ifndef DEEPWELL_TYPES_H
#define DEEPWELL_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deepwell/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Element types. E4M3 is the finite-only "fn" form; E8M0 is a scale, 2^(code - 127), code 255 is NaN. */
typedef enum dw_dtype {
    DW_F32 = 0,
    DW_F16 = 1,
    DW_BF16 = 2,
    DW_E4M3 = 3,
    DW_E5M2 = 4,
    DW_E8M0 = 5,
    DW_DTYPE_COUNT
} dw_dtype;

/* Which elements share a scale. 1xB: B consecutive elements along the last dimension. */
typedef enum dw_block { DW_BLOCK_1X32 = 0, DW_BLOCK_1X128 = 1, DW_BLOCK_128X128 = 2, DW_BLOCK_COUNT } dw_block;

/* How the scale's exponent follows from the block's largest magnitude.
 * RCEIL: the smallest power of two for which nothing saturates. FLOOR: OCP MX v1.0 section 6.3, magnitudes above the
 * largest saturate. */
typedef enum dw_rounding { DW_ROUND_RCEIL = 0, DW_ROUND_FLOOR = 1, DW_ROUND_COUNT } dw_rounding;

/* Where a block's scale code lies. With R x C the grid of blocks of the [rows, cols] matrix (R = rows, or
 * ceil(rows/128) for 128x128; C = ceil(cols/block)):
 * ROW:      [R, C].
 * MN_MAJOR: [C, R rounded up to 16]: scales of neighbouring rows are neighbours (Hopper).
 * TCGEN05:  1x32 only; atoms of 128 rows x 4 blocks, 512 bytes each: byte of (m, kb) is
 *           ((m/128)*ceil(C/4) + kb/4)*512 + (m%32)*16 + ((m/32)%4)*4 + kb%4 (Blackwell).
 * Padding codes are written as zero. */
typedef enum dw_scale_layout {
    DW_SCALE_ROW = 0,
    DW_SCALE_MN_MAJOR = 1,
    DW_SCALE_TCGEN05 = 2,
    DW_SCALE_LAYOUT_COUNT
} dw_scale_layout;

/* Device types carry DLPack's numbers. */
typedef enum dw_device_type { DW_DEVICE_CPU = 1, DW_DEVICE_CUDA = 2 } dw_device_type;

#define DW_MAX_RANK 8

/* A view of memory owned by somebody else; maps one to one to DLPack. Strides count elements. */
typedef struct dw_tensor {
    void *data; /* first element, on the CPU of any alignment; may be NULL only when some extent is 0 */
    dw_dtype dtype;
    dw_device_type device_type;
    int32_t device_id;
    int32_t rank; /* 0 to DW_MAX_RANK */
    int64_t shape[DW_MAX_RANK];
    int64_t strides[DW_MAX_RANK];
} dw_tensor;

/* Bytes of one element (every type here has a whole number); 0 for a value that is no dw_dtype. */
DW_API size_t dw_dtype_size(dw_dtype dtype);

/* "f32", "f16", "bf16", "e4m3", "e5m2", "e8m0"; "1x32", "1x128", "128x128"; "rceil", "floor"; "row", "mn_major",
 * "tcgen05". "?" for any other value. Static storage. */
DW_API const char *dw_dtype_name(dw_dtype dtype);
DW_API const char *dw_block_name(dw_block block);
DW_API const char *dw_rounding_name(dw_rounding rounding);
DW_API const char *dw_scale_layout_name(dw_scale_layout layout);

/* A dense row-major two-dimensional CPU view. */
static inline dw_tensor dw_matrix(void *data, dw_dtype dtype, int64_t rows, int64_t cols) {
    dw_tensor t = {data, dtype, DW_DEVICE_CPU, 0, 2, {rows, cols}, {cols, 1}};
    return t;
}

#ifdef __cplusplus
}
#endif
#endif
