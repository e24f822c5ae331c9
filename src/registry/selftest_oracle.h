/* What a kernel must write, stated without tiles, maps or threads. */
#ifndef DW_REGISTRY_SELFTEST_ORACLE_H
#define DW_REGISTRY_SELFTEST_ORACLE_H

#include "deepwell/quantize.h"

/* Quantizes a source [rows, cols] of `source_ld`, read with its axes exchanged when `transposed` (then the result is
 * that of the [cols, rows] transpose). `data` is dense, `scale` has the spec's layout; every byte of both is written.
 */
void dw_expect_quantized(const dw_quantize_spec *spec, const void *source, dw_dtype dtype, int64_t source_ld,
                         int64_t rows, int64_t cols, bool transposed, uint8_t *data, uint8_t *scale);

/* Decodes dense data [rows, cols] with scales of the spec's layout into a dense target. */
void dw_expect_dequantized(const dw_quantize_spec *spec, const uint8_t *data, int64_t data_ld, const uint8_t *scale,
                           int64_t rows, int64_t cols, dw_dtype dtype, void *target);

#endif
