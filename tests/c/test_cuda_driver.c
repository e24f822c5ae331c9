/* The driver layer against a stand-in driver: contexts, modules, launches, tensor maps, errors, threads, fork. */
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda/host/images.h"
#include "cuda/host/launch.h"
#include "cuda/host/tensor_map.h"
#include "deepwell/deepwell.h"
#include "fake/fake_cuda.h"
#include "stand_in.h"

static fake_cuda_state *fake;
static fake_set_current_function set_current;
static fake_get_current_function get_current;

static void contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" does not say \"%s\"", text, part);
}

static void needs_images(void) {
    if (dw_cuda_image_total == 0) {
        print_message("built without device code\n");
        skip();
    }
}

static int reset(void **state) {
    (void)state;
    fake->fail = NULL;
    fake->on_launch = NULL;
    fake->fail_result = FAKE_RESULT;
    set_current(NULL);
    return 0;
}

/* ---- devices ---- */

static void devices_are_described(void **state) {
    (void)state;
    int version = 0, count = 0;
    assert_int_equal(dw_cuda_driver_version(&version), DW_OK);
    assert_int_equal(version, 13000);
    assert_int_equal(dw_cuda_device_count(&count), DW_OK);
    assert_int_equal(count, 2);
    dw_cuda_device_info info;
    for (int device = 0; device < 2; device++) {
        memset(&info, 0xA5, sizeof info);
        assert_int_equal(dw_cuda_device_get(device, &info), DW_OK);
        assert_string_equal(info.name, device ? "Fake GPU 1" : "Fake GPU 0");
        assert_int_equal(info.compute_major, device ? 10 : 9);
        assert_int_equal(info.compute_minor, device ? 3 : 0);
        assert_int_equal(info.multiprocessors, 16000 + device);
        assert_int_equal(info.memory_bytes, ((int64_t)80 << 30) | (40 + device));
        assert_int_equal(info.l2_bytes, 38000 + device);
        assert_int_equal(info.clock_khz, 13000 + device);
        assert_int_equal(info.memory_clock_khz, 36000 + device);
        assert_int_equal(info.memory_bus_bits, 37000 + device);
        assert_float_equal(info.memory_bandwidth, 2e3 * (36000 + device) * (37000 + device) / 8, 1);
        assert_int_equal(info.copy_engines, 40000 + device);
        assert_int_equal(info.pci_domain, 50000 + device);
        assert_int_equal(info.pci_bus, 33000 + device);
        assert_int_equal(info.pci_device, 34000 + device);
        assert_int_equal(info.shared_per_block_bytes, 97000 + device);
        assert_int_equal(info.shared_per_multiprocessor_bytes, 81000 + device);
        assert_string_equal(info.target, device ? "sm100" : "sm90");
        assert_int_equal(info.has_device_code, dw_cuda_image_total > 0);
    }
    int major = fake->major[0], minor = fake->minor[0];
    static const struct {
        int major, minor;
        const char *target;
    } others[] = {{8, 0, ""}, {8, 9, ""}, {9, 1, ""}, {10, 0, "sm100"}, {11, 0, ""}, {12, 0, ""}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        fake->major[0] = others[i].major;
        fake->minor[0] = others[i].minor;
        assert_int_equal(dw_cuda_device_get(0, &info), DW_OK);
        assert_string_equal(info.target, others[i].target);
        if (!*others[i].target) assert_false(info.has_device_code);
    }
    fake->major[0] = major;
    fake->minor[0] = minor;
}

static void bad_devices_are_refused(void **state) {
    (void)state;
    dw_cuda_device_info info;
    dw_cuda_scope scope;
    static const int bad[] = {-1, 2, 64, 1000000};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(dw_cuda_device_get(bad[i], &info), DW_ERROR_INVALID_ARGUMENT);
        contains(dw_last_error(), "sees 2 CUDA devices");
        assert_int_equal(dw_cuda_enter(bad[i], &scope), DW_ERROR_INVALID_ARGUMENT);
        contains(dw_last_error(), "CUDA_VISIBLE_DEVICES");
    }
    assert_int_equal(dw_cuda_device_get(0, NULL), DW_ERROR_INVALID_ARGUMENT);
    assert_int_equal(dw_cuda_device_count(NULL), DW_ERROR_INVALID_ARGUMENT);
    assert_int_equal(dw_cuda_driver_version(NULL), DW_ERROR_INVALID_ARGUMENT);
}

static void driver_errors_carry_its_words(void **state) {
    (void)state;
    static const char *const calls[] = {"cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName", "cuDeviceTotalMem"};
    dw_cuda_device_info info;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        fake->fail = calls[i];
        assert_int_equal(dw_cuda_device_get(1, &info), DW_ERROR_DEVICE);
        contains(dw_last_error(), calls[i]);
        contains(dw_last_error(), "CUDA_ERROR_FAKE");
        contains(dw_last_error(), "the fake driver was told to fail");
        contains(dw_last_error(), "device 1");
    }
    fake->fail_result = 999999; /* a code the driver has no words for */
    assert_int_equal(dw_cuda_device_get(1, &info), DW_ERROR_DEVICE);
    contains(dw_last_error(), "999999");
    fake->fail = NULL;
    assert_int_equal(dw_cuda_device_get(1, &info), DW_OK);
}

/* ---- contexts ---- */

static void current_context_is_used(void **state) {
    (void)state;
    fake_context mine = {1, 555};
    set_current(&mine);
    int pushes = fake->pushes, pops = fake->pops;
    dw_cuda_scope scope;
    assert_int_equal(dw_cuda_enter(1, &scope), DW_OK);
    assert_ptr_equal(get_current(), &mine);
    assert_int_equal(scope.context_id, 555);
    dw_cuda_leave(&scope);
    assert_ptr_equal(get_current(), &mine);
    assert_int_equal(fake->pushes, pushes);
    assert_int_equal(fake->pops, pops);
}

static void primary_context_is_retained_once(void **state) {
    (void)state;
    fake_context other = {1, 556};
    fake_context *const before[] = {NULL, &other};
    for (int i = 0; i < 2; i++) {
        set_current(before[i]); /* none, or one of another device */
        for (int round = 0; round < 3; round++) {
            dw_cuda_scope scope;
            assert_int_equal(dw_cuda_enter(0, &scope), DW_OK);
            assert_ptr_equal(get_current(), &fake->primary[0]);
            assert_int_equal(scope.context_id, 101);
            dw_cuda_leave(&scope);
            assert_ptr_equal(get_current(), before[i]);
            dw_cuda_leave(&scope); /* leaving twice pops once */
            assert_ptr_equal(get_current(), before[i]);
        }
    }
    assert_int_equal(fake->retained[0], 1);
    assert_int_equal(fake->pushes, fake->pops);
}

static void failed_entry_leaves_no_trace(void **state) {
    (void)state;
    static const char *const calls[] = {"cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxGetId"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        fake->fail = calls[i];
        dw_cuda_scope scope;
        assert_int_equal(dw_cuda_enter(0, &scope), DW_ERROR_DEVICE);
        contains(dw_last_error(), calls[i]);
        assert_null(get_current());
    }
}

/* ---- modules and launches ---- */

#define IMAGE "common/scale_decode"
#define SYMBOL "scale_decode_f32"

static const dw_cuda_launch_config plain = {.grid = {3, 2, 1}, .block = {256, 1, 1}};

static dw_status launch_on(int device, dw_cuda_kernel *kernel, const dw_cuda_launch_config *config) {
    dw_cuda_scope scope;
    dw_status status = dw_cuda_enter(device, &scope);
    if (status != DW_OK) return status;
    int argument = 7;
    void *arguments[] = {&argument};
    status = dw_cuda_launch(&scope, kernel, config, (void *)0x5EED, arguments);
    dw_cuda_leave(&scope);
    return status;
}

static void modules_load_once_per_context(void **state) {
    (void)state;
    needs_images();
    static dw_cuda_kernel first = DW_CUDA_KERNEL(IMAGE, SYMBOL), second = DW_CUDA_KERNEL(IMAGE, "another");
    int loads = fake->module_loads, lookups = fake->function_lookups;
    fake_context context = {0, 700};
    set_current(&context);
    for (int i = 0; i < 3; i++)
        assert_int_equal(launch_on(0, &first, &plain), DW_OK);
    assert_int_equal(fake->module_loads, loads + 1);
    assert_int_equal(fake->function_lookups, lookups + 1);
    assert_int_equal(launch_on(0, &second, &plain), DW_OK);
    assert_int_equal(fake->module_loads, loads + 1); /* the same image */
    assert_int_equal(fake->function_lookups, lookups + 2);
    assert_int_equal(launch_on(1, &first, &plain), DW_OK); /* another device */
    assert_int_equal(fake->module_loads, loads + 2);
    assert_int_equal(fake->launch_context, 102);
    context.id = 701; /* the context was destroyed and a new one has its address: the old module is gone with it */
    assert_int_equal(launch_on(0, &first, &plain), DW_OK);
    assert_int_equal(fake->module_loads, loads + 3);
    assert_int_equal(fake->launch_context, 701);
}

static void launch_passes_everything(void **state) {
    (void)state;
    needs_images();
    static dw_cuda_kernel kernel = DW_CUDA_KERNEL(IMAGE, SYMBOL);
    assert_int_equal(launch_on(0, &kernel, &plain), DW_OK);
    assert_int_equal(fake->config.grid[0], 3);
    assert_int_equal(fake->config.grid[1], 2);
    assert_int_equal(fake->config.block[0], 256);
    assert_ptr_equal(fake->config.stream, (void *)0x5EED);
    assert_int_equal(fake->config.attribute_count, 0);
    assert_string_equal(fake->function->symbol, SYMBOL);

    dw_cuda_launch_config config = {
        .grid = {8, 1, 1}, .block = {384, 1, 1}, .cluster = {2, 1, 1}, .programmatic = true};
    assert_int_equal(launch_on(0, &kernel, &config), DW_OK);
    assert_int_equal(fake->config.attribute_count, 2);
    assert_int_equal(fake->attributes[0].id, DW_CU_LAUNCH_CLUSTER_DIMENSION);
    assert_int_equal(fake->attributes[0].value.cluster[0], 2);
    assert_int_equal(fake->attributes[0].value.cluster[1], 1);
    assert_int_equal(fake->attributes[0].value.cluster[2], 1);
    assert_int_equal(fake->attributes[1].id, DW_CU_LAUNCH_PROGRAMMATIC_SERIALIZATION);
    assert_int_equal(fake->attributes[1].value.programmatic, 1);
    config.cluster[0] = 1; /* a cluster of one block is none */
    config.programmatic = false;
    assert_int_equal(launch_on(0, &kernel, &config), DW_OK);
    assert_int_equal(fake->config.attribute_count, 0);

    int launches = fake->launches;
    for (int i = 0; i < 3; i++) {
        dw_cuda_launch_config empty = plain;
        empty.grid[i] = 0;
        assert_int_equal(launch_on(0, &kernel, &empty), DW_OK);
    }
    assert_int_equal(fake->launches, launches);
}

static void limits_are_raised_once(void **state) {
    (void)state;
    needs_images();
    static dw_cuda_kernel kernel = DW_CUDA_KERNEL(IMAGE, SYMBOL);
    int sets = fake->function_sets;
    static const struct {
        uint32_t shared, cluster;
        int sets;
    } steps[] = {{32768, 0, 0}, {49153, 0, 1}, {49153, 8, 1}, {65536, 0, 2},
                 {60000, 0, 2}, {0, 16, 3},    {0, 16, 3},    {232448, 16, 4}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        dw_cuda_launch_config config = {.grid = {16, 1, 1},
                                        .block = {32, 1, 1},
                                        .cluster = {steps[i].cluster, 1, 1},
                                        .shared_bytes = steps[i].shared};
        if (!steps[i].cluster) config.cluster[1] = config.cluster[2] = 0;
        assert_int_equal(launch_on(0, &kernel, &config), DW_OK);
        assert_int_equal(fake->function_sets, sets + steps[i].sets);
    }
    assert_int_equal(fake->function->max_shared, 232448);
    assert_int_equal(fake->function->wide_cluster, 1);
    dw_cuda_launch_config config = {.grid = {1, 1, 1}, .block = {32, 1, 1}, .shared_bytes = 300000};
    assert_int_equal(launch_on(0, &kernel, &config), DW_ERROR_DEVICE);
    contains(dw_last_error(), "cuFuncSetAttribute");
    contains(dw_last_error(), "300000");
}

static void launch_errors_name_the_kernel(void **state) {
    (void)state;
    needs_images();
    fake_context context = {0, 800}; /* new, so that loading happens again */
    set_current(&context);
    static dw_cuda_kernel kernel = DW_CUDA_KERNEL(IMAGE, SYMBOL), missing = DW_CUDA_KERNEL(IMAGE, "no_such_kernel"),
                          nowhere = DW_CUDA_KERNEL("common/no_such_file", "x");
    static const char *const calls[] = {"cuModuleLoadFatBinary", "cuModuleGetFunction", "cuLaunchKernelEx"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        fake->fail = calls[i];
        assert_int_equal(launch_on(0, &kernel, &plain), DW_ERROR_DEVICE);
        contains(dw_last_error(), calls[i]);
        contains(dw_last_error(), "CUDA_ERROR_FAKE");
        contains(dw_last_error(), i ? SYMBOL : IMAGE);
        contains(dw_last_error(), "device 0");
    }
    contains(dw_last_error(), "grid 3x2x1");
    fake->fail = NULL;
    assert_int_equal(launch_on(0, &kernel, &plain), DW_OK); /* failures are not remembered */
    assert_int_equal(launch_on(0, &missing, &plain), DW_ERROR_DEVICE);
    contains(dw_last_error(), "no_such_kernel");
    assert_int_equal(launch_on(0, &nowhere, &plain), DW_ERROR_UNSUPPORTED);
    contains(dw_last_error(), "common/no_such_file");

    context.id = 801;
    fake->fail = "cuModuleLoadFatBinary";
    fake->fail_result = DW_CU_ERROR_NO_BINARY_FOR_GPU;
    assert_int_equal(launch_on(0, &kernel, &plain), DW_ERROR_UNSUPPORTED);
    contains(dw_last_error(), "CUDA_ERROR_NO_BINARY_FOR_GPU");
    contains(dw_last_error(), "sm_90a");
}

static void without_images_launches_say_so(void **state) {
    (void)state;
    static dw_cuda_kernel kernel = DW_CUDA_KERNEL(IMAGE, SYMBOL);
    if (dw_cuda_image_total > 0) skip();
    assert_int_equal(launch_on(0, &kernel, &plain), DW_ERROR_UNSUPPORTED);
    contains(dw_last_error(), "built without device code");
}

#define THREADS 8
static dw_cuda_kernel shared_kernel = DW_CUDA_KERNEL(IMAGE, SYMBOL);
static atomic_int failures;

static void *launch_often(void *which) {
    fake_context mine = {(int)(intptr_t)which % 2, 900 + (unsigned)(intptr_t)which % 2};
    set_current(&mine);
    for (int i = 0; i < 200; i++)
        if (launch_on(mine.device, &shared_kernel, &plain) != DW_OK) atomic_fetch_add(&failures, 1);
    set_current(NULL);
    return NULL;
}

static void threads_share_what_is_loaded(void **state) {
    (void)state;
    needs_images();
    int loads = fake->module_loads, lookups = fake->function_lookups, launches = fake->launches;
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, launch_often, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(failures, 0);
    assert_int_equal(fake->module_loads, loads + 2); /* one for each of two contexts */
    assert_int_equal(fake->function_lookups, lookups + 2);
    assert_int_equal(fake->launches, launches + THREADS * 200);
}

/* ---- tensor maps ---- */

static void tensor_maps_are_cached(void **state) {
    (void)state;
    static _Alignas(16) char memory[64];
    dw_cuda_scope scope;
    assert_int_equal(dw_cuda_enter(0, &scope), DW_OK);
    const dw_cuda_tensor_map_spec spec = {.address = memory,
                                          .extents = {4096, 512, 3},
                                          .strides = {4096, 4096 * 512},
                                          .box = {128, 64, 1},
                                          .rank = 3,
                                          .type = DW_CU_TENSOR_UINT8,
                                          .swizzle = DW_CU_SWIZZLE_128B,
                                          .promotion = DW_CU_L2_PROMOTE_256B};
    dw_cu_tensor_map map, again;
    int maps = fake->maps;
    assert_int_equal(dw_cuda_tensor_map(&scope, &spec, &map), DW_OK);
    assert_int_equal(fake->maps, maps + 1);
    assert_int_equal(map.opaque[0], (uint64_t)(uintptr_t)memory);
    assert_int_equal(map.opaque[2], 512);
    assert_int_equal(map.opaque[7], 64);
    assert_int_equal(map.opaque[12], 4096 * 512);
    assert_int_equal(fake->map_rank, 3);
    assert_int_equal(fake->map_type, DW_CU_TENSOR_UINT8);
    assert_int_equal(fake->map_swizzle, DW_CU_SWIZZLE_128B);
    assert_int_equal(fake->map_promotion, DW_CU_L2_PROMOTE_256B);
    assert_int_equal(dw_cuda_tensor_map(&scope, &spec, &again), DW_OK);
    assert_int_equal(fake->maps, maps + 1);
    assert_memory_equal(&map, &again, sizeof map);

    dw_cuda_tensor_map_spec garbage = spec; /* what lies beyond the rank does not matter */
    garbage.extents[3] = garbage.strides[2] = garbage.box[4] = 99;
    assert_int_equal(dw_cuda_tensor_map(&scope, &garbage, &again), DW_OK);
    assert_int_equal(fake->maps, maps + 1);

    for (int field = 0; field < 8; field++) { /* everything else does */
        dw_cuda_tensor_map_spec other = spec;
        switch (field) {
        case 0: other.address = memory + 16; break;
        case 1: other.extents[2]++; break;
        case 2: other.strides[1] += 16; break;
        case 3: other.box[1]--; break;
        case 4: other.rank--; break;
        case 5: other.type = DW_CU_TENSOR_BFLOAT16; break;
        case 6: other.swizzle = DW_CU_SWIZZLE_NONE; break;
        default: other.promotion = DW_CU_L2_PROMOTE_NONE; break;
        }
        maps = fake->maps;
        assert_int_equal(dw_cuda_tensor_map(&scope, &other, &again), DW_OK);
        assert_int_equal(fake->maps, maps + 1);
        assert_true(field > 4 || memcmp(&map, &again, sizeof map) != 0);
    }
    dw_cuda_scope elsewhere = scope; /* another context */
    elsewhere.context_id++;
    maps = fake->maps;
    assert_int_equal(dw_cuda_tensor_map(&elsewhere, &spec, &again), DW_OK);
    assert_int_equal(fake->maps, maps + 1);

    for (uintptr_t i = 0; i < 5000; i++) { /* many more than fit: still right */
        dw_cuda_tensor_map_spec other = spec;
        other.address = (void *)(i % 1700 * 16);
        assert_int_equal(dw_cuda_tensor_map(&scope, &other, &again), DW_OK);
        assert_int_equal(again.opaque[0], i % 1700 * 16);
    }

    dw_cuda_tensor_map_spec bad = spec;
    bad.rank = 0;
    assert_int_equal(dw_cuda_tensor_map(&scope, &bad, &again), DW_ERROR_INVALID_ARGUMENT);
    bad.rank = 6;
    assert_int_equal(dw_cuda_tensor_map(&scope, &bad, &again), DW_ERROR_INVALID_ARGUMENT);
    bad = spec;
    bad.address = memory + 1;
    assert_int_equal(dw_cuda_tensor_map(&scope, &bad, &again), DW_ERROR_DEVICE);
    contains(dw_last_error(), "cuTensorMapEncodeTiled");
    contains(dw_last_error(), "extents 4096 x 512");
    dw_cuda_leave(&scope);
}

/* ---- fork ---- */

static void fork_is_noticed(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int count = 0;
        dw_cuda_scope scope;
        int good = dw_cuda_device_count(&count) == DW_ERROR_DEVICE && strstr(dw_last_error(), "fork") &&
                   strstr(dw_last_error(), "spawn") && dw_cuda_enter(0, &scope) == DW_ERROR_DEVICE;
        _exit(good ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    int count = 0;
    assert_int_equal(dw_cuda_device_count(&count), DW_OK); /* the parent goes on */
}

int main(void) {
    void *library = open_stand_in();
    fake = dlsym(library, "fake_cuda");
    *(void **)&set_current = dlsym(library, "fake_set_current");
    *(void **)&get_current = dlsym(library, "fake_get_current");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(devices_are_described, reset),
        cmocka_unit_test_setup(bad_devices_are_refused, reset),
        cmocka_unit_test_setup(driver_errors_carry_its_words, reset),
        cmocka_unit_test_setup(current_context_is_used, reset),
        cmocka_unit_test_setup(primary_context_is_retained_once, reset),
        cmocka_unit_test_setup(failed_entry_leaves_no_trace, reset),
        cmocka_unit_test_setup(modules_load_once_per_context, reset),
        cmocka_unit_test_setup(launch_passes_everything, reset),
        cmocka_unit_test_setup(limits_are_raised_once, reset),
        cmocka_unit_test_setup(launch_errors_name_the_kernel, reset),
        cmocka_unit_test_setup(without_images_launches_say_so, reset),
        cmocka_unit_test_setup(threads_share_what_is_loaded, reset),
        cmocka_unit_test_setup(tensor_maps_are_cached, reset),
        cmocka_unit_test_setup(fork_is_noticed, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
