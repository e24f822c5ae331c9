/* rmsnorm_quantize_panel_bf16_e4m3_<block>__sm90_128x<columns of x a thread block keeps>: up to 256 columns with three
 * blocks on a multiprocessor, up to 384 with two. */
#include "common/rmsnorm_panel.cuh"

RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_128x256, 3, false, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_128x256, 3, false, DW_BLOCK_1X32)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_128x384, 2, false, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_128x384, 2, false, DW_BLOCK_1X32)
