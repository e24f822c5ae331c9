/* A stand-in for libcuda.so.1: no GPU, but the driver's rules about contexts, and a record of what it was asked. The
 * tests open it through DEEPWELL_LIBCUDA and reach its state through the symbol "fake_cuda". */
#ifndef DW_FAKE_CUDA_H
#define DW_FAKE_CUDA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "cuda/host/driver_api.h"

#define FAKE_DEVICES 3
#define FAKE_RESULT 719 /* any error the library has no special plan for */

/* A context, as the driver hands it out: the handle is its address. */
typedef struct fake_context {
    int device;
    unsigned long long id;
} fake_context;

typedef struct fake_function {
    char symbol[128];
    unsigned long long context_id;
    int max_shared, wide_cluster;
} fake_function;

typedef struct fake_cuda_state {
    int devices; /* visible: 0 to FAKE_DEVICES */
    int major[FAKE_DEVICES], minor[FAKE_DEVICES];
    int init_result;
    int largest_cluster; /* blocks */
    int uuid;            /* first byte of device 0's */
    const char *fail;    /* symbol that fails from now on, or NULL */
    int fail_result;     /* with this */
    int fail_times;      /* so often, then no more; 0: always */
    atomic_int retained[FAKE_DEVICES];
    atomic_int pushes, pops;
    atomic_int module_loads, function_lookups, function_sets, launches, maps, memsets, occupancies;
    atomic_int allocations, streams; /* that exist now */
    atomic_int microseconds;         /* that passed on the device; launches take what on_launch adds */
    fake_context primary[FAKE_DEVICES];
    /* The last launch, tensor map and memset. */
    dw_cu_launch_config config;
    dw_cu_launch_attribute attributes[4];
    fake_function *function;
    unsigned long long launch_context;
    void (*on_launch)(const char *symbol, const dw_cu_launch_config *config, void **arguments);
    int map_type, map_swizzle, map_promotion;
    uint32_t map_rank;
    struct {
        dw_cu_pointer target;
        size_t pitch, width, height;
        unsigned char value;
    } memset_last;
} fake_cuda_state;

/* Whether a launch may start before the kernel ahead of it ends. */
static inline bool fake_is_programmatic(const dw_cu_launch_config *config) {
    for (unsigned int i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == DW_CU_LAUNCH_PROGRAMMATIC_SERIALIZATION)
            return config->attributes[i].value.programmatic != 0;
    return false;
}

/* Sets the calling thread's current context (what a program outside Deepwell would do); NULL for none. */
typedef void (*fake_set_current_function)(fake_context *context);
typedef fake_context *(*fake_get_current_function)(void);
/* What cuThreadExchangeStreamCaptureMode left for the calling thread; 0 at its start. */
typedef int (*fake_get_capture_mode_function)(void);

#endif
