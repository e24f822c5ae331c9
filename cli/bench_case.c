#include "bench_case.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/status.h"

enum {
    REPETITIONS_MIN = 5,
    SLOW_PART = 16, /* see choose_rows */
    REPETITIONS_MAX = 25,
    COPY_PART = 256 << 10, /* small enough to balance, large enough that starting one costs nothing */
};

/* A case goes on for this long, within the numbers of repetitions above. */
static const double CASE_SECONDS = 0.4;

static size_t last_cache_bytes(void) {
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes <= 0) bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return bytes > 0 ? (size_t)bytes : (size_t)32 << 20;
}

static bool make_set(bench_set *set, size_t bytes) {
    size_t elements = bytes / 2; /* of the smallest high-precision type */
    void **parts[] = {(void **)&set->source,  (void **)&set->copy,     (void **)&set->data[0],
                      (void **)&set->data[1], (void **)&set->scale[0], (void **)&set->scale[1]};
    size_t sizes[] = {bytes, bytes, elements, elements, elements / 32, elements / 32};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        *parts[i] = aligned_alloc(4096, (sizes[i] + 4095) / 4096 * 4096);
        if (!*parts[i]) return false;
        memset(*parts[i], 0, sizes[i]); /* so that no measurement pays for fresh pages */
    }
    return true;
}

dw_status bench_start(int threads, int64_t mebibytes, bench_state *bench) {
    *bench = (bench_state){.bytes = (size_t)mebibytes << 20, .filled = DW_DTYPE_COUNT};
    DW_TRY(dw_context_create(&(dw_context_options){.threads = threads}, &bench->context));
    bench->pool = dw_thread_pool_create(dw_context_threads(bench->context));
    size_t wanted = 2 * last_cache_bytes() / bench->bytes + 1;
    int sets = wanted < 2 ? 2 : wanted > BENCH_SETS_MAX ? BENCH_SETS_MAX : (int)wanted;
    bool made = bench->pool != NULL;
    while (made && bench->set_count < sets)
        made = make_set(&bench->sets[bench->set_count++], bench->bytes);
    return made ? DW_OK
                : dw_fail(DW_ERROR_OUT_OF_MEMORY,
                          "no memory for %d sets of %lld MiB and their results; give a smaller "
                          "--size",
                          sets, (long long)mebibytes);
}

void bench_end(bench_state *bench) {
    for (int i = 0; i < bench->set_count; i++) {
        bench_set *set = &bench->sets[i];
        free(set->source);
        free(set->copy);
        for (int k = 0; k < 2; k++) {
            free(set->data[k]);
            free(set->scale[k]);
        }
    }
    dw_thread_pool_destroy(bench->pool);
    dw_context_destroy(bench->context);
}

void bench_pattern(uint8_t *bytes, size_t size, dw_dtype dtype) {
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (size_t at = 0; at < size; at += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint64_t word = dtype == DW_F32    ? (state & 0x83FFFFFF83FFFFFFu) | 0x3C0000003C000000u
                        : dtype == DW_BF16 ? (state & 0x83FF83FF83FF83FFu) | 0x3C003C003C003C00u
                                           : (state & 0x9FFF9FFF9FFF9FFFu) | 0x2000200020002000u;
        memcpy(bytes + at, &word, 8);
    }
}

static void fill(bench_state *bench, dw_dtype dtype) {
    if (bench->filled == dtype) return;
    for (int i = 0; i < bench->set_count; i++)
        bench_pattern(bench->sets[i].source, bench->bytes, dtype);
    bench->filled = dtype;
}

typedef struct copy_job {
    uint8_t *target;
    const uint8_t *source;
    size_t bytes;
} copy_job;

static void copy_part(void *argument, int64_t i) {
    const copy_job *job = argument;
    size_t from = (size_t)i * COPY_PART, left = job->bytes - from;
    memcpy(job->target + from, job->source + from, left < COPY_PART ? left : COPY_PART);
}

/* One thread gets one plain memcpy: nothing in its way. */
static double time_copy(const bench_state *bench, const bench_set *set) {
    copy_job job = {set->copy, set->source, bench->bytes};
    double started = cli_seconds();
    if (dw_context_threads(bench->context) == 1)
        memcpy(job.target, job.source, job.bytes);
    else
        dw_parallel_for(bench->pool, (int64_t)((bench->bytes + COPY_PART - 1) / COPY_PART), copy_part, &job);
    return cli_seconds() - started;
}

static dw_tensor matrix(void *data, dw_dtype dtype, int64_t rows, int64_t cols, int gpu) {
    dw_tensor tensor = dw_matrix(data, dtype, rows, cols);
    if (gpu >= 0) {
        tensor.device_type = DW_DEVICE_CUDA;
        tensor.device_id = gpu;
    }
    return tensor;
}

/* Result `which` of a set: 0 row, 1 transposed. */
static dw_status view(const bench_case *one, const bench_set *set, int which, int64_t rows, int64_t cols, int gpu,
                      dw_quantized *result) {
    int64_t shape[2];
    DW_TRY(dw_scale_shape(&one->spec, rows, cols, shape));
    *result = (dw_quantized){.data = matrix(set->data[which], one->spec.element, rows, cols, gpu),
                             .scale = matrix(set->scale[which], DW_E8M0, shape[0], shape[1], gpu)};
    return DW_OK;
}

dw_status bench_call(dw_context *context, const bench_case *one, const bench_set *set, int64_t rows, int gpu,
                     void *stream) {
    dw_tensor high = matrix(set->source, one->high, rows, BENCH_COLS, gpu);
    dw_quantized row, transposed;
    DW_TRY(view(one, set, 0, rows, BENCH_COLS, gpu, &row));
    DW_TRY(view(one, set, 1, BENCH_COLS, rows, gpu, &transposed));
    if (one->info.operation == DW_OP_DEQUANTIZE)
        return dw_dequantize_with(context, one->kernel, &one->spec, &row, &high, stream);
    return dw_quantize_with(context, one->kernel, &one->spec, &high,
                            one->orientation == DW_ORIENT_TRANSPOSED ? NULL : &row,
                            one->orientation == DW_ORIENT_ROW ? NULL : &transposed, stream);
}

static dw_status call(const bench_state *bench, const bench_case *one, const bench_set *set, int64_t rows) {
    return bench_call(bench->context, one, set, rows, -1, NULL);
}

/* A dequantization needs something to decode in every set. */
static dw_status prepare(bench_state *bench, const bench_case *one, int64_t rows) {
    if (one->info.operation != DW_OP_DEQUANTIZE) return DW_OK;
    for (int i = 0; i < bench->set_count; i++) {
        dw_tensor high = dw_matrix(bench->sets[i].source, one->high, rows, BENCH_COLS);
        dw_quantized row;
        DW_TRY(view(one, &bench->sets[i], 0, rows, BENCH_COLS, -1, &row));
        DW_TRY(dw_quantize(bench->context, &one->spec, &high, &row, NULL, NULL));
    }
    return DW_OK;
}

dw_status bench_traffic(const bench_case *one, int64_t rows, uint64_t *traffic) {
    int64_t row[2], transposed[2];
    DW_TRY(dw_scale_shape(&one->spec, rows, BENCH_COLS, row));
    DW_TRY(dw_scale_shape(&one->spec, BENCH_COLS, rows, transposed));
    uint64_t elements = (uint64_t)rows * BENCH_COLS;
    *traffic = elements * dw_dtype_size(one->high);
    if (one->orientation != DW_ORIENT_TRANSPOSED) *traffic += elements + (uint64_t)(row[0] * row[1]);
    if (one->orientation != DW_ORIENT_ROW) *traffic += elements + (uint64_t)(transposed[0] * transposed[1]);
    return DW_OK;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* A kernel that takes long gets fewer rows: its own arithmetic limits it, so caches do not matter, and a table with the
 * scalar reference in it stays a matter of a minute. */
static dw_status choose_rows(bench_state *bench, const bench_case *one, int64_t *rows) {
    int64_t part = *rows / SLOW_PART;
    if (part == 0) return DW_OK;
    double started = cli_seconds();
    DW_TRY(call(bench, one, &bench->sets[0], part));
    if (cli_seconds() - started > CASE_SECONDS / REPETITIONS_MIN / SLOW_PART * 4) *rows = part;
    return DW_OK;
}

dw_status bench_run(bench_state *bench, const bench_case *one, bench_result *result) {
    int64_t rows = (int64_t)(bench->bytes / dw_dtype_size(one->high)) / BENCH_COLS;
    fill(bench, one->high);
    DW_TRY(prepare(bench, one, rows));
    DW_TRY(choose_rows(bench, one, &rows));
    *result = (bench_result){.rows = rows, .cols = BENCH_COLS};
    DW_TRY(bench_traffic(one, rows, &result->traffic));
    DW_TRY(call(bench, one, &bench->sets[0], rows));
    double kernel[REPETITIONS_MAX], copy[REPETITIONS_MAX], begun = cli_seconds();
    int count = 0;
    while (count < REPETITIONS_MIN || (count < REPETITIONS_MAX && cli_seconds() - begun < CASE_SECONDS)) {
        const bench_set *set = &bench->sets[count % bench->set_count];
        copy[count] = time_copy(bench, set);
        double started = cli_seconds();
        DW_TRY(call(bench, one, &bench->sets[(count + 1) % bench->set_count], rows));
        kernel[count++] = cli_seconds() - started;
    }
    result->repetitions = count;
    result->seconds = bench_median(kernel, count);
    result->copy_seconds = bench_median(copy, count);
    return DW_OK;
}

double bench_rate(const bench_result *result) {
    return 1e-9 * (double)result->traffic / result->seconds;
}

double bench_copy_rate(size_t bytes, const bench_result *result) {
    return 2e-9 * (double)bytes / result->copy_seconds;
}
