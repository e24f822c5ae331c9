/* The context: what this process may run on. Holds the thread pool, the registry and per-device state. */
#ifndef DEEPWELL_CONTEXT_H
#define DEEPWELL_CONTEXT_H

#include "deepwell/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dw_context dw_context;

typedef struct dw_context_options {
    /* CPU threads one operation may use. 0: DEEPWELL_THREADS, else the processors this process may run on. */
    int threads;
    /* Widest CPU instruction set: "ref", "avx2" or "avx512". NULL: DEEPWELL_ISA, else the widest that both the
     * processor and the operating system support. Naming one that this machine lacks is DW_ERROR_UNSUPPORTED. */
    const char *isa;
} dw_context_options;

/* Creates a context. `options` may be NULL for the defaults. Threads start with the first operation that wants them. A
 * context may be used by several threads at once; a child after fork() may use the context it inherited (its threads
 * are started anew). Errors: INVALID_ARGUMENT for a bad option or environment value, UNSUPPORTED, OUT_OF_MEMORY. */
DW_API dw_status dw_context_create(const dw_context_options *options, dw_context **context);

/* Ends the threads and frees the context. NULL is allowed. No other thread may be using it. */
DW_API void dw_context_destroy(dw_context *context);

/* The number of CPU threads in use and the instruction set chosen ("ref", "avx2", "avx512"). */
DW_API int dw_context_threads(const dw_context *context);
DW_API const char *dw_context_isa(const dw_context *context);

/* Facts about the processor, from CPUID and the operating system. Strings live in the struct. */
typedef struct dw_cpu_info {
    char vendor[16];
    char model[64];
    int logical_processors; /* that this process may run on */
    bool has_avx2;          /* processor and operating system both */
    bool has_avx512;        /* F, BW, DQ, VL and VBMI, processor and operating system both */
    int64_t memory_bytes;   /* physical memory */
} dw_cpu_info;
DW_API dw_status dw_probe_cpu(dw_cpu_info *info);

#ifdef __cplusplus
}
#endif
#endif
