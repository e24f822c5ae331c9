#include "registry/proof.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "cuda/host/cache_file.h"
#include "cuda/host/scratch.h"
#include "registry/table.h"

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
    return known && atomic_load_explicit(known, memory_order_relaxed) == DW_PROOF_REFUTED;
}

/* What is to be proved: a quantizing row for the types of a request, or a matrix kernel. */
typedef struct subject {
    int device;
    dw_context *context;
    const dw_kernel_row *row;
    const dw_request *request;
    size_t gemm;      /* without a request */
    char key[128];    /* in the file */
    char title[128];  /* in a warning */
    const char *unit; /* what its mismatches are */
} subject;

static dw_status run_selftest(const subject *s, dw_selftest_result *result) {
    dw_cuda_scratch scratch;
    DW_TRY(dw_cuda_scratch_open(s->device, dw_kernel_selftest_workspace(), &scratch));
    const dw_selftest_device device = {s->device, (void *)(uintptr_t)scratch.memory, scratch.stream};
    dw_status status;
    if (s->request) {
        const dw_selftest_part part = {s->request->source, s->request->spec.element};
        status = dw_row_selftest_cuda(s->context, s->row, &part, SEED, &device, result);
    } else {
        status = dw_gemm_selftest(s->gemm, true, SEED, &device, result);
    }
    dw_cuda_scratch_close(&scratch);
    return status;
}

/* ---- what is remembered: a line for each kernel, or row, source and element, that passed ---- */

static const dw_cache_kind passed = {.name = "selftest", .title = "self-tests passed", .format = 1, .each_gpu = true};

static bool same_line(const char *old, const char *added) {
    const size_t length = strlen(added);
    return strncmp(old, added, length) == 0 && old[length] == '\n';
}

static bool holds(const dw_cache_file *file, const char *key) {
    bool foreign, found = false;
    char *lines = dw_cache_file_read(file, &foreign);
    for (const char *line = lines; line && *line && !found; line = strchr(line, '\n') + 1)
        found = same_line(line, key);
    free(lines);
    return found;
}

/* Finds out, with the lock held. What is to be said about it goes into `warning`. */
static unsigned char find_out(const subject *s, char *warning, size_t capacity) {
    dw_cache_file file;
    /* A kernel from outside may be another one tomorrow under the same name. */
    const bool remembered = !s->row || !s->row->plugin;
    const bool has_file = remembered && dw_cache_file_of(s->device, &passed, &file);
    if (has_file && holds(&file, s->key)) return DW_PROOF_TRUSTED;
    dw_selftest_result result = {0};
    switch (run_selftest(s, &result)) {
    case DW_OK:
        /* A failure to write is nothing but a test that will run again. */
        if (has_file) dw_cache_file_add(&file, s->key, same_line);
        return DW_PROOF_TRUSTED;
    case DW_ERROR_SELFTEST:
        snprintf(warning, capacity,
                 "kernel %s failed its self-test on GPU %d and is not used there: %lld %s differ from the reference, "
                 "first %s; `deepwell selftest` tells more",
                 s->title, s->device, (long long)result.mismatches, s->unit, result.first_mismatch);
        return DW_PROOF_REFUTED;
    default:
        snprintf(warning, capacity, "kernel %s is used on GPU %d without its self-test, which could not run: %s",
                 s->title, s->device, dw_last_error());
        return DW_PROOF_TRUSTED;
    }
}

static bool prove(atomic_uchar *known, const subject *s) {
    char warning[1024] = "", last_error[1024];
    snprintf(last_error, sizeof last_error, "%s", dw_last_error());
    pthread_mutex_lock(&proving);
    unsigned char state = atomic_load_explicit(known, memory_order_relaxed);
    if (state == DW_PROOF_UNKNOWN) {
        state = find_out(s, warning, sizeof warning);
        atomic_store_explicit(known, state, memory_order_release);
    }
    pthread_mutex_unlock(&proving);
    dw_fail(DW_OK, "%s", last_error); /* what failed here is not the caller's failure */
    if (*warning) dw_warn("%s", warning);
    return state == DW_PROOF_TRUSTED;
}

bool dw_row_prove(dw_context *context, const dw_kernel_row *row, const dw_request *request) {
    atomic_uchar *known = known_of(row, request);
    if (!known) return true;
    unsigned char state = atomic_load_explicit(known, memory_order_acquire);
    if (state != DW_PROOF_UNKNOWN) return state == DW_PROOF_TRUSTED;
    subject s = {.device = request->device_id, .context = context, .row = row, .request = request, .unit = "bytes"};
    const char *source = dw_dtype_name(request->source), *element = dw_dtype_name(request->spec.element);
    snprintf(s.key, sizeof s.key, "%s %s %s", row->info.name, source, element);
    snprintf(s.title, sizeof s.title, "%s (%s to %s)", row->info.name, source, element);
    return prove(known, &s);
}

/* ---- matrix kernels ---- */

static const char *const names[] = {
#define CUDA_GEMM(name, ...) #name,
#include "registry/kernels.inc"
#define CUDA_GEMM_BF16(name, ...) #name,
#include "registry/kernels.inc"
};
static atomic_uchar gemms[DW_PROOF_DEVICES][sizeof names / sizeof *names];

const atomic_uchar *dw_gemm_proofs(int device) {
    return device >= 0 && device < DW_PROOF_DEVICES ? gemms[device] : NULL;
}

bool dw_gemm_row_prove(size_t gemm, int device) {
    if (!dw_gemm_proofs(device)) return true;
    unsigned char state = atomic_load_explicit(&gemms[device][gemm], memory_order_acquire);
    if (state != DW_PROOF_UNKNOWN) return state == DW_PROOF_TRUSTED;
    subject s = {.device = device, .gemm = gemm, .unit = "elements"};
    snprintf(s.key, sizeof s.key, "%s", names[gemm]);
    snprintf(s.title, sizeof s.title, "%s", s.key);
    return prove(&gemms[device][gemm], &s);
}
