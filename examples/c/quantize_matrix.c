/* Quantizes a matrix to MXFP8 (E4M3 elements, one power-of-two scale for every 32) and back with an installed
 * libdeepwell, and prints what that cost, which kernel did it, and which kernels there are.
 *
 *   cc quantize_matrix.c $(pkg-config --cflags --libs deepwell) -lm -o quantize_matrix && ./quantize_matrix [ROWS COLS]
 */
#include <deepwell/deepwell.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Sums of uniform numbers are close enough to normal for a demonstration, and need no library. */
static float normal(uint64_t *state) {
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f;
    }
    return sum - 6.0f;
}

static int fail(const char *what) {
    fprintf(stderr, "quantize_matrix: %s: %s\n", what, dw_last_error());
    return 1;
}

static void print_kernels(const dw_context *context) {
    printf("kernels:\n");
    for (size_t i = 0; i < dw_kernel_count(context); i++) {
        dw_kernel_info kernel;
        if (dw_kernel_get(context, i, &kernel) == DW_OK) {
            printf("  %-44s %s\n", kernel.name, kernel.available ? "available" : kernel.reason);
        }
    }
}

static int run(dw_context *context, int64_t rows, int64_t cols, float *values, uint8_t *elements, float *decoded) {
    uint64_t seed = 1;
    for (int64_t i = 0; i < rows * cols; i++) {
        values[i] = normal(&seed);
    }

    dw_quantize_spec spec = {
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
    int64_t scale_shape[2];
    if (dw_scale_shape(&spec, rows, cols, scale_shape) != DW_OK) {
        return fail("shape of the scales");
    }
    uint8_t *scales = malloc((size_t)(scale_shape[0] * scale_shape[1]) + 1);
    if (!scales) {
        fprintf(stderr, "quantize_matrix: out of memory\n");
        return 1;
    }

    /* All memory is the caller's; the library sees views of it. */
    dw_tensor source = dw_matrix(values, DW_F32, rows, cols);
    dw_tensor target = dw_matrix(decoded, DW_F32, rows, cols);
    dw_quantized quantized = {.data = dw_matrix(elements, DW_E4M3, rows, cols),
                              .scale = dw_matrix(scales, DW_E8M0, scale_shape[0], scale_shape[1])};
    int failed = 0;
    if (dw_quantize(context, &spec, &source, &quantized, NULL, NULL) != DW_OK) {
        failed = fail("quantize");
    } else if (dw_dequantize(context, &spec, &quantized, &target, NULL) != DW_OK) {
        failed = fail("dequantize");
    }
    free(scales);
    if (failed) {
        return failed;
    }

    double signal = 0, noise = 0;
    for (int64_t i = 0; i < rows * cols; i++) {
        double error = (double)values[i] - (double)decoded[i];
        signal += (double)values[i] * (double)values[i];
        noise += error * error;
    }
    printf("%lld x %lld F32 -> E4M3 in blocks of 32: %lld + %lld bytes\n", (long long)rows, (long long)cols,
           (long long)(rows * cols), (long long)(scale_shape[0] * scale_shape[1]));
    printf("signal to quantization noise: %.2f dB\n", 10 * log10(signal / noise));

    dw_request request = {.operation = DW_OP_QUANTIZE,
                          .orientation = DW_ORIENT_ROW,
                          .source = DW_F32,
                          .spec = spec,
                          .rows = rows,
                          .cols = cols,
                          .device_type = DW_DEVICE_CPU};
    size_t index;
    dw_kernel_info chosen;
    if (dw_dispatch(context, &request, &index, NULL, 0) != DW_OK || dw_kernel_get(context, index, &chosen) != DW_OK) {
        return fail("dispatch");
    }
    printf("quantized by %s on %d threads\n", chosen.name, dw_context_threads(context));
    return 0;
}

int main(int argc, char **argv) {
    int64_t rows = argc == 3 ? atoll(argv[1]) : 512;
    int64_t cols = argc == 3 ? atoll(argv[2]) : 1024;
    if (argc == 2 || argc > 3 || rows < 1 || cols < 1 || rows > 1 << 20 || cols > 1 << 20) {
        fprintf(stderr, "usage: quantize_matrix [ROWS COLS], each 1 to %d\n", 1 << 20);
        return 2;
    }
    printf("Deepwell %s\n", dw_version());
    dw_context *context;
    if (dw_context_create(NULL, &context) != DW_OK) {
        return fail("context");
    }
    size_t count = (size_t)(rows * cols);
    float *values = malloc(count * sizeof *values);
    float *decoded = malloc(count * sizeof *decoded);
    uint8_t *elements = malloc(count);
    int status = 1;
    if (values && decoded && elements) {
        status = run(context, rows, cols, values, elements, decoded);
        if (status == 0) {
            print_kernels(context);
        }
    } else {
        fprintf(stderr, "quantize_matrix: out of memory\n");
    }
    free(elements);
    free(decoded);
    free(values);
    dw_context_destroy(context);
    return status;
}
