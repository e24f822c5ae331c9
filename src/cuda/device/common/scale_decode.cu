/* Decodes E8M0 scale codes into the FP32 scales that cuBLASLt reads on Hopper, from one strided grid into another.
 *
 * Floor: a scale is 1 byte in and 4 out per 128 (or 16384) elements of the operand, so at most 4% of the operand's own
 * traffic; what counts is the launch, hence one for both operands, one thread per scale, no loop and no shared memory.
 * Neighbouring threads take neighbouring values of the dimension that is contiguous in the output. */
#include "common/ptx.cuh"
#include "common/scale_decode_params.h"

extern "C" __global__ void __launch_bounds__(256)
    scale_decode_f32(const __grid_constant__ dw_scale_decode_params params) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    const dw_scale_decode_job &job = params.jobs[blockIdx.y];
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= job.outer * job.inner_padded) return;
    int64_t inner = index % job.inner_padded, outer = index / job.inner_padded;
    uint32_t bits = 0; /* padding */
    if (inner < job.inner) {
        uint32_t code = job.codes[outer * job.code_outer + inner * job.code_inner];
        /* code 0 is 2^-127, a subnormal; code 255 is NaN, which the exponent field alone would make an infinity */
        bits = code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23;
    }
    job.scales[index] = __uint_as_float(bits);
}
