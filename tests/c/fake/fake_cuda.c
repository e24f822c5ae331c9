#include "fake/fake_cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_STACK 8

EXPORT fake_cuda_state fake_cuda = {
    .devices = 2,
    .largest_cluster = 16,
    .major = {9, 10, 8},
    .minor = {0, 3, 6},
    .primary = {{0, 101}, {1, 102}, {2, 103}},
};

static _Thread_local fake_context *stack[MAX_STACK];
static _Thread_local int depth;

EXPORT void fake_set_current(fake_context *context);
void fake_set_current(fake_context *context) {
    depth = 0;
    if (context) stack[depth++] = context;
}

EXPORT fake_context *fake_get_current(void);
fake_context *fake_get_current(void) {
    return depth ? stack[depth - 1] : NULL;
}

static dw_cu_result outcome(const char *symbol) {
    if (!fake_cuda.fail || strcmp(fake_cuda.fail, symbol) != 0) return DW_CU_SUCCESS;
    if (fake_cuda.fail_times && --fake_cuda.fail_times == 0) fake_cuda.fail = NULL;
    return fake_cuda.fail_result;
}

/* For callers that do not know the state's layout. */
EXPORT void fake_on_launch(void (*call)(const char *symbol, const dw_cu_launch_config *config, void **arguments));
void fake_on_launch(void (*call)(const char *symbol, const dw_cu_launch_config *config, void **arguments)) {
    fake_cuda.on_launch = call;
}

/* Lets a function of the driver fail from now on; NULL for none. */
EXPORT void fake_fail(const char *symbol);
void fake_fail(const char *symbol) {
    fake_cuda.fail = symbol;
    fake_cuda.fail_result = FAKE_RESULT;
}

#define FAILS_IF_TOLD(symbol)                                                                                          \
    do {                                                                                                               \
        dw_cu_result told = outcome(symbol);                                                                           \
        if (told != DW_CU_SUCCESS) return told;                                                                        \
    } while (0)

static dw_cu_result fake_cuInit(unsigned int flags) {
    return flags ? 1 : fake_cuda.init_result;
}

static dw_cu_result fake_cuDriverGetVersion(int *version) {
    *version = 13000;
    return outcome("cuDriverGetVersion");
}

static dw_cu_result fake_cuGetErrorName(dw_cu_result result, const char **text) {
    if (result == 999999) return 1;
    *text = result == DW_CU_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_FAKE";
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuGetErrorString(dw_cu_result result, const char **text) {
    if (result == 999999) return 1;
    *text = "the fake driver was told to fail";
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuDeviceGetCount(int *count) {
    if (fake_cuda.init_result != DW_CU_SUCCESS) return DW_CU_ERROR_NOT_INITIALIZED;
    *count = fake_cuda.devices;
    return outcome("cuDeviceGetCount");
}

/* Handles differ from ordinals, so that mixing them up shows. */
static dw_cu_result fake_cuDeviceGet(dw_cu_device *device, int ordinal) {
    FAILS_IF_TOLD("cuDeviceGet");
    if (ordinal < 0 || ordinal >= fake_cuda.devices) return 101;
    *device = 40 + ordinal;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuDeviceGetName(char *name, int length, dw_cu_device device) {
    snprintf(name, (size_t)length, "Fake GPU %d", device - 40);
    return outcome("cuDeviceGetName");
}

static dw_cu_result fake_cuDeviceGetAttribute(int *value, int attribute, dw_cu_device device) {
    FAILS_IF_TOLD("cuDeviceGetAttribute");
    int ordinal = device - 40;
    switch (attribute) {
    case DW_CU_DEVICE_COMPUTE_MAJOR: *value = fake_cuda.major[ordinal]; break;
    case DW_CU_DEVICE_COMPUTE_MINOR: *value = fake_cuda.minor[ordinal]; break;
    default: *value = 1000 * attribute + ordinal; break;
    }
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuDeviceTotalMem(size_t *bytes, dw_cu_device device) {
    *bytes = (size_t)80 << 30 | (size_t)device;
    return outcome("cuDeviceTotalMem");
}

static dw_cu_result fake_cuDeviceGetUuid(dw_cu_uuid *uuid, dw_cu_device device) {
    FAILS_IF_TOLD("cuDeviceGetUuid");
    for (int i = 0; i < 16; i++)
        uuid->bytes[i] = (unsigned char)(fake_cuda.uuid + 16 * (device - 40) + i);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuDevicePrimaryCtxRetain(dw_cu_context *context, dw_cu_device device) {
    FAILS_IF_TOLD("cuDevicePrimaryCtxRetain");
    atomic_fetch_add(&fake_cuda.retained[device - 40], 1);
    *context = &fake_cuda.primary[device - 40];
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuCtxGetCurrent(dw_cu_context *context) {
    FAILS_IF_TOLD("cuCtxGetCurrent");
    *context = fake_get_current();
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuCtxGetDevice(dw_cu_device *device) {
    FAILS_IF_TOLD("cuCtxGetDevice");
    if (!depth) return 201;
    *device = 40 + stack[depth - 1]->device;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuCtxGetId(dw_cu_context context, unsigned long long *id) {
    FAILS_IF_TOLD("cuCtxGetId");
    *id = ((fake_context *)context)->id;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuCtxPushCurrent(dw_cu_context context) {
    FAILS_IF_TOLD("cuCtxPushCurrent");
    if (depth == MAX_STACK) return 2;
    atomic_fetch_add(&fake_cuda.pushes, 1);
    stack[depth++] = context;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuCtxPopCurrent(dw_cu_context *context) {
    if (!depth) return 201;
    atomic_fetch_add(&fake_cuda.pops, 1);
    *context = stack[--depth];
    return DW_CU_SUCCESS;
}

/* A module is the context it was loaded into. */
static dw_cu_result fake_cuModuleLoadFatBinary(dw_cu_module *module, const void *image) {
    static const unsigned char magic[4] = {0x50, 0xED, 0x55, 0xBA};
    FAILS_IF_TOLD("cuModuleLoadFatBinary");
    if (!depth) return 201;
    if (memcmp(image, magic, sizeof magic) != 0) return 200;
    atomic_fetch_add(&fake_cuda.module_loads, 1);
    *module = &stack[depth - 1]->id;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuModuleGetFunction(dw_cu_function *function, dw_cu_module module, const char *name) {
    FAILS_IF_TOLD("cuModuleGetFunction");
    if (strcmp(name, "no_such_kernel") == 0) return DW_CU_ERROR_NOT_FOUND;
    static fake_function made[64];
    static atomic_int count;
    fake_function *f = &made[atomic_fetch_add(&count, 1) % 64];
    *f = (fake_function){.context_id = *(unsigned long long *)module};
    snprintf(f->symbol, sizeof f->symbol, "%s", name);
    atomic_fetch_add(&fake_cuda.function_lookups, 1);
    *function = f;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuFuncSetAttribute(dw_cu_function function, int attribute, int value) {
    FAILS_IF_TOLD("cuFuncSetAttribute");
    fake_function *f = function;
    if (attribute == DW_CU_FUNC_MAX_DYNAMIC_SHARED) {
        if (value > 232448) return 1;
        f->max_shared = value;
    } else if (attribute == DW_CU_FUNC_NON_PORTABLE_CLUSTER) {
        f->wide_cluster = value;
    } else {
        return 1;
    }
    atomic_fetch_add(&fake_cuda.function_sets, 1);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuLaunchKernelEx(const dw_cu_launch_config *config, dw_cu_function function, void **arguments,
                                          void **extra) {
    FAILS_IF_TOLD("cuLaunchKernelEx");
    fake_function *f = function;
    if (!depth || extra || config->attribute_count > 4) return 1;
    if (f->context_id != stack[depth - 1]->id) return 201; /* a function of another context */
    if (config->shared_bytes > 49152 && (int)config->shared_bytes > f->max_shared) return 1;
    atomic_fetch_add(&fake_cuda.launches, 1);
    static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&recording);
    fake_cuda.config = *config;
    memcpy(fake_cuda.attributes, config->attributes, config->attribute_count * sizeof *config->attributes);
    fake_cuda.function = f;
    fake_cuda.launch_context = stack[depth - 1]->id;
    pthread_mutex_unlock(&recording);
    if (fake_cuda.on_launch) fake_cuda.on_launch(f->symbol, config, arguments);
    return DW_CU_SUCCESS;
}

/* As on a GPU of `largest_cluster` multiprocessors in a group, a block on each. */
static dw_cu_result fake_cuOccupancyMaxActiveClusters(int *clusters, dw_cu_function function,
                                                      const dw_cu_launch_config *config) {
    FAILS_IF_TOLD("cuOccupancyMaxActiveClusters");
    const fake_function *f = function;
    unsigned int blocks = 0;
    for (unsigned int i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == DW_CU_LAUNCH_CLUSTER_DIMENSION) blocks = config->attributes[i].value.cluster[0];
    if (blocks == 0 || (blocks > 8 && !f->wide_cluster)) return 1;
    if (config->shared_bytes > 49152 && (int)config->shared_bytes > f->max_shared) return 1;
    atomic_fetch_add(&fake_cuda.occupancies, 1);
    *clusters = fake_cuda.largest_cluster / (int)blocks;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuMemsetD2D8Async(dw_cu_pointer target, size_t pitch, unsigned char value, size_t width,
                                           size_t height, dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuMemsetD2D8Async");
    atomic_fetch_add(&fake_cuda.memsets, 1);
    fake_cuda.memset_last.target = target;
    fake_cuda.memset_last.pitch = pitch;
    fake_cuda.memset_last.width = width;
    fake_cuda.memset_last.height = height;
    fake_cuda.memset_last.value = value;
    return DW_CU_SUCCESS;
}

/* Device memory of the stand-in is the host's own, so copies happen at once. */
static dw_cu_result fake_cuMemcpyHtoDAsync(dw_cu_pointer target, const void *source, size_t bytes,
                                           dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuMemcpyHtoDAsync");
    memcpy((void *)(uintptr_t)target, source, bytes);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuMemcpyDtoHAsync(void *target, dw_cu_pointer source, size_t bytes, dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuMemcpyDtoHAsync");
    memcpy(target, (const void *)(uintptr_t)source, bytes);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuMemcpyDtoDAsync(dw_cu_pointer target, dw_cu_pointer source, size_t bytes,
                                           dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuMemcpyDtoDAsync");
    memcpy((void *)(uintptr_t)target, (const void *)(uintptr_t)source, bytes);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuMemAlloc(dw_cu_pointer *memory, size_t bytes) {
    FAILS_IF_TOLD("cuMemAlloc");
    if (!depth) return 201;
    void *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!made) return DW_CU_ERROR_OUT_OF_MEMORY;
    atomic_fetch_add(&fake_cuda.allocations, 1);
    *memory = (dw_cu_pointer)(uintptr_t)made;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuMemFree(dw_cu_pointer memory) {
    atomic_fetch_sub(&fake_cuda.allocations, 1);
    free((void *)(uintptr_t)memory);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuStreamCreate(dw_cu_stream *stream, unsigned int flags) {
    FAILS_IF_TOLD("cuStreamCreate");
    if (!depth || flags != DW_CU_STREAM_NON_BLOCKING) return 1;
    atomic_fetch_add(&fake_cuda.streams, 1);
    *stream = malloc(1);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuStreamDestroy(dw_cu_stream stream) {
    atomic_fetch_sub(&fake_cuda.streams, 1);
    free(stream);
    return DW_CU_SUCCESS;
}

static _Thread_local int capture_mode;

static dw_cu_result fake_cuThreadExchangeStreamCaptureMode(int *mode) {
    FAILS_IF_TOLD("cuThreadExchangeStreamCaptureMode");
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return DW_CU_SUCCESS;
}

EXPORT int fake_get_capture_mode(void);
int fake_get_capture_mode(void) {
    return capture_mode;
}

/* An event is the time when it was recorded, which takes a millisecond. */
static dw_cu_result fake_cuEventCreate(dw_cu_event *event, unsigned int flags) {
    FAILS_IF_TOLD("cuEventCreate");
    if (flags) return 1;
    *event = calloc(1, sizeof(int));
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuEventDestroy(dw_cu_event event) {
    free(event);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuEventRecord(dw_cu_event event, dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuEventRecord");
    *(int *)event = atomic_fetch_add(&fake_cuda.microseconds, 1000);
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuEventElapsedTime(float *milliseconds, dw_cu_event start, dw_cu_event end) {
    *milliseconds = (float)(*(int *)end - *(int *)start) / 1000.0f;
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuStreamSynchronize(dw_cu_stream stream) {
    (void)stream;
    FAILS_IF_TOLD("cuStreamSynchronize");
    return DW_CU_SUCCESS;
}

static dw_cu_result fake_cuTensorMapEncodeTiled(dw_cu_tensor_map *map, int type, uint32_t rank, void *address,
                                                const uint64_t *extents, const uint64_t *strides, const uint32_t *box,
                                                const uint32_t *element_strides, int interleave, int swizzle,
                                                int promotion, int fill) {
    FAILS_IF_TOLD("cuTensorMapEncodeTiled");
    if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || interleave || fill) return 1;
    atomic_fetch_add(&fake_cuda.maps, 1);
    memset(map, 0, sizeof *map);
    map->opaque[0] = (uint64_t)(uintptr_t)address;
    for (uint32_t i = 0; i < rank; i++) {
        if (element_strides[i] != 1) return 1;
        map->opaque[1 + i] = extents[i];
        map->opaque[6 + i] = box[i];
        if (i) map->opaque[10 + i] = strides[i - 1];
    }
    fake_cuda.map_rank = rank;
    fake_cuda.map_type = type;
    fake_cuda.map_swizzle = swizzle;
    fake_cuda.map_promotion = promotion;
    return DW_CU_SUCCESS;
}

EXPORT dw_cu_result cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status);
dw_cu_result cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    *status = 1;
    if (version != DW_CU_INTERFACE_VERSION || flags) return 1;
    const char *missing = getenv("FAKE_CUDA_LACKS");
    if (missing && strcmp(missing, symbol) == 0) return DW_CU_ERROR_NOT_FOUND;
    const char *init = getenv("FAKE_CUDA_INIT");
    if (init) fake_cuda.init_result = atoi(init);
#define ANSWER(member, name, parameters)                                                                               \
    if (strcmp(symbol, #name) == 0) {                                                                                  \
        dw_cu_result(*found) parameters = fake_##name;                                                                 \
        memcpy(function, &found, sizeof found);                                                                        \
        *status = 0;                                                                                                   \
        return DW_CU_SUCCESS;                                                                                          \
    }
    DW_CU_FUNCTIONS(ANSWER)
#undef ANSWER
    return DW_CU_ERROR_NOT_FOUND;
}
