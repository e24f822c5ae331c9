/* A kernel of gemm_block_scaled.cuh; its row is in src/cuda/host/gemm_sm90.inc. */
#define KERNEL gemm_nt_e4m3_f32_1x128_128x128_bf16__sm90_192x128_pair
#define TILE_M 192
#define TILE_N 128
#define CHUNK_N 128
#define MATH_WARPGROUPS 3
#define K_SPLIT 1
#define STAGES 4
#define MULTICAST MULTICAST_A
#define SCALE_F32 1
#define B_VECTOR 0
#define OUT_F32 0
#define STORE_BUFFERS 2
#define GROUPED 0
#include "sm90/gemm_block_scaled.cuh"
