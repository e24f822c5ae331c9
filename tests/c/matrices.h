/* Matrices for the quantization tests: owned memory, views, and comparison with the second statement. */
#ifndef DW_TESTS_MATRICES_H
#define DW_TESTS_MATRICES_H

#include "registry/selftest_data.h"
#include "statement.h"
#include "support.h"

static inline dw_tensor strided(void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_tensor tensor = dw_matrix(data, dtype, rows, cols);
    tensor.strides[0] = ld;
    return tensor;
}

/* A quantized [rows, cols] matrix with memory of its own, filled with 0xC3. */
static inline dw_quantized make_quantized(const dw_quantize_spec *spec, int64_t rows, int64_t cols) {
    int64_t shape[2];
    ASSERT_OK(dw_scale_shape(spec, rows, cols, shape));
    size_t bytes = (size_t)(rows * cols), scale_bytes = (size_t)(shape[0] * shape[1]);
    uint8_t *data = malloc(bytes + 1), *scale = malloc(scale_bytes + 1);
    memset(data, 0xC3, bytes);
    memset(scale, 0xC3, scale_bytes);
    return (dw_quantized){dw_matrix(data, spec->element, rows, cols), dw_matrix(scale, DW_E8M0, shape[0], shape[1])};
}

static inline size_t scale_bytes_of(const dw_quantized *quantized) {
    return (size_t)(quantized->scale.shape[0] * quantized->scale.shape[1]);
}

static inline void free_quantized(dw_quantized *quantized) {
    free(quantized->data.data);
    free(quantized->scale.data);
}

/* Asserts that a dense result with row layout equals the statement for source[r * down + c * across]. */
static inline void assert_stated(const dw_quantize_spec *spec, const dw_quantized *got, const void *source,
                                 dw_dtype dtype, int64_t down, int64_t across) {
    int64_t rows = got->data.shape[0], cols = got->data.shape[1];
    dw_quantized wanted = make_quantized(spec, rows, cols);
    state_quantized(spec, source, dtype, down, across, rows, cols, wanted.data.data, wanted.scale.data);
    const uint8_t *a = got->data.data, *b = wanted.data.data;
    if (memcmp(a, b, (size_t)(rows * cols)) != 0) {
        int64_t i = 0;
        while (a[i] == b[i])
            i++;
        fail_msg("%s %s %s from %s: element (%lld, %lld) is 0x%02X, expected 0x%02X", dw_dtype_name(spec->element),
                 dw_block_name(spec->block), dw_rounding_name(spec->rounding), dw_dtype_name(dtype),
                 (long long)(i / cols), (long long)(i % cols), a[i], b[i]);
    }
    assert_memory_equal(got->scale.data, wanted.scale.data, scale_bytes_of(got));
    free_quantized(&wanted);
}

#endif
