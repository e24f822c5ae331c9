/* The registry: every kernel is a row of src/registry/kernels.inc. Listing, choosing, proving, forcing. */
#ifndef DEEPWELL_KERNELS_H
#define DEEPWELL_KERNELS_H

#include "deepwell/quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dw_operation { DW_OP_QUANTIZE = 0, DW_OP_DEQUANTIZE = 1, DW_OP_GEMM = 2, DW_OP_COUNT } dw_operation;

/* Which results a quantization writes. */
typedef enum dw_orientation {
    DW_ORIENT_ROW = 0,
    DW_ORIENT_TRANSPOSED = 1,
    DW_ORIENT_BOTH = 2,
    DW_ORIENT_COUNT
} dw_orientation;

/* A row of the table as users see it. Matrix kernels (gemm) have no orientations and roundings: `sources` is the type
 * of the result, `elements` that of both operands, `blocks` are those of both, 0 for BF16, which has no scales, and
 * `layouts` is 0 too when the scales are FP32. Masks have bit (1u << value) set for each value of the enumeration
 * served. All strings have static storage or live as long as the context. */
typedef struct dw_kernel_info {
    const char *name;   /* grammar: operation_orientation_block__target, see docs/adding-a-kernel.md */
    const char *target; /* "ref", "avx2", "avx512", "sm90", "sm100" */
    dw_operation operation;
    uint32_t orientations; /* of dw_orientation */
    uint32_t sources;      /* of dw_dtype: the high-precision side */
    uint32_t elements;     /* of dw_dtype: the FP8 side */
    uint32_t blocks;       /* of dw_block */
    uint32_t roundings;    /* of dw_rounding */
    uint32_t layouts;      /* of dw_scale_layout */
    int priority;          /* among available rows that serve a request the highest runs; ties go to the later row. Of
                              matrix kernels the one with the least predicted time runs. */
    bool available;
    const char *reason; /* why not, when not available; "" otherwise */
    int alignment;      /* bytes the high-precision side must be aligned to; 0: its elements' size */
    const char *form;   /* of a matrix kernel: operands, scales, groups and tile in words; else "" */
} dw_kernel_info;

DW_API const char *dw_operation_name(dw_operation operation);
DW_API const char *dw_orientation_name(dw_orientation orientation);

/* Number of rows, and row `index` of them: those of the table, then those registered (plugin.h). Errors:
 * INVALID_ARGUMENT for an index out of range. */
DW_API size_t dw_kernel_count(const dw_context *context);
DW_API dw_status dw_kernel_get(const dw_context *context, size_t index, dw_kernel_info *info);

/* One concrete request. */
typedef struct dw_request {
    dw_operation operation;
    dw_orientation orientation;
    dw_dtype source; /* high-precision side: source of a quantization, target of a dequantization */
    dw_quantize_spec spec;
    int64_t rows, cols;
    dw_device_type device_type;
    int32_t device_id;
    int32_t alignment; /* bytes that addresses and rows of the high-precision side are multiples of; 0: 256 */
} dw_request;

/* Which row serves the request, a quantization or dequantization: writes its index. When `explanation` is not NULL, up
 * to `capacity` bytes (terminated) of text go there: one line for each candidate row of the operation, chosen or
 * rejected, with the reason. Errors: UNSUPPORTED when no row serves it (the text says why), which on the CPU includes
 * spec.transposed_square: dw_quantize uses two rows for it there, one for each result. */
DW_API dw_status dw_dispatch(const dw_context *context, const dw_request *request, size_t *index, char *explanation,
                             size_t capacity);

/* As dw_quantize and dw_dequantize, but with the kernel of this index; UNSUPPORTED when that row is not available or
 * does not serve the request. For tests and benchmarks. */
DW_API dw_status dw_quantize_with(dw_context *context, size_t kernel, const dw_quantize_spec *spec,
                                  const dw_tensor *source, const dw_quantized *row, const dw_quantized *transposed,
                                  void *stream);
DW_API dw_status dw_dequantize_with(dw_context *context, size_t kernel, const dw_quantize_spec *spec,
                                    const dw_quantized *source, const dw_tensor *target, void *stream);

typedef struct dw_selftest_result {
    int64_t cases;            /* format, shape and data combinations run */
    int64_t mismatches;       /* bytes, of a matrix kernel elements, that differ from the reference */
    char first_mismatch[192]; /* the first differing case, with its seed, in words; "" when none */
} dw_selftest_result;

/* Runs one row against the scalar reference over all formats it serves, edge shapes, random and adversarial data drawn
 * from `seed`, into poisoned and fenced outputs. `result` is filled also when SELFTEST is returned.
 * Errors: SELFTEST on any difference, UNSUPPORTED when the row is not available here or is a GPU's. */
DW_API dw_status dw_kernel_selftest(dw_context *context, size_t kernel, uint64_t seed, dw_selftest_result *result);

/* The same for a row of a GPU (a matrix kernel against sums in double precision): the cases run on `device` in
 * `workspace`, device memory of the caller, at least dw_kernel_selftest_workspace() bytes and 16-byte aligned, on
 * `stream`. Copies and waits for the stream: the one function of the library that does, but for first uses
 * (dw_quantize). Errors: as dw_kernel_selftest, and INVALID_ARGUMENT, DEVICE. */
DW_API size_t dw_kernel_selftest_workspace(void);
DW_API dw_status dw_kernel_selftest_cuda(dw_context *context, size_t kernel, uint64_t seed, int device, void *workspace,
                                         size_t workspace_bytes, void *stream, dw_selftest_result *result);

#ifdef __cplusplus
}
#endif
#endif
