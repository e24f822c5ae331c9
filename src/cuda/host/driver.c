#include "cuda/host/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DW_CUDA_MAX_DEVICES 64

static pthread_once_t once = PTHREAD_ONCE_INIT;
static dw_cuda_driver the_driver;
static dw_status open_status;
static char open_text[512];
static atomic_bool started; /* cuInit succeeded in this process or in the one it was forked from */
static atomic_bool forked;

static dw_status open_failed(dw_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(open_text, sizeof open_text, format, arguments);
    va_end(arguments);
    return status;
}

/* The driver's state does not survive fork(): its calls would fail at best and hang at worst. */
static void after_fork_in_child(void) {
    if (atomic_load(&started)) atomic_store(&forked, true);
}

static dw_status resolve(void *library, const char *file) {
    dw_cu_get_proc_address get = (dw_cu_get_proc_address)dlsym(library, "cuGetProcAddress_v2");
    if (!get)
        return open_failed(DW_ERROR_UNSUPPORTED,
                           "the NVIDIA driver (%s) is older than CUDA 12.0; update it to use the GPU", file);
#define RESOLVE(member, symbol, parameters)                                                                            \
    do {                                                                                                               \
        void *function = NULL;                                                                                         \
        int found = 0;                                                                                                 \
        dw_cu_result result = get(#symbol, &function, DW_CU_INTERFACE_VERSION, 0, &found);                             \
        if (result != DW_CU_SUCCESS || found != 0 || !function)                                                        \
            return open_failed(DW_ERROR_UNSUPPORTED,                                                                   \
                               "the NVIDIA driver (%s) lacks " #symbol " of CUDA 12.0; update it to use the GPU",      \
                               file);                                                                                  \
        memcpy(&the_driver.member, &function, sizeof function);                                                        \
    } while (0);
    DW_CU_FUNCTIONS(RESOLVE)
#undef RESOLVE
    return DW_OK;
}

static dw_status open_driver(void) {
    const char *chosen = getenv("DEEPWELL_LIBCUDA");
    const char *file = chosen && *chosen ? chosen : "libcuda.so.1";
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return open_failed(DW_ERROR_UNSUPPORTED,
                           "no CUDA driver here (%s); install the NVIDIA driver, or run on the CPU", dlerror());
    dw_status status = resolve(library, file);
    if (status != DW_OK) return status;

    dw_cu_result result = the_driver.init(0);
    const char *call = "cuInit";
    bool empty = result == DW_CU_ERROR_NO_DEVICE; /* a driver with nothing to drive: zero devices, and no failure */
    if (result == DW_CU_SUCCESS) result = the_driver.device_count(&the_driver.devices), call = "cuDeviceGetCount";
    if (result == DW_CU_SUCCESS || empty)
        result = the_driver.driver_version(&the_driver.version), call = "cuDriverGetVersion";
    if (result != DW_CU_SUCCESS) {
        const char *name = "?", *text = "?";
        the_driver.error_name(result, &name);
        the_driver.error_string(result, &text);
        return open_failed(DW_ERROR_DEVICE, "%s: %s: %s; check the driver with nvidia-smi", call, name, text);
    }
    atomic_store(&started, true);
    if (pthread_atfork(NULL, NULL, after_fork_in_child) != 0)
        return open_failed(DW_ERROR_OUT_OF_MEMORY, "out of memory while registering the fork handler");
    return DW_OK;
}

static void open_once(void) {
    open_status = open_driver();
}

dw_status dw_cuda_driver_get(const dw_cuda_driver **driver) {
    pthread_once(&once, open_once);
    if (open_status != DW_OK) return dw_fail(open_status, "%s", open_text);
    if (atomic_load_explicit(&forked, memory_order_relaxed))
        return dw_fail(DW_ERROR_DEVICE, "CUDA cannot be used after fork(): this process is a fork of one that used it; "
                                        "start workers with the \"spawn\" method");
    *driver = &the_driver;
    return DW_OK;
}

dw_status dw_cuda_check(const dw_cuda_driver *driver, dw_cu_result result, const char *call, const char *about, ...) {
    if (result == DW_CU_SUCCESS) return DW_OK;
    char subject[256];
    va_list arguments;
    va_start(arguments, about);
    vsnprintf(subject, sizeof subject, about, arguments);
    va_end(arguments);
    const char *name = NULL, *text = NULL;
    if (driver->error_name(result, &name) != DW_CU_SUCCESS || !name) name = "unknown error";
    if (driver->error_string(result, &text) != DW_CU_SUCCESS || !text) text = "no description";
    return dw_fail(DW_ERROR_DEVICE, "%s (%s): %s (%d): %s", call, subject, name, result, text);
}

/* ---- contexts ---- */

static pthread_mutex_t primary_lock = PTHREAD_MUTEX_INITIALIZER;
static dw_cu_context primary[DW_CUDA_MAX_DEVICES];

/* Retained for the life of the process: releasing the last reference would destroy modules and tensors still in use. */
static dw_status primary_context(const dw_cuda_driver *driver, int device, dw_cu_context *context) {
    dw_status status = DW_OK;
    pthread_mutex_lock(&primary_lock);
    if (!primary[device]) {
        dw_cu_device handle = 0;
        status = dw_cuda_check(driver, driver->device_get(&handle, device), "cuDeviceGet", "device %d", device);
        if (status == DW_OK)
            status = dw_cuda_check(driver, driver->primary_retain(&primary[device], handle), "cuDevicePrimaryCtxRetain",
                                   "device %d", device);
    }
    *context = primary[device];
    pthread_mutex_unlock(&primary_lock);
    return status;
}

dw_status dw_cuda_enter(int device, dw_cuda_scope *scope) {
    const dw_cuda_driver *driver;
    DW_TRY(dw_cuda_driver_get(&driver));
    *scope = (dw_cuda_scope){.driver = driver, .device = device};
    if (device < 0 || device >= driver->devices || device >= DW_CUDA_MAX_DEVICES)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "device %d is not there; this process sees %d CUDA device%s (check CUDA_VISIBLE_DEVICES)",
                       device, driver->devices, driver->devices == 1 ? "" : "s");

    dw_cu_context context = NULL;
    DW_TRY(dw_cuda_check(driver, driver->context_current(&context), "cuCtxGetCurrent", "device %d", device));
    bool usable = false;
    if (context) {
        dw_cu_device current = -1, wanted = -2;
        DW_TRY(dw_cuda_check(driver, driver->context_device(&current), "cuCtxGetDevice", "device %d", device));
        usable = driver->device_get(&wanted, device) == DW_CU_SUCCESS && current == wanted;
    }
    if (!usable) {
        DW_TRY(primary_context(driver, device, &context));
        DW_TRY(dw_cuda_check(driver, driver->context_push(context), "cuCtxPushCurrent", "device %d", device));
        scope->pushed = true;
    }
    unsigned long long id = 0;
    dw_status status = dw_cuda_check(driver, driver->context_id(context, &id), "cuCtxGetId", "device %d", device);
    if (status != DW_OK) dw_cuda_leave(scope);
    scope->context_id = id;
    return status;
}

void dw_cuda_leave(dw_cuda_scope *scope) {
    dw_cu_context popped;
    /* Popping what this scope pushed cannot fail unless the driver is already lost, which the next call reports. */
    if (scope->pushed) scope->driver->context_pop(&popped);
    scope->pushed = false;
}
