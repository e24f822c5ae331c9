/* The scalar reference kernels. One serves every orientation and block: which outputs the job has says what to write.
 */
#ifndef DW_CPU_REF_KERNELS_H
#define DW_CPU_REF_KERNELS_H

#include "cpu/cpu_kernel.h"

void dw_quantize__ref(const dw_quantize_job *job, const dw_tile *tile);
void dw_dequantize__ref(const dw_dequantize_job *job, const dw_tile *tile);

#endif
