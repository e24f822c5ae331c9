/* Loops stand in a list while they have iterations left; an idle worker joins the first such loop. A loop lives on its
 * caller's stack: the caller leaves only when the loop is off the list and no worker is inside. */
#include "core/thread_pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/fp_state.h"

/* Of a worker, at least: kernels keep buffers of up to 0.4 MiB there, and some systems give a thread 128 KiB. */
#define DW_WORKER_STACK ((size_t)1 << 20)

typedef struct loop {
    void (*body)(void *argument, int64_t i);
    void *argument;
    int64_t count;
    _Atomic int64_t next; /* first iteration not yet taken */
    int inside;           /* workers running it; guarded by the pool's mutex */
    pthread_cond_t left;  /* signalled when `inside` becomes 0 */
    struct loop *following;
} loop;

struct dw_thread_pool {
    int threads;
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t wake;
    loop *loops;
    int started; /* workers that exist */
    bool ending;
    pthread_t *workers;           /* threads - 1 */
    dw_thread_pool *previous_one; /* list of all pools, for fork */
    dw_thread_pool *next_one;
};

static pthread_mutex_t pools_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_handlers = PTHREAD_ONCE_INIT;
static dw_thread_pool *pools;

static void before_fork(void) {
    pthread_mutex_lock(&pools_mutex);
}

static void parent_after_fork(void) {
    pthread_mutex_unlock(&pools_mutex);
}

/* The child has one thread: workers and other threads' loops are gone, and a pool's mutex may be held by a ghost. */
static void child_after_fork(void) {
    pthread_mutex_init(&pools_mutex, NULL);
    for (dw_thread_pool *pool = pools; pool; pool = pool->next_one) {
        pthread_mutex_init(&pool->mutex, NULL);
        pthread_cond_init(&pool->wake, NULL);
        pool->loops = NULL;
        pool->started = 0;
    }
}

static void install_fork_handlers(void) {
    pthread_atfork(before_fork, parent_after_fork, child_after_fork);
}

dw_thread_pool *dw_thread_pool_create(int threads) {
    pthread_once(&fork_handlers, install_fork_handlers);
    dw_thread_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = threads;
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    if (!pool->workers) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_mutex_lock(&pools_mutex);
    pool->next_one = pools;
    if (pools) pools->previous_one = pool;
    pools = pool;
    pthread_mutex_unlock(&pools_mutex);
    return pool;
}

void dw_thread_pool_destroy(dw_thread_pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pools_mutex);
    if (pool->next_one) pool->next_one->previous_one = pool->previous_one;
    if (pool->previous_one)
        pool->previous_one->next_one = pool->next_one;
    else
        pools = pool->next_one;
    pthread_mutex_unlock(&pools_mutex);

    pthread_mutex_lock(&pool->mutex);
    pool->ending = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

int dw_thread_pool_size(const dw_thread_pool *pool) {
    return pool->threads;
}

static void run_iterations(loop *work) {
    int64_t i;
    while ((i = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed)) < work->count)
        work->body(work->argument, i);
}

static loop *find_open_loop(const dw_thread_pool *pool) {
    loop *work = pool->loops;
    while (work && atomic_load_explicit(&work->next, memory_order_relaxed) >= work->count)
        work = work->following;
    return work;
}

static void *worker_main(void *argument) {
    dw_thread_pool *pool = argument;
    dw_fp_state_default();
    pthread_mutex_lock(&pool->mutex);
    while (!pool->ending) {
        loop *work = find_open_loop(pool);
        if (!work) {
            pthread_cond_wait(&pool->wake, &pool->mutex);
            continue;
        }
        work->inside++;
        pthread_mutex_unlock(&pool->mutex);
        run_iterations(work);
        pthread_mutex_lock(&pool->mutex);
        if (--work->inside == 0) pthread_cond_signal(&work->left);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

/* Called with the mutex held. Workers take no signals: those belong to the application's own threads. */
static void start_workers(dw_thread_pool *pool, int64_t wanted) {
    if (pool->started >= wanted) return;
    pthread_attr_t attributes;
    size_t stack;
    if (pthread_attr_init(&attributes) != 0) return;
    if (pthread_attr_getstacksize(&attributes, &stack) == 0 && stack < DW_WORKER_STACK)
        pthread_attr_setstacksize(&attributes, DW_WORKER_STACK);
    sigset_t all, saved;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    while (pool->started < wanted && pthread_create(&pool->workers[pool->started], &attributes, worker_main, pool) == 0)
        pool->started++;
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
}

static void run_shared(dw_thread_pool *pool, loop *work, int64_t helpers) {
    pthread_cond_init(&work->left, NULL);
    pthread_mutex_lock(&pool->mutex);
    start_workers(pool, helpers);
    loop **end = &pool->loops;
    while (*end)
        end = &(*end)->following;
    *end = work;
    for (int64_t i = 0; i < helpers; i++)
        pthread_cond_signal(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);

    run_iterations(work);

    pthread_mutex_lock(&pool->mutex);
    loop **at = &pool->loops;
    while (*at != work)
        at = &(*at)->following;
    *at = work->following;
    while (work->inside > 0)
        pthread_cond_wait(&work->left, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    pthread_cond_destroy(&work->left);
}

void dw_parallel_for(dw_thread_pool *pool, int64_t count, void (*body)(void *argument, int64_t i), void *argument) {
    loop work = {.body = body, .argument = argument, .count = count};
    int64_t helpers = (count < pool->threads ? count : pool->threads) - 1;
    uint64_t saved = dw_fp_state_default();
    if (helpers > 0)
        run_shared(pool, &work, helpers);
    else
        run_iterations(&work);
    dw_fp_state_restore(saved);
}
