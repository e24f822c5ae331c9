/* Kernels from outside: registered by a program, or by a shared object that it loads. They take part in the
 * dispatcher's contest like rows of the library's own table, and have to give the same bytes. */
#ifndef DEEPWELL_PLUGIN_H
#define DEEPWELL_PLUGIN_H

#include "deepwell/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a kernel does when it is chosen. The library has checked the arguments as for dw_quantize and dw_dequantize, and
 * the request is one that the kernel says it serves; all memory is the caller's. row or transposed is NULL where not
 * wanted. Every byte of the scales is to be written, padding as zero; bytes between rows are not. May be called by
 * several threads at once. Returns DW_OK, or a status that the caller of dw_quantize gets.
 *
 * For a GPU the tensors are device memory, the context of their device is current, and the work is to be enqueued on
 * `stream` (a CUstream). There the scales of 1x128 and 128x128 blocks may also be FP32 (dw_quantize says in which
 * places), and spec->transposed_square may be set: a kernel has to serve both. */
typedef dw_status (*dw_plugin_quantize)(void *state, const dw_quantize_spec *spec, const dw_tensor *source,
                                        const dw_quantized *row, const dw_quantized *transposed, void *stream);
typedef dw_status (*dw_plugin_dequantize)(void *state, const dw_quantize_spec *spec, const dw_quantized *source,
                                          const dw_tensor *target, void *stream);

/* A kernel. Everything is copied, except for what `state` points to. */
typedef struct dw_plugin_kernel {
    size_t size;                /* sizeof(dw_plugin_kernel): tells versions of this header apart */
    const char *name;           /* unlike any other's: lower-case letters, digits, "_", at most 80 */
    const char *target;         /* shown: "mine", "avx2"; at most 15 characters */
    dw_operation operation;     /* which of the two functions is set */
    dw_device_type device_type; /* CUDA: target is "sm90" or "sm100", and the kernel quantizes */
    uint32_t orientations, sources, elements, blocks, roundings, layouts; /* as in dw_kernel_info */
    int priority;  /* the library's own: reference 0, AVX2 10, AVX-512 and GPUs 20; ties go to the later registration */
    int alignment; /* bytes that addresses and rows of the high-precision side must be multiples of: 1, 2, 4, 8 or 16 */
    dw_plugin_quantize quantize;
    dw_plugin_dequantize dequantize;
    void *state;
} dw_plugin_kernel;

/* Registers a kernel for the whole process, for good. One of the CPU is first run against the scalar reference over
 * everything that it says it serves (dw_kernel_selftest). One of a GPU is run against it like the library's own, on
 * each GPU before its first use there in this process; one that fails is left out there, and the warning handler is
 * told. Errors: INVALID_ARGUMENT (a field breaks its contract), EXISTS (a kernel has this name), UNSUPPORTED (it
 * dequantizes on a GPU; more than 64 kernels from outside), SELFTEST (its bytes differ from the reference's; the text
 * names the first case). A kernel that fails at once is not registered. */
DW_API dw_status dw_kernel_register(dw_context *context, const dw_plugin_kernel *kernel);

/* What a shared object gets: `add` is dw_kernel_register for this load. The object need not link to this library. */
typedef struct dw_plugin_host {
    size_t size;         /* sizeof(dw_plugin_host) */
    const char *version; /* dw_version() */
    dw_status (*add)(void *data, const dw_plugin_kernel *kernel);
    void *data;
} dw_plugin_host;

/* The function that a shared object exports under this name: it adds its kernels and returns DW_OK, or the first status
 * that add gave it. */
#define DW_PLUGIN_ENTRY "deepwell_plugin"
typedef dw_status (*dw_plugin_entry)(const dw_plugin_host *host);

/* Loads the shared object at `path` (a path, not a name that is searched for) and lets it register its kernels; `count`
 * (may be NULL) is how many. The object stays loaded, also after a failure, and so do the kernels it had added. Loading
 * runs its code: load what you trust. Errors: INVALID_ARGUMENT (no path with a slash, no such function), NOT_FOUND, IO
 * (the system cannot load it; the text has its words), and what its entry returned. */
DW_API dw_status dw_plugin_load(dw_context *context, const char *path, size_t *count);

#ifdef __cplusplus
}
#endif
#endif
