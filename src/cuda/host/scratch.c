#include "cuda/host/scratch.h"

static dw_status make(dw_cuda_scratch *scratch, size_t bytes) {
    const dw_cuda_driver *driver = scratch->scope.driver;
    const int device = scratch->scope.device;
    DW_TRY(dw_cuda_check(driver, driver->stream_create(&scratch->stream, DW_CU_STREAM_NON_BLOCKING), "cuStreamCreate",
                         "device %d", device));
    dw_cu_result result = driver->memory_allocate(&scratch->memory, bytes);
    if (result == DW_CU_ERROR_OUT_OF_MEMORY)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "device %d has no %zu bytes left; free some of its memory", device,
                       bytes);
    return dw_cuda_check(driver, result, "cuMemAlloc", "%zu bytes on device %d", bytes, device);
}

dw_status dw_cuda_scratch_open(int device, size_t bytes, dw_cuda_scratch *scratch) {
    *scratch = (dw_cuda_scratch){.capture_mode = DW_CU_CAPTURE_MODE_RELAXED};
    DW_TRY(dw_cuda_enter(device, &scratch->scope));
    const dw_cuda_driver *driver = scratch->scope.driver;
    /* In a stricter mode an allocation would spoil whatever is being captured. */
    dw_status status = dw_cuda_check(driver, driver->capture_mode_exchange(&scratch->capture_mode),
                                     "cuThreadExchangeStreamCaptureMode", "device %d", device);
    if (status != DW_OK) {
        dw_cuda_leave(&scratch->scope);
        return status;
    }
    status = make(scratch, bytes);
    if (status != DW_OK) dw_cuda_scratch_close(scratch);
    return status;
}

void dw_cuda_scratch_close(dw_cuda_scratch *scratch) {
    const dw_cuda_driver *driver = scratch->scope.driver;
    /* What fails here means that the device is lost, which the next call reports. */
    if (scratch->stream) driver->stream_synchronize(scratch->stream);
    if (scratch->memory) driver->memory_free(scratch->memory);
    if (scratch->stream) driver->stream_destroy(scratch->stream);
    driver->capture_mode_exchange(&scratch->capture_mode);
    dw_cuda_leave(&scratch->scope);
}
