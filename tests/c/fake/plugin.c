/* A plug-in for the tests: it takes the library's own reference as its kernel, found through the process, so it links
 * to nothing. What it adds is chosen by DEEPWELL_TEST_PLUGIN: "good", "wrong" (a byte differs), "twice" (a name that is
 * taken), "old" (another header's size) or "fails". */
#include <stdlib.h>
#include <string.h>

#include "deepwell/plugin.h"

dw_status deepwell_plugin(const dw_plugin_host *host);

static long calls;

/* Decodes E4M3 and E5M2 by their definition; enough for a reference of the tests. */
static float decode(uint8_t byte, bool e5m2) {
    int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7;
    int exponent = (byte & 0x7F) >> mantissa_bits, mantissa = byte & ((1 << mantissa_bits) - 1);
    bool nan = e5m2 ? exponent == 31 && mantissa : (byte & 0x7F) == 0x7F,
         infinite = e5m2 && exponent == 31 && !mantissa;
    float value = nan        ? __builtin_nanf("")
                  : infinite ? __builtin_inff()
                             : __builtin_ldexpf((float)(exponent ? mantissa + (1 << mantissa_bits) : mantissa),
                                                (exponent ? exponent : 1) - bias - mantissa_bits);
    return byte & 0x80 ? -value : value;
}

static float scale_of(uint8_t code) {
    return code == 255 ? __builtin_nanf("") : __builtin_ldexpf(1, code - 127);
}

/* Dequantization to FP32 in blocks of 1x32 with row scales. `state` points to what is added to the first byte. */
static dw_status dequantize(void *state, const dw_quantize_spec *spec, const dw_quantized *source,
                            const dw_tensor *target, void *stream) {
    (void)stream;
    __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    int64_t rows = target->shape[0], cols = target->shape[1], across = (cols + 31) / 32;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const uint8_t *data = source->data.data, *scale = source->scale.data;
            float value = decode(data[r * source->data.strides[0] + c], spec->element == DW_E5M2) *
                          scale_of(scale[r * across + c / 32]);
            /* One NaN for all of them, as the reference has. */
            if (value != value) value = __builtin_nanf("");
            memcpy((char *)target->data + 4 * (r * target->strides[0] + c), &value, sizeof value);
        }
    if (rows && cols) *(char *)target->data = (char)(*(char *)target->data + *(const char *)state);
    return DW_OK;
}

__attribute__((visibility("default"))) long plugin_calls(void);
long plugin_calls(void) {
    return __atomic_load_n(&calls, __ATOMIC_RELAXED);
}

__attribute__((visibility("default"))) dw_status deepwell_plugin(const dw_plugin_host *host) {
    static const char right = 0, wrong = 1;
    const char *wish = getenv("DEEPWELL_TEST_PLUGIN");
    if (!wish) wish = "good";
    if (strcmp(wish, "fails") == 0) return DW_ERROR_UNSUPPORTED;
    dw_plugin_kernel kernel = {.size = sizeof kernel,
                               .name = strcmp(wish, "twice") == 0 ? "dequantize__ref" : "dequantize_1x32__mine",
                               .target = "mine",
                               .operation = DW_OP_DEQUANTIZE,
                               .device_type = DW_DEVICE_CPU,
                               .orientations = 1u << DW_ORIENT_ROW,
                               .sources = 1u << DW_F32,
                               .elements = 1u << DW_E4M3 | 1u << DW_E5M2,
                               .blocks = 1u << DW_BLOCK_1X32,
                               .roundings = 1u << DW_ROUND_RCEIL,
                               .layouts = 1u << DW_SCALE_ROW,
                               .priority = 30,
                               .alignment = 4,
                               .dequantize = dequantize,
                               .state = (void *)(strcmp(wish, "wrong") == 0 ? &wrong : &right)};
    if (strcmp(wish, "old") == 0) kernel.size -= 8;
    return host->add(host->data, &kernel);
}
