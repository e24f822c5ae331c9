#include "bench_gpu.h"

#include <stdlib.h>

#include "core/status.h"
#include "deepwell/cuda.h"

enum { WINDOWS = 15, LAUNCHES = 10, ALIGNMENT = 256 };

static size_t take(size_t *offset, size_t bytes) {
    size_t at = *offset;
    *offset += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

/* Lays a set out from `base` and returns its size. */
static size_t lay_out(bench_set *set, uintptr_t base, size_t bytes) {
    const size_t elements = bytes / 2; /* of the smallest high-precision type */
    size_t offset = 0;
    set->source = (uint8_t *)(base + take(&offset, bytes));
    set->copy = (uint8_t *)(base + take(&offset, bytes));
    for (int k = 0; k < 2; k++) {
        set->data[k] = (uint8_t *)(base + take(&offset, elements));
        set->scale[k] = (uint8_t *)(base + take(&offset, elements / 32));
    }
    return offset;
}

#define CHECK(call, symbol) DW_TRY(dw_cuda_check(gpu->scratch.scope.driver, call, symbol, "GPU %d", gpu->device))

static dw_status make_events(bench_gpu *gpu) {
    const dw_cuda_driver *driver = gpu->scratch.scope.driver;
    CHECK(driver->event_create(&gpu->begin, 0), "cuEventCreate");
    CHECK(driver->event_create(&gpu->end, 0), "cuEventCreate");
    return DW_OK;
}

dw_status bench_gpu_start(int device, int64_t mebibytes, bench_gpu *gpu) {
    *gpu = (bench_gpu){.device = device, .bytes = (size_t)mebibytes << 20, .filled = DW_DTYPE_COUNT};
    dw_cuda_device_info info;
    DW_TRY(dw_cuda_device_get(device, &info));
    size_t wanted = 2 * (size_t)info.l2_bytes / gpu->bytes + 1;
    gpu->set_count = wanted < 2 ? 2 : wanted > BENCH_SETS_MAX ? BENCH_SETS_MAX : (int)wanted;
    const size_t size = lay_out(&gpu->sets[0], 0, gpu->bytes);
    DW_TRY(dw_cuda_scratch_open(device, size * (size_t)gpu->set_count, &gpu->scratch));
    gpu->open = true;
    for (int i = 0; i < gpu->set_count; i++)
        lay_out(&gpu->sets[i], (uintptr_t)gpu->scratch.memory + (size_t)i * size, gpu->bytes);
    return make_events(gpu);
}

void bench_gpu_end(bench_gpu *gpu) {
    if (!gpu->open) return;
    const dw_cuda_driver *driver = gpu->scratch.scope.driver;
    if (gpu->begin) driver->event_destroy(gpu->begin);
    if (gpu->end) driver->event_destroy(gpu->end);
    dw_cuda_scratch_close(&gpu->scratch);
    *gpu = (bench_gpu){0};
}

static dw_status fill(bench_gpu *gpu, dw_dtype dtype) {
    if (gpu->filled == dtype) return DW_OK;
    const dw_cuda_driver *driver = gpu->scratch.scope.driver;
    uint8_t *pattern = malloc(gpu->bytes);
    if (!pattern) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes of data", gpu->bytes);
    bench_pattern(pattern, gpu->bytes, dtype);
    dw_cu_result result = DW_CU_SUCCESS;
    for (int i = 0; i < gpu->set_count && result == DW_CU_SUCCESS; i++)
        result = driver->copy_to_device((dw_cu_pointer)(uintptr_t)gpu->sets[i].source, pattern, gpu->bytes,
                                        gpu->scratch.stream);
    if (result == DW_CU_SUCCESS) result = driver->stream_synchronize(gpu->scratch.stream);
    free(pattern);
    CHECK(result, "cuMemcpyHtoDAsync");
    gpu->filled = dtype;
    return DW_OK;
}

/* Seconds of one launch of a window of LAUNCHES: of the kernel, or of the copy when `one` is NULL. */
static dw_status time_window(bench_gpu *gpu, dw_context *context, const bench_case *one, int64_t rows,
                             double *seconds) {
    const dw_cuda_driver *driver = gpu->scratch.scope.driver;
    dw_cu_stream stream = gpu->scratch.stream;
    CHECK(driver->event_record(gpu->begin, stream), "cuEventRecord");
    for (int i = 0; i < LAUNCHES; i++) {
        const bench_set *set = &gpu->sets[i % gpu->set_count];
        if (one)
            DW_TRY(bench_call(context, one, set, rows, gpu->device, stream));
        else
            CHECK(driver->copy_on_device((dw_cu_pointer)(uintptr_t)set->copy, (dw_cu_pointer)(uintptr_t)set->source,
                                         gpu->bytes, stream),
                  "cuMemcpyDtoDAsync");
    }
    CHECK(driver->event_record(gpu->end, stream), "cuEventRecord");
    CHECK(driver->stream_synchronize(stream), "cuStreamSynchronize");
    float milliseconds;
    CHECK(driver->event_elapsed(&milliseconds, gpu->begin, gpu->end), "cuEventElapsedTime");
    *seconds = 1e-3 * (double)milliseconds / LAUNCHES;
    return DW_OK;
}

dw_status bench_gpu_run(bench_gpu *gpu, dw_context *context, const bench_case *one, bench_result *result) {
    const int64_t rows = (int64_t)(gpu->bytes / dw_dtype_size(one->high)) / BENCH_COLS;
    DW_TRY(fill(gpu, one->high));
    *result = (bench_result){.rows = rows, .cols = BENCH_COLS, .repetitions = WINDOWS};
    DW_TRY(bench_traffic(one, rows, &result->traffic));
    double kernel[WINDOWS], copy[WINDOWS];
    DW_TRY(time_window(gpu, context, one, rows, &kernel[0])); /* loads code and warms up */
    DW_TRY(time_window(gpu, context, NULL, rows, &copy[0]));
    for (int i = 0; i < WINDOWS; i++) {
        DW_TRY(time_window(gpu, context, NULL, rows, &copy[i]));
        DW_TRY(time_window(gpu, context, one, rows, &kernel[i]));
    }
    result->seconds = bench_median(kernel, WINDOWS);
    result->copy_seconds = bench_median(copy, WINDOWS);
    return DW_OK;
}
