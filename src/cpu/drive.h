/* Runs CPU kernels over whole matrices. Everything given here has been validated. */
#ifndef DW_CPU_DRIVE_H
#define DW_CPU_DRIVE_H

#include "core/context.h"
#include "cpu/cpu_kernel.h"

/* The map of a dense scale tensor of a [rows, cols] matrix at `base`. */
dw_scale_map dw_make_scale_map(const dw_quantize_spec *spec, int64_t rows, int64_t cols, uint8_t *base);

/* Zeroes the padding of the job's scales, then runs the kernel over its tiles. */
void dw_cpu_quantize(dw_context *context, dw_quantize_kernel kernel, dw_scale_layout layout,
                     const dw_quantize_job *job);

void dw_cpu_dequantize(dw_context *context, dw_dequantize_kernel kernel, const dw_dequantize_job *job);

/* dw_quantize_measure for a source that has extents; `kernel` serves row orientation and row layout. */
dw_status dw_cpu_measure(dw_context *context, dw_quantize_kernel kernel, const dw_quantize_job *job,
                         dw_quantize_stats *stats);

#endif
