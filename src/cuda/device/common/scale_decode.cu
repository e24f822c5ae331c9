/* Decodes E8M0 scale codes into the FP32 scales that cuBLASLt reads on Hopper, from one strided grid into another.
 *
 * Floor: a scale is 1 byte in and 4 out per 128 (or 16384) elements of the operand, so at most 4% of the operand's own
 * traffic; what counts is the launch, hence one thread per scale, no loop and no shared memory.
 * Neighbouring threads take neighbouring values of the dimension that is contiguous in the output. */
#include <stdint.h>

extern "C" __global__ void __launch_bounds__(256)
scale_decode_f32(const uint8_t *__restrict__ codes, int64_t code_outer, int64_t code_inner, float *__restrict__ scales,
                 int64_t scale_outer, int64_t inner, int64_t inner_padded, int64_t total) {
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    int64_t i = index % inner_padded, o = index / inner_padded;
    uint32_t bits = 0; /* padding between the rows is zero */
    if (i < inner) {
        uint32_t code = codes[o * code_outer + i * code_inner];
        /* code 0 is 2^-127, a subnormal; code 255 is NaN, which the exponent field alone would make an infinity */
        bits = code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23;
    }
    scales[o * scale_outer + i] = __uint_as_float(bits);
}
