/* Kernels from outside. Their rows are added once and stay, so whoever reads them needs no lock. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/status.h"
#include "registry/table.h"

enum { CAPACITY = 64, NAME_MAX_LENGTH = 80, TARGET_MAX_LENGTH = 15, SELFTEST_SEED = 20 };

typedef struct plugin_row {
    dw_kernel_row row;
    dw_plugin_kernel kernel;
    dw_row_proofs proofs; /* of a GPU's kernel */
    char name[NAME_MAX_LENGTH + 1], target[TARGET_MAX_LENGTH + 1];
} plugin_row;

static plugin_row rows[CAPACITY];
static atomic_size_t row_count;
static pthread_mutex_t registering = PTHREAD_MUTEX_INITIALIZER;

size_t dw_row_count(void) {
    return dw_kernel_table_size + atomic_load_explicit(&row_count, memory_order_acquire);
}

const dw_kernel_row *dw_row_at(size_t index) {
    if (index < dw_kernel_table_size) return &dw_kernel_table[index];
    return index < dw_row_count() ? &rows[index - dw_kernel_table_size].row : NULL;
}

const dw_kernel_row *dw_better_from_outside(const dw_context *context, const dw_request *request,
                                            const dw_kernel_row *best) {
    size_t count = atomic_load_explicit(&row_count, memory_order_acquire);
    for (size_t i = 0; i < count; i++) {
        const dw_kernel_row *row = &rows[i].row;
        if (row->info.operation != request->operation || *dw_row_mismatch(row, request) ||
            *dw_row_reason(context, row) || dw_row_refuted(row, request))
            continue;
        if (!best || row->info.priority >= best->info.priority) best = row;
    }
    return best;
}

/* ---- checks ---- */

static dw_status check_name(const dw_plugin_kernel *kernel) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_";
    const char *name = kernel->name, *target = kernel->target;
    size_t length = name ? strlen(name) : 0;
    if (length == 0 || length > NAME_MAX_LENGTH || name[strspn(name, letters)])
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "kernel.name is \"%.100s\"; expected lower-case letters, digits and _, at most %d",
                       name ? name : "(NULL)", NAME_MAX_LENGTH);
    if (!target || !*target || strlen(target) > TARGET_MAX_LENGTH)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel.target of %s is \"%.40s\"; expected 1 to %d characters", name,
                       target ? target : "(NULL)", TARGET_MAX_LENGTH);
    return DW_OK;
}

static bool in_range(uint32_t mask, int count) {
    return mask != 0 && mask >> count == 0;
}

static dw_status check_sets(const dw_plugin_kernel *kernel) {
    const uint32_t floats = 1u << DW_F32 | 1u << DW_F16 | 1u << DW_BF16, fp8 = 1u << DW_E4M3 | 1u << DW_E5M2;
    const char *wrong =
        !in_range(kernel->orientations, DW_ORIENT_COUNT)      ? "orientations"
        : kernel->sources == 0 || (kernel->sources & ~floats) ? "sources"
        : kernel->elements == 0 || (kernel->elements & ~fp8)  ? "elements"
        : !in_range(kernel->blocks, DW_BLOCK_COUNT)           ? "blocks"
        : !in_range(kernel->roundings, DW_ROUND_COUNT)        ? "roundings"
        : !in_range(kernel->layouts, DW_SCALE_LAYOUT_COUNT)   ? "layouts"
        : kernel->alignment < 1 || kernel->alignment > 16 || (kernel->alignment & (kernel->alignment - 1)) ? "alignment"
                                                                                                           : NULL;
    if (wrong)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel.%s of %s is not what plugin.h says", wrong, kernel->name);
    return DW_OK;
}

static dw_status check_device(const dw_plugin_kernel *kernel) {
    if (kernel->device_type == DW_DEVICE_CPU) return DW_OK;
    if (kernel->device_type != DW_DEVICE_CUDA)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel.device_type of %s is %d; expected 1 (CPU) or 2 (CUDA)",
                       kernel->name, (int)kernel->device_type);
    if (kernel->operation != DW_OP_QUANTIZE)
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "kernel %s dequantizes on a GPU, where nothing could prove it; register one that quantizes",
                       kernel->name);
    if (strcmp(kernel->target, "sm90") != 0 && strcmp(kernel->target, "sm100") != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "kernel.target of %s is \"%s\"; a GPU's kernel names the GPUs it is for, sm90 or sm100",
                       kernel->name, kernel->target);
    return DW_OK;
}

static dw_status check(const dw_plugin_kernel *kernel) {
    if (kernel->size != sizeof *kernel)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "kernel.size is %zu, this library's is %zu; build it with the headers of version %s",
                       kernel->size, sizeof *kernel, dw_version());
    DW_TRY(check_name(kernel));
    bool quantizes = kernel->operation == DW_OP_QUANTIZE;
    if ((!quantizes && kernel->operation != DW_OP_DEQUANTIZE) ||
        !(quantizes ? (void *)kernel->quantize : (void *)kernel->dequantize))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel %s has no function for its operation", kernel->name);
    DW_TRY(check_device(kernel));
    return check_sets(kernel);
}

static dw_status check_unknown(const char *name) {
    for (size_t i = 0; i < dw_row_count(); i++)
        if (strcmp(dw_row_at(i)->info.name, name) == 0)
            return dw_fail(DW_ERROR_EXISTS, "a kernel named %s is there already; choose another name", name);
    return DW_OK;
}

/* ---- registration ---- */

static void fill(plugin_row *made, const dw_plugin_kernel *kernel) {
    *made = (plugin_row){.kernel = *kernel};
    memcpy(made->name, kernel->name, strlen(kernel->name));
    memcpy(made->target, kernel->target, strlen(kernel->target));
    made->kernel.name = made->name;
    made->kernel.target = made->target;
    made->row = (dw_kernel_row){.info = {.name = made->name,
                                         .target = made->target,
                                         .operation = kernel->operation,
                                         .orientations = kernel->orientations,
                                         .sources = kernel->sources,
                                         .elements = kernel->elements,
                                         .blocks = kernel->blocks,
                                         .roundings = kernel->roundings,
                                         .layouts = kernel->layouts,
                                         .priority = kernel->priority,
                                         .reason = "",
                                         .form = "",
                                         .alignment = kernel->alignment},
                                .device_type = kernel->device_type,
                                .proofs = &made->proofs,
                                .plugin = &made->kernel};
}

dw_status dw_kernel_register(dw_context *context, const dw_plugin_kernel *kernel) {
    if (!context || !kernel) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or kernel is NULL; pass both");
    DW_TRY(check(kernel));
    pthread_mutex_lock(&registering);
    size_t index = atomic_load_explicit(&row_count, memory_order_relaxed);
    dw_status status = check_unknown(kernel->name);
    if (status == DW_OK && index == CAPACITY)
        status = dw_fail(DW_ERROR_UNSUPPORTED, "%d kernels from outside are registered, and there is room for no more",
                         CAPACITY);
    if (status == DW_OK) {
        /* Nobody sees the row before it is counted, and one of the CPU is counted when it has proved itself. One of a
         * GPU does that on each GPU before its first use there, like the table's. */
        dw_selftest_result result;
        fill(&rows[index], kernel);
        if (kernel->device_type == DW_DEVICE_CPU)
            status = dw_row_selftest(context, &rows[index].row, SELFTEST_SEED, &result);
    }
    if (status == DW_OK) atomic_store_explicit(&row_count, index + 1, memory_order_release);
    pthread_mutex_unlock(&registering);
    return status;
}

typedef struct loading {
    dw_context *context;
    size_t count;
} loading;

static dw_status add(void *data, const dw_plugin_kernel *kernel) {
    loading *load = data;
    DW_TRY(dw_kernel_register(load->context, kernel));
    load->count++;
    return DW_OK;
}

dw_status dw_plugin_load(dw_context *context, const char *path, size_t *count) {
    if (!context || !path) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or path is NULL; pass both");
    if (!strchr(path, '/'))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "\"%.200s\" is no path with a slash; write ./%.200s", path, path);
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return dw_fail(DW_ERROR_NOT_FOUND, "cannot load %.400s: there is no such file", path);
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object) return dw_fail(DW_ERROR_IO, "cannot load the plug-in: %s", dlerror());
    dw_plugin_entry entry = NULL;
    void *symbol = dlsym(object, DW_PLUGIN_ENTRY);
    memcpy(&entry, &symbol, sizeof entry);
    if (!entry)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%.400s exports no function %s; see deepwell/plugin.h", path,
                       DW_PLUGIN_ENTRY);
    loading load = {context, 0};
    DW_TRY(entry(&(dw_plugin_host){sizeof(dw_plugin_host), dw_version(), add, &load}));
    if (count) *count = load.count;
    return DW_OK;
}
