/* quantize_transposed_*, quantize_both_* and the 128x128 kernels for BF16 sources; quantize_tile.cuh tells how they
 * work. */
#include "common/quantize_tile.cuh"

QUANTIZE_TILE_SET(3, bf16, DW_BF16, e4m3, DW_E4M3)
QUANTIZE_TILE_SET(3, bf16, DW_BF16, e5m2, DW_E5M2)
