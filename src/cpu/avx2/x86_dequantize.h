/* Dequantization of every block shape and format.
 *
 * Floor: one byte read and two or four written per element: 96 bytes for 32 elements to BF16, 14 cycles of 3.4 GHz at
 * 23 GB/s. Work: about 35 operations.
 *
 * Plan: a row at a time, 32 elements at a time. FP8 shifted left is FP16 (E5M2 exactly; E4M3 at 2^-8 of its value),
 * whose conversion to FP32 in hardware normalizes subnormals; one multiplication by a power of two applies the scale.
 * That product is exact, so rounding it to the target is the only rounding. NaN elements, and the few scales whose
 * power of two is no FP32 number, go through the exact scalar code of src/formats. */
#ifndef DW_X86_DEQUANTIZE_H
#define DW_X86_DEQUANTIZE_H

#include "cpu/avx2/x86_tiles.h"
#include "formats/decode.h"

/* Below this code results can be inexact in BF16: the last bit of E5M2, 2^(code - 127 - 16), is under BF16's, 2^-133.
 */
enum { DW_BF16_EXACT = 10 };

static __attribute__((noinline, cold)) void dw_decode_exactly(const dw_dequantize_job *job, const uint8_t *data,
                                                              uint8_t *target, int code, int64_t count) {
    dw_fp8_format format = dw_fp8(job->element);
    dw_float_format wide = dw_float(job->target_dtype);
    for (int64_t i = 0; i < count; i++)
        dw_store_bits(target, job->target_dtype, i, dw_decode(format, data[i], (uint8_t)code, wide));
}

/* Decodes 32 elements with one scale, `power` = 2^(code - 127) (times 2^8 for E4M3). Returns false, having written
 * nothing, when a NaN is among them. */
DW_INLINE bool dw_decode32(const uint8_t *data, uint8_t *target, int code, float power, dw_dtype element,
                           dw_dtype dtype, bool stream);

/* Decodes `count` elements of a row, at most a block, with one scale. */
DW_INLINE void dw_decode_block(const dw_dequantize_job *job, const uint8_t *data, uint8_t *target, int code,
                               int64_t count, dw_dtype element, dw_dtype dtype, bool stream) {
    int64_t size = dtype == DW_F32 ? 4 : 2;
    /* The exponent field of the power of two; 2^-127 is a subnormal. Above 254 (and for NaN) there is none. */
    int field = code + (element == DW_E4M3 ? 8 : 0);
    if (DW_RARELY(field >= 255)) {
        dw_decode_exactly(job, data, target, code, count);
        return;
    }
    float power = dw_f32_from_bits(field > 0 ? (uint32_t)field << 23 : 1u << 22);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        if (DW_RARELY(!dw_decode32(data + i, target + i * size, code, power, element, dtype, stream)))
            dw_decode_exactly(job, data + i, target + i * size, code, 32);
    if (i < count) {
        uint8_t padded[32] = {0}, decoded[32 * 4];
        memcpy(padded, data + i, (size_t)(count - i));
        if (dw_decode32(padded, decoded, code, power, element, dtype, false))
            memcpy(target + i * size, decoded, (size_t)((count - i) * size));
        else
            dw_decode_exactly(job, data + i, target + i * size, code, count - i);
    }
}

DW_INLINE void dw_dequantize_rows(const dw_dequantize_job *job, const dw_tile *tile, dw_dtype element, dw_dtype dtype,
                                  int alignment) {
    int64_t size = dtype == DW_F32 ? 4 : 2, block = dw_block_cols(job->block), down = dw_block_rows(job->block);
    bool stream = dw_streams(job->target, job->target_ld * size, job->rows * job->cols * size, alignment);
    for (int64_t r = tile->row0; r < tile->row1; r++) {
        const uint8_t *data = job->data + r * job->data_ld;
        uint8_t *target = (uint8_t *)job->target + r * job->target_ld * size;
        int64_t c = tile->col0, end = tile->col1;
        dw_scale_walk scales = dw_scale_walk_from(&job->scale, r / down, c / block);
        if (block == 32) {
            for (; c + 32 <= end; c += 32)
                dw_decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), 32, element, dtype, stream);
        } else {
            for (; c + 128 <= end; c += 128)
                dw_decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), 128, element, dtype, stream);
        }
        if (c < end)
            dw_decode_block(job, data + c, target + c * size, *dw_scale_next(&scales), end - c, element, dtype, stream);
    }
    if (stream) _mm_sfence();
}

DW_INLINE void dw_dequantize_element(const dw_dequantize_job *job, const dw_tile *tile, dw_dtype element,
                                     int alignment) {
    if (job->target_dtype == DW_F32)
        dw_dequantize_rows(job, tile, element, DW_F32, alignment);
    else if (job->target_dtype == DW_F16)
        dw_dequantize_rows(job, tile, element, DW_F16, alignment);
    else
        dw_dequantize_rows(job, tile, element, DW_BF16, alignment);
}

DW_INLINE void dw_dequantize_any(const dw_dequantize_job *job, const dw_tile *tile, int alignment) {
    if (job->element == DW_E4M3)
        dw_dequantize_element(job, tile, DW_E4M3, alignment);
    else
        dw_dequantize_element(job, tile, DW_E5M2, alignment);
}

#endif
