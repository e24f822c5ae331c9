#include "cuda/host/launch.h"

#include <pthread.h>
#include <stdlib.h>

#include "cuda/host/images.h"

/* A kernel in one context. Nodes are only ever added, at the head, so readers need no lock; there are as many as
 * contexts used, and they live as long as the process. */
struct dw_cuda_function {
    uint64_t context_id;
    dw_cu_function handle;
    atomic_uint shared_limit; /* dynamic shared memory allowed so far, bytes */
    atomic_bool wide_cluster; /* non-portable cluster sizes allowed */
    struct dw_cuda_function *next;
};

typedef struct loaded_module {
    uint64_t context_id;
    const dw_cuda_image *image;
    dw_cu_module handle;
    struct loaded_module *next;
} loaded_module;

/* What every function may ask for unasked is 48 KiB less its own static shared memory. Static memory is left 16 KiB. */
#define DEFAULT_SHARED_BYTES 32768
#define PORTABLE_CLUSTER_BLOCKS 8

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static loaded_module *modules; /* under load_lock */

static dw_status load_module(const dw_cuda_scope *scope, const dw_cuda_image *image, dw_cu_module *handle) {
    for (const loaded_module *m = modules; m; m = m->next)
        if (m->context_id == scope->context_id && m->image == image) {
            *handle = m->handle;
            return DW_OK;
        }
    loaded_module *loaded = malloc(sizeof *loaded);
    if (!loaded) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory while loading device code %s", image->name);
    dw_cu_result result = scope->driver->module_load(&loaded->handle, image->begin);
    if (result != DW_CU_SUCCESS) {
        free(loaded);
        dw_status status =
            dw_cuda_check(scope->driver, result, "cuModuleLoadFatBinary", "device code %s, built for %s, on device %d",
                          image->name, image->architectures, scope->device);
        return result == DW_CU_ERROR_NO_BINARY_FOR_GPU ? DW_ERROR_UNSUPPORTED : status;
    }
    loaded->context_id = scope->context_id;
    loaded->image = image;
    loaded->next = modules;
    modules = loaded;
    *handle = loaded->handle;
    return DW_OK;
}

static struct dw_cuda_function *find(const dw_cuda_scope *scope, dw_cuda_kernel *kernel) {
    struct dw_cuda_function *f = atomic_load_explicit(&kernel->functions, memory_order_acquire);
    while (f && f->context_id != scope->context_id)
        f = f->next;
    return f;
}

/* With load_lock held. */
static dw_status load_function(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, struct dw_cuda_function **function) {
    if (dw_cuda_image_total == 0)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "%s: this library was built without device code; build it where the CUDA "
                       "compiler is installed (make setup)",
                       kernel->symbol);
    const dw_cuda_image *image = dw_cuda_image_find(kernel->image);
    if (!image)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s: device code %s is not in this library", kernel->symbol,
                       kernel->image);
    dw_cu_module module = NULL;
    DW_TRY(load_module(scope, image, &module));
    dw_cu_function handle;
    DW_TRY(dw_cuda_check(scope->driver, scope->driver->module_function(&handle, module, kernel->symbol),
                         "cuModuleGetFunction", "%s in %s, device %d", kernel->symbol, kernel->image, scope->device));
    struct dw_cuda_function *made = calloc(1, sizeof *made);
    if (!made) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory while loading kernel %s", kernel->symbol);
    made->context_id = scope->context_id;
    made->handle = handle;
    atomic_init(&made->shared_limit, DEFAULT_SHARED_BYTES);
    made->next = atomic_load_explicit(&kernel->functions, memory_order_relaxed);
    atomic_store_explicit(&kernel->functions, made, memory_order_release);
    *function = made;
    return DW_OK;
}

static dw_status get_function(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, struct dw_cuda_function **function) {
    *function = find(scope, kernel);
    if (*function) return DW_OK;
    pthread_mutex_lock(&load_lock);
    *function = find(scope, kernel); /* another thread may have been faster */
    dw_status status = *function ? DW_OK : load_function(scope, kernel, function);
    pthread_mutex_unlock(&load_lock);
    return status;
}

dw_status dw_cuda_kernel_load(const dw_cuda_scope *scope, dw_cuda_kernel *kernel) {
    struct dw_cuda_function *function;
    return get_function(scope, kernel, &function);
}

static uint32_t cluster_blocks(const dw_cuda_launch_config *config) {
    return config->cluster[0] * config->cluster[1] * config->cluster[2];
}

/* Raises what the function may use. Under the lock so that a smaller request never overwrites a larger one. */
static dw_status allow(const dw_cuda_scope *scope, const dw_cuda_kernel *kernel, struct dw_cuda_function *function,
                       uint32_t shared_bytes, bool wide_cluster) {
    dw_status status = DW_OK;
    pthread_mutex_lock(&load_lock);
    if (shared_bytes > atomic_load(&function->shared_limit)) {
        status = dw_cuda_check(
            scope->driver,
            scope->driver->function_set(function->handle, DW_CU_FUNC_MAX_DYNAMIC_SHARED, (int)shared_bytes),
            "cuFuncSetAttribute", "%s, %u bytes of shared memory, device %d", kernel->symbol, shared_bytes,
            scope->device);
        if (status == DW_OK) atomic_store(&function->shared_limit, shared_bytes);
    }
    if (status == DW_OK && wide_cluster && !atomic_load(&function->wide_cluster)) {
        status = dw_cuda_check(
            scope->driver, scope->driver->function_set(function->handle, DW_CU_FUNC_NON_PORTABLE_CLUSTER, 1),
            "cuFuncSetAttribute", "%s, non-portable cluster, device %d", kernel->symbol, scope->device);
        if (status == DW_OK) atomic_store(&function->wide_cluster, true);
    }
    pthread_mutex_unlock(&load_lock);
    return status;
}

/* A launch as the driver takes it; `attributes` has room for two. */
static dw_cu_launch_config driver_config(const dw_cuda_launch_config *config, void *stream,
                                         dw_cu_launch_attribute *attributes) {
    dw_cu_launch_config launch = {.shared_bytes = config->shared_bytes, .stream = stream, .attributes = attributes};
    for (int i = 0; i < 3; i++) {
        launch.grid[i] = config->grid[i];
        launch.block[i] = config->block[i];
    }
    if (cluster_blocks(config) > 1) {
        dw_cu_launch_attribute *a = &attributes[launch.attribute_count++];
        *a = (dw_cu_launch_attribute){.id = DW_CU_LAUNCH_CLUSTER_DIMENSION};
        for (int i = 0; i < 3; i++)
            a->value.cluster[i] = config->cluster[i];
    }
    if (config->programmatic) {
        dw_cu_launch_attribute *a = &attributes[launch.attribute_count++];
        *a = (dw_cu_launch_attribute){.id = DW_CU_LAUNCH_PROGRAMMATIC_SERIALIZATION, .value = {.programmatic = 1}};
    }
    return launch;
}

/* The kernel's function, allowed what the launch asks for. */
static dw_status ready_function(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, const dw_cuda_launch_config *config,
                                struct dw_cuda_function **function) {
    DW_TRY(get_function(scope, kernel, function));
    bool wide = cluster_blocks(config) > PORTABLE_CLUSTER_BLOCKS;
    if (config->shared_bytes > atomic_load_explicit(&(*function)->shared_limit, memory_order_relaxed) ||
        (wide && !atomic_load_explicit(&(*function)->wide_cluster, memory_order_relaxed)))
        return allow(scope, kernel, *function, config->shared_bytes, wide);
    return DW_OK;
}

dw_status dw_cuda_active_clusters(const dw_cuda_scope *scope, dw_cuda_kernel *kernel,
                                  const dw_cuda_launch_config *config, int *clusters) {
    struct dw_cuda_function *function;
    DW_TRY(ready_function(scope, kernel, config, &function));
    dw_cu_launch_attribute attributes[2];
    dw_cu_launch_config launch = driver_config(config, NULL, attributes);
    return dw_cuda_check(scope->driver, scope->driver->active_clusters(clusters, function->handle, &launch),
                         "cuOccupancyMaxActiveClusters", "%s, clusters of %u, %u bytes of shared memory, device %d",
                         kernel->symbol, cluster_blocks(config), config->shared_bytes, scope->device);
}

dw_status dw_cuda_launch(const dw_cuda_scope *scope, dw_cuda_kernel *kernel, const dw_cuda_launch_config *config,
                         void *stream, void **arguments) {
    if (config->grid[0] == 0 || config->grid[1] == 0 || config->grid[2] == 0) return DW_OK;
    struct dw_cuda_function *function;
    DW_TRY(ready_function(scope, kernel, config, &function));
    dw_cu_launch_attribute attributes[2];
    dw_cu_launch_config launch = driver_config(config, stream, attributes);
    return dw_cuda_check(scope->driver, scope->driver->launch(&launch, function->handle, arguments, NULL),
                         "cuLaunchKernelEx", "%s, grid %ux%ux%u, block %ux%ux%u, %u bytes of shared memory, device %d",
                         kernel->symbol, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0],
                         launch.block[1], launch.block[2], launch.shared_bytes, scope->device);
}
