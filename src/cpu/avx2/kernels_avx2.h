/* The AVX2 kernels: AVX2, FMA, F16C and BMI2. Contract in cpu/cpu_kernel.h. */
#ifndef DW_KERNELS_AVX2_H
#define DW_KERNELS_AVX2_H

#include "cpu/cpu_kernel.h"

void dw_quantize_row_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_row_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_row_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile);

void dw_quantize_transposed_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_transposed_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_transposed_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile);

void dw_quantize_both_1x32__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_both_1x128__avx2(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_both_128x128__avx2(const dw_quantize_job *job, const dw_tile *tile);

void dw_dequantize__avx2(const dw_dequantize_job *job, const dw_tile *tile);

#endif
