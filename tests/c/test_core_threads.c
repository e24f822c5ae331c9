/* The thread pool: every iteration once, several callers, fork, floating-point state. */
#include "support.h"

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/fp_state.h"
#include "core/thread_pool.h"

enum { MOST = 5000 };

typedef struct counting {
    _Atomic int seen[MOST];
    pthread_t threads[MOST];
} counting;

static void count_one(void *argument, int64_t i) {
    counting *counts = argument;
    atomic_fetch_add(&counts->seen[i], 1);
    counts->threads[i] = pthread_self();
}

/* Runs a loop; returns whether each iteration ran exactly once. */
static bool run_counted(dw_thread_pool *pool, int64_t count) {
    counting *counts = calloc(1, sizeof *counts);
    dw_parallel_for(pool, count, count_one, counts);
    bool right = true;
    for (int64_t i = 0; i < MOST; i++)
        right &= atomic_load(&counts->seen[i]) == (i < count);
    free(counts);
    return right;
}

static void every_iteration_runs_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= 9; threads++) {
        dw_thread_pool *pool = dw_thread_pool_create(threads);
        assert_int_equal(dw_thread_pool_size(pool), threads);
        for (int64_t count = 0; count < 40; count++)
            assert_true(run_counted(pool, count));
        assert_true(run_counted(pool, MOST));
        dw_thread_pool_destroy(pool);
    }
    dw_thread_pool_destroy(NULL);
}

static void nap(void *argument, int64_t i) {
    counting *counts = argument;
    counts->threads[i] = pthread_self();
    usleep(20000);
}

static void several_threads_take_part(void **state) {
    (void)state;
    dw_thread_pool *pool = dw_thread_pool_create(4);
    counting *counts = calloc(1, sizeof *counts);
    dw_parallel_for(pool, 16, nap, counts);
    int distinct = 0;
    for (int i = 0; i < 16; i++) {
        int earlier = 0;
        while (earlier < i && !pthread_equal(counts->threads[earlier], counts->threads[i]))
            earlier++;
        distinct += earlier == i;
    }
    assert_int_equal(distinct, 4);
    free(counts);
    dw_thread_pool_destroy(pool);
}

static void *caller(void *argument) {
    for (int i = 0; i < 300; i++)
        if (!run_counted(argument, i % 50)) return argument;
    return NULL;
}

static void several_callers_share_a_pool(void **state) {
    (void)state;
    dw_thread_pool *pool = dw_thread_pool_create(3);
    pthread_t callers[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&callers[i], NULL, caller, pool), 0);
    for (int i = 0; i < 6; i++) {
        void *failed;
        pthread_join(callers[i], &failed);
        assert_null(failed);
    }
    dw_thread_pool_destroy(pool);
}

static void expect_good_child(pid_t child) {
    assert_true(child > 0);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* In a child: the inherited pool works and can be ended. A hang is ended by the alarm. */
static void use_in_child(dw_thread_pool *pool) {
    alarm(20);
    bool right = true;
    for (int i = 0; i < 20; i++)
        right &= run_counted(pool, 100);
    dw_thread_pool_destroy(pool);
    _exit(right ? 0 : 1);
}

static void a_child_uses_the_pool_it_inherits(void **state) {
    (void)state;
    dw_thread_pool *pool = dw_thread_pool_create(4);
    assert_true(run_counted(pool, 100));
    pid_t child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) use_in_child(pool);
        int status = 1;
        waitpid(grandchild, &status, 0);
        if (status) _exit(2);
        use_in_child(pool);
    }
    expect_good_child(child);
    assert_true(run_counted(pool, 100));
    dw_thread_pool_destroy(pool);
}

/* Forks while other threads are in the middle of loops, so that locks are held and loops are listed. */
static void a_child_of_a_busy_pool_works(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    /* The sanitizer's allocator has locks of its own, which it does not free in a child when another thread holds them:
     * the child then hangs in its first allocation. */
    skip();
#endif
    /* So has qemu's user emulation: under it the child hangs each time, in the same program that passes where it runs
     * by itself. */
    if (getenv("DEEPWELL_TEST_EMULATED")) skip();
    dw_thread_pool *pool = dw_thread_pool_create(4);
    pthread_t callers[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&callers[i], NULL, caller, pool), 0);
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        if (child == 0) use_in_child(pool);
        expect_good_child(child);
    }
    for (int i = 0; i < 3; i++) {
        void *failed;
        pthread_join(callers[i], &failed);
        assert_null(failed);
    }
    dw_thread_pool_destroy(pool);
}

static _Atomic int interrupted_elsewhere;
static pthread_t main_thread;

static void note_signal(int number) {
    (void)number;
    if (!pthread_equal(pthread_self(), main_thread)) atomic_store(&interrupted_elsewhere, 1);
}

static void signal_process(void *argument, int64_t i) {
    (void)argument, (void)i;
    kill(getpid(), SIGUSR1);
    usleep(1000);
}

static void workers_take_no_signals(void **state) {
    (void)state;
    main_thread = pthread_self();
    signal(SIGUSR1, note_signal);
    dw_thread_pool *pool = dw_thread_pool_create(4);
    dw_parallel_for(pool, 50, signal_process, NULL);
    dw_thread_pool_destroy(pool);
    signal(SIGUSR1, SIG_DFL);
    assert_int_equal(atomic_load(&interrupted_elsewhere), 0);
}

/* 1 + 2^-24 rounds to 1 unless the caller's rounding mode leaks in. */
static void round_one(void *argument, int64_t i) {
    volatile float one = 1, tiny = 0x1p-24f;
    ((float *)argument)[i] = one + tiny;
    usleep(1000);
}

static void loops_run_in_the_default_floating_point_state(void **state) {
    (void)state;
    fesetround(FE_UPWARD);
    dw_thread_pool *pool = dw_thread_pool_create(3);
    float sums[24];
    dw_parallel_for(pool, 24, round_one, sums);
    int kept = fegetround();
    fesetround(FE_TONEAREST);
    assert_int_equal(kept, FE_UPWARD);
    for (int i = 0; i < 24; i++)
        assert_true(sums[i] == 1);
    dw_thread_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_iteration_runs_once),
        cmocka_unit_test(several_threads_take_part),
        cmocka_unit_test(several_callers_share_a_pool),
        cmocka_unit_test(a_child_uses_the_pool_it_inherits),
        cmocka_unit_test(a_child_of_a_busy_pool_works),
        cmocka_unit_test(workers_take_no_signals),
        cmocka_unit_test(loops_run_in_the_default_floating_point_state),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
