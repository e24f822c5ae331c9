/* Tuning the Hopper matrix kernels against the stand-in driver, on which a launch takes the time this file says: the
 * fastest is found, remembered, used for its shape alone, and a file that is not ours is not trusted. */
#include "cache_folder.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/device/sm90/gemm_params.h"
#include "cuda/host/cache_file.h"
#include "cuda/host/gemm_tuning.h"
#include "cuda/host/images.h"
#include "fake/fake_cuda.h"
#include "products.h"

#define MULTIPROCESSORS 16000 /* of the stand-in */

static fake_cuda_state *fake;
static dw_context *context;
static char cache[64], warning[8192];
static int warnings;

static void keep_warning(const char *text, void *data) {
    (void)data;
    snprintf(warning, sizeof warning, "%s", text);
    warnings++;
}

/* ---- what launches take ---- */

static const char
    *fast; /* this kernel, with this band, takes `fast_us`; with another `band_us` more; the others 1000 */
static int fast_band, fast_us, band_us, launches;
static char launched[128];
static dw_gemm_sm90_params parameters; /* of the last launch */

static void take_time(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    (void)config;
    launches++;
    snprintf(launched, sizeof launched, "%s", symbol);
    memcpy(&parameters, arguments[0], sizeof parameters);
    bool is_fast = fast && strcmp(symbol, fast) == 0;
    atomic_fetch_add(&fake->microseconds, is_fast ? fast_us + (parameters.band == fast_band ? 0 : band_us) : 1000);
}

static dw_gemm_sm90_shape shape_of(int64_t m, int64_t n, int64_t k) {
    return (dw_gemm_sm90_shape){.m = m, .n = n, .k = k, .groups = 1, .scale_f32 = true};
}

/* A row that serves the shape, is not what the shape alone suggests, and has no use for a workspace. */
static int another_row(const dw_gemm_sm90_shape *shape) {
    int predicted = dw_gemm_sm90_choose(shape, MULTIPROCESSORS, 0, NULL);
    for (;;) {
        test_seed = test_seed * 6364136223846793005u + 1442695040888963407u;
        int row = (int)((test_seed >> 33) % dw_gemm_sm90_count());
        const dw_gemm_sm90_row *other = dw_gemm_sm90_get((size_t)row);
        if (row != predicted && dw_gemm_sm90_serves(other, shape) &&
            dw_gemm_sm90_workspace(other, shape, MULTIPROCESSORS) == 0)
            return row;
    }
}

static const char *name_of(int row) {
    return dw_gemm_sm90_get((size_t)row)->name;
}

static const char *predicted_for(const dw_gemm_sm90_shape *shape) {
    return name_of(dw_gemm_sm90_choose(shape, MULTIPROCESSORS, 0, NULL));
}

static const char *launched_for(int64_t m, int64_t n, int64_t k) {
    dw_gemm_args args = product(m, n, k);
    *launched = 0;
    ASSERT_OK(dw_gemm(context, &args, NULL));
    return launched;
}

/* Tunes 4096 x 4096 x 4096 with another row the fastest, and returns its name. */
static const char *tune_one(void) {
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    dw_gemm_args args = product(4096, 4096, 4096);
    dw_gemm_tuned tuned;
    fast = name_of(another_row(&shape));
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_string_equal(tuned.kernel, fast);
    return fast;
}

/* ---- the cache folder ---- */

static bool cache_file(char path[512]) {
    char folder[128];
    snprintf(folder, sizeof folder, "%s/deepwell", cache);
    return only_file(folder, path);
}

static int set_up(void **state) {
    (void)state;
    make_cache(cache);
    unsetenv("DEEPWELL_TUNING");
    fake->fail = NULL;
    fake->on_launch = take_time;
    fake->major[0] = 9;
    fake->minor[0] = 0;
    fast = NULL;
    fast_band = 8;
    fast_us = 100;
    band_us = 10;
    launches = warnings = 0;
    *warning = 0;
    dw_gemm_tuning_forget();
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        set_proof(i, DW_PROOF_TRUSTED);
    context = make_context(1, NULL);
    dw_set_warning_handler(keep_warning, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    dw_set_warning_handler(NULL, NULL);
    dw_context_destroy(context);
    remove_cache(cache);
    return 0;
}

/* ---- tests ---- */

static void the_fastest_is_used_for_its_shape_alone(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    const char *predicted = predicted_for(&shape);
    assert_string_equal(launched_for(4096, 4096, 4096), predicted);
    assert_int_equal(parameters.band, dw_gemm_sm90_band(dw_gemm_sm90_get(
                                          (size_t)dw_gemm_sm90_choose(&shape, MULTIPROCESSORS, 0, NULL))));
    fast = name_of(another_row(&shape));
    fast_band = 4;
    dw_gemm_args args = product(4096, 4096, 4096);
    dw_gemm_tuned tuned;
    launches = 0;
    int flushes = fake->memsets;
    args.workspace = memory;
    args.workspace_bytes = sizeof memory;
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_string_equal(tuned.kernel, fast);
    assert_int_equal(tuned.band, 4);
    assert_string_equal(tuned.predicted, predicted);
    assert_true(tuned.remembered);
    assert_true(tuned.measured > 2);
    assert_int_equal(launches % tuned.measured, 0); /* all as often */
    assert_true(launches / tuned.measured >= 3);
    assert_int_equal(fake->memsets - flushes, launches);
    /* An event takes a millisecond of its own here. */
    assert_float_equal(tuned.seconds, 1e-3 + 1e-4, 1e-6);
    assert_float_equal(tuned.predicted_seconds, 1e-3 + 1e-3, 1e-6);

    for (int process = 0; process < 2; process++) {
        assert_string_equal(launched_for(4096, 4096, 4096), fast);
        assert_int_equal(parameters.band, 4);
        static const int64_t others[][3] = {{4100, 4096, 4096}, {4096, 4104, 4096}, {4096, 4096, 4112}};
        for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
            shape = shape_of(others[i][0], others[i][1], others[i][2]);
            assert_string_equal(launched_for(shape.m, shape.n, shape.k), predicted_for(&shape));
        }
        dw_gemm_args other = product(4096, 4096, 4096);
        other.d = view(DW_F32, 4096, 4096, 4096, 1);
        ASSERT_OK(dw_gemm(context, &other, NULL));
        assert_non_null(strstr(launched, "_f32__sm90"));
        dw_gemm_tuning_forget(); /* the next process: nothing known but the file */
    }
    assert_int_equal(warnings, 0);

    char path[512], text[4096];
    assert_true(cache_file(path));
    assert_non_null(strstr(path, "/gemm-Fake-GPU-0-"));
    read_file(path, text, sizeof text);
    assert_non_null(strstr(text, "device Fake GPU 0, 16000 multiprocessors\ndriver 13000, "));
    char line[256];
    snprintf(line, sizeof line, "\n4096 4096 4096 1 %s 4: 1100.00 us, predicted choice 2000.00 us\nend ", fast);
    assert_non_null(strstr(text, line));
}

static void tuning_again_replaces_the_choice(void **state) {
    (void)state;
    char path[512], text[4096];
    const char *first = tune_one(), *second = first;
    while (second == first)
        second = tune_one();
    assert_string_equal(launched_for(4096, 4096, 4096), second);
    dw_gemm_args args = product(512, 512, 512);
    dw_gemm_tuned tuned;
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_true(cache_file(path));
    read_file(path, text, sizeof text);
    char line[2][256]; /* whole names: one may begin like another */
    snprintf(line[0], sizeof line[0], "\n4096 4096 4096 1 %s ", first);
    snprintf(line[1], sizeof line[1], "\n4096 4096 4096 1 %s ", second);
    assert_null(strstr(text, line[0]));
    assert_non_null(strstr(text, line[1]));
    assert_non_null(strstr(text, "\n512 512 512 1 "));
}

static void small_differences_change_nothing(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    dw_gemm_args args = product(4096, 4096, 4096);
    dw_gemm_tuned tuned;
    fast = name_of(another_row(&shape));
    fast_us = 985; /* of 2000 with the events': three quarters of a percent */
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_string_equal(tuned.kernel, tuned.predicted);
    assert_int_equal(tuned.band, tuned.predicted_band);
    fast_us = 970;
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_string_equal(tuned.kernel, fast);
}

static void a_kernel_that_failed_is_neither_measured_nor_used(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    const char *chosen = tune_one();
    size_t row = 0;
    while (strcmp(name_of((int)row), chosen) != 0)
        row++;
    set_proof(row, DW_PROOF_REFUTED);
    assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
    dw_gemm_args args = product(4096, 4096, 4096);
    dw_gemm_tuned tuned;
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned)); /* it would be the fastest again */
    assert_string_equal(tuned.kernel, tuned.predicted);
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        set_proof(i, DW_PROOF_REFUTED);
    assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_UNSUPPORTED, "failed its self-test");
}

static void grouped_products_are_tuned_too(void **state) {
    (void)state;
    for (int axis = 0; axis < 2; axis++) {
        dw_grouped_gemm_args args = grouped((dw_group_axis)axis, 8, 4096, 2048, 1024);
        dw_gemm_sm90_shape shape = {.m = 4096,
                                    .n = 2048,
                                    .k = 1024,
                                    .groups = 8,
                                    .grouping = axis ? DW_GEMM_GROUPED_K : DW_GEMM_GROUPED_M,
                                    .scale_f32 = true};
        /* Along K there is one kernel, and its band to choose, which counts without a workspace too. */
        band_us = 500;
        fast = axis ? predicted_for(&shape) : name_of(another_row(&shape));
        fast_band = 4;
        fast_us = 10;
        dw_gemm_tuned tuned;
        ASSERT_OK(dw_grouped_gemm_tune(context, &args, NULL, &tuned));
        assert_string_equal(tuned.kernel, fast);
        dw_gemm_tuning_forget();
        ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
        assert_string_equal(launched, fast);
        assert_int_equal(parameters.band, tuned.band);
        if (axis == 1) assert_int_equal(tuned.band, fast_band);
        if (axis == 0) {
            args = grouped(DW_GROUP_M, 4, 4096, 2048, 1024);
            shape.groups = 4;
            ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
            assert_string_equal(launched, predicted_for(&shape));
        }
    }
}

/* What wins by splitting tiles is taken where there is a workspace for that, and only there; without one, kernels that
 * would split are not measured. */
static void what_won_with_a_workspace_wants_one(void **state) {
    (void)state;
    static _Alignas(256) char region[256]; /* nothing runs */
    const size_t bytes = (size_t)3 << 30;  /* that many for 16000 blocks */
    dw_grouped_gemm_args args = grouped(DW_GROUP_M, 8, 4096, 2048, 4096);
    const dw_gemm_sm90_shape shape = {
        .m = 4096, .n = 2048, .k = 4096, .groups = 8, .grouping = DW_GEMM_GROUPED_M, .scale_f32 = true};
    dw_gemm_tuned tuned;
    size_t row = 0;
    const int predicted = dw_gemm_sm90_choose(&shape, MULTIPROCESSORS, 0, NULL);
    while (!dw_gemm_sm90_get(row)->splits || !dw_gemm_sm90_serves(dw_gemm_sm90_get(row), &shape) ||
           (int)row == dw_gemm_sm90_choose(&shape, MULTIPROCESSORS, bytes, NULL) || (int)row == predicted)
        row++;
    fast = name_of((int)row);
    fast_us = 10;
    ASSERT_OK(dw_grouped_gemm_tune(context, &args, NULL, &tuned));
    assert_string_not_equal(tuned.kernel, fast);
    args.workspace = region;
    args.workspace_bytes = bytes;
    ASSERT_OK(dw_grouped_gemm_tune(context, &args, NULL, &tuned));
    assert_string_equal(tuned.kernel, fast);
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_string_equal(launched, fast);
    assert_ptr_equal(parameters.workspace, region);
    args.workspace_bytes = dw_gemm_sm90_workspace(dw_gemm_sm90_get(row), &shape, MULTIPROCESSORS) - 1;
    ASSERT_OK(dw_grouped_gemm(context, &args, NULL));
    assert_string_not_equal(launched, fast);
    args.workspace = region + 16;
    assert_failure(dw_grouped_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_INVALID_ARGUMENT, "256 bytes");
    dw_gemm_args dense = product(4096, 4096, 4096);
    dense.workspace = region + 16;
    dense.workspace_bytes = 64;
    assert_failure(dw_gemm_tune(context, &dense, NULL, &tuned), DW_ERROR_INVALID_ARGUMENT, "256 bytes");
}

static void damaged_and_foreign_files_are_ignored_with_a_note(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    const char *chosen = tune_one();
    char path[512], good[4096], bad[4096];
    assert_true(cache_file(path));
    const size_t length = read_file(path, good, sizeof good);
    for (int damage = 0; damage < 9; damage++) {
        size_t size = length;
        memcpy(bad, good, length + 1);
        unlink(path);
        switch (damage) {
        case 0: bad[length / 2] ^= 1; break;
        case 1: size = length - 1; break;
        case 2: size = 0; break;
        case 3: *strstr(bad, "format 1") = 'F'; break;
        case 4: memcpy(strstr(bad, "driver 13000"), "driver 12000", 12); break;
        case 5: memset(bad, 'x', length); break;
        case 6: bad[10] = 0; break;
        case 7: memcpy(strstr(bad, "16000 multi"), "15000 multi", 11); break;
        default: assert_int_equal(symlink("elsewhere", path), 0); break;
        }
        if (damage < 8) write_file(path, bad, size);
        dw_gemm_tuning_forget();
        warnings = 0;
        dw_fail(DW_ERROR_IO, "what was before");
        for (int call = 0; call < 2; call++)
            assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
        assert_int_equal(warnings, 1);
        assert_non_null(strstr(warning, path));
        assert_string_equal(dw_last_error(), "what was before");
        fast = chosen; /* tuning makes it whole again */
        dw_gemm_args args = product(4096, 4096, 4096);
        dw_gemm_tuned tuned;
        ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
        read_file(path, bad, sizeof bad);
        assert_string_equal(bad, good);
    }
}

static bool same_number(const char *old, const char *added) {
    return atoi(old) == atoi(added);
}

/* A whole file, only not of this format. */
static void a_sound_file_of_another_format_is_foreign(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    const char *chosen = tune_one();
    char path[512], line[256];
    assert_true(cache_file(path));
    unlink(path);
    snprintf(line, sizeof line, "4096 4096 4096 1 %s 8", chosen);
    const dw_cache_kind other = {.name = "gemm", .title = "something else", .format = 1};
    dw_cache_file file;
    assert_true(dw_cache_file_of(0, &other, &file));
    assert_string_equal(file.path, path);
    assert_true(dw_cache_file_add(&file, line, same_number));
    dw_gemm_tuning_forget();
    assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, path));
}

static void the_environment_is_obeyed(void **state) {
    (void)state;
    dw_gemm_sm90_shape shape = shape_of(4096, 4096, 4096);
    dw_gemm_args args = product(4096, 4096, 4096);
    dw_gemm_tuned tuned;
    const char *chosen = tune_one();
    char folder[128], path[512];

    setenv("DEEPWELL_TUNING", "off", 1);
    dw_gemm_tuning_forget();
    assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
    launches = 0;
    assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_UNSUPPORTED, "off");
    assert_int_equal(launches, 0);
    assert_int_equal(warnings, 0);

    setenv("DEEPWELL_TUNING", "elsewhere", 1);
    dw_gemm_tuning_forget();
    assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
    assert_non_null(strstr(warning, "'elsewhere'"));
    assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_INVALID_ARGUMENT, "'elsewhere'");

    snprintf(folder, sizeof folder, "%s/mine/tuning", cache);
    setenv("DEEPWELL_TUNING", folder, 1);
    dw_gemm_tuning_forget();
    assert_string_equal(launched_for(4096, 4096, 4096), predicted_for(&shape));
    ASSERT_OK(dw_gemm_tune(context, &args, NULL, &tuned));
    assert_true(only_file(folder, path));
    dw_gemm_tuning_forget();
    assert_string_equal(launched_for(4096, 4096, 4096), chosen);
}

static void without_a_file_a_choice_holds_for_the_process(void **state) {
    (void)state;
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    const char *chosen = tune_one();
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, "cannot write /proc/nowhere/deepwell/gemm-"));
    assert_string_equal(launched_for(4096, 4096, 4096), chosen);
    setenv("XDG_CACHE_HOME", "", 1);
    setenv("HOME", "", 1);
    dw_gemm_tuning_forget();
    chosen = tune_one();
    assert_non_null(strstr(warning, "no home"));
    assert_string_equal(launched_for(4096, 4096, 4096), chosen);
}

static void refusals(void **state) {
    (void)state;
    dw_gemm_tuned tuned;
    dw_gemm_args args = product(0, 4096, 4096);
    assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_UNSUPPORTED, "empty");
    args = product(4096, 4096, 4096);
    args.d.dtype = DW_F16;
    assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_UNSUPPORTED, "neither bf16 nor f32");
    args = product(4096, 4096, 4096);
    assert_failure(dw_gemm_tune(context, &args, NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "tuned");
    static const char *const calls[] = {"cuEventCreate", "cuEventRecord", "cuStreamSynchronize", "cuLaunchKernelEx"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        fake->fail = calls[i];
        fake->fail_result = FAKE_RESULT;
        assert_failure(dw_gemm_tune(context, &args, NULL, &tuned), DW_ERROR_DEVICE, calls[i]);
    }
    dw_grouped_gemm_args many = grouped(DW_GROUP_M, 0, 0, 2048, 1024);
    fake->fail = NULL;
    assert_failure(dw_grouped_gemm_tune(context, &many, NULL, &tuned), DW_ERROR_UNSUPPORTED, "empty");
    char path[512];
    assert_false(cache_file(path));
}

/* As many as are said to be kept are kept, each its own, and the next is refused. */
static void a_full_table_says_so(void **state) {
    (void)state;
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    bool remembered;
    int kept = 0;
    dw_status status = DW_OK;
    dw_gemm_sm90_choice choice = {.row = 0};
    for (; status == DW_OK && kept <= 4096; kept += status == DW_OK) {
        dw_gemm_sm90_shape shape = shape_of(16 + 16 * kept, 4096, 4096);
        choice.band = 1 + kept % 100;
        status = dw_gemm_tuning_keep(0, &shape, &choice, 1, 1, &remembered);
    }
    assert_failure(status, DW_ERROR_OUT_OF_MEMORY, "1536");
    assert_int_equal(kept, 1536);
    for (int i = 0; i <= kept; i++) {
        dw_gemm_sm90_shape shape = shape_of(16 + 16 * i, 4096, 4096);
        dw_gemm_sm90_choice found = {-1, -1};
        assert_int_equal(dw_gemm_tuning_find(0, &shape, &found), i < kept);
        if (i < kept) assert_int_equal(found.band, 1 + i % 100);
    }
}

/* ---- several at once ---- */

enum { THREADS = 4, SHAPES = 300, LINES = 25 };
static atomic_int wrong, finders_done;

static void *find_all(void *argument) {
    (void)argument;
    for (int found = 0; found < SHAPES;) {
        found = 0;
        for (int i = 0; i < SHAPES; i++) {
            dw_gemm_sm90_shape shape = shape_of(16 + i, 64, 128);
            dw_gemm_sm90_choice choice;
            if (!dw_gemm_tuning_find(1, &shape, &choice)) continue;
            found++;
            if (choice.band != 1 + i) atomic_fetch_add(&wrong, 1);
        }
    }
    atomic_fetch_add(&finders_done, 1);
    return NULL;
}

static void threads_find_what_another_adds(void **state) {
    (void)state;
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, find_all, NULL), 0);
    for (int i = 0; i < SHAPES; i++) {
        dw_gemm_sm90_shape shape = shape_of(16 + i, 64, 128);
        dw_gemm_sm90_choice choice = {.row = 0, .band = 1 + i};
        bool remembered;
        ASSERT_OK(dw_gemm_tuning_keep(1, &shape, &choice, 1, 1, &remembered));
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(wrong, 0);
    assert_int_equal(finders_done, THREADS);
}

static void processes_lose_none_of_each_others_lines(void **state) {
    (void)state;
    const dw_cache_kind kind = {.name = "test", .title = "test", .format = 1};
    dw_cache_file file;
    assert_true(dw_cache_file_of(0, &kind, &file));
    pid_t children[THREADS];
    for (int p = 0; p < THREADS; p++) {
        children[p] = fork();
        if (children[p] != 0) continue;
        bool good = true;
        for (int i = 0; i < LINES; i++) {
            char line[32];
            snprintf(line, sizeof line, "%d", LINES * p + i);
            good &= dw_cache_file_add(&file, line, same_number);
        }
        _exit(good ? 0 : 1);
    }
    for (int p = 0; p < THREADS; p++) {
        int status;
        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_int_equal(status, 0);
    }
    bool foreign, seen[THREADS * LINES] = {false};
    char *lines = dw_cache_file_read(&file, &foreign);
    assert_non_null(lines);
    int count = 0;
    for (const char *at = lines; *at; at = strchr(at, '\n') + 1, count++)
        seen[atoi(at)] = true;
    free(lines);
    assert_int_equal(count, THREADS * LINES);
    for (int i = 0; i < THREADS * LINES; i++)
        assert_true(seen[i]);
}

int main(void) {
    setenv("DEEPWELL_LIBCUDA", FAKE_LIBCUDA, 1);
    setenv("DEEPWELL_LIBCUBLASLT", FAKE_LIBCUBLASLT, 1);
    void *library = dlopen(FAKE_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (dw_cuda_image_total == 0) {
        printf("built without device code\n");
        return 0;
    }
    fake = dlsym(library, "fake_cuda");
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(the_fastest_is_used_for_its_shape_alone),
        TEST(tuning_again_replaces_the_choice),
        TEST(small_differences_change_nothing),
        TEST(a_kernel_that_failed_is_neither_measured_nor_used),
        TEST(grouped_products_are_tuned_too),
        TEST(what_won_with_a_workspace_wants_one),
        TEST(damaged_and_foreign_files_are_ignored_with_a_note),
        TEST(a_sound_file_of_another_format_is_foreign),
        TEST(the_environment_is_obeyed),
        TEST(without_a_file_a_choice_holds_for_the_process),
        TEST(refusals),
        TEST(a_full_table_says_so),
        TEST(threads_find_what_another_adds),
        TEST(processes_lose_none_of_each_others_lines),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
