/* Kernels: from an embedded image to a launch.
 *
 *     static dw_cuda_kernel decode = DW_CUDA_KERNEL("common/scale_decode", "scale_decode_f32");
 *     ...
 *     dw_cuda_scope scope;
 *     DW_TRY(dw_cuda_enter(device, &scope));
 *     void *arguments[] = {&codes, &out, &rows};
 *     dw_cuda_launch_config config = {.grid = {blocks, 1, 1}, .block = {256, 1, 1}};
 *     dw_status status = dw_cuda_launch(&scope, &decode, &config, stream, arguments);
 *     dw_cuda_leave(&scope);
 *
 * An image is the fatbin of one file below src/cuda/device, named by its path there without ".cu". It is loaded into a
 * context when its first kernel is launched there. */
#ifndef DW_CUDA_LAUNCH_H
#define DW_CUDA_LAUNCH_H

#include <stdatomic.h>

#include "cuda/host/driver.h"

struct dw_cuda_function;

/* One kernel; a static object, which keeps the function found in each context. */
typedef struct dw_cuda_kernel {
    const char *image;
    const char *symbol;
    struct dw_cuda_function *_Atomic functions;
} dw_cuda_kernel;

#define DW_CUDA_KERNEL(image_name, symbol_name) {image_name, symbol_name, NULL}

typedef struct dw_cuda_launch_config {
    uint32_t grid[3];      /* blocks; a zero means there is no work and nothing is launched */
    uint32_t block[3];     /* threads */
    uint32_t cluster[3];   /* blocks; all zero for none. More than 8 in total are asked for as a non-portable size. */
    uint32_t shared_bytes; /* dynamic shared memory; the limit is raised when needed */
    bool programmatic;     /* may start before the kernel ahead of it in the stream ends: every thread must execute
                              griddepcontrol.wait before it touches memory that another kernel may touch */
} dw_cuda_launch_config;

/* Puts the kernel on `stream` (a CUstream; NULL is the default stream). `arguments` points at the kernel's parameters
 * in order; they are copied before the call returns. Returns without waiting; faults inside the kernel surface in a
 * later call of whoever synchronizes. Errors: UNSUPPORTED when the library holds no image for this GPU, DEVICE. */
dw_status dw_cuda_launch(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, const dw_cuda_launch_config *config,
                         void *stream, void **arguments);

/* How many clusters of such a launch the GPU holds at once; 0 where a cluster is too large for it (parts of a GPU, and
 * for more than 8 blocks whole ones, may lack a group of multiprocessors with the room). Errors as above. */
dw_status dw_cuda_active_clusters(const dw_cuda_scope *scope, dw_cuda_kernel *kernel,
                                  const dw_cuda_launch_config *config, int *clusters);

/* Loads the kernel without launching it, for whoever wants the loading error (or its cost) now. Errors as above. */
dw_status dw_cuda_kernel_load(const dw_cuda_scope *scope, dw_cuda_kernel *kernel);

#endif
