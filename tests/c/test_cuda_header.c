/* Our declarations of the driver interface against NVIDIA's cuda.h, where the build found one: every value, size and
 * offset, and every prototype. The comparison happens when this is compiled; running it says whether it took place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cuda/host/driver_api.h"

#ifdef DEEPWELL_HAVE_CUDA_H
#include <cuda.h>

#define SAME(ours, theirs) _Static_assert((long long)(ours) == (long long)(theirs), #ours " differs from " #theirs)
#define SAME_SIZE(ours, theirs)                                                                                        \
    _Static_assert(sizeof(ours) == sizeof(theirs) && _Alignof(ours) >= _Alignof(theirs), #ours " is unlike " #theirs)
#define SAME_OFFSET(ours, a, theirs, b)                                                                                \
    _Static_assert(offsetof(ours, a) == offsetof(theirs, b), #ours "." #a " lies elsewhere than " #theirs "." #b)

SAME(DW_CU_SUCCESS, CUDA_SUCCESS);
SAME(DW_CU_ERROR_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(DW_CU_ERROR_NOT_INITIALIZED, CUDA_ERROR_NOT_INITIALIZED);
SAME(DW_CU_ERROR_STUB_LIBRARY, CUDA_ERROR_STUB_LIBRARY);
SAME(DW_CU_ERROR_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME(DW_CU_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(DW_CU_ERROR_NOT_FOUND, CUDA_ERROR_NOT_FOUND);
SAME(DW_CU_DEVICE_CLOCK_RATE, CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
SAME(DW_CU_DEVICE_MULTIPROCESSOR_COUNT, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(DW_CU_DEVICE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
SAME(DW_CU_DEVICE_PCI_DEVICE_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
SAME(DW_CU_DEVICE_MEMORY_CLOCK_RATE, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
SAME(DW_CU_DEVICE_MEMORY_BUS_WIDTH, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
SAME(DW_CU_DEVICE_L2_CACHE_SIZE, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(DW_CU_DEVICE_ASYNC_ENGINE_COUNT, CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
SAME(DW_CU_DEVICE_PCI_DOMAIN_ID, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
SAME(DW_CU_DEVICE_COMPUTE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(DW_CU_DEVICE_COMPUTE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(DW_CU_DEVICE_SHARED_PER_MULTIPROCESSOR, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
SAME(DW_CU_DEVICE_SHARED_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(DW_CU_FUNC_MAX_DYNAMIC_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(DW_CU_FUNC_NON_PORTABLE_CLUSTER, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED);
SAME(DW_CU_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(DW_CU_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME(DW_CU_LAUNCH_CLUSTER_DIMENSION, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(DW_CU_LAUNCH_PROGRAMMATIC_SERIALIZATION, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME(DW_CU_TENSOR_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT8);
SAME(DW_CU_TENSOR_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
SAME(DW_CU_TENSOR_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
SAME(DW_CU_TENSOR_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
SAME(DW_CU_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE);
SAME(DW_CU_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_32B);
SAME(DW_CU_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_64B);
SAME(DW_CU_SWIZZLE_128B, CU_TENSOR_MAP_SWIZZLE_128B);
SAME(DW_CU_INTERLEAVE_NONE, CU_TENSOR_MAP_INTERLEAVE_NONE);
SAME(DW_CU_L2_PROMOTE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE);
SAME(DW_CU_L2_PROMOTE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_64B);
SAME(DW_CU_L2_PROMOTE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
SAME(DW_CU_L2_PROMOTE_256B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
SAME(DW_CU_FILL_ZERO, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

SAME_SIZE(dw_cu_result, CUresult);
SAME_SIZE(dw_cu_device, CUdevice);
SAME_SIZE(dw_cu_context, CUcontext);
SAME_SIZE(dw_cu_module, CUmodule);
SAME_SIZE(dw_cu_function, CUfunction);
SAME_SIZE(dw_cu_stream, CUstream);
SAME_SIZE(dw_cu_event, CUevent);
SAME_SIZE(dw_cu_pointer, CUdeviceptr);
SAME_SIZE(dw_cu_uuid, CUuuid);
SAME_SIZE(int, CUstreamCaptureMode);
SAME_SIZE(int, CUdevice_attribute);
SAME_SIZE(int, CUfunction_attribute);
SAME_SIZE(int, CUtensorMapDataType);
SAME_SIZE(int, CUtensorMapSwizzle);
SAME_SIZE(int, CUdriverProcAddressQueryResult);
SAME_SIZE(dw_cu_tensor_map, CUtensorMap);
SAME_SIZE(dw_cu_launch_config, CUlaunchConfig);
SAME_OFFSET(dw_cu_launch_config, grid, CUlaunchConfig, gridDimX);
SAME_OFFSET(dw_cu_launch_config, grid[2], CUlaunchConfig, gridDimZ);
SAME_OFFSET(dw_cu_launch_config, block, CUlaunchConfig, blockDimX);
SAME_OFFSET(dw_cu_launch_config, shared_bytes, CUlaunchConfig, sharedMemBytes);
SAME_OFFSET(dw_cu_launch_config, stream, CUlaunchConfig, hStream);
SAME_OFFSET(dw_cu_launch_config, attributes, CUlaunchConfig, attrs);
SAME_OFFSET(dw_cu_launch_config, attribute_count, CUlaunchConfig, numAttrs);
_Static_assert(sizeof(dw_cu_launch_attribute) == sizeof(CUlaunchAttribute), "launch attributes differ in size");
SAME_OFFSET(dw_cu_launch_attribute, id, CUlaunchAttribute, id);
SAME_OFFSET(dw_cu_launch_attribute, value, CUlaunchAttribute, value);
SAME_OFFSET(dw_cu_launch_attribute, value.cluster[1], CUlaunchAttribute, value.clusterDim.y);
SAME_OFFSET(dw_cu_launch_attribute, value.programmatic, CUlaunchAttribute,
            value.programmaticStreamSerializationAllowed);

/* Prototypes: cuda.h's functions take what ours take, in number and order. Nothing here runs: the driver is not linked.
 */
typedef struct any_values {
    int i;
    unsigned int u;
    size_t s;
    void *p;
    const char *text;
    unsigned long long id;
} any_values;

#define TAKES(call) _Static_assert(sizeof(call) == sizeof(CUresult), "")
static inline void check_prototypes(any_values v, CUcontext context, CUmodule module, CUfunction function,
                                    CUstream stream, CUevent event, CUtensorMap *map, CUlaunchConfig *config) {
    TAKES(cuInit(v.u));
    TAKES(cuDriverGetVersion(&v.i));
    TAKES(cuGetErrorName(CUDA_SUCCESS, &v.text));
    TAKES(cuGetErrorString(CUDA_SUCCESS, &v.text));
    TAKES(cuDeviceGetCount(&v.i));
    TAKES(cuDeviceGet((CUdevice *)&v.i, v.i));
    TAKES(cuDeviceGetName((char *)v.p, v.i, (CUdevice)v.i));
    TAKES(cuDeviceGetAttribute(&v.i, CU_DEVICE_ATTRIBUTE_CLOCK_RATE, (CUdevice)v.i));
    TAKES(cuDeviceTotalMem(&v.s, (CUdevice)v.i));
    TAKES(cuDevicePrimaryCtxRetain(&context, (CUdevice)v.i));
    TAKES(cuCtxGetCurrent(&context));
    TAKES(cuCtxGetDevice((CUdevice *)&v.i));
    TAKES(cuCtxGetId(context, &v.id));
    TAKES(cuCtxPushCurrent(context));
    TAKES(cuCtxPopCurrent(&context));
    TAKES(cuModuleLoadFatBinary(&module, v.p));
    TAKES(cuModuleGetFunction(&function, module, v.text));
    TAKES(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, v.i));
    TAKES(cuLaunchKernelEx(config, function, (void **)v.p, (void **)v.p));
    TAKES(cuOccupancyMaxActiveClusters(&v.i, function, config));
    TAKES(cuMemsetD2D8Async((CUdeviceptr)v.id, v.s, (unsigned char)0, v.s, v.s, stream));
    TAKES(cuMemcpyHtoDAsync((CUdeviceptr)v.id, v.p, v.s, stream));
    TAKES(cuMemcpyDtoHAsync(v.p, (CUdeviceptr)v.id, v.s, stream));
    TAKES(cuDeviceGetUuid((CUuuid *)v.p, (CUdevice)v.i));
    TAKES(cuMemcpyDtoDAsync((CUdeviceptr)v.id, (CUdeviceptr)v.id, v.s, stream));
    TAKES(cuMemAlloc((CUdeviceptr *)v.p, v.s));
    TAKES(cuMemFree((CUdeviceptr)v.id));
    TAKES(cuStreamCreate(&stream, v.u));
    TAKES(cuStreamDestroy(stream));
    TAKES(cuStreamSynchronize(stream));
    TAKES(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)v.p));
    TAKES(cuEventCreate(&event, v.u));
    TAKES(cuEventDestroy(event));
    TAKES(cuEventRecord(event, stream));
    TAKES(cuEventElapsedTime((float *)v.p, event, event));
    TAKES(cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, (cuuint32_t)v.u, v.p, (const cuuint64_t *)v.p,
                                 (const cuuint64_t *)v.p, (const cuuint32_t *)v.p, (const cuuint32_t *)v.p,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                 CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
    TAKES(cuGetProcAddress(v.text, (void **)v.p, v.i, (cuuint64_t)0, (CUdriverProcAddressQueryResult *)v.p));
    (void)context, (void)module, (void)function, (void)stream, (void)event, (void)map, (void)config, (void)v;
}
#endif

static void declarations_agree(void **state) {
    (void)state;
#ifdef DEEPWELL_HAVE_CUDA_H
    (void)check_prototypes;
    printf("compared with cuda.h of CUDA %d.%d\n", CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    assert_int_equal(sizeof(dw_cu_tensor_map), 128);
#else
    print_message("no cuda.h on this machine; nothing compared\n");
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(declarations_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
