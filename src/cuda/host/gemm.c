/* dw_gemm: checks, then one of the project's own kernels, or cuBLASLt with scales decoded where needed. */
#include <stdlib.h>
#include <string.h>

#include "cuda/host/gemm_plan.h"
#include "cuda/host/gemm_tuning.h"
#include "cuda/host/images.h"
#include "cuda/host/launch.h"

#define DECODE_THREADS 256

static dw_cuda_kernel scale_decode = DW_CUDA_KERNEL("common/scale_decode", "scale_decode_f32");

static int64_t job_scales(const dw_scale_decode_job *job) {
    return job->outer * job->inner_padded;
}

/* Decodes the E8M0 scales of either operand into the workspace, in one launch. */
static dw_status decode_scales(const dw_cuda_scope *scope, dw_gemm_problem *p, void *workspace, void *stream) {
    dw_scale_decode_params params = {0};
    uint32_t jobs = 0;
    int64_t most = 0;
    dw_gemm_side *sides[2] = {&p->a, &p->b};
    for (int i = 0; i < 2; i++) {
        if (!sides[i]->decode) continue;
        sides[i]->job.scales = (float *)((char *)workspace + sides[i]->scale_offset);
        sides[i]->scale = sides[i]->job.scales;
        params.jobs[jobs++] = sides[i]->job;
        if (job_scales(&sides[i]->job) > most) most = job_scales(&sides[i]->job);
    }
    if (jobs == 0) return DW_OK;
    void *arguments[] = {&params};
    dw_cuda_launch_config config = {.grid = {(uint32_t)((most + DECODE_THREADS - 1) / DECODE_THREADS), jobs, 1},
                                    .block = {DECODE_THREADS, 1, 1},
                                    .programmatic = true};
    return dw_cuda_launch(scope, &scale_decode, &config, stream, arguments);
}

/* An empty reduction: the sum is zero. */
static dw_status multiply_nothing(const dw_cuda_scope *scope, const dw_gemm_problem *p, void *stream) {
    if (p->has_bias)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: K = 0 with a bias; copy the bias into the rows of d instead");
    if (p->accumulate) return DW_OK;
    size_t element = p->d_type == DW_LT_F32 ? 4 : 2;
    size_t width = (size_t)p->n * element;
    return dw_cuda_check(scope->driver,
                         scope->driver->memset_2d((dw_cu_pointer)(uintptr_t)p->d, (size_t)p->d_ld * element, 0, width,
                                                  (size_t)p->m, stream),
                         "cuMemsetD2D8Async", "gemm with K = 0, device %d", scope->device);
}

static dw_status run(const dw_cuda_scope *scope, const dw_cublaslt *library, dw_gemm_problem *p, void *workspace,
                     size_t workspace_bytes, void *stream) {
    dw_gemm_plan *plan = NULL;
    DW_TRY(dw_gemm_plan_get(scope, library, p, &plan));
    size_t needed = p->decode_bytes + dw_gemm_plan_workspace(plan);
    dw_status status = DW_OK;
    if (workspace_bytes < needed)
        status = dw_fail(DW_ERROR_INVALID_ARGUMENT,
                         "gemm: the workspace has %zu bytes and %zu are needed; ask "
                         "dw_gemm_workspace_size",
                         workspace_bytes, needed);
    else
        status = dw_gemm_check_workspace("gemm", workspace, needed);
    if (status == DW_OK) status = decode_scales(scope, p, workspace, stream);
    if (status == DW_OK) {
        char *rest = workspace ? (char *)workspace + p->decode_bytes : NULL;
        status = dw_gemm_plan_run(plan, p, p->a.scale, p->b.scale, rest, dw_gemm_plan_workspace(plan), stream);
    }
    dw_gemm_plan_release(plan);
    return status;
}

/* What DW_GEMM_AUTO means: DEEPWELL_GEMM=cublaslt takes the other source, for comparing the two. */
static dw_status backend_of(const dw_gemm_args *args, dw_gemm_backend *backend) {
    *backend = args->backend;
    const char *wanted = args->backend == DW_GEMM_AUTO ? getenv("DEEPWELL_GEMM") : NULL;
    if (!wanted || !*wanted) return DW_OK;
    if (strcmp(wanted, "cublaslt") != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "DEEPWELL_GEMM is '%s'; cublaslt or nothing is expected", wanted);
    *backend = DW_GEMM_CUBLASLT;
    return DW_OK;
}

/* The product as one of the project's own kernels runs it. */
typedef struct own_product {
    dw_gemm_sm90_call call;
    dw_gemm_sm90_choice choice; /* row -1: cuBLASLt runs it, and nothing else here is set */
    int multiprocessors;
} own_product;

/* Which of the project's own kernels runs it, with so many bytes of workspace: `forced`, if not negative. UNSUPPORTED
 * when one must and none can. */
static dw_status choose_own(const dw_cuda_scope *scope, const dw_gemm_args *args, const dw_gemm_problem *problem,
                            size_t workspace, int forced, own_product *own) {
    own->choice.row = -1;
    dw_gemm_backend backend = DW_GEMM_OWN;
    if (forced < 0) DW_TRY(backend_of(args, &backend));
    if (backend == DW_GEMM_CUBLASLT) return DW_OK;
    const char *refusal = dw_gemm_sm90_refusal(args, problem);
    if (!*refusal && dw_cuda_image_total == 0) refusal = "this build holds no device code";
    if (!*refusal) {
        int capability = 0;
        DW_TRY(dw_gemm_sm90_device(scope, &capability, &own->multiprocessors));
        if (capability != 90) refusal = "the GPU is not of compute capability 9.0";
    }
    if (!*refusal) {
        own->call = dw_gemm_sm90_call_of(args, problem);
        DW_TRY(dw_gemm_sm90_pick(scope, &own->call.shape, own->multiprocessors, workspace, forced, &own->choice));
        if (own->choice.row < 0) refusal = "each kernel of these formats failed its self-test on this GPU";
    }
    if (*refusal && backend == DW_GEMM_OWN)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: the library's own kernels cannot run this: %s", refusal);
    return DW_OK;
}

/* multiprocessors: for a product of the library's own, 0: all there are. */
static dw_status multiply(const dw_cuda_scope *scope, const dw_gemm_args *args, dw_gemm_problem *problem, int forced,
                          int multiprocessors, void *stream) {
    if (problem->k == 0) return multiply_nothing(scope, problem, stream);
    own_product own;
    DW_TRY(choose_own(scope, args, problem, args->workspace ? args->workspace_bytes : 0, forced, &own));
    if (own.choice.row >= 0) {
        DW_TRY(dw_gemm_check_workspace("gemm", args->workspace, args->workspace_bytes));
        return dw_gemm_sm90_launch(scope, &own.call, &own.choice,
                                   multiprocessors > 0 ? multiprocessors : own.multiprocessors, stream);
    }
    const dw_cublaslt *library = NULL;
    DW_TRY(dw_cublaslt_get(scope->driver->version, &library));
    return run(scope, library, problem, args->workspace, args->workspace_bytes, stream);
}

static dw_status check_backend(const dw_gemm_args *args) {
    if ((unsigned)args->backend > DW_GEMM_CUBLASLT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gemm: backend %d is no dw_gemm_backend", (int)args->backend);
    return DW_OK;
}

static dw_status gemm(const dw_gemm_args *args, int forced, int multiprocessors, void *stream) {
    DW_TRY(check_backend(args));
    dw_gemm_problem problem;
    DW_TRY(dw_gemm_prepare(args, true, &problem));
    if (problem.m == 0 || problem.n == 0) return DW_OK;
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(problem.device, &scope));
    dw_status status = multiply(&scope, args, &problem, forced, multiprocessors, stream);
    dw_cuda_leave(&scope);
    return status;
}

dw_status dw_gemm(dw_context *context, const dw_gemm_args *args, void *stream) {
    if (!context || !args)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_gemm: %s is NULL", context ? "args" : "context");
    return gemm(args, -1, 0, stream);
}

dw_status dw_gemm_with_row(int row, int multiprocessors, const dw_gemm_args *args, void *stream) {
    return gemm(args, row, multiprocessors, stream);
}

static dw_status workspace_size(const dw_cuda_scope *scope, const dw_gemm_args *args, const dw_gemm_problem *problem,
                                size_t *bytes) {
    own_product own;
    /* It proves the kernel, so that the answer holds for the call. */
    DW_TRY(choose_own(scope, args, problem, SIZE_MAX, -1, &own));
    *bytes = 0;
    if (own.choice.row >= 0) {
        *bytes = dw_gemm_sm90_workspace(dw_gemm_sm90_get((size_t)own.choice.row), &own.call.shape, own.multiprocessors);
        return DW_OK;
    }
    const dw_cublaslt *library = NULL;
    dw_gemm_plan *plan = NULL;
    DW_TRY(dw_cublaslt_get(scope->driver->version, &library));
    DW_TRY(dw_gemm_plan_get(scope, library, problem, &plan));
    *bytes = problem->decode_bytes + dw_gemm_plan_workspace(plan);
    dw_gemm_plan_release(plan);
    return DW_OK;
}

dw_status dw_gemm_workspace_size(dw_context *context, const dw_gemm_args *args, size_t *bytes) {
    if (!context || !args || !bytes)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_gemm_workspace_size: %s is NULL",
                       !context ? "context"
                       : !args  ? "args"
                                : "bytes");
    DW_TRY(check_backend(args));
    dw_gemm_problem problem;
    DW_TRY(dw_gemm_prepare(args, false, &problem));
    *bytes = 0;
    if (problem.m == 0 || problem.n == 0 || problem.k == 0) return DW_OK;
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(problem.device, &scope));
    dw_status status = workspace_size(&scope, args, &problem, bytes);
    dw_cuda_leave(&scope);
    return status;
}

static dw_status tune(const dw_cuda_scope *scope, const dw_gemm_args *args, const dw_gemm_problem *problem,
                      void *stream, dw_gemm_tuned *tuned) {
    dw_gemm_args with_own = *args;
    with_own.backend = DW_GEMM_OWN;
    own_product own;
    DW_TRY(dw_gemm_check_workspace("gemm", args->workspace, args->workspace_bytes));
    DW_TRY(choose_own(scope, &with_own, problem, args->workspace_bytes, -1, &own));
    return dw_gemm_sm90_tune(scope, &own.call, own.multiprocessors, stream, tuned);
}

dw_status dw_gemm_tune(dw_context *context, const dw_gemm_args *args, void *stream, dw_gemm_tuned *tuned) {
    if (!context || !args || !tuned)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "dw_gemm_tune: %s is NULL",
                       !context ? "context"
                       : !args  ? "args"
                                : "tuned");
    DW_TRY(dw_gemm_tuning_allowed());
    dw_gemm_problem problem;
    DW_TRY(dw_gemm_prepare(args, true, &problem));
    if (problem.m == 0 || problem.n == 0 || problem.k == 0)
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: an empty product has nothing to tune");
    dw_cuda_scope scope;
    DW_TRY(dw_cuda_enter(problem.device, &scope));
    dw_status status = tune(&scope, args, &problem, stream, tuned);
    dw_cuda_leave(&scope);
    return status;
}
