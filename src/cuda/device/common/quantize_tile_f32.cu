/* quantize_transposed_*, quantize_both_* and the 128x128 kernels for F32 sources; quantize_tile.cuh tells how they
 * work. */
#include "common/quantize_tile.cuh"

QUANTIZE_TILE_SET(2, f32, DW_F32, e4m3, DW_E4M3)
QUANTIZE_TILE_SET(2, f32, DW_F32, e5m2, DW_E5M2)
