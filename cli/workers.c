#include "workers.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/status.h"
#include "signals.h"

enum { WORKERS_MAX = 16 };

struct cli_workers {
    dw_context *context; /* of one thread; the workers are the parallelism */
    int count;
    cli_buffers buffers[WORKERS_MAX];
};

/* One run. The mutex guards all but the constants above it. */
typedef struct worker_run {
    dw_context *context;
    int count;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* progress, an end, or the next statistics' turn */
    cli_cutter cutter;
    uint64_t done;
    uint64_t merged; /* tiles whose statistics have been added */
    int active;
    dw_status status; /* of the first failure */
    char text[1024];
} worker_run;

typedef struct worker_thread {
    worker_run *run;
    const cli_buffers *buffers;
    pthread_t thread;
} worker_thread;

dw_status cli_workers_start(int threads, cli_workers **workers) {
    dw_context *chosen;
    DW_TRY(dw_context_create(&(dw_context_options){.threads = threads}, &chosen));
    int count = dw_context_threads(chosen);
    dw_context_destroy(chosen);

    cli_workers *made = calloc(1, sizeof *made);
    if (!made) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory");
    dw_status status = dw_context_create(&(dw_context_options){.threads = 1}, &made->context);
    made->count = count < WORKERS_MAX ? count : WORKERS_MAX;
    for (int i = 0; i < made->count && status == DW_OK; i++)
        if (!cli_buffers_make(&made->buffers[i])) status = dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for buffers");
    if (status != DW_OK) {
        cli_workers_end(made);
        return status;
    }
    *workers = made;
    return DW_OK;
}

int cli_workers_count(const cli_workers *workers) {
    return workers->count;
}

void cli_workers_end(cli_workers *workers) {
    if (!workers) return;
    for (int i = 0; i < workers->count; i++)
        cli_buffers_free(&workers->buffers[i]);
    dw_context_destroy(workers->context);
    free(workers);
}

/* Has the kernel fetch what this thread will want next, while it computes. */
static void read_ahead(const cli_tile *tile, int workers) {
    const cli_item *item = tile->item;
    uint64_t at = tile->offset;
    if (item->action != CLI_COPY)
        at = ((uint64_t)tile->row * (uint64_t)item->source->shape[1] + (uint64_t)tile->col) *
             (dw_file_dtype_bits(item->source->dtype) / 8);
    uint64_t ahead = item->reader->data_offset + item->source->begin + at + (uint64_t)workers * CLI_TILE_BYTES;
    (void)posix_fadvise(item->reader->fd, (off_t)ahead, CLI_TILE_BYTES, POSIX_FADV_WILLNEED);
}

static void add_stats(dw_quantize_stats *sum, const dw_quantize_stats *part) {
    sum->signal_power += part->signal_power;
    sum->noise_power += part->noise_power;
    sum->elements += part->elements;
    sum->nonzero += part->nonzero;
    sum->underflowed += part->underflowed;
    sum->saturated += part->saturated;
    sum->nonfinite += part->nonfinite;
    if (part->amax > sum->amax) sum->amax = part->amax;
}

static void remember_failure(worker_run *run, dw_status status) {
    if (run->status != DW_OK) return;
    run->status = status;
    snprintf(run->text, sizeof run->text, "%s", status == DW_ERROR_CANCELLED ? "interrupted" : dw_last_error());
}

static void *work(void *argument) {
    worker_thread *self = argument;
    worker_run *run = self->run;
    cli_tile tile;
    pthread_mutex_lock(&run->mutex);
    while (run->status == DW_OK) {
        if (cli_signal()) {
            remember_failure(run, DW_ERROR_CANCELLED);
            break;
        }
        if (!cli_next_tile(&run->cutter, &tile)) break;
        pthread_mutex_unlock(&run->mutex);
        read_ahead(&tile, run->count);
        dw_quantize_stats stats = {0};
        dw_status status = cli_tile_run(run->context, &tile, self->buffers, &stats);
        pthread_mutex_lock(&run->mutex);
        if (status != DW_OK) {
            remember_failure(run, status);
            break;
        }
        /* In the order of the tiles, because sums of doubles depend on it. Earlier tiles are under way already. */
        while (tile.item->stats && run->merged != tile.number && run->status == DW_OK)
            pthread_cond_wait(&run->changed, &run->mutex);
        if (tile.item->stats) add_stats(tile.item->stats, &stats);
        run->merged = tile.number + 1;
        run->done += cli_tile_bytes(&tile);
        pthread_cond_broadcast(&run->changed);
    }
    run->active--;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->mutex);
    return NULL;
}

/* Threads take no signals, so that one interrupts the main thread's wait. */
static int start_threads(worker_run *run, worker_thread *workers, int count) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int started = 0;
    while (started < count && pthread_create(&workers[started].thread, NULL, work, &workers[started]) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    run->active -= count - started;
    return started;
}

dw_status cli_workers_run(cli_workers *workers, const cli_item *items, size_t count, cli_progress *progress,
                          uint64_t *done) {
    worker_run run = {
        .context = workers->context,
        .count = workers->count,
        .mutex = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
        .cutter = {.items = items, .count = count},
        .active = workers->count,
    };
    worker_thread self[WORKERS_MAX];
    for (int i = 0; i < run.count; i++)
        self[i] = (worker_thread){.run = &run, .buffers = &workers->buffers[i]};
    pthread_mutex_lock(&run.mutex);
    int started = start_threads(&run, self, run.count);
    if (started == 0) remember_failure(&run, dw_fail(DW_ERROR_OUT_OF_MEMORY, "the system refuses another thread"));
    while (run.active > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&run.changed, &run.mutex, &until);
        uint64_t shown = *done + run.done;
        pthread_mutex_unlock(&run.mutex);
        cli_progress_show(progress, shown);
        pthread_mutex_lock(&run.mutex);
    }
    pthread_mutex_unlock(&run.mutex);
    for (int i = 0; i < started; i++)
        pthread_join(self[i].thread, NULL);
    *done += run.done;
    pthread_mutex_destroy(&run.mutex);
    pthread_cond_destroy(&run.changed);
    if (run.status != DW_OK) return dw_fail(run.status, "%s", run.text);
    return DW_OK;
}
