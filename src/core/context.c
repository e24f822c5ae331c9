#include "core/context.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

enum { MAX_THREADS = 1024 };

static const char *const isa_names[DW_ISA_COUNT] = {"ref", "avx2", "avx512"};

const char *dw_isa_name(dw_isa isa) {
    return (unsigned)isa < DW_ISA_COUNT ? isa_names[isa] : "?";
}

/* An environment variable's value; NULL when it is unset or empty. */
static const char *environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static dw_status choose_threads(const dw_context_options *options, const dw_cpu_info *cpu, int *threads) {
    if (options && options->threads != 0) {
        if (options->threads < 0 || options->threads > MAX_THREADS)
            return dw_fail(DW_ERROR_INVALID_ARGUMENT, "options.threads is %d; expected 1 to %d, or 0 for the default",
                           options->threads, MAX_THREADS);
        *threads = options->threads;
        return DW_OK;
    }
    const char *text = environment("DEEPWELL_THREADS");
    if (text) {
        char *end;
        errno = 0;
        long value = strtol(text, &end, 10);
        if (errno || *end || value < 1 || value > MAX_THREADS)
            return dw_fail(
                DW_ERROR_INVALID_ARGUMENT,
                "environment variable DEEPWELL_THREADS is \"%.40s\"; expected a number from 1 to %d, or unset it", text,
                MAX_THREADS);
        *threads = (int)value;
        return DW_OK;
    }
    *threads = cpu->logical_processors < MAX_THREADS ? cpu->logical_processors : MAX_THREADS;
    return DW_OK;
}

static dw_status choose_isa(const dw_context_options *options, dw_isa hardware, dw_isa *isa) {
    const char *name = options ? options->isa : NULL, *origin = "options.isa";
    if (!name) {
        name = environment("DEEPWELL_ISA");
        origin = "environment variable DEEPWELL_ISA";
    }
    if (!name) {
        *isa = hardware;
        return DW_OK;
    }
    for (int i = 0; i < DW_ISA_COUNT; i++) {
        if (strcmp(name, isa_names[i]) != 0) continue;
        if (i > (int)hardware)
            return dw_fail(DW_ERROR_UNSUPPORTED,
                           "%s asks for %s, which this processor or operating system lacks; the widest here is %s",
                           origin, name, isa_names[hardware]);
        *isa = (dw_isa)i;
        return DW_OK;
    }
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s is \"%.40s\"; expected ref, avx2 or avx512", origin, name);
}

dw_status dw_context_create(const dw_context_options *options, dw_context **context) {
    if (!context)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context is NULL; pass the address of a dw_context pointer");
    dw_cpu_info cpu;
    DW_TRY(dw_probe_cpu(&cpu));
    dw_context made = {.hardware = cpu.has_avx512 ? DW_ISA_AVX512 : cpu.has_avx2 ? DW_ISA_AVX2 : DW_ISA_REF};
    int threads = 1;
    DW_TRY(choose_threads(options, &cpu, &threads));
    DW_TRY(choose_isa(options, made.hardware, &made.isa));
    dw_context *result = malloc(sizeof *result);
    if (result) made.pool = dw_thread_pool_create(threads);
    if (!result || !made.pool) {
        free(result);
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for a context with %d threads; free some memory", threads);
    }
    *result = made;
    *context = result;
    return DW_OK;
}

void dw_context_destroy(dw_context *context) {
    if (!context) return;
    dw_thread_pool_destroy(context->pool);
    free(context);
}

int dw_context_threads(const dw_context *context) {
    return context ? dw_thread_pool_size(context->pool) : 0;
}

const char *dw_context_isa(const dw_context *context) {
    return context ? dw_isa_name(context->isa) : "?";
}
