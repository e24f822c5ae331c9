/* What a dw_context holds. */
#ifndef DW_CORE_CONTEXT_H
#define DW_CORE_CONTEXT_H

#include "core/thread_pool.h"
#include "deepwell/context.h"

/* CPU instruction sets in order of width; each includes those before it. */
typedef enum dw_isa { DW_ISA_REF = 0, DW_ISA_AVX2 = 1, DW_ISA_AVX512 = 2, DW_ISA_COUNT } dw_isa;

const char *dw_isa_name(dw_isa isa);

struct dw_context {
    dw_thread_pool *pool;
    dw_isa isa;      /* widest one to use */
    dw_isa hardware; /* widest one that processor and operating system support */
};

#endif
