/* A kernel of gemm_block_scaled.cuh; its row is in src/cuda/host/gemm_sm90.inc. */
#define KERNEL gemm_nt_e4m3_e8m0_1x128_128x128_bf16__sm90_64x128
#define TILE_M 64
#define TILE_N 128
#define CHUNK_N 128
#define MATH_WARPGROUPS 2
#define K_SPLIT 2
#define STAGES 6
#define MULTICAST 0
#define SCALE_F32 0
#define B_VECTOR 0
#define OUT_F32 0
#define STORE_BUFFERS 2
#define GROUPED 0
#include "sm90/gemm_block_scaled.cuh"
