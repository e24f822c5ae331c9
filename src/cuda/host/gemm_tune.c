/* Measuring which kernel is the fastest for one product. */
#include <stdlib.h>
#include <string.h>

#include "cuda/host/gemm_tuning.h"
#include "registry/proof.h"

enum { ROUNDS = 9 };

/* The choice that shapes alone suggest stays unless another is faster by more than measurements differ. */
#define WORTH_CHANGING 1.01

typedef struct candidate {
    dw_gemm_sm90_choice choice;
    dw_cu_event begin, end;
    float milliseconds[ROUNDS];
    double seconds; /* the median */
} candidate;

typedef struct session {
    const dw_cuda_scope *scope;
    const dw_gemm_sm90_call *call;
    int multiprocessors;
    void *stream;
    candidate *candidates;
    int count;
} session;

#define CHECK(result, symbol)                                                                                          \
    DW_TRY(dw_cuda_check(s->scope->driver, result, symbol, "tuning on device %d", s->scope->device))

static dw_status add(session *s, int row, int band) {
    candidate *c = &s->candidates[s->count++];
    *c = (candidate){.choice = {row, band}};
    CHECK(s->scope->driver->event_create(&c->begin, 0), "cuEventCreate");
    CHECK(s->scope->driver->event_create(&c->end, 0), "cuEventCreate");
    return DW_OK;
}

static void close_session(session *s) {
    for (int i = 0; i < s->count; i++) {
        if (s->candidates[i].begin) s->scope->driver->event_destroy(s->candidates[i].begin);
        if (s->candidates[i].end) s->scope->driver->event_destroy(s->candidates[i].end);
    }
    free(s->candidates);
}

static dw_status run_one(session *s, candidate *c) {
    const dw_cuda_driver *driver = s->scope->driver;
    const size_t bytes = s->call->workspace_bytes;
    if (bytes)
        CHECK(driver->memset_2d((dw_cu_pointer)(uintptr_t)s->call->workspace, bytes, 0, bytes, 1, s->stream),
              "cuMemsetD2D8Async");
    CHECK(driver->event_record(c->begin, s->stream), "cuEventRecord");
    DW_TRY(dw_gemm_sm90_launch(s->scope, s->call, &c->choice, s->multiprocessors, s->stream));
    CHECK(driver->event_record(c->end, s->stream), "cuEventRecord");
    return DW_OK;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Times the candidates from `first` on; they take turns, and each begins a round once in a while. The first round loads
 * code and does not count. */
static dw_status measure(session *s, int first) {
    const int count = s->count - first;
    for (int round = -1; round < ROUNDS; round++) {
        for (int i = 0; i < count; i++)
            DW_TRY(run_one(s, &s->candidates[first + (i + round + 1) % count]));
        CHECK(s->scope->driver->stream_synchronize(s->stream), "cuStreamSynchronize");
        for (int i = first; i < s->count && round >= 0; i++)
            CHECK(s->scope->driver->event_elapsed(&s->candidates[i].milliseconds[round], s->candidates[i].begin,
                                                  s->candidates[i].end),
                  "cuEventElapsedTime");
    }
    for (int i = first; i < s->count; i++) {
        candidate *c = &s->candidates[i];
        qsort(c->milliseconds, ROUNDS, sizeof *c->milliseconds, by_value);
        c->seconds = 1e-3 * (double)c->milliseconds[ROUNDS / 2];
    }
    return DW_OK;
}

/* The fastest of the candidates. */
static int fastest(const session *s) {
    int best = 0;
    for (int i = 1; i < s->count; i++)
        if (s->candidates[i].seconds < s->candidates[best].seconds) best = i;
    return best;
}

/* The fastest kernel's other bands, as far as they differ from each other for this shape. */
static const int bands[] = {4, 8, 16, 32};
enum { BANDS = sizeof bands / sizeof *bands };

static dw_status add_bands(session *s, dw_gemm_sm90_choice best) {
    const dw_gemm_sm90_shape *shape = &s->call->shape;
    int64_t rows = dw_gemm_sm90_tile_rows(dw_gemm_sm90_get((size_t)best.row), shape);
    int64_t seen = best.band < rows ? best.band : rows;
    for (int i = 0; i < BANDS; i++) {
        int64_t effective = bands[i] < rows ? bands[i] : rows;
        if (effective == seen || (i > 0 && bands[i - 1] >= rows)) continue;
        DW_TRY(add(s, best.row, bands[i]));
    }
    return DW_OK;
}

/* All kernels of the formats, but those that would split tiles with more workspace than there is: whoever gives that
 * later would not get what was measured. What shapes alone suggest is always among them. */
static dw_status tune(session *s, dw_gemm_tuned *tuned) {
    const dw_gemm_sm90_shape *shape = &s->call->shape;
    const size_t workspace = s->call->workspace_bytes;
    const int count = (int)dw_gemm_sm90_count();
    for (int i = 0; i < count; i++) /* before anything is predicted from those that have passed */
        if (dw_gemm_sm90_serves(dw_gemm_sm90_get((size_t)i), shape)) dw_gemm_row_prove((size_t)i, s->scope->device);
    const atomic_uchar *proofs = dw_gemm_proofs(s->scope->device);
    const int predicted = dw_gemm_sm90_choose(shape, s->multiprocessors, workspace, proofs);
    for (int i = 0; i < count; i++) {
        const dw_gemm_sm90_row *row = dw_gemm_sm90_get((size_t)i);
        if (!dw_gemm_sm90_serves(row, shape) || !dw_gemm_row_prove((size_t)i, s->scope->device)) continue;
        if (i == predicted || dw_gemm_sm90_workspace(row, shape, s->multiprocessors) <= workspace)
            DW_TRY(add(s, i, dw_gemm_sm90_band(row)));
    }
    int at_predicted = 0;
    while (at_predicted < s->count && s->candidates[at_predicted].choice.row != predicted)
        at_predicted++;
    if (at_predicted == s->count)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: each kernel of these formats failed its self-test on GPU %d",
                       s->scope->device);
    DW_TRY(measure(s, 0));
    const int first = s->count;
    DW_TRY(add_bands(s, s->candidates[fastest(s)].choice));
    if (s->count > first) DW_TRY(measure(s, first));

    const candidate *as_predicted = &s->candidates[at_predicted], *best = &s->candidates[fastest(s)];
    if (best->seconds * WORTH_CHANGING >= as_predicted->seconds) best = as_predicted;
    *tuned = (dw_gemm_tuned){.kernel = dw_gemm_sm90_get((size_t)best->choice.row)->name,
                             .predicted = dw_gemm_sm90_get((size_t)predicted)->name,
                             .band = best->choice.band,
                             .predicted_band = as_predicted->choice.band,
                             .seconds = best->seconds,
                             .predicted_seconds = as_predicted->seconds,
                             .measured = s->count};
    return dw_gemm_tuning_keep(s->scope->device, shape, &best->choice, best->seconds, as_predicted->seconds,
                               &tuned->remembered);
}

dw_status dw_gemm_sm90_tune(const dw_cuda_scope *scope, const dw_gemm_sm90_call *call, int multiprocessors,
                            void *stream, dw_gemm_tuned *tuned) {
    session s = {.scope = scope,
                 .call = call,
                 .multiprocessors = multiprocessors,
                 .stream = stream,
                 .candidates = calloc(dw_gemm_sm90_count() + BANDS, sizeof(candidate))};
    if (!s.candidates) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "gemm: no memory to tune with");
    dw_status status = tune(&s, tuned);
    close_session(&s);
    return status;
}
