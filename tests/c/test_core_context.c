/* Contexts: defaults, options, environment, errors; processor facts; status texts. */
#include "support.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

static int clear_environment(void **state) {
    (void)state;
    unsetenv("DEEPWELL_THREADS");
    unsetenv("DEEPWELL_ISA");
    return 0;
}

static void defaults_follow_the_machine(void **state) {
    (void)state;
    dw_cpu_info cpu;
    ASSERT_OK(dw_probe_cpu(&cpu));
    assert_true(cpu.logical_processors >= 1);
    assert_true(cpu.memory_bytes > 64 << 20);
    assert_true(strlen(cpu.vendor) > 0 && strlen(cpu.model) > 0);
    assert_true(!cpu.has_avx512 || cpu.has_avx2);
    const char *names[3];
    int count = runnable_isas(names);
    dw_context *context = NULL;
    ASSERT_OK(dw_context_create(NULL, &context));
    assert_int_equal(dw_context_threads(context), cpu.logical_processors);
    assert_string_equal(dw_context_isa(context), names[count - 1]);
    dw_context_destroy(context);
    dw_context_destroy(NULL);
}

static void probing_respects_the_affinity_mask(void **state) {
    (void)state;
    cpu_set_t saved, one;
    assert_int_equal(sched_getaffinity(0, sizeof saved, &saved), 0);
    int first = 0;
    while (!CPU_ISSET(first, &saved))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    dw_cpu_info cpu;
    ASSERT_OK(dw_probe_cpu(&cpu));
    assert_int_equal(sched_setaffinity(0, sizeof saved, &saved), 0);
    assert_int_equal(cpu.logical_processors, 1);
}

#if defined(__x86_64__)
/* The compiler's own view of the processor, which also asks the operating system. */
static void instruction_sets_agree_with_the_compiler(void **state) {
    (void)state;
    dw_cpu_info cpu;
    ASSERT_OK(dw_probe_cpu(&cpu));
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512vbmi");
    assert_int_equal(cpu.has_avx2, avx2);
    assert_int_equal(cpu.has_avx512, avx512);
}
#endif

static void options_and_environment_choose(void **state) {
    (void)state;
    setenv("DEEPWELL_THREADS", "3", 1);
    setenv("DEEPWELL_ISA", "ref", 1);
    dw_context *context = make_context(0, NULL);
    assert_int_equal(dw_context_threads(context), 3);
    assert_string_equal(dw_context_isa(context), "ref");
    dw_context_destroy(context);
    /* Options win over the environment, even over a bad one. */
    setenv("DEEPWELL_THREADS", "many", 1);
    setenv("DEEPWELL_ISA", "mmx", 1);
    context = make_context(5, "ref");
    assert_int_equal(dw_context_threads(context), 5);
    dw_context_destroy(context);
    /* Empty is unset. */
    setenv("DEEPWELL_THREADS", "", 1);
    setenv("DEEPWELL_ISA", "", 1);
    context = make_context(0, NULL);
    assert_true(dw_context_threads(context) >= 1);
    dw_context_destroy(context);
    clear_environment(NULL);
    const char *names[3];
    int count = runnable_isas(names);
    for (int i = 0; i < count; i++) {
        context = make_context(1, names[i]);
        assert_string_equal(dw_context_isa(context), names[i]);
        dw_context_destroy(context);
    }
}

static void bad_options_are_named(void **state) {
    (void)state;
    dw_context *context = (dw_context *)&context;
    static const char *const bad_threads[] = {"0", "-1", "two", "2x", "1025", "99999999999999999999", " "};
    for (size_t i = 0; i < sizeof bad_threads / sizeof *bad_threads; i++) {
        setenv("DEEPWELL_THREADS", bad_threads[i], 1);
        assert_failure(dw_context_create(NULL, &context), DW_ERROR_INVALID_ARGUMENT, "DEEPWELL_THREADS");
        assert_failure(DW_ERROR_INVALID_ARGUMENT, DW_ERROR_INVALID_ARGUMENT, bad_threads[i]);
    }
    clear_environment(NULL);
    setenv("DEEPWELL_ISA", "AVX2", 1);
    assert_failure(dw_context_create(NULL, &context), DW_ERROR_INVALID_ARGUMENT,
                   "DEEPWELL_ISA is \"AVX2\"; expected ref, avx2 or avx512");
    clear_environment(NULL);
    dw_context_options options = {.threads = -1};
    assert_failure(dw_context_create(&options, &context), DW_ERROR_INVALID_ARGUMENT, "options.threads is -1");
    options = (dw_context_options){.threads = 1025};
    assert_failure(dw_context_create(&options, &context), DW_ERROR_INVALID_ARGUMENT, "options.threads is 1025");
    options = (dw_context_options){.isa = "sse"};
    assert_failure(dw_context_create(&options, &context), DW_ERROR_INVALID_ARGUMENT, "options.isa is \"sse\"");
    const char *names[3];
    if (runnable_isas(names) < 3) {
        options = (dw_context_options){.isa = "avx512"};
        assert_failure(dw_context_create(&options, &context), DW_ERROR_UNSUPPORTED, "asks for avx512");
    }
    assert_ptr_equal(context, &context); /* no output on failure */
    assert_failure(dw_context_create(NULL, NULL), DW_ERROR_INVALID_ARGUMENT, "context is NULL");
    assert_failure(dw_probe_cpu(NULL), DW_ERROR_INVALID_ARGUMENT, "info is NULL");
}

static void statuses_have_names(void **state) {
    (void)state;
    assert_string_equal(dw_status_name(DW_OK), "DW_OK");
    assert_string_equal(dw_status_name(DW_ERROR_DEVICE), "DW_ERROR_DEVICE");
    assert_string_equal(dw_status_name((dw_status)77), "DW_ERROR_UNKNOWN");
    assert_string_equal(dw_version(), "0.1.0");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(defaults_follow_the_machine, clear_environment),
        cmocka_unit_test(probing_respects_the_affinity_mask),
#if defined(__x86_64__)
        cmocka_unit_test(instruction_sets_agree_with_the_compiler),
#endif
        cmocka_unit_test_setup_teardown(options_and_environment_choose, clear_environment, clear_environment),
        cmocka_unit_test_setup_teardown(bad_options_are_named, clear_environment, clear_environment),
        cmocka_unit_test(statuses_have_names),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
