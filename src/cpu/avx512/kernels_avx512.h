/* The AVX-512 kernels: F, BW, DQ, VL and VBMI. Contract in cpu/cpu_kernel.h. */
#ifndef DW_KERNELS_AVX512_H
#define DW_KERNELS_AVX512_H

#include "cpu/cpu_kernel.h"

void dw_quantize_row_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_row_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_row_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile);

void dw_quantize_transposed_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_transposed_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_transposed_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile);

void dw_quantize_both_1x32__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_both_1x128__avx512(const dw_quantize_job *job, const dw_tile *tile);
void dw_quantize_both_128x128__avx512(const dw_quantize_job *job, const dw_tile *tile);

void dw_dequantize__avx512(const dw_dequantize_job *job, const dw_tile *tile);

#endif
