#include "cuda/host/gemm_plan.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Everything that the choice of an algorithm depends on. All fields are 64 bits, so there is no padding to compare. */
typedef struct plan_key {
    uint64_t context_id;
    int64_t m, n, k, a_ld, b_ld, d_ld;
    int64_t types; /* of a, b, d and the bias, a byte each */
    int64_t scale_modes, flags, alignments;
} plan_key;

struct dw_gemm_plan {
    plan_key key;
    const dw_cublaslt *library;
    dw_lt_handle handle;
    dw_lt_operation operation; /* holds the scale and bias pointers of the call in progress: see `turn` */
    dw_lt_layout first, second, result;
    dw_lt_algorithm algorithm;
    size_t workspace;
    pthread_mutex_t turn;
    int users;          /* under cache_lock */
    uint64_t used;      /* under cache_lock: when, in uses of the cache */
    dw_gemm_plan *next; /* under cache_lock */
};

typedef struct handle_entry {
    uint64_t context_id;
    dw_lt_handle handle;
    struct handle_entry *next;
} handle_entry;

/* A training step has some tens of shapes; variable-length batches may bring thousands. */
#define BUCKETS 1024
#define MAX_PLANS 4096

static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static dw_gemm_plan *buckets[BUCKETS];
static handle_entry *handles;
static size_t plan_count, plans_made;
static uint64_t uses;

static plan_key make_key(const dw_cuda_scope *scope, const dw_gemm_problem *p) {
    return (plan_key){
        .context_id = scope->context_id,
        .m = p->m,
        .n = p->n,
        .k = p->k,
        .a_ld = p->a.ld,
        .b_ld = p->b.ld,
        .d_ld = p->d_ld,
        .types = (p->a.type & 0xFF) | (p->b.type & 0xFF) << 8 | (p->d_type & 0xFF) << 16 |
                 (int64_t)(p->bias_type & 0xFF) << 24,
        .scale_modes = p->a_scaling | p->b_scaling << 8,
        .flags = p->has_bias | p->fast_accumulation << 1,
        .alignments = (int64_t)p->a.alignment | (int64_t)p->b.alignment << 16 | (int64_t)p->d_alignment << 32,
    };
}

static size_t bucket_of(const plan_key *key) {
    uint64_t words[sizeof *key / 8], hash = 0x9E3779B97F4A7C15u;
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        hash = (hash ^ words[i]) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    return hash % BUCKETS;
}

/* One cuBLASLt handle per context: a handle belongs to the device that was current when it was made. With cache_lock
 * held. */
static dw_status get_handle(const dw_cuda_scope *scope, const dw_cublaslt *library, dw_lt_handle *handle) {
    for (const handle_entry *h = handles; h; h = h->next)
        if (h->context_id == scope->context_id) {
            *handle = h->handle;
            return DW_OK;
        }
    handle_entry *made = malloc(sizeof *made);
    if (!made) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for a cuBLASLt handle");
    dw_status status = dw_cublaslt_check(library, library->create(&made->handle), "cublasLtCreate", "handle");
    if (status != DW_OK) {
        free(made);
        return status;
    }
    made->context_id = scope->context_id;
    made->next = handles;
    handles = made;
    *handle = made->handle;
    return DW_OK;
}

static void destroy(dw_gemm_plan *plan) {
    const dw_cublaslt *library = plan->library;
    if (plan->operation) library->operation_destroy(plan->operation);
    if (plan->first) library->layout_destroy(plan->first);
    if (plan->second) library->layout_destroy(plan->second);
    if (plan->result) library->layout_destroy(plan->result);
    pthread_mutex_destroy(&plan->turn);
    free(plan);
}

static dw_status set_operation(dw_gemm_plan *plan, int attribute, const void *value, size_t bytes) {
    return dw_cublaslt_check(plan->library, plan->library->operation_set(plan->operation, attribute, value, bytes),
                             "cublasLtMatmulDescSetAttribute", "gemm");
}

static dw_status set_pointer(dw_gemm_plan *plan, int attribute, const void *pointer) {
    return set_operation(plan, attribute, &pointer, sizeof pointer);
}

static dw_status describe_operation(dw_gemm_plan *plan, const dw_gemm_problem *p) {
    const dw_cublaslt *library = plan->library;
    DW_TRY(dw_cublaslt_check(library, library->operation_create(&plan->operation, DW_LT_COMPUTE_F32, DW_LT_F32),
                             "cublasLtMatmulDescCreate", "gemm"));
    const int32_t transpose = DW_LT_OP_T;
    DW_TRY(set_operation(plan, DW_LT_DESC_TRANSPOSE_A, &transpose, sizeof transpose));
    /* The algorithm may depend on these being set, not on their values, which the calls bring. */
    const void *somewhere = (const void *)(uintptr_t)256;
    if (p->a_scaling != DW_GEMM_UNSCALED) {
        /* Versions before 12.8 know no modes; tensor-wise is what they do, and the default of the later ones. */
        if (p->a_scaling != DW_GEMM_TENSOR) {
            DW_TRY(set_operation(plan, DW_LT_DESC_A_SCALE_MODE, &p->b.scale_mode, sizeof p->b.scale_mode));
            DW_TRY(set_operation(plan, DW_LT_DESC_B_SCALE_MODE, &p->a.scale_mode, sizeof p->a.scale_mode));
        }
        DW_TRY(set_pointer(plan, DW_LT_DESC_A_SCALE_POINTER, somewhere));
        DW_TRY(set_pointer(plan, DW_LT_DESC_B_SCALE_POINTER, somewhere));
        const int8_t fast = p->fast_accumulation;
        DW_TRY(set_operation(plan, DW_LT_DESC_FAST_ACCUMULATION, &fast, sizeof fast));
    }
    if (p->has_bias) {
        const uint32_t epilogue = DW_LT_EPILOGUE_BIAS;
        DW_TRY(set_operation(plan, DW_LT_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        DW_TRY(set_operation(plan, DW_LT_DESC_BIAS_TYPE, &p->bias_type, sizeof p->bias_type));
        DW_TRY(set_pointer(plan, DW_LT_DESC_BIAS_POINTER, somewhere));
    }
    return DW_OK;
}

static dw_status describe_layout(dw_gemm_plan *plan, dw_lt_layout *layout, int32_t type, int64_t rows, int64_t cols,
                                 int64_t ld) {
    return dw_cublaslt_check(plan->library,
                             plan->library->layout_create(layout, type, (uint64_t)rows, (uint64_t)cols, ld),
                             "cublasLtMatrixLayoutCreate", "gemm");
}

static dw_status set_preferences(const dw_cublaslt *library, dw_lt_preference preference, const dw_gemm_problem *p) {
    const uint64_t workspace = DW_GEMM_WORKSPACE_MAX;
    /* A reduction split over blocks may pass through 16 bits unless told otherwise; D is to be rounded once. */
    const uint32_t reductions = DW_LT_REDUCTION_COMPUTE_TYPE;
    const struct {
        int attribute;
        const void *value;
        size_t bytes;
    } wanted[] = {
        {DW_LT_PREFERENCE_WORKSPACE, &workspace, sizeof workspace},
        {DW_LT_PREFERENCE_ALIGNMENT_A, &p->b.alignment, sizeof p->b.alignment},
        {DW_LT_PREFERENCE_ALIGNMENT_B, &p->a.alignment, sizeof p->a.alignment},
        {DW_LT_PREFERENCE_ALIGNMENT_C, &p->d_alignment, sizeof p->d_alignment},
        {DW_LT_PREFERENCE_ALIGNMENT_D, &p->d_alignment, sizeof p->d_alignment},
        {DW_LT_PREFERENCE_REDUCTION_MASK, &reductions, sizeof reductions}, /* last: see below */
    };
    size_t count = sizeof wanted / sizeof *wanted - (p->d_type == DW_LT_F32); /* an FP32 D loses nothing either way */
    for (size_t i = 0; i < count; i++)
        DW_TRY(dw_cublaslt_check(
            library, library->preference_set(preference, wanted[i].attribute, wanted[i].value, wanted[i].bytes),
            "cublasLtMatmulPreferenceSetAttribute", "gemm"));
    return DW_OK;
}

static dw_status choose_algorithm(dw_gemm_plan *plan, const dw_gemm_problem *p) {
    const dw_cublaslt *library = plan->library;
    dw_lt_preference preference = NULL;
    DW_TRY(
        dw_cublaslt_check(library, library->preference_create(&preference), "cublasLtMatmulPreferenceCreate", "gemm"));
    dw_lt_heuristic best = {0};
    int found = 0;
    dw_lt_result result = DW_LT_SUCCESS;
    dw_status status = set_preferences(library, preference, p);
    if (status == DW_OK)
        result = library->heuristic(plan->handle, plan->operation, plan->first, plan->second, plan->result,
                                    plan->result, preference, 1, &best, &found);
    library->preference_destroy(preference);
    DW_TRY(status);
    if (result == DW_LT_SUCCESS && found > 0) result = best.state;
    char text[256];
    dw_gemm_describe(p, text, sizeof text);
    if (result == DW_LT_NOT_SUPPORTED || result == DW_LT_INVALID_VALUE || (result == DW_LT_SUCCESS && found == 0))
        return dw_fail(DW_ERROR_UNSUPPORTED, "gemm: cuBLASLt %zu.%zu has no kernel for %s (%s)",
                       library->version / 10000, library->version / 100 % 100, text, library->status_name(result));
    DW_TRY(dw_cublaslt_check(library, result, "cublasLtMatmulAlgoGetHeuristic", text));
    plan->algorithm = best.algorithm;
    plan->workspace = best.workspace_bytes;
    return DW_OK;
}

/* With cache_lock held: handles and heuristics are slow (tens of microseconds) but happen once per shape. */
static dw_status make_plan(const dw_cuda_scope *scope, const dw_cublaslt *library, const dw_gemm_problem *p,
                           dw_gemm_plan **plan) {
    int major = 0, minor = 0;
    dw_cu_device device;
    DW_TRY(dw_cuda_check(scope->driver, scope->driver->device_get(&device, scope->device), "cuDeviceGet", "device %d",
                         scope->device));
    DW_TRY(dw_cuda_check(scope->driver, scope->driver->device_attribute(&major, DW_CU_DEVICE_COMPUTE_MAJOR, device),
                         "cuDeviceGetAttribute", "device %d", scope->device));
    DW_TRY(dw_cuda_check(scope->driver, scope->driver->device_attribute(&minor, DW_CU_DEVICE_COMPUTE_MINOR, device),
                         "cuDeviceGetAttribute", "device %d", scope->device));
    DW_TRY(dw_gemm_available(p, major, minor, library->version));

    dw_gemm_plan *made = calloc(1, sizeof *made);
    if (!made) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for a gemm plan");
    made->library = library;
    pthread_mutex_init(&made->turn, NULL);
    dw_status status = get_handle(scope, library, &made->handle);
    if (status == DW_OK) status = describe_operation(made, p);
    if (status == DW_OK) status = describe_layout(made, &made->first, p->b.type, p->k, p->n, p->b.ld);
    if (status == DW_OK) status = describe_layout(made, &made->second, p->a.type, p->k, p->m, p->a.ld);
    if (status == DW_OK) status = describe_layout(made, &made->result, p->d_type, p->n, p->m, p->d_ld);
    if (status == DW_OK) status = choose_algorithm(made, p);
    if (status != DW_OK) {
        destroy(made);
        return status;
    }
    *plan = made;
    return DW_OK;
}

/* With cache_lock held. */
static void evict_oldest(void) {
    dw_gemm_plan **oldest = NULL;
    for (size_t b = 0; b < BUCKETS; b++)
        for (dw_gemm_plan **link = &buckets[b]; *link; link = &(*link)->next)
            if ((*link)->users == 0 && (!oldest || (*link)->used < (*oldest)->used)) oldest = link;
    if (!oldest) return; /* all in use: the cache grows by as many as there are threads */
    dw_gemm_plan *gone = *oldest;
    *oldest = gone->next;
    plan_count--;
    destroy(gone);
}

dw_status dw_gemm_plan_get(const dw_cuda_scope *scope, const dw_cublaslt *library, const dw_gemm_problem *problem,
                           dw_gemm_plan **plan) {
    plan_key key = make_key(scope, problem);
    dw_gemm_plan **bucket = &buckets[bucket_of(&key)];
    dw_status status = DW_OK;
    pthread_mutex_lock(&cache_lock);
    dw_gemm_plan *found = *bucket;
    while (found && memcmp(&found->key, &key, sizeof key) != 0)
        found = found->next;
    if (!found) {
        status = make_plan(scope, library, problem, &found);
        if (status == DW_OK) {
            if (plan_count >= MAX_PLANS) evict_oldest();
            found->key = key;
            found->next = *bucket;
            *bucket = found;
            plan_count++;
            plans_made++;
        }
    }
    if (status == DW_OK) {
        found->users++;
        found->used = ++uses;
        *plan = found;
    }
    pthread_mutex_unlock(&cache_lock);
    return status;
}

void dw_gemm_plan_release(dw_gemm_plan *plan) {
    pthread_mutex_lock(&cache_lock);
    plan->users--;
    pthread_mutex_unlock(&cache_lock);
}

size_t dw_gemm_plan_workspace(const dw_gemm_plan *plan) {
    return plan->workspace;
}

size_t dw_gemm_plan_made(void) {
    pthread_mutex_lock(&cache_lock);
    size_t made = plans_made;
    pthread_mutex_unlock(&cache_lock);
    return made;
}

dw_status dw_gemm_plan_run(dw_gemm_plan *plan, const dw_gemm_problem *p, const void *a_scale, const void *b_scale,
                           void *workspace, size_t workspace_bytes, void *stream) {
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    pthread_mutex_lock(&plan->turn);
    dw_status status = DW_OK;
    if (p->a_scaling != DW_GEMM_UNSCALED) {
        status = set_pointer(plan, DW_LT_DESC_A_SCALE_POINTER, b_scale);
        if (status == DW_OK) status = set_pointer(plan, DW_LT_DESC_B_SCALE_POINTER, a_scale);
    }
    if (status == DW_OK && p->has_bias) status = set_pointer(plan, DW_LT_DESC_BIAS_POINTER, p->bias);
    dw_lt_result result = DW_LT_SUCCESS;
    if (status == DW_OK)
        result = plan->library->matmul(plan->handle, plan->operation, &one, p->b.data, plan->first, p->a.data,
                                       plan->second, &beta, p->d, plan->result, p->d, plan->result, &plan->algorithm,
                                       workspace, workspace_bytes, stream);
    pthread_mutex_unlock(&plan->turn);
    DW_TRY(status);
    if (result == DW_LT_SUCCESS) return DW_OK;
    char text[256];
    dw_gemm_describe(p, text, sizeof text);
    return dw_cublaslt_check(plan->library, result, "cublasLtMatmul", text);
}
