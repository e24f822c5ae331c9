#include "registry/proof.h"

#include <pthread.h>
#include <stdio.h>

#include "core/status.h"
#include "cuda/host/scratch.h"
#include "registry/proof_file.h"
#include "registry/table.h"

enum { UNKNOWN = 0, TRUSTED = 1, REFUTED = 2 };

/* The data need not differ between runs: `deepwell selftest` draws new data each time. */
enum { SEED = 20 };

static pthread_mutex_t proving = PTHREAD_MUTEX_INITIALIZER;

static atomic_uchar *known_of(const dw_kernel_row *row, const dw_request *request) {
    const int device = request->device_id;
    if (!row->proofs || device < 0 || device >= DW_PROOF_DEVICES || request->operation != DW_OP_QUANTIZE) return NULL;
    return &row->proofs->known[device][request->source][request->spec.element == DW_E4M3 ? 0 : 1];
}

bool dw_row_refuted(const dw_kernel_row *row, const dw_request *request) {
    atomic_uchar *known = known_of(row, request);
    return known && atomic_load_explicit(known, memory_order_relaxed) == REFUTED;
}

static dw_status run_selftest(dw_context *context, const dw_kernel_row *row, const dw_request *request,
                              dw_selftest_result *result) {
    dw_cuda_scratch scratch;
    DW_TRY(dw_cuda_scratch_open(request->device_id, dw_kernel_selftest_workspace(), &scratch));
    const dw_selftest_device device = {request->device_id, (void *)(uintptr_t)scratch.memory, scratch.stream};
    const dw_selftest_part part = {request->source, request->spec.element};
    dw_status status = dw_row_selftest_cuda(context, row, &part, SEED, &device, result);
    dw_cuda_scratch_close(&scratch);
    return status;
}

/* Finds out, with the lock held. What is to be said about it goes into `warning`. */
static unsigned char find_out(dw_context *context, const dw_kernel_row *row, const dw_request *request, char *warning,
                              size_t capacity) {
    const char *source = dw_dtype_name(request->source), *element = dw_dtype_name(request->spec.element);
    char key[128];
    snprintf(key, sizeof key, "%s %s %s", row->info.name, source, element);
    dw_proof_file file;
    const bool has_file = dw_proof_file_of(request->device_id, &file);
    if (has_file && dw_proof_file_has(&file, key)) return TRUSTED;
    dw_selftest_result result = {0};
    switch (run_selftest(context, row, request, &result)) {
    case DW_OK:
        if (has_file) dw_proof_file_add(&file, key);
        return TRUSTED;
    case DW_ERROR_SELFTEST:
        snprintf(warning, capacity,
                 "kernel %s (%s to %s) failed its self-test on GPU %d and is not used there: %lld bytes differ from "
                 "the reference, first %s; `deepwell selftest` tells more",
                 row->info.name, source, element, request->device_id, (long long)result.mismatches,
                 result.first_mismatch);
        return REFUTED;
    default:
        snprintf(warning, capacity,
                 "kernel %s (%s to %s) is used on GPU %d without its self-test, which could not run: %s",
                 row->info.name, source, element, request->device_id, dw_last_error());
        return TRUSTED;
    }
}

bool dw_row_prove(dw_context *context, const dw_kernel_row *row, const dw_request *request) {
    atomic_uchar *known = known_of(row, request);
    if (!known) return true;
    unsigned char state = atomic_load_explicit(known, memory_order_acquire);
    if (state != UNKNOWN) return state == TRUSTED;

    char warning[1024] = "", last_error[1024];
    snprintf(last_error, sizeof last_error, "%s", dw_last_error());
    pthread_mutex_lock(&proving);
    state = atomic_load_explicit(known, memory_order_relaxed);
    if (state == UNKNOWN) {
        state = find_out(context, row, request, warning, sizeof warning);
        atomic_store_explicit(known, state, memory_order_release);
    }
    pthread_mutex_unlock(&proving);
    dw_fail(DW_OK, "%s", last_error); /* what failed here is not the caller's failure */
    if (*warning) dw_warn("%s", warning);
    return state == TRUSTED;
}
