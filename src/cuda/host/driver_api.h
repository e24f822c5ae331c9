/* The part of the CUDA driver interface that Deepwell calls, declared here so that the library builds on machines
 * without CUDA's headers. Values and layouts are fixed by the driver's binary interface; tests/c/test_cuda_header.c
 * compares every one of them with cuda.h where that exists. Names are our own, so both can be included together. */
#ifndef DW_CUDA_DRIVER_API_H
#define DW_CUDA_DRIVER_API_H

#include <stddef.h>
#include <stdint.h>

typedef int dw_cu_result;
typedef int dw_cu_device;
typedef void *dw_cu_context;
typedef void *dw_cu_module;
typedef void *dw_cu_function;
typedef void *dw_cu_stream;
typedef void *dw_cu_event;
typedef uint64_t dw_cu_pointer;

typedef struct dw_cu_uuid {
    unsigned char bytes[16];
} dw_cu_uuid;

enum {
    DW_CU_SUCCESS = 0,
    DW_CU_ERROR_OUT_OF_MEMORY = 2,
    DW_CU_ERROR_NOT_INITIALIZED = 3,
    DW_CU_ERROR_STUB_LIBRARY = 34,
    DW_CU_ERROR_NO_DEVICE = 100,
    DW_CU_ERROR_NO_BINARY_FOR_GPU = 209,
    DW_CU_ERROR_NOT_FOUND = 500
};

/* Device attributes. */
enum {
    DW_CU_DEVICE_CLOCK_RATE = 13,
    DW_CU_DEVICE_MULTIPROCESSOR_COUNT = 16,
    DW_CU_DEVICE_PCI_BUS_ID = 33,
    DW_CU_DEVICE_PCI_DEVICE_ID = 34,
    DW_CU_DEVICE_MEMORY_CLOCK_RATE = 36,
    DW_CU_DEVICE_MEMORY_BUS_WIDTH = 37,
    DW_CU_DEVICE_L2_CACHE_SIZE = 38,
    DW_CU_DEVICE_ASYNC_ENGINE_COUNT = 40,
    DW_CU_DEVICE_PCI_DOMAIN_ID = 50,
    DW_CU_DEVICE_COMPUTE_MAJOR = 75,
    DW_CU_DEVICE_COMPUTE_MINOR = 76,
    DW_CU_DEVICE_SHARED_PER_MULTIPROCESSOR = 81,
    DW_CU_DEVICE_SHARED_PER_BLOCK_OPTIN = 97
};

/* Function attributes. */
enum { DW_CU_FUNC_MAX_DYNAMIC_SHARED = 8, DW_CU_FUNC_NON_PORTABLE_CLUSTER = 14 };

/* Flag of a stream that does not wait for the default stream; what a thread may do while some stream is captured. */
enum { DW_CU_STREAM_NON_BLOCKING = 1, DW_CU_CAPTURE_MODE_RELAXED = 2 };

/* Launch attributes. */
enum { DW_CU_LAUNCH_CLUSTER_DIMENSION = 4, DW_CU_LAUNCH_PROGRAMMATIC_SERIALIZATION = 6 };

typedef struct dw_cu_launch_attribute {
    int id;
    int pad;
    union {
        char bytes[64];
        unsigned int cluster[3];
        int programmatic;
    } value;
} dw_cu_launch_attribute;

typedef struct dw_cu_launch_config {
    unsigned int grid[3], block[3];
    unsigned int shared_bytes;
    dw_cu_stream stream;
    dw_cu_launch_attribute *attributes;
    unsigned int attribute_count;
} dw_cu_launch_config;

/* Passed by value to kernels as `const __grid_constant__ CUtensorMap`. */
typedef struct dw_cu_tensor_map {
    _Alignas(128) uint64_t opaque[16];
} dw_cu_tensor_map;

enum { DW_CU_TENSOR_UINT8 = 0, DW_CU_TENSOR_FLOAT16 = 6, DW_CU_TENSOR_FLOAT32 = 7, DW_CU_TENSOR_BFLOAT16 = 9 };
enum { DW_CU_SWIZZLE_NONE = 0, DW_CU_SWIZZLE_32B = 1, DW_CU_SWIZZLE_64B = 2, DW_CU_SWIZZLE_128B = 3 };
enum { DW_CU_INTERLEAVE_NONE = 0 };
enum { DW_CU_L2_PROMOTE_NONE = 0, DW_CU_L2_PROMOTE_64B = 1, DW_CU_L2_PROMOTE_128B = 2, DW_CU_L2_PROMOTE_256B = 3 };
enum { DW_CU_FILL_ZERO = 0 };

/* cuGetProcAddress is asked for the interface of this version: the oldest that has every function below. */
#define DW_CU_INTERFACE_VERSION 12000

/* Resolved by name from the driver itself. */
typedef dw_cu_result (*dw_cu_get_proc_address)(const char *symbol, void **function, int version, uint64_t flags,
                                               int *status);

/* X(member, driver symbol, parameters) */
#define DW_CU_FUNCTIONS(X)                                                                                             \
    X(init, cuInit, (unsigned int flags))                                                                              \
    X(driver_version, cuDriverGetVersion, (int *version))                                                              \
    X(error_name, cuGetErrorName, (dw_cu_result result, const char **text))                                            \
    X(error_string, cuGetErrorString, (dw_cu_result result, const char **text))                                        \
    X(device_count, cuDeviceGetCount, (int *count))                                                                    \
    X(device_get, cuDeviceGet, (dw_cu_device * device, int ordinal))                                                   \
    X(device_name, cuDeviceGetName, (char *name, int length, dw_cu_device device))                                     \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, dw_cu_device device))                        \
    X(device_memory, cuDeviceTotalMem, (size_t *bytes, dw_cu_device device))                                           \
    X(device_uuid, cuDeviceGetUuid, (dw_cu_uuid * uuid, dw_cu_device device))                                          \
    X(primary_retain, cuDevicePrimaryCtxRetain, (dw_cu_context * context, dw_cu_device device))                        \
    X(context_current, cuCtxGetCurrent, (dw_cu_context * context))                                                     \
    X(context_device, cuCtxGetDevice, (dw_cu_device * device))                                                         \
    X(context_id, cuCtxGetId, (dw_cu_context context, unsigned long long *id))                                         \
    X(context_push, cuCtxPushCurrent, (dw_cu_context context))                                                         \
    X(context_pop, cuCtxPopCurrent, (dw_cu_context * context))                                                         \
    X(module_load, cuModuleLoadFatBinary, (dw_cu_module * module, const void *image))                                  \
    X(module_function, cuModuleGetFunction, (dw_cu_function * function, dw_cu_module module, const char *name))        \
    X(function_set, cuFuncSetAttribute, (dw_cu_function function, int attribute, int value))                           \
    X(launch, cuLaunchKernelEx,                                                                                        \
      (const dw_cu_launch_config *config, dw_cu_function function, void **arguments, void **extra))                    \
    X(active_clusters, cuOccupancyMaxActiveClusters,                                                                   \
      (int *clusters, dw_cu_function function, const dw_cu_launch_config *config))                                     \
    X(memset_2d, cuMemsetD2D8Async,                                                                                    \
      (dw_cu_pointer target, size_t pitch, unsigned char value, size_t width, size_t height, dw_cu_stream stream))     \
    X(copy_to_device, cuMemcpyHtoDAsync,                                                                               \
      (dw_cu_pointer target, const void *source, size_t bytes, dw_cu_stream stream))                                   \
    X(copy_to_host, cuMemcpyDtoHAsync, (void *target, dw_cu_pointer source, size_t bytes, dw_cu_stream stream))        \
    X(copy_on_device, cuMemcpyDtoDAsync,                                                                               \
      (dw_cu_pointer target, dw_cu_pointer source, size_t bytes, dw_cu_stream stream))                                 \
    X(memory_allocate, cuMemAlloc, (dw_cu_pointer * memory, size_t bytes))                                             \
    X(memory_free, cuMemFree, (dw_cu_pointer memory))                                                                  \
    X(stream_create, cuStreamCreate, (dw_cu_stream * stream, unsigned int flags))                                      \
    X(stream_destroy, cuStreamDestroy, (dw_cu_stream stream))                                                          \
    X(stream_synchronize, cuStreamSynchronize, (dw_cu_stream stream))                                                  \
    X(capture_mode_exchange, cuThreadExchangeStreamCaptureMode, (int *mode))                                           \
    X(event_create, cuEventCreate, (dw_cu_event * event, unsigned int flags))                                          \
    X(event_destroy, cuEventDestroy, (dw_cu_event event))                                                              \
    X(event_record, cuEventRecord, (dw_cu_event event, dw_cu_stream stream))                                           \
    X(event_elapsed, cuEventElapsedTime, (float *milliseconds, dw_cu_event start, dw_cu_event end))                    \
    X(tensor_map_tiled, cuTensorMapEncodeTiled,                                                                        \
      (dw_cu_tensor_map * map, int type, uint32_t rank, void *address, const uint64_t *extents,                        \
       const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides, int interleave, int swizzle,     \
       int promotion, int fill))

typedef struct dw_cuda_driver {
    int version; /* 1000 * major + 10 * minor */
    int devices; /* that this process sees; fixed once the driver has started */
#define DW_CU_MEMBER(member, symbol, parameters) dw_cu_result(*member) parameters;
    DW_CU_FUNCTIONS(DW_CU_MEMBER)
#undef DW_CU_MEMBER
} dw_cuda_driver;

#endif
