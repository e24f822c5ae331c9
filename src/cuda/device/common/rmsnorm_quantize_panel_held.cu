/* rmsnorm_quantize_panel_bf16_e4m3_<block>__sm90_128x512: 512 columns of x a thread block, 128 of them in registers,
 * two blocks on a multiprocessor. Streaming stores: at 8192 x 7168 0.756 of a copy against 0.747, at 131072 x 2048
 * 0.877 against 0.842 (H100, 2026-11-23); the kernels that hold nothing are half a percent slower with them. */
#define DW_STORE_HINT ".cs"
#include "common/rmsnorm_panel.cuh"

RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_128x512, 2, true, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_128x512, 2, true, DW_BLOCK_1X32)
