/* Block-scaled FP8 quantization and its inverse.
 *
 * Arithmetic: per block, amax is the largest magnitude as FP32, written m * 2^p with 1 <= m < 2. E4M3: e = p - 8
 * (rceil: p - 7 when m > 1.75); E5M2: e = p - 15 (rceil: p - 14 when m > 1.75). The stored code is clamp(e + 127, 0,
 * 254); an element is x * 2^-e rounded to nearest even, saturating to the largest finite value; signs of zeros are
 * kept. An all-zero block has code 0. Any NaN or infinity makes the block's code 255 and every element of it NaN (byte
 * 0x7F). Blocks at the edge are short: nothing beyond the tensor is read. Sources: OCP Microscaling Formats v1.0; OCP
 * 8-bit Floating Point v1.0; arXiv 2506.08027 (rceil). */
#ifndef DEEPWELL_QUANTIZE_H
#define DEEPWELL_QUANTIZE_H

#include "deepwell/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dw_quantize_spec {
    dw_dtype element; /* DW_E4M3 or DW_E5M2 */
    dw_block block;
    dw_rounding rounding;
    dw_scale_layout layout;
    /* With block 1x128 only: the transposed result has blocks of 128x128, one scale for 128 rows and 128 columns, and
     * is what a spec of block 128x128 gives as its transposed result. Where only one result is described or read, by
     * dw_scale_shape, dw_dequantize and dw_quantize_measure, it does not count: pass the block in question. */
    bool transposed_square;
} dw_quantize_spec;

/* A quantized matrix: elements [rows, cols] of spec.element, inner stride 1; scales DW_E8M0, dense, shaped by
 * dw_scale_shape for these rows and cols. Both are views; the caller owns the memory.
 * On a GPU, with block 1x128 or 128x128, a quantization writes FP32 scales 2^(code - 127) in the place of codes when
 * scale is DW_F32 [R, C], R x C the grid of blocks, with the strides that dw_gemm reads: (1, R) for 1x128, (C rounded
 * up to 4, 1) for 128x128, whose padding columns are written as zero. spec.layout is then ignored. */
typedef struct dw_quantized {
    dw_tensor data;
    dw_tensor scale;
} dw_quantized;

/* Shape of the dense scale tensor of a [rows, cols] matrix; its product is the number of bytes.
 * ROW: [R, C]. MN_MAJOR: [C, R rounded up to 16]. TCGEN05: [ceil(rows/128) * ceil(C/4), 512].
 * Errors: INVALID_ARGUMENT for a bad spec or negative extent, UNSUPPORTED for TCGEN05 with another block than 1x32. */
DW_API dw_status dw_scale_shape(const dw_quantize_spec *spec, int64_t rows, int64_t cols, int64_t shape[2]);

/* Quantizes `source` [rows, cols] (F32, F16 or BF16; inner stride 1, any row stride >= cols).
 *   row:        blocks along cols; data [rows, cols].
 *   transposed: the transpose quantized on its own, blocks along rows (or square: spec.transposed_square); data
 *               [cols, rows].
 * Either may be NULL, not both; both are computed from one read of the source (from two on the CPU where blocks
 * differ). For 128x128 blocks `transposed` is the
 * exact transpose of `row` in bytes and scales. Outputs must not overlap the source or each other. Data outputs may
 * have any row stride >= their number of columns; bytes between rows are not written. Every scale byte is written,
 * padding as zero. Empty extents are allowed and write padding only. `stream` is a CUstream for tensors on a GPU and
 * must be NULL for tensors on the CPU (the call returns when the work is done; the calling thread takes part in it, and
 * needs 512 KiB of stack for that). All CPU instruction sets produce the same bytes. On a GPU where the kernel was
 * never used with these types, by this build of the library, it is tested first: in a few megabytes of device memory
 * and a stream of its own, which the host waits for, also while `stream` is captured. One that fails is left out, with
 * a warning to the handler (status.h). Errors: INVALID_ARGUMENT (shapes, dtypes, strides, devices that disagree),
 * UNSUPPORTED (no kernel serves it). */
DW_API dw_status dw_quantize(dw_context *context, const dw_quantize_spec *spec, const dw_tensor *source,
                             const dw_quantized *row, const dw_quantized *transposed, void *stream);

/* Decodes into `target` [rows, cols] (F32, F16 or BF16; inner stride 1): element * 2^(code - 127), computed exactly and
 * rounded once to nearest even (only F16, and results below the target's subnormals, can be inexact; results beyond the
 * target's largest become infinity, which a block with elements near FLT_MAX can reach even in F32). Code 255 and NaN
 * elements give the positive quiet NaN (0x7FC00000, 0x7E00, 0x7FC0). spec.rounding is ignored. Errors as dw_quantize.
 */
DW_API dw_status dw_dequantize(dw_context *context, const dw_quantize_spec *spec, const dw_quantized *source,
                               const dw_tensor *target, void *stream);

/* What quantization did to a matrix. Computed in FP64 against the source. */
typedef struct dw_quantize_stats {
    double signal_power; /* sum of x^2 over finite blocks */
    double noise_power;  /* sum of (x - decoded)^2 over finite blocks */
    int64_t elements;    /* rows * cols */
    int64_t nonzero;     /* elements that were not zero */
    int64_t underflowed; /* nonzero elements that became zero */
    int64_t saturated;   /* finite elements whose magnitude was clipped to the largest value (floor rounding only) */
    int64_t nonfinite;   /* elements in blocks with code 255 */
    double amax;         /* largest finite magnitude */
} dw_quantize_stats;

/* Quantizes `source` row-wise with `spec` (the layout is ignored) without storing the result, and adds what it cost to
 * `stats` (zero the struct first; accumulates over calls so that a large matrix may come in row panels; panels of a
 * 128x128 spec must be multiples of 128 rows but the last). SQNR in dB is 10 log10(signal_power / noise_power).
 * CPU tensors only. Errors as dw_quantize. */
DW_API dw_status dw_quantize_measure(dw_context *context, const dw_quantize_spec *spec, const dw_tensor *source,
                                     dw_quantize_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
