/* rmsnorm_quantize_ring_bf16_e4m3_<block>__sm90. */
#define DW_STORE_HINT ".cs"
#include "common/rmsnorm_ring.cuh"

RMSNORM_RING(rmsnorm_quantize_ring_bf16_e4m3_1x128__sm90, DW_BLOCK_1X128)
RMSNORM_RING(rmsnorm_quantize_ring_bf16_e4m3_1x32__sm90, DW_BLOCK_1X32)
