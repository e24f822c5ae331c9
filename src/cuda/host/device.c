/* The public questions about GPUs and about the device code in the library. */
#include <stdio.h>
#include <string.h>

#include "cuda/host/driver.h"
#include "cuda/host/images.h"
#include "deepwell/cuda.h"

dw_status dw_cuda_driver_version(int *version) {
    if (!version) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_cuda_driver_version: version is NULL");
    const dw_cuda_driver *driver;
    DW_TRY(dw_cuda_driver_get(&driver));
    *version = driver->version;
    return DW_OK;
}

dw_status dw_cuda_device_count(int *count) {
    if (!count) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_cuda_device_count: count is NULL");
    const dw_cuda_driver *driver;
    DW_TRY(dw_cuda_driver_get(&driver));
    *count = driver->devices;
    return DW_OK;
}

/* The folder of src/cuda/device for this GPU. 90a code runs on 9.0 alone, 100f code on the family 10.x. */
static const char *target_of(int major, int minor) {
    if (major == 9 && minor == 0) return "sm90";
    return major == 10 ? "sm100" : "";
}

static bool built_for(const char *target) {
    const char *architecture = strcmp(target, "sm90") == 0 ? "sm_90a" : "sm_100f";
    if (!*target) return false;
    for (size_t i = 0; i < dw_cuda_image_total; i++)
        if (strstr(dw_cuda_images[i].architectures, architecture)) return true;
    return false;
}

dw_status dw_cuda_device_get(int device, dw_cuda_device_info *info) {
    if (!info) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_cuda_device_get: info is NULL");
    const dw_cuda_driver *driver;
    DW_TRY(dw_cuda_driver_get(&driver));
    if (device < 0 || device >= driver->devices)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "device %d is not there; this process sees %d CUDA device%s (check CUDA_VISIBLE_DEVICES)",
                       device, driver->devices, driver->devices == 1 ? "" : "s");
    dw_cu_device handle;
    DW_TRY(dw_cuda_check(driver, driver->device_get(&handle, device), "cuDeviceGet", "device %d", device));

    dw_cuda_device_info found = {0};
    int l2 = 0, shared_block = 0, shared_multiprocessor = 0;
    const struct {
        int attribute;
        int *value;
    } wanted[] = {
        {DW_CU_DEVICE_COMPUTE_MAJOR, &found.compute_major},
        {DW_CU_DEVICE_COMPUTE_MINOR, &found.compute_minor},
        {DW_CU_DEVICE_MULTIPROCESSOR_COUNT, &found.multiprocessors},
        {DW_CU_DEVICE_L2_CACHE_SIZE, &l2},
        {DW_CU_DEVICE_SHARED_PER_BLOCK_OPTIN, &shared_block},
        {DW_CU_DEVICE_SHARED_PER_MULTIPROCESSOR, &shared_multiprocessor},
        {DW_CU_DEVICE_CLOCK_RATE, &found.clock_khz},
        {DW_CU_DEVICE_MEMORY_CLOCK_RATE, &found.memory_clock_khz},
        {DW_CU_DEVICE_MEMORY_BUS_WIDTH, &found.memory_bus_bits},
        {DW_CU_DEVICE_ASYNC_ENGINE_COUNT, &found.copy_engines},
        {DW_CU_DEVICE_PCI_DOMAIN_ID, &found.pci_domain},
        {DW_CU_DEVICE_PCI_BUS_ID, &found.pci_bus},
        {DW_CU_DEVICE_PCI_DEVICE_ID, &found.pci_device},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        DW_TRY(dw_cuda_check(driver, driver->device_attribute(wanted[i].value, wanted[i].attribute, handle),
                             "cuDeviceGetAttribute", "attribute %d of device %d", wanted[i].attribute, device));
    DW_TRY(dw_cuda_check(driver, driver->device_name(found.name, (int)sizeof found.name, handle), "cuDeviceGetName",
                         "device %d", device));
    size_t memory = 0;
    DW_TRY(dw_cuda_check(driver, driver->device_memory(&memory, handle), "cuDeviceTotalMem", "device %d", device));
    found.memory_bytes = (int64_t)memory;
    found.l2_bytes = l2;
    found.shared_per_block_bytes = shared_block;
    found.shared_per_multiprocessor_bytes = shared_multiprocessor;
    /* Two transfers per clock. */
    found.memory_bandwidth = 2.0 * 1000.0 * found.memory_clock_khz * found.memory_bus_bits / 8.0;
    snprintf(found.target, sizeof found.target, "%s", target_of(found.compute_major, found.compute_minor));
    found.has_device_code = built_for(found.target);
    *info = found;
    return DW_OK;
}

size_t dw_cuda_image_count(void) {
    return dw_cuda_image_total;
}

dw_status dw_cuda_image_get(size_t index, const char **name, const char **architectures, const void **bytes,
                            size_t *size) {
    if (index >= dw_cuda_image_total)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "image %zu is not there; the library holds %zu", index,
                       dw_cuda_image_total);
    const dw_cuda_image *image = &dw_cuda_images[index];
    if (name) *name = image->name;
    if (architectures) *architectures = image->architectures;
    if (bytes) *bytes = image->begin;
    if (size) *size = (size_t)(image->end - image->begin);
    return DW_OK;
}
