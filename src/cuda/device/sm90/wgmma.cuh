/* Warpgroup matrix multiplication (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"), each function
 * named after the instruction it is. Operands are described by 64-bit descriptors.
 *
 * Thread t of the warpgroup holds of a 64-row D, in d[4 * j + i]: row 16 * (t / 32) + (t % 32) / 4 + 8 * (i / 2),
 * column 8 * j + 2 * (t % 4) + i % 2. */
#ifndef DW_DEVICE_SM90_WGMMA_CUH
#define DW_DEVICE_SM90_WGMMA_CUH

#include "common/ptx.cuh"

/* The descriptor of rows of 128 bytes in shared memory, swizzled in units of 8 rows (1024 bytes, aligned so) as the
 * copy engine's 128-byte mode writes them. The low word is in units of 16 bytes: it is what arithmetic is done on;
 * adding 2 moves 32 bytes along the rows. It must be the same in all threads of a warp; taking lane 0's tells the
 * compiler. */
DW_DEVICE uint32_t wgmma_descriptor_low(uint32_t shared) {
    return __shfl_sync(0xFFFFFFFF, (shared & 0x3FFFF) >> 4, 0);
}

DW_DEVICE uint64_t wgmma_descriptor_swizzle_128b(uint32_t low) {
    const uint32_t high = 1u << 30 | 1024 >> 4;
    uint64_t v;
    asm("mov.b64 %0, {%1, %2};" : "=l"(v) : "r"(low), "r"(high));
    return v;
}

/* The low word for BF16 rows of 128 bytes that lie from one step of the reduction to the next ("MN-major"): 64 elements
 * of the operand's other side in each; those beyond lie `apart` bytes further, in another such piece. Adding 128 moves
 * 16 steps. */
DW_DEVICE uint32_t wgmma_descriptor_low_across(uint32_t shared, uint32_t apart) {
    return wgmma_descriptor_low(shared) | apart >> 4 << 16;
}

/* Before the first of a series, and after ordinary code touched its accumulators. */
DW_DEVICE void wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DW_DEVICE void wgmma_commit_group(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most `pending` of this thread's newest groups are unfinished: 0 or 1. */
DW_DEVICE void wgmma_wait_group_0(void) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

DW_DEVICE void wgmma_wait_group_1(void) {
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

#define DW_REGS8(d, i)                                                                                                 \
    "+f"((d)[(i)]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]),                    \
        "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])

/* D[64, 32] (+)= A[64, 32] B[32, 32]^T, E4M3 operands in shared memory; d: this thread's 16 of D's elements. */
DW_DEVICE void wgmma_m64n32k32_f32_e4m3_e4m3(float *d, uint64_t a, uint64_t b, uint32_t add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, p, 1, 1;\n"
                 "}"
                 : DW_REGS8(d, 0), DW_REGS8(d, 8)
                 : "l"(a), "l"(b), "r"(add));
}

/* D[64, 64] (+)= A[64, 32] B[64, 32]^T, E4M3 operands in shared memory; d: this thread's 32 of D's elements. */
DW_DEVICE void wgmma_m64n64k32_f32_e4m3_e4m3(float *d, uint64_t a, uint64_t b, uint32_t add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, p, 1, 1;\n"
                 "}"
                 : DW_REGS8(d, 0), DW_REGS8(d, 8), DW_REGS8(d, 16), DW_REGS8(d, 24)
                 : "l"(a), "l"(b), "r"(add));
}

/* D[64, 128] (+)= A[64, 32] B[128, 32]^T, E4M3 operands in shared memory; d: this thread's 64 of D's elements. */
DW_DEVICE void wgmma_m64n128k32_f32_e4m3_e4m3(float *d, uint64_t a, uint64_t b, uint32_t add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, "
                 "%40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, p, 1, 1;\n"
                 "}"
                 : DW_REGS8(d, 0), DW_REGS8(d, 8), DW_REGS8(d, 16), DW_REGS8(d, 24), DW_REGS8(d, 32), DW_REGS8(d, 40),
                   DW_REGS8(d, 48), DW_REGS8(d, 56)
                 : "l"(a), "l"(b), "r"(add));
}

/* D[64, 192] (+)= A[64, 32] B[192, 32]^T, E4M3 operands in shared memory; d: this thread's 96 of D's elements. */
DW_DEVICE void wgmma_m64n192k32_f32_e4m3_e4m3(float *d, uint64_t a, uint64_t b, uint32_t add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %98, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, "
                 "%40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, "
                 "%72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, "
                 "%88, %89, %90, %91, %92, %93, %94, %95}, "
                 "%96, %97, p, 1, 1;\n"
                 "}"
                 : DW_REGS8(d, 0), DW_REGS8(d, 8), DW_REGS8(d, 16), DW_REGS8(d, 24), DW_REGS8(d, 32), DW_REGS8(d, 40),
                   DW_REGS8(d, 48), DW_REGS8(d, 56), DW_REGS8(d, 64), DW_REGS8(d, 72), DW_REGS8(d, 80), DW_REGS8(d, 88)
                 : "l"(a), "l"(b), "r"(add));
}

/* D[64, 256] (+)= A[64, 16] B[256, 16]^T, BF16 operands in shared memory; d: this thread's 128 of D's elements. One
 * function for each way they lie: k with the reduction along the rows in shared memory, m with the reduction from row
 * to row. */
#define DW_WGMMA_BF16(name, a_from_row_to_row, b_from_row_to_row)                                                      \
    DW_DEVICE void name(float *d, uint64_t a, uint64_t b, uint32_t add) {                                              \
        asm volatile("{\n"                                                                                             \
                     ".reg .pred p;\n"                                                                                 \
                     "setp.ne.b32 p, %130, 0;\n"                                                                       \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"                                         \
                     "%0, %1, %2, %3, %4, %5, %6, %7, "                                                                \
                     "%8, %9, %10, %11, %12, %13, %14, %15, "                                                          \
                     "%16, %17, %18, %19, %20, %21, %22, %23, "                                                        \
                     "%24, %25, %26, %27, %28, %29, %30, %31, "                                                        \
                     "%32, %33, %34, %35, %36, %37, %38, %39, "                                                        \
                     "%40, %41, %42, %43, %44, %45, %46, %47, "                                                        \
                     "%48, %49, %50, %51, %52, %53, %54, %55, "                                                        \
                     "%56, %57, %58, %59, %60, %61, %62, %63, "                                                        \
                     "%64, %65, %66, %67, %68, %69, %70, %71, "                                                        \
                     "%72, %73, %74, %75, %76, %77, %78, %79, "                                                        \
                     "%80, %81, %82, %83, %84, %85, %86, %87, "                                                        \
                     "%88, %89, %90, %91, %92, %93, %94, %95, "                                                        \
                     "%96, %97, %98, %99, %100, %101, %102, %103, "                                                    \
                     "%104, %105, %106, %107, %108, %109, %110, %111, "                                                \
                     "%112, %113, %114, %115, %116, %117, %118, %119, "                                                \
                     "%120, %121, %122, %123, %124, %125, %126, %127}, "                                               \
                     "%128, %129, p, 1, 1, " #a_from_row_to_row ", " #b_from_row_to_row ";\n"                          \
                     "}"                                                                                               \
                     : DW_REGS8(d, 0), DW_REGS8(d, 8), DW_REGS8(d, 16), DW_REGS8(d, 24), DW_REGS8(d, 32),              \
                       DW_REGS8(d, 40), DW_REGS8(d, 48), DW_REGS8(d, 56), DW_REGS8(d, 64), DW_REGS8(d, 72),            \
                       DW_REGS8(d, 80), DW_REGS8(d, 88), DW_REGS8(d, 96), DW_REGS8(d, 104), DW_REGS8(d, 112),          \
                       DW_REGS8(d, 120)                                                                                \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }
DW_WGMMA_BF16(wgmma_m64n256k16_f32_bf16_bf16_kk, 0, 0)
DW_WGMMA_BF16(wgmma_m64n256k16_f32_bf16_bf16_km, 0, 1)
DW_WGMMA_BF16(wgmma_m64n256k16_f32_bf16_bf16_mm, 1, 1)
#undef DW_WGMMA_BF16

#undef DW_REGS8

#endif
