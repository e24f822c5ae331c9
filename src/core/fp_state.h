/* The floating-point control register of the calling thread. Flush-to-zero, which callers may have set, would change
 * results, so kernels run in the default state: round to nearest, subnormals honoured, no traps. */
#ifndef DW_CORE_FP_STATE_H
#define DW_CORE_FP_STATE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
static inline uint64_t dw_fp_state_default(void) {
    uint64_t saved = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return saved;
}
static inline void dw_fp_state_restore(uint64_t saved) {
    _mm_setcsr((unsigned)saved);
}
#elif defined(__aarch64__)
static inline uint64_t dw_fp_state_default(void) {
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return saved;
}
static inline void dw_fp_state_restore(uint64_t saved) {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
}
#else
#error "Deepwell knows x86-64 and aarch64; add this processor's floating-point control register here."
#endif

#endif
