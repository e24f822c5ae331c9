/* What the C tests share: cmocka with the headers it wants, and seeds that are fresh, printed and repeatable
 * (DEEPWELL_TEST_SEED=n repeats a run). */
#ifndef DW_TESTS_SUPPORT_H
#define DW_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "deepwell/deepwell.h"

static uint64_t test_seed;

static inline int choose_seed(void **state) {
    (void)state;
    const char *text = getenv("DEEPWELL_TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    test_seed = text ? strtoull(text, NULL, 10) : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    printf("seed %llu\n", (unsigned long long)test_seed);
    fflush(stdout);
    return 0;
}

/* Asserts that the call succeeds, or fails with this status and a text that contains `part`. */
#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        dw_status got_status = (call);                                                                                 \
        if (got_status != DW_OK) fail_msg("%s: %s: %s", #call, dw_status_name(got_status), dw_last_error());           \
    } while (0)

static inline void assert_failure(dw_status got, dw_status wanted, const char *part) {
    if (got != wanted)
        fail_msg("got %s (%s), expected %s", dw_status_name(got), dw_last_error(), dw_status_name(wanted));
    const char *text = dw_last_error();
    for (const char *at = text; *at; at++) {
        const char *a = at, *b = part;
        while (*b && *a == *b)
            a++, b++;
        if (!*b) return;
    }
    fail_msg("the message \"%s\" does not contain \"%s\"", text, part);
}

static inline dw_context *make_context(int threads, const char *isa) {
    dw_context_options options = {.threads = threads, .isa = isa};
    dw_context *context = NULL;
    ASSERT_OK(dw_context_create(&options, &context));
    return context;
}

/* The instruction sets that this machine can run, narrowest first; returns their number. */
static inline int runnable_isas(const char *names[3]) {
    dw_cpu_info cpu;
    ASSERT_OK(dw_probe_cpu(&cpu));
    int count = 0;
    names[count++] = "ref";
    if (cpu.has_avx2) names[count++] = "avx2";
    if (cpu.has_avx512) names[count++] = "avx512";
    return count;
}

#endif
