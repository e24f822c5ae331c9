#include "io/index.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "io/json_object.h"
#include "io/reader.h"

enum { METADATA_TEXT_MAX = 1 << 20 };

static dw_status no_memory(const char *what) {
    return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory for the index", what);
}

/* The index may come from anywhere, so it must not choose files outside its folder. */
static bool is_plain_shard_name(const char *name) {
    static const char suffix[] = ".safetensors";
    size_t length = strlen(name);
    return name[0] != '.' && length > sizeof suffix - 1 && length <= 255 && !strchr(name, '/') &&
           strcmp(name + length - (sizeof suffix - 1), suffix) == 0;
}

/* Until the end, `shards` has one name for each entry; unify_shards makes them a set. */
dw_status dw_index_add(dw_index *index, const char *tensor, const char *shard) {
    if (index->entry_count == index->entry_room) {
        size_t room = index->entry_room ? index->entry_room * 2 : 256;
        dw_index_entry *entries = realloc(index->entries, room * sizeof *entries);
        if (!entries) return no_memory(tensor);
        index->entries = entries;
        const char **shards = realloc(index->shards, room * sizeof *shards);
        if (!shards) return no_memory(tensor);
        index->shards = shards;
        index->entry_room = room;
    }
    /* Neighbours mostly share a shard, and one copy of its name will do for them. */
    size_t at = index->entry_count;
    const char *name = at && strcmp(index->shards[at - 1], shard) == 0
                           ? index->shards[at - 1]
                           : dw_arena_copy(&index->arena, shard, strlen(shard));
    const char *own_tensor = dw_arena_copy(&index->arena, tensor, strlen(tensor));
    if (!name || !own_tensor) return no_memory(tensor);
    index->shards[at] = name;
    index->entries[at] = (dw_index_entry){.tensor = own_tensor, .shard = at};
    index->entry_count++;
    return DW_OK;
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const dw_index_entry *)a)->tensor, ((const dw_index_entry *)b)->tensor);
}

static dw_status unify_shards(const char *what, dw_index *index) {
    size_t count = index->entry_count;
    if (count == 0) return DW_OK;
    const char **names = malloc(count * sizeof *names);
    if (!names) return no_memory(what);
    memcpy(names, index->shards, count * sizeof *names);
    qsort(names, count, sizeof *names, compare_strings);
    size_t distinct = 0;
    for (size_t i = 0; i < count; i++)
        if (distinct == 0 || strcmp(names[distinct - 1], names[i]) != 0) names[distinct++] = names[i];
    for (size_t i = 0; i < count; i++) {
        const char **found = bsearch(&index->shards[i], names, distinct, sizeof *names, compare_strings);
        index->entries[i].shard = (size_t)(found - names);
    }
    free(index->shards);
    index->shards = names;
    index->shard_count = distinct;
    return DW_OK;
}

dw_status dw_index_finish(const char *what, const json_t *metadata, uint64_t total_bytes, dw_index *index) {
    DW_TRY(unify_shards(what, index));
    if (index->entry_count) qsort(index->entries, index->entry_count, sizeof *index->entries, compare_entries);
    for (size_t i = 1; i < index->entry_count; i++)
        if (compare_entries(&index->entries[i - 1], &index->entries[i]) == 0)
            return dw_fail(DW_ERROR_EXISTS, "%s: lists the tensor %.200s twice", what, index->entries[i].tensor);
    if (!index->metadata) index->metadata = metadata ? json_deep_copy(metadata) : json_object();
    if (!index->metadata ||
        json_object_set_new(index->metadata, "total_size", json_integer((json_int_t)total_bytes)) != 0)
        return no_memory(what);
    return DW_OK;
}

static dw_status read_weight_map(const char *what, dw_json_span span, dw_index *index) {
    dw_json_walk walk;
    DW_TRY(dw_json_walk_open(&walk, what, span));
    for (;;) {
        char *tensor;
        dw_json_span value_span;
        DW_TRY(dw_json_walk_next(&walk, &tensor, &value_span));
        if (!tensor) return DW_OK;
        json_t *value = NULL;
        dw_status status = dw_json_parse(what, tensor, value_span, 2048, &value);
        const char *shard = json_string_value(value);
        if (status == DW_OK && !shard)
            status = dw_fail(DW_ERROR_CORRUPT, "%s: tensor %.200s: its file name is not a string", what, tensor);
        else if (status == DW_OK && !is_plain_shard_name(shard))
            status =
                dw_fail(DW_ERROR_CORRUPT,
                        "%s: tensor %.200s: \"%.200s\" is not the plain name of a .safetensors file beside the index",
                        what, tensor, shard);
        if (status == DW_OK) status = dw_index_add(index, tensor, shard);
        json_decref(value);
        free(tensor);
        DW_TRY(status);
    }
}

static dw_status read_members(const char *what, dw_json_span text, dw_index *index) {
    dw_json_walk walk;
    bool seen_map = false;
    DW_TRY(dw_json_walk_open(&walk, what, text));
    for (;;) {
        char *name;
        dw_json_span span;
        DW_TRY(dw_json_walk_next(&walk, &name, &span));
        if (!name) break;
        dw_status status;
        if (strcmp(name, "weight_map") == 0) {
            status = seen_map ? dw_fail(DW_ERROR_CORRUPT, "%s: has two weight_map members", what)
                              : read_weight_map(what, span, index);
            seen_map = true;
        } else if (strcmp(name, "metadata") == 0 && !index->metadata) {
            status = dw_json_parse(what, name, span, METADATA_TEXT_MAX, &index->metadata);
            if (status == DW_OK && !json_is_object(index->metadata))
                status = dw_fail(DW_ERROR_CORRUPT, "%s: its metadata is not an object", what);
        } else {
            status = dw_fail(DW_ERROR_CORRUPT, "%s: expected the members metadata and weight_map once, found %.200s",
                             what, name);
        }
        free(name);
        DW_TRY(status);
    }
    return seen_map ? DW_OK : dw_fail(DW_ERROR_CORRUPT, "%s: is no checkpoint index: it has no weight_map", what);
}

dw_status dw_index_parse(const char *what, const char *text, size_t length, dw_index *index) {
    *index = (dw_index){0};
    dw_status status = read_members(what, (dw_json_span){text, length}, index);
    if (status == DW_OK && index->entry_count == 0)
        status = dw_fail(DW_ERROR_CORRUPT, "%s: its weight_map is empty", what);
    if (status == DW_OK) {
        json_int_t total = json_integer_value(json_object_get(index->metadata, "total_size"));
        status = dw_index_finish(what, NULL, total > 0 ? (uint64_t)total : 0, index);
    }
    if (status == DW_ERROR_EXISTS) status = DW_ERROR_CORRUPT;
    if (status != DW_OK) dw_index_clear(index);
    return status;
}

dw_status dw_index_read(const char *path, dw_index *index) {
    char *text;
    size_t length;
    DW_TRY(dw_read_file(path, DW_JSON_TEXT_MAX, &text, &length));
    dw_status status = dw_index_parse(path, text, length, index);
    free(text);
    return status;
}

static int compare_name_to(const void *name, const void *element) {
    return strcmp(name, ((const dw_index_entry *)element)->tensor);
}

const dw_index_entry *dw_index_find(const dw_index *index, const char *tensor) {
    if (!index->entry_count) return NULL;
    return bsearch(tensor, index->entries, index->entry_count, sizeof *index->entries, compare_name_to);
}

void dw_index_format(const dw_index *index, dw_text *text) {
    char *metadata = json_dumps(index->metadata, JSON_COMPACT);
    if (!metadata) {
        text->failed = true;
        return;
    }
    dw_text_puts(text, "{\n  \"metadata\": ");
    dw_text_puts(text, metadata);
    free(metadata);
    dw_text_puts(text, ",\n  \"weight_map\": {");
    for (size_t i = 0; i < index->entry_count; i++) {
        dw_text_puts(text, i ? ",\n    " : "\n    ");
        dw_text_quote(text, index->entries[i].tensor);
        dw_text_puts(text, ": ");
        dw_text_quote(text, index->shards[index->entries[i].shard]);
    }
    dw_text_puts(text, "\n  }\n}\n");
}

void dw_index_clear(dw_index *index) {
    free(index->entries);
    free(index->shards);
    json_decref(index->metadata);
    dw_arena_clear(&index->arena);
    *index = (dw_index){0};
}
