#include "cuda/host/cublaslt.h"

#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/host/driver.h"
#include "deepwell/cuda.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dw_cublaslt the_library; /* written under the lock before `opened` is set, then constant */
static char the_path[1024];
static bool opened;

typedef struct candidate {
    int major;
    const char *soname;
    const char *packaged; /* below the folder that holds the packages, where Deepwell's own folder is too */
} candidate;

static const candidate candidates[] = {
    {13, "libcublasLt.so.13", "nvidia/cu13/lib/libcublasLt.so.13"},
    {12, "libcublasLt.so.12", "nvidia/cublas/lib/libcublasLt.so.12"},
};
#define CANDIDATES (sizeof candidates / sizeof *candidates)

/* The folder above the one this library (or the command that holds it) lies in; "" when it cannot be told. */
static void package_root(char *root, size_t capacity) {
    Dl_info here;
    root[0] = 0;
    if (!dladdr((void *)&the_library, &here) || !here.dli_fname) return;
    snprintf(root, capacity, "%s", here.dli_fname);
    for (int level = 0; level < 2; level++) {
        char *slash = strrchr(root, '/');
        if (!slash) {
            root[0] = 0;
            return;
        }
        *slash = 0;
    }
}

/* Beside the Python package, and, for the command in an environment's bin folder, in that environment. */
static void *open_packaged(const char *packaged) {
    char root[512], pattern[1024];
    package_root(root, sizeof root);
    void *library = NULL;
    for (size_t i = 0; i < 2 && !library && root[0]; i++) {
        glob_t found;
        snprintf(pattern, sizeof pattern, "%s%s/%s", root, i == 0 ? "" : "/lib/python3*/site-packages", packaged);
        if (glob(pattern, 0, NULL, &found) == 0) library = dlopen(found.gl_pathv[0], RTLD_NOW | RTLD_LOCAL);
        globfree(&found);
    }
    return library;
}

static void *open_any(int driver_version) {
    const char *chosen = getenv("DEEPWELL_LIBCUBLASLT");
    if (chosen && *chosen) return dlopen(chosen, RTLD_NOW | RTLD_LOCAL);
    void *library = NULL;
    for (size_t i = 0; i < CANDIDATES && !library; i++)
        library = dlopen(candidates[i].soname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    for (size_t i = 0; i < CANDIDATES && !library; i++)
        if (driver_version >= 1000 * candidates[i].major) library = open_packaged(candidates[i].packaged);
    for (size_t i = 0; i < CANDIDATES && !library; i++)
        if (driver_version >= 1000 * candidates[i].major) library = dlopen(candidates[i].soname, RTLD_NOW | RTLD_LOCAL);
    return library;
}

static const char *last_dl_error(void) {
    const char *text = dlerror();
    return text ? text : "not found";
}

/* With the lock held. */
static dw_status open_library(int driver_version) {
    void *handle = open_any(driver_version);
    if (!handle)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "no cuBLASLt (libcublasLt.so.13 or .12) for a driver of CUDA %d.%d: %s; import torch first, pip "
                       "install nvidia-cublas, or set DEEPWELL_LIBCUBLASLT",
                       driver_version / 1000, driver_version % 1000 / 10, last_dl_error());
    dw_cublaslt found = {0};
#define RESOLVE(type, member, symbol, parameters)                                                                      \
    do {                                                                                                               \
        void *function = dlsym(handle, #symbol);                                                                       \
        if (!function) {                                                                                               \
            dlclose(handle);                                                                                           \
            return dw_fail(DW_ERROR_UNSUPPORTED, "the cuBLASLt here lacks " #symbol "; install one of CUDA 12 or 13"); \
        }                                                                                                              \
        memcpy(&found.member, &function, sizeof function);                                                             \
    } while (0);
    DW_LT_FUNCTIONS(RESOLVE)
#undef RESOLVE
    found.version = found.get_version();
    Dl_info where;
    void *any = NULL;
    memcpy(&any, &found.matmul, sizeof any);
    snprintf(the_path, sizeof the_path, "%s", dladdr(any, &where) && where.dli_fname ? where.dli_fname : "?");
    the_library = found;
    opened = true;
    return DW_OK;
}

dw_status dw_cublaslt_get(int driver_version, const dw_cublaslt **library) {
    pthread_mutex_lock(&lock);
    dw_status status = opened ? DW_OK : open_library(driver_version);
    pthread_mutex_unlock(&lock);
    *library = &the_library;
    return status;
}

dw_status dw_cublaslt_check(const dw_cublaslt *library, dw_lt_result result, const char *call, const char *about) {
    if (result == DW_LT_SUCCESS) return DW_OK;
    return dw_fail(DW_ERROR_DEVICE, "%s (%s): %s (%d)", call, about, library->status_name(result), result);
}

dw_status dw_cublaslt_version(size_t *version, const char **path) {
    const dw_cuda_driver *driver;
    const dw_cublaslt *library;
    DW_TRY(dw_cuda_driver_get(&driver));
    DW_TRY(dw_cublaslt_get(driver->version, &library));
    if (version) *version = library->version;
    if (path) *path = the_path;
    return DW_OK;
}
