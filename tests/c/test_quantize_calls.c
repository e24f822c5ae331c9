/* What a call may and may not be: arguments, empty and strided matrices, overlap, threads, floating-point state. */
#include "matrices.h"

#include <pthread.h>

#include "core/fp_state.h"

static const dw_quantize_spec plain = {
    .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};

static void bad_calls_are_refused(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    float source[4 * 40];
    for (int i = 0; i < 160; i++)
        source[i] = (float)i;
    dw_tensor from = dw_matrix(source, DW_F32, 4, 40);
    dw_quantized row = make_quantized(&plain, 4, 40), transposed = make_quantized(&plain, 40, 4);
    ASSERT_OK(dw_quantize(context, &plain, &from, &row, &transposed, NULL));
    memset(row.data.data, 0xC3, 160);

#define REFUSED(part, ...)                                                                                             \
    do {                                                                                                               \
        dw_quantize_spec spec = plain;                                                                                 \
        dw_tensor x = from;                                                                                            \
        dw_quantized r = row, t = transposed;                                                                          \
        __VA_ARGS__;                                                                                                   \
        assert_failure(dw_quantize(context, &spec, &x, &r, &t, NULL), DW_ERROR_INVALID_ARGUMENT, part);                \
    } while (0)
    REFUSED("spec.element is f16", spec.element = DW_F16);
    REFUSED("source has dtype e4m3", x.dtype = DW_E4M3);
    REFUSED("source has dtype 42", x.dtype = (dw_dtype)42);
    REFUSED("source has rank 3", x.rank = 3);
    REFUSED("source has negative extents [-4, 40]", x.shape[0] = -4);
    REFUSED("source has no data", x.data = NULL);
    REFUSED("source has inner stride 2", x.strides[1] = 2);
    REFUSED("source has row stride 39", x.strides[0] = 39);
    REFUSED("more bytes than can be addressed", x.strides[0] = INT64_MAX / 2);
    REFUSED("source has device type 9", x.device_type = (dw_device_type)9);
    REFUSED("row.data has dtype e5m2; spec.element asks for e4m3", r.data.dtype = DW_E5M2);
    REFUSED("row.scale has dtype e4m3; expected e8m0", r.scale.dtype = DW_E4M3);
    REFUSED("row.data has extents [3, 40]; expected [4, 40]", r.data.shape[0] = 3; r.scale.shape[0] = 3);
    REFUSED("row.scale has extents [4, 1]; expected [4, 2]", r.scale.shape[1] = 1);
    REFUSED("row.scale has row stride 3; scales must be dense", r.scale.strides[0] = 3);
    REFUSED("row.data has inner stride 4", r.data.strides[1] = 4);
    REFUSED("transposed.data has extents [4, 40]; expected [40, 4]", t = row);
    REFUSED("transposed.scale has extents", t.scale.shape[0] = 2);
    REFUSED("row.data is on another device", r.data.device_type = DW_DEVICE_CUDA);
    REFUSED("transposed.scale is on another device", t.scale.device_type = DW_DEVICE_CUDA);
    REFUSED("source and row.data overlap", r.data.data = source);
    REFUSED("source and row.data overlap", r.data.data = (uint8_t *)source + 639);
    REFUSED("row.data and row.scale overlap", r.scale.data = (uint8_t *)row.data.data + 3);
    REFUSED("row.data and transposed.data overlap", t.data.data = row.data.data);
    REFUSED("row.scale and transposed.scale overlap", t.scale.data = row.scale.data);
#undef REFUSED

    int stream;
    assert_failure(dw_quantize(context, &plain, &from, NULL, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "both NULL");
    assert_failure(dw_quantize(NULL, &plain, &from, &row, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "context is NULL");
    assert_failure(dw_quantize(context, NULL, &from, &row, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "spec is NULL");
    assert_failure(dw_quantize(context, &plain, NULL, &row, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "source is NULL");
    assert_failure(dw_quantize(context, &plain, &from, &row, NULL, &stream), DW_ERROR_INVALID_ARGUMENT, "stream");
    for (int i = 0; i < 160; i++)
        assert_int_equal(((uint8_t *)row.data.data)[i], 0xC3); /* nothing was written */

    ASSERT_OK(dw_quantize(context, &plain, &from, &row, NULL, NULL));
    dw_tensor target = dw_matrix(source, DW_F32, 4, 40);
    ASSERT_OK(dw_dequantize(context, &plain, &row, &target, NULL));
    assert_failure(dw_dequantize(context, &plain, NULL, &target, NULL), DW_ERROR_INVALID_ARGUMENT, "source is NULL");
    assert_failure(dw_dequantize(context, &plain, &row, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "target is NULL");
    assert_failure(dw_dequantize(NULL, &plain, &row, &target, NULL), DW_ERROR_INVALID_ARGUMENT, "context is NULL");
    assert_failure(dw_dequantize(context, &plain, &row, &target, &stream), DW_ERROR_INVALID_ARGUMENT, "stream");
    target.shape[0] = 3;
    assert_failure(dw_dequantize(context, &plain, &row, &target, NULL), DW_ERROR_INVALID_ARGUMENT,
                   "source.data has ext");
    target = dw_matrix(row.data.data, DW_F32, 4, 40);
    assert_failure(dw_dequantize(context, &plain, &row, &target, NULL), DW_ERROR_INVALID_ARGUMENT, "overlap");
    target = dw_matrix(source, DW_E5M2, 4, 40);
    assert_failure(dw_dequantize(context, &plain, &row, &target, NULL), DW_ERROR_INVALID_ARGUMENT, "target has dtype");
    free_quantized(&row);
    free_quantized(&transposed);
    dw_context_destroy(context);
}

static void tensors_on_a_gpu_say_what_is_missing(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    /* Addresses that nobody may touch on the host; no device has this number. */
    dw_tensor from = dw_matrix((void *)0x10000, DW_F32, 2, 32);
    dw_quantized to = {dw_matrix((void *)0x20000, DW_E4M3, 2, 32), dw_matrix((void *)0x30000, DW_E8M0, 2, 1)};
    dw_tensor *const all[] = {&from, &to.data, &to.scale};
    for (int i = 0; i < 3; i++) {
        all[i]->device_type = DW_DEVICE_CUDA;
        all[i]->device_id = 77;
    }
    assert_failure(dw_quantize(context, &plain, &from, &to, NULL, NULL), DW_ERROR_UNSUPPORTED, "CUDA");
    assert_failure(dw_dequantize(context, &plain, &to, &from, NULL), DW_ERROR_UNSUPPORTED, "CUDA");
    to.data.device_id = 1;
    assert_failure(dw_quantize(context, &plain, &from, &to, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "another device");
    dw_quantize_stats stats = {0};
    assert_failure(dw_quantize_measure(context, &plain, &from, &stats), DW_ERROR_UNSUPPORTED, "CPU only");
    dw_context_destroy(context);
}

static void empty_matrices_are_fine(void **state) {
    (void)state;
    dw_context *context = make_context(3, NULL);
    static const int64_t extents[][2] = {{0, 0}, {0, 70}, {70, 0}};
    for (int layout = 0; layout < DW_SCALE_LAYOUT_COUNT; layout++)
        for (int i = 0; i < 3; i++) {
            dw_quantize_spec spec = plain;
            spec.layout = (dw_scale_layout)layout;
            dw_tensor from = dw_matrix(NULL, DW_BF16, extents[i][0], extents[i][1]);
            dw_quantized row = make_quantized(&spec, extents[i][0], extents[i][1]);
            dw_quantized transposed = make_quantized(&spec, extents[i][1], extents[i][0]);
            ASSERT_OK(dw_quantize(context, &spec, &from, &row, &transposed, NULL));
            ASSERT_OK(dw_dequantize(context, &spec, &row, &from, NULL));
            free_quantized(&row);
            free_quantized(&transposed);
            dw_quantized nothing = row;
            nothing.data.data = nothing.scale.data = NULL;
            ASSERT_OK(dw_quantize(context, &spec, &from, &nothing, NULL, NULL));
            dw_quantize_stats stats = {0};
            ASSERT_OK(dw_quantize_measure(context, &spec, &from, &stats));
            assert_int_equal(stats.elements, 0);
        }
    dw_context_destroy(context);
}

/* The strides of a dimension of extent 1 are whatever the framework left there. */
static void strides_of_single_rows_and_columns_do_not_matter(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    float source[64];
    for (int i = 0; i < 64; i++)
        source[i] = (float)(i - 20);
    dw_quantized row = make_quantized(&plain, 1, 64), column = make_quantized(&plain, 64, 1);
    dw_tensor one_row = strided(source, DW_F32, 1, 64, -5), one_column = dw_matrix(source, DW_F32, 64, 1);
    row.data.strides[0] = 0;
    row.scale.strides[0] = 99;
    ASSERT_OK(dw_quantize(context, &plain, &one_row, &row, NULL, NULL));
    assert_stated(&plain, &row, source, DW_F32, 64, 1);
    one_column.strides[1] = 64;
    column.data.strides[1] = 17;
    column.scale.strides[1] = 17;
    ASSERT_OK(dw_quantize(context, &plain, &one_column, &column, NULL, NULL));
    assert_stated(&plain, &column, source, DW_F32, 1, 1);
    free_quantized(&row);
    free_quantized(&column);
    dw_context_destroy(context);
}

/* Both halves of each row of one buffer: the outputs interleave but share no byte. */
static void interleaved_outputs_are_allowed(void **state) {
    (void)state;
    dw_context *context = make_context(1, NULL);
    float source[64 * 64];
    dw_random random = {test_seed};
    dw_fill_adversarial(&random, source, DW_F32, 64, 64, 64);
    uint8_t shared[64 * 128];
    dw_quantized row = make_quantized(&plain, 64, 64), transposed = make_quantized(&plain, 64, 64);
    dw_quantized left = row, right = transposed;
    left.data = strided(shared, DW_E4M3, 64, 64, 128);
    right.data = strided(shared + 64, DW_E4M3, 64, 64, 128);
    dw_tensor from = dw_matrix(source, DW_F32, 64, 64);
    ASSERT_OK(dw_quantize(context, &plain, &from, &left, &right, NULL));
    ASSERT_OK(dw_quantize(context, &plain, &from, &row, &transposed, NULL));
    for (int r = 0; r < 64; r++) {
        assert_memory_equal(shared + r * 128, (uint8_t *)row.data.data + r * 64, 64);
        assert_memory_equal(shared + r * 128 + 64, (uint8_t *)transposed.data.data + r * 64, 64);
    }
    right.data.data = shared + 63;
    assert_failure(dw_quantize(context, &plain, &from, &left, &right, NULL), DW_ERROR_INVALID_ARGUMENT, "overlap");
    right.data = strided(shared + 64, DW_E4M3, 64, 64, 127);
    assert_failure(dw_quantize(context, &plain, &from, &left, &right, NULL), DW_ERROR_INVALID_ARGUMENT, "overlap");
    free_quantized(&row);
    free_quantized(&transposed);
    dw_context_destroy(context);
}

/* The same bytes from 1 to 7 threads, on shapes that split in every way. */
static void the_number_of_threads_changes_nothing(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 300001}, {300001, 1}, {130, 5003}, {5003, 130}, {777, 771}, {3, 100000}};
    dw_context *one = make_context(1, NULL);
    dw_random random = {test_seed};
    for (int i = 0; i < 6; i++) {
        int64_t rows = shapes[i][0], cols = shapes[i][1];
        uint16_t *source = malloc((size_t)(rows * cols) * 2);
        float *back = malloc((size_t)(rows * cols) * 4), *again = malloc((size_t)(rows * cols) * 4);
        dw_fill_adversarial(&random, source, DW_BF16, rows, cols, cols);
        dw_tensor from = dw_matrix(source, DW_BF16, rows, cols), target = dw_matrix(back, DW_F32, rows, cols);
        for (int block = 0; block < DW_BLOCK_COUNT; block++) {
            dw_quantize_spec spec = {
                .element = DW_E4M3, .block = (dw_block)block, .rounding = DW_ROUND_FLOOR, .layout = DW_SCALE_MN_MAJOR};
            dw_quantized row = make_quantized(&spec, rows, cols), transposed = make_quantized(&spec, cols, rows);
            dw_quantize_stats stats = {0};
            ASSERT_OK(dw_quantize(one, &spec, &from, &row, &transposed, NULL));
            ASSERT_OK(dw_dequantize(one, &spec, &row, &target, NULL));
            ASSERT_OK(dw_quantize_measure(one, &spec, &from, &stats));
            for (int threads = 2; threads <= 7; threads += 5) {
                dw_context *many = make_context(threads, NULL);
                dw_quantized row2 = make_quantized(&spec, rows, cols), transposed2 = make_quantized(&spec, cols, rows);
                dw_tensor target2 = dw_matrix(again, DW_F32, rows, cols);
                dw_quantize_stats stats2 = {0};
                ASSERT_OK(dw_quantize(many, &spec, &from, &row2, &transposed2, NULL));
                ASSERT_OK(dw_dequantize(many, &spec, &row2, &target2, NULL));
                ASSERT_OK(dw_quantize_measure(many, &spec, &from, &stats2));
                assert_memory_equal(row.data.data, row2.data.data, (size_t)(rows * cols));
                assert_memory_equal(transposed.data.data, transposed2.data.data, (size_t)(rows * cols));
                assert_memory_equal(row.scale.data, row2.scale.data, scale_bytes_of(&row));
                assert_memory_equal(transposed.scale.data, transposed2.scale.data, scale_bytes_of(&transposed));
                assert_memory_equal(back, again, (size_t)(rows * cols) * 4);
                assert_memory_equal(&stats, &stats2, sizeof stats);
                free_quantized(&row2);
                free_quantized(&transposed2);
                dw_context_destroy(many);
            }
            free_quantized(&row);
            free_quantized(&transposed);
        }
        free(source);
        free(back);
        free(again);
    }
    dw_context_destroy(one);
}

/* Sets flush-to-zero and rounding towards plus infinity, as a framework might; returns what was set. */
static uint64_t set_odd_state(void) {
#if defined(__x86_64__)
    _mm_setcsr(0x1F80 | 0x8040 | 0x4000);
    return _mm_getcsr();
#else
    uint64_t odd = 1u << 24 | 1u << 22;
    __asm__ volatile("msr fpcr, %0" : : "r"(odd) : "memory");
    return odd;
#endif
}

static uint64_t get_state(void) {
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3Fu;
#else
    uint64_t now;
    __asm__ volatile("mrs %0, fpcr" : "=r"(now));
    return now;
#endif
}

static void the_callers_floating_point_state_changes_nothing(void **state) {
    (void)state;
    enum { ROWS = 300, COLS = 500 };
    float *source = malloc(ROWS * COLS * 4), *back = malloc(ROWS * COLS * 4), *again = malloc(ROWS * COLS * 4);
    dw_random random = {test_seed};
    for (int64_t i = 0; i < ROWS * COLS; i++) { /* subnormals, alone in most blocks */
        uint32_t bits = (uint32_t)dw_random_next(&random) & 0x807FFFFF;
        memcpy(&source[i], &bits, 4);
    }
    dw_tensor from = dw_matrix(source, DW_F32, ROWS, COLS);
    dw_tensor target = dw_matrix(back, DW_F32, ROWS, COLS), target2 = dw_matrix(again, DW_F32, ROWS, COLS);
    const char *isas[3];
    int count = runnable_isas(isas);
    for (int i = 0; i < count; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            dw_context *context = make_context(threads, isas[i]);
            dw_quantized row = make_quantized(&plain, ROWS, COLS), row2 = make_quantized(&plain, ROWS, COLS);
            dw_quantized transposed = make_quantized(&plain, COLS, ROWS),
                         transposed2 = make_quantized(&plain, COLS, ROWS);
            uint64_t saved = dw_fp_state_default(), odd = set_odd_state();
            dw_status first = dw_quantize(context, &plain, &from, &row, &transposed, NULL);
            dw_status second = dw_dequantize(context, &plain, &row, &target, NULL);
            uint64_t left = get_state();
            dw_fp_state_restore(saved);
            assert_int_equal(first, DW_OK);
            assert_int_equal(second, DW_OK);
            assert_int_equal(left, odd);
            ASSERT_OK(dw_quantize(context, &plain, &from, &row2, &transposed2, NULL));
            ASSERT_OK(dw_dequantize(context, &plain, &row2, &target2, NULL));
            assert_stated(&plain, &row, source, DW_F32, COLS, 1);
            assert_stated(&plain, &transposed, source, DW_F32, 1, COLS);
            assert_memory_equal(back, again, ROWS * COLS * 4);
            free_quantized(&row);
            free_quantized(&row2);
            free_quantized(&transposed);
            free_quantized(&transposed2);
            dw_context_destroy(context);
        }
    free(source);
    free(back);
    free(again);
}

typedef struct shared_use {
    dw_context *context;
    uint64_t seed;
} shared_use;

static void *quantize_often(void *argument) {
    shared_use *use = argument;
    dw_random random = {use->seed};
    enum { ROWS = 260, COLS = 700 };
    float *source = malloc(ROWS * COLS * 4);
    for (int i = 0; i < 5; i++) {
        dw_fill_adversarial(&random, source, DW_F32, ROWS, COLS, COLS);
        dw_tensor from = dw_matrix(source, DW_F32, ROWS, COLS);
        dw_quantized to = make_quantized(&plain, ROWS, COLS), wanted = make_quantized(&plain, ROWS, COLS);
        bool ok = dw_quantize(use->context, &plain, &from, &to, NULL, NULL) == DW_OK;
        state_quantized(&plain, source, DW_F32, COLS, 1, ROWS, COLS, wanted.data.data, wanted.scale.data);
        ok = ok && !memcmp(to.data.data, wanted.data.data, ROWS * COLS) &&
             !memcmp(to.scale.data, wanted.scale.data, scale_bytes_of(&to));
        free_quantized(&to);
        free_quantized(&wanted);
        if (!ok) return use;
    }
    free(source);
    return NULL;
}

static void a_context_serves_several_threads_at_once(void **state) {
    (void)state;
    dw_context *context = make_context(3, NULL);
    pthread_t threads[4];
    shared_use uses[4];
    for (int i = 0; i < 4; i++) {
        uses[i] = (shared_use){context, test_seed + (uint64_t)i};
        assert_int_equal(pthread_create(&threads[i], NULL, quantize_often, &uses[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    dw_context_destroy(context);
}

/* A thread with as much stack as dw_quantize asks for, and 64 KiB for itself; and what some systems give a thread,
 * where the library's own must have more. Sanitizers need more. */
#ifdef __SANITIZE_ADDRESS__
enum { SMALL_STACK = 8 << 20, SYSTEM_STACK = 8 << 20 };
#else
enum { SMALL_STACK = (512 + 64) << 10, SYSTEM_STACK = 128 << 10 };
#endif

typedef struct small_use {
    dw_context *context;
    dw_block block;
    const dw_tensor *from;
    dw_quantized row, transposed;
    dw_status status;
} small_use;

static void *quantize_in_little_room(void *argument) {
    small_use *use = argument;
    dw_quantize_spec spec = plain;
    spec.block = use->block;
    use->status = dw_quantize(use->context, &spec, use->from, &use->row, &use->transposed, NULL);
    return NULL;
}

static void little_stack_is_enough(void **state) {
    (void)state;
    enum { ROWS = 520, COLS = 2100 };
    dw_random random = {test_seed};
    float *values = malloc((size_t)ROWS * COLS * 4);
    dw_fill_adversarial(&random, values, DW_BF16, ROWS, COLS, COLS);
    const dw_tensor from = dw_matrix(values, DW_BF16, ROWS, COLS);
    pthread_attr_t attributes, usual;
    assert_int_equal(pthread_attr_init(&attributes), 0);
    assert_int_equal(pthread_getattr_default_np(&usual), 0);
    assert_int_equal(pthread_attr_setstacksize(&attributes, SYSTEM_STACK), 0);
    assert_int_equal(pthread_setattr_default_np(&attributes), 0);
    assert_int_equal(pthread_attr_setstacksize(&attributes, SMALL_STACK), 0);
    for (int n = 0; n < 2 * DW_BLOCK_COUNT; n++) {
        const int block = n / 2;
        dw_context *context = make_context(n % 2 ? 4 : 1, NULL);
        dw_quantize_spec spec = plain;
        spec.block = (dw_block)block;
        small_use use = {
            context,           spec.block, &from, make_quantized(&spec, ROWS, COLS), make_quantized(&spec, COLS, ROWS),
            DW_ERROR_CANCELLED};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, &attributes, quantize_in_little_room, &use), 0);
        pthread_join(thread, NULL);
        assert_int_equal(use.status, DW_OK);
        assert_stated(&spec, &use.row, values, DW_BF16, COLS, 1);
        assert_stated(&spec, &use.transposed, values, DW_BF16, 1, COLS);
        free_quantized(&use.row);
        free_quantized(&use.transposed);
        dw_context_destroy(context);
    }
    assert_int_equal(pthread_setattr_default_np(&usual), 0);
    pthread_attr_destroy(&attributes);
    pthread_attr_destroy(&usual);
    free(values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(tensors_on_a_gpu_say_what_is_missing),
        cmocka_unit_test(empty_matrices_are_fine),
        cmocka_unit_test(strides_of_single_rows_and_columns_do_not_matter),
        cmocka_unit_test(interleaved_outputs_are_allowed),
        cmocka_unit_test(the_number_of_threads_changes_nothing),
        cmocka_unit_test(the_callers_floating_point_state_changes_nothing),
        cmocka_unit_test(a_context_serves_several_threads_at_once),
        cmocka_unit_test(little_stack_is_enough),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
