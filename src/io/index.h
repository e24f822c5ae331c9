/* The index of a sharded checkpoint: {"metadata": {"total_size": N, ...}, "weight_map": {"NAME": "SHARD", ...}}. */
#ifndef DW_IO_INDEX_H
#define DW_IO_INDEX_H

#include <jansson.h>

#include "core/arena.h"
#include "core/text.h"

#include "deepwell/types.h"

typedef struct dw_index_entry {
    const char *tensor;
    size_t shard; /* in dw_index.shards */
} dw_index_entry;

typedef struct dw_index {
    dw_index_entry *entries; /* sorted by name */
    size_t entry_count, entry_room;
    const char **shards; /* file names, sorted; plain names in the index's own folder */
    size_t shard_count;
    json_t *metadata; /* an object; what else stood there is kept */
    dw_arena arena;
} dw_index;

/* Parses the text of an index; `what` names it in errors. A shard must be a plain file name: no folder, no "..", not
 * hidden, ending in ".safetensors". CORRUPT on anything else. */
dw_status dw_index_parse(const char *what, const char *text, size_t length, dw_index *index);
dw_status dw_index_read(const char *path, dw_index *index);

/* NULL when the index does not list the tensor. */
const dw_index_entry *dw_index_find(const dw_index *index, const char *tensor);

/* Building one: start from {0}, add in any order, finish sorts and reports a tensor added twice as EXISTS. `metadata`
 * is copied except for total_size, which is set to the bytes given; it may be NULL. */
dw_status dw_index_add(dw_index *index, const char *tensor, const char *shard);
dw_status dw_index_finish(const char *what, const json_t *metadata, uint64_t total_bytes, dw_index *index);

/* Appends the JSON text. */
void dw_index_format(const dw_index *index, dw_text *text);

void dw_index_clear(dw_index *index);

#endif
