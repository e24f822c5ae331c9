/* PTX instructions as functions, each named after the instruction it is. Only what the kernels here use. */
#ifndef DW_DEVICE_PTX_CUH
#define DW_DEVICE_PTX_CUH

#include <stdint.h>

#define DW_DEVICE static __device__ __forceinline__

/* 16 bytes that this kernel touches once: past L1, so that streams do not evict each other there. No load here is .nc,
 * for which nobody may write the data while the kernel runs: it may start before the kernel that writes them ends. */
DW_DEVICE uint4 ld_global_no_allocate_v4(const void *address) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

/* What the L2 cache is told of data that will be read again: let go of it last. */
DW_DEVICE uint64_t createpolicy_l2_evict_last(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* 16 bytes past L1, with such a policy. */
DW_DEVICE uint4 ld_global_no_allocate_l2_hint_v4(const void *address, uint64_t policy) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address), "l"(policy));
    return v;
}

/* 16 bytes through L1, for accesses that take a 32-byte sector in two halves. */
DW_DEVICE uint4 ld_global_v4(const void *address) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

DW_DEVICE uint2 ld_global_no_allocate_v2(const void *address) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

/* What a kernel's stores say to the caches: nothing, or where its file defines it before including this, ".cs", for
 * results that nobody reads soon. */
#ifndef DW_STORE_HINT
#define DW_STORE_HINT ""
#endif

DW_DEVICE void st_global_v4(void *address, uint4 v) {
    asm volatile("st.global" DW_STORE_HINT ".v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

DW_DEVICE void st_global_v2(void *address, uint32_t x, uint32_t y) {
    asm volatile("st.global" DW_STORE_HINT ".v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(x), "r"(y) : "memory");
}

DW_DEVICE void st_global_u32(void *address, uint32_t x) {
    asm volatile("st.global" DW_STORE_HINT ".u32 [%0], %1;" ::"l"(address), "r"(x) : "memory");
}

/* Two floats to two FP8 bytes, round to nearest even, saturating to the largest finite value; NaN becomes 0x7F. `low`
 * lands in bits 0-7, `high` in bits 8-15. */
DW_DEVICE uint32_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
    uint16_t v;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(v) : "f"(high), "f"(low));
    return v;
}

DW_DEVICE uint32_t cvt_rn_satfinite_e5m2x2_f32(float high, float low) {
    uint16_t v;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(v) : "f"(high), "f"(low));
    return v;
}

/* Two floats to packed BF16, round to nearest even. */
DW_DEVICE uint32_t cvt_rn_bf16x2_f32(float high, float low) {
    uint32_t v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

/* Two floats to packed FP16, round to nearest even. */
DW_DEVICE uint32_t cvt_rn_f16x2_f32(float high, float low) {
    uint32_t v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DW_DEVICE float cvt_f32_f16(uint32_t bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"((uint16_t)bits));
    return v;
}

DW_DEVICE uint32_t max_u16x2(uint32_t a, uint32_t b) {
    uint32_t v;
    asm("max.u16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

/* Two BF16 products, rounded to nearest even. */
DW_DEVICE uint32_t mul_rn_bf16x2(uint32_t a, uint32_t b) {
    uint32_t v;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

/* 2^x and 1/x to about two units in the last place; subnormal arguments and results are taken as zero, without which
 * each would be five instructions. */
DW_DEVICE float ex2_approx_ftz_f32(float x) {
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

DW_DEVICE float rcp_approx_ftz_f32(float x) {
    float v;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

/* Minimum and maximum that return NaN when either side is. */
DW_DEVICE float min_nan_f32(float a, float b) {
    float v;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
    return v;
}

DW_DEVICE float max_nan_f32(float a, float b) {
    float v;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
    return v;
}

DW_DEVICE float rsqrt_approx_f32(float x) {
    float v;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

/* Until the kernel ahead of this one in the stream has ended and its writes are visible. The library's kernels are all
 * launched programmatically, so they may start before that: every thread calls this before it touches memory that
 * another kernel may touch, also where it has nothing else to do, or the kernel behind it could overtake the one ahead.
 */
DW_DEVICE void griddepcontrol_wait(void) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The kernel behind this one in the stream may start once all thread blocks of this one say so or have ended, that is
 * when all are on their way: it gets to its griddepcontrol_wait while this one ends. */
DW_DEVICE void griddepcontrol_launch_dependents(void) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* True in one thread of a warp, whose threads are all here. What one thread does alone the compiler takes for uniform
 * only behind this: behind a comparison with a thread's number every tensor copy becomes a loop over the threads. */
DW_DEVICE bool elect_one(void) {
    uint32_t elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xFFFFFFFF;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(elected));
    return elected != 0;
}

/* Barrier number `barrier` of the thread block, for `threads` of its threads. */
DW_DEVICE void bar_sync(uint32_t barrier, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* ---- bulk copies into shared memory and the barriers they complete on
 * ------------------------------------------------ */

DW_DEVICE uint32_t shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

DW_DEVICE void mbarrier_init(uint64_t *barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/* Makes initialized barriers visible to the copy engine. */
DW_DEVICE void fence_mbarrier_init(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DW_DEVICE void mbarrier_arrive_expect_tx(uint64_t *barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

DW_DEVICE void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

DW_DEVICE void mbarrier_wait_parity(uint64_t *barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again_%=;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Whether that phase is complete, without waiting. */
DW_DEVICE bool mbarrier_test_wait_parity(uint64_t *barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, done;\n"
                 "}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return done;
}

/* `bytes` (a multiple of 16) from global to shared memory, both 16-byte aligned; counts on `barrier`. */
DW_DEVICE void cp_async_bulk_shared_global(void *to, const void *from, uint32_t bytes, uint64_t *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* The box at (x, y) of a matrix into shared memory; counts its bytes on `barrier`. */
DW_DEVICE void cp_async_bulk_tensor_2d_load(uint32_t to, const void *map, int x, int y, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}

/* Gives what was there, and leaves `value` if that was `expected`. */
DW_DEVICE uint64_t atom_cas_acquire_gpu_u64(uint64_t *global, uint64_t expected, uint64_t value) {
    uint64_t old;
    asm volatile("atom.acquire.gpu.global.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(old)
                 : "l"(global), "l"(expected), "l"(value)
                 : "memory");
    return old;
}

/* Adds in shared memory and gives what was there. What this thread did before is done for whoever sees the sum. */
DW_DEVICE uint32_t atom_add_acq_rel_shared(uint32_t *shared, uint32_t value) {
    uint32_t old;
    asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(shared_address(shared)), "r"(value)
                 : "memory");
    return old;
}

/* Makes this thread's ordinary writes to shared memory visible to the copy engine. */
DW_DEVICE void fence_proxy_async(void) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- clusters ------------------------------------------------------------------------------------------------- */

DW_DEVICE uint32_t cluster_ctarank(void) {
    uint32_t v;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
    return v;
}

DW_DEVICE uint32_t cluster_nctarank(void) {
    uint32_t v;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
    return v;
}

DW_DEVICE void barrier_cluster_arrive(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/* Orders nothing but the barrier itself: for what a fence before it, or nothing, has to make visible. */
DW_DEVICE void barrier_cluster_arrive_relaxed(void) {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

DW_DEVICE void barrier_cluster_wait(void) {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* 16 bytes to where `shared` lies in block `rank` of the cluster, counted on the barrier `barrier` of that block. */
DW_DEVICE void st_async_v4(float *shared, uint64_t *barrier, uint32_t rank, float4 v) {
    asm volatile("{\n"
                 ".reg .b32 there, counted;\n"
                 "mapa.shared::cluster.u32 there, %0, %2;\n"
                 "mapa.shared::cluster.u32 counted, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [counted];\n"
                 "}" ::"r"(shared_address(shared)),
                 "r"(shared_address(barrier)), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

/* The same of 4 bytes. */
DW_DEVICE void st_async_f32(float *shared, uint64_t *barrier, uint32_t rank, float v) {
    asm volatile("{\n"
                 ".reg .b32 there, counted;\n"
                 "mapa.shared::cluster.u32 there, %0, %2;\n"
                 "mapa.shared::cluster.u32 counted, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %3, [counted];\n"
                 "}" ::"r"(shared_address(shared)),
                 "r"(shared_address(barrier)), "r"(rank), "f"(v)
                 : "memory");
}

/* The number of registers of each thread of this warpgroup: fewer for the one that only copies, more for the others. */
#define setmaxnreg_dec(registers) asm volatile("setmaxnreg.dec.sync.aligned.u32 " #registers ";")
#define setmaxnreg_inc(registers) asm volatile("setmaxnreg.inc.sync.aligned.u32 " #registers ";")

#endif
