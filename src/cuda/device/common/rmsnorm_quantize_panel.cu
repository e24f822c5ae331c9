/* rmsnorm_quantize_panel_bf16_e4m3_<block>__sm90_<thread blocks on a multiprocessor>: three are faster where clusters
 * are large, two where they are small (by 1%; H100, 2026-11-23). */
#include "common/rmsnorm_panel.cuh"

RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_3, 3, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_3, 3, DW_BLOCK_1X32)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x128__sm90_2, 2, DW_BLOCK_1X128)
RMSNORM_PANEL(rmsnorm_quantize_panel_bf16_e4m3_1x32__sm90_2, 2, DW_BLOCK_1X32)
