/* The tensor copy engine, barriers shared by a cluster, and what else the Hopper matrix kernels need beside
 * common/ptx.cuh; each function named after the instruction it is. */
#ifndef DW_DEVICE_SM90_COPY_CUH
#define DW_DEVICE_SM90_COPY_CUH

#include "common/ptx.cuh"

/* cp_async_bulk_tensor_2d_load into every block of the cluster that `blocks` names, at the same address there, counting
 * on the same barrier of each. */
DW_DEVICE void cp_async_bulk_tensor_2d_multicast(uint32_t to, const void *map, int x, int y, uint32_t barrier,
                                                 uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
                 : "memory");
}

/* The same for a box of the matrix z of a stack. */
DW_DEVICE void cp_async_bulk_tensor_3d_load(uint32_t to, const void *map, int x, int y, int z, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(to),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
        : "memory");
}

DW_DEVICE void cp_async_bulk_tensor_3d_multicast(uint32_t to, const void *map, int x, int y, int z, uint32_t barrier,
                                                 uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
                 : "memory");
}

/* Brings a tensor map, which lies in the kernel's parameters, to where the copy engine reads it. */
DW_DEVICE void prefetch_tensormap(const void *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* From shared memory to the box at (x, y); what lies outside the matrix is dropped. */
DW_DEVICE void cp_async_bulk_tensor_2d_store(const void *map, int x, int y, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x),
                 "r"(y), "r"(from)
                 : "memory");
}

DW_DEVICE void cp_async_bulk_commit_group(void) {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* `bytes`, a multiple of 16, from shared memory; both addresses are such multiples too. */
DW_DEVICE void cp_async_bulk_global_shared(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
}

/* Until all but the newest `pending` of this thread's groups of stores are done. A constant. */
#define cp_async_bulk_wait_group(pending) asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory")

/* Until the shared memory of all but the newest `pending` of this thread's groups of stores may be written again. A
 * constant. */
#define cp_async_bulk_wait_group_read(pending)                                                                         \
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory")

/* An arrival on the barrier that lies at `barrier` in block `rank` of the cluster. */
DW_DEVICE void mbarrier_arrive_cluster(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* What ordinary code wrote, to any memory, before what the copy engine reads after it. */
DW_DEVICE void fence_proxy_async_all(void) {
    asm volatile("fence.proxy.async;" ::: "memory");
}

DW_DEVICE uint64_t ld_acquire_gpu_u64(const uint64_t *address) {
    uint64_t v;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(address) : "memory");
    return v;
}

DW_DEVICE void st_release_gpu_u64(uint64_t *address, uint64_t v) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(v) : "memory");
}

/* Counts at a barrier on which others wait with bar_sync, and goes on. */
DW_DEVICE void bar_arrive(uint32_t barrier, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

DW_DEVICE void stmatrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

DW_DEVICE uint32_t max_u32(uint32_t a, uint32_t b) {
    uint32_t v;
    asm("max.u32 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

#endif
