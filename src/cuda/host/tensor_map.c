#include "cuda/host/tensor_map.h"

#include <pthread.h>
#include <string.h>

/* Direct-mapped: a training step uses a few dozen tensors at fixed addresses over and over, and a miss costs about a
 * microsecond, so nothing cleverer pays. */
#define CACHE_ENTRIES 512

typedef struct cache_key {
    uint64_t context_id; /* 0: empty; the driver's identifiers start at 1 */
    dw_cuda_tensor_map_spec spec;
} cache_key;

typedef struct cache_entry {
    cache_key key;
    dw_cu_tensor_map map;
} cache_entry;

_Static_assert(sizeof(cache_key) % 8 == 0, "the key is hashed and compared as whole words without padding");
_Static_assert(sizeof(dw_cuda_tensor_map_spec) == 8 + 5 * 8 + 4 * 8 + 5 * 4 + 4 * 4 + 4,
               "a field was added: see make_key");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cache_entry cache[CACHE_ENTRIES];

/* Field by field, so that the bytes of padding are always zero and the key can be compared as memory. */
static cache_key make_key(const dw_cuda_scope *scope, const dw_cuda_tensor_map_spec *spec) {
    cache_key key;
    memset(&key, 0, sizeof key);
    key.context_id = scope->context_id;
    key.spec.address = spec->address;
    for (uint32_t i = 0; i < spec->rank; i++) {
        key.spec.extents[i] = spec->extents[i];
        key.spec.box[i] = spec->box[i];
        if (i > 0) key.spec.strides[i - 1] = spec->strides[i - 1];
    }
    key.spec.rank = spec->rank;
    key.spec.type = spec->type;
    key.spec.swizzle = spec->swizzle;
    key.spec.promotion = spec->promotion;
    return key;
}

static size_t slot_of(const cache_key *key) {
    uint64_t words[sizeof *key / 8], hash = 0x9E3779B97F4A7C15u;
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        hash = (hash ^ words[i]) * 0xD6E8FEB86659FD93u, hash ^= hash >> 32;
    return hash % CACHE_ENTRIES;
}

dw_status dw_cuda_tensor_map(const dw_cuda_scope *scope, const dw_cuda_tensor_map_spec *spec, dw_cu_tensor_map *map) {
    if (spec->rank < 1 || spec->rank > DW_TENSOR_MAP_MAX_RANK)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tensor map of rank %u; the copy engine takes 1 to %d dimensions",
                       spec->rank, DW_TENSOR_MAP_MAX_RANK);
    cache_key key = make_key(scope, spec);
    cache_entry *entry = &cache[slot_of(&key)];
    pthread_mutex_lock(&lock);
    bool hit = memcmp(&entry->key, &key, sizeof key) == 0;
    if (hit) *map = entry->map;
    pthread_mutex_unlock(&lock);
    if (hit) return DW_OK;

    static const uint32_t element_strides[DW_TENSOR_MAP_MAX_RANK] = {1, 1, 1, 1, 1};
    dw_cu_tensor_map made;
    dw_cu_result result = scope->driver->tensor_map_tiled(
        &made, key.spec.type, key.spec.rank, (void *)(uintptr_t)key.spec.address, key.spec.extents, key.spec.strides,
        key.spec.box, element_strides, DW_CU_INTERLEAVE_NONE, key.spec.swizzle, key.spec.promotion, DW_CU_FILL_ZERO);
    DW_TRY(dw_cuda_check(scope->driver, result, "cuTensorMapEncodeTiled",
                         "address %p, type %d, rank %u, inner extents %llu x %llu, box %u x %u, swizzle %d",
                         spec->address, spec->type, spec->rank, (unsigned long long)key.spec.extents[0],
                         (unsigned long long)key.spec.extents[1], key.spec.box[0], key.spec.box[1], spec->swizzle));
    pthread_mutex_lock(&lock);
    entry->key = key;
    entry->map = made;
    pthread_mutex_unlock(&lock);
    *map = made;
    return DW_OK;
}
