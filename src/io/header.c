#include "io/header.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "core/text.h"

bool dw_tensor_bytes(dw_file_dtype dtype, int rank, const int64_t *shape, uint64_t *bytes) {
    uint64_t count = 1;
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(count, (uint64_t)shape[i], &count))
            return false;
    }
    if (empty) count = 0;
    uint64_t bits;
    if (__builtin_mul_overflow(count, (uint64_t)dw_file_dtype_bits(dtype), &bits) || bits % 8) return false;
    *bytes = bits / 8;
    return true;
}

static dw_status no_memory(const char *what) {
    return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory for the header", what);
}

static void *grow(void *items, size_t *room, size_t size) {
    size_t wanted = *room ? *room * 2 : 64;
    void *grown = realloc(items, wanted * size);
    if (grown) *room = wanted;
    return grown;
}

dw_status dw_header_place_tensor(dw_header *header, const dw_file_tensor *tensor) {
    if (header->tensor_count == header->tensor_room) {
        dw_file_tensor *grown = grow(header->tensors, &header->tensor_room, sizeof *grown);
        if (!grown) return no_memory(tensor->name);
        header->tensors = grown;
    }
    dw_file_tensor own = *tensor;
    size_t shape_bytes = sizeof *own.shape * (size_t)own.rank;
    int64_t *shape = dw_arena_take(&header->arena, shape_bytes);
    own.name = dw_arena_copy(&header->arena, tensor->name, strlen(tensor->name));
    if (!own.name || !shape) return no_memory(tensor->name);
    if (own.rank) memcpy(shape, tensor->shape, shape_bytes);
    own.shape = shape;
    header->tensors[header->tensor_count++] = own;
    return DW_OK;
}

dw_status dw_header_add_tensor(dw_header *header, const char *name, dw_file_dtype dtype, int rank,
                               const int64_t *shape) {
    uint64_t bytes, end;
    if (!dw_tensor_bytes(dtype, rank, shape, &bytes) || __builtin_add_overflow(header->data_bytes, bytes, &end))
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tensor %.200s: its size is no whole number of bytes in 64 bits",
                       name);
    dw_file_tensor tensor = {
        .name = name, .dtype = dtype, .rank = rank, .shape = shape, .begin = header->data_bytes, .end = end};
    DW_TRY(dw_header_place_tensor(header, &tensor));
    header->data_bytes = end;
    return DW_OK;
}

dw_status dw_header_add_metadata(dw_header *header, const char *key, const char *value) {
    if (header->metadata_count == header->metadata_room) {
        dw_metadata_entry *grown = grow(header->metadata, &header->metadata_room, sizeof *grown);
        if (!grown) return no_memory(key);
        header->metadata = grown;
    }
    dw_metadata_entry entry = {dw_arena_copy(&header->arena, key, strlen(key)),
                               dw_arena_copy(&header->arena, value, strlen(value))};
    if (!entry.key || !entry.value) return no_memory(key);
    header->metadata[header->metadata_count++] = entry;
    return DW_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(const dw_file_tensor *const *)a)->name, (*(const dw_file_tensor *const *)b)->name);
}

static int compare_keys(const void *a, const void *b) {
    return strcmp(((const dw_metadata_entry *)a)->key, ((const dw_metadata_entry *)b)->key);
}

dw_status dw_header_finish(const char *what, dw_header *header) {
    size_t count = header->tensor_count;
    if (count) {
        header->by_name = malloc(sizeof(header->by_name[0]) * count);
        if (!header->by_name) return no_memory(what);
        for (size_t i = 0; i < count; i++)
            header->by_name[i] = &header->tensors[i];
        qsort(header->by_name, count, sizeof(header->by_name[0]), compare_names);
    }
    for (size_t i = 1; i < count; i++)
        if (strcmp(header->by_name[i - 1]->name, header->by_name[i]->name) == 0)
            return dw_fail(DW_ERROR_EXISTS, "%s: two tensors are named %.200s", what, header->by_name[i]->name);
    if (header->metadata_count) qsort(header->metadata, header->metadata_count, sizeof *header->metadata, compare_keys);
    for (size_t i = 1; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i - 1].key, header->metadata[i].key) == 0)
            return dw_fail(DW_ERROR_EXISTS, "%s: two metadata entries are named %.200s", what, header->metadata[i].key);
    return DW_OK;
}

static int compare_name_to(const void *name, const void *element) {
    return strcmp(name, (*(const dw_file_tensor *const *)element)->name);
}

const dw_file_tensor *dw_header_find(const dw_header *header, const char *name) {
    if (!header->tensor_count) return NULL;
    const dw_file_tensor **found =
        bsearch(name, header->by_name, header->tensor_count, sizeof(header->by_name[0]), compare_name_to);
    return found ? *found : NULL;
}

const char *dw_header_metadata(const dw_header *header, const char *key) {
    for (size_t i = 0; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i].key, key) == 0) return header->metadata[i].value;
    return NULL;
}

static void format_tensor(dw_text *text, const dw_file_tensor *tensor) {
    dw_text_quote(text, tensor->name);
    dw_text_printf(text, ":{\"dtype\":\"%s\",\"shape\":[", dw_file_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->rank; i++)
        dw_text_printf(text, i ? ",%" PRId64 : "%" PRId64, tensor->shape[i]);
    dw_text_printf(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", tensor->begin, tensor->end);
}

dw_status dw_header_format(const char *what, const dw_header *header, char **bytes, size_t *length) {
    dw_text text = {0};
    static const char room_for_prefix[DW_HEADER_PREFIX];
    dw_text_append(&text, room_for_prefix, sizeof room_for_prefix);
    dw_text_puts(&text, "{");
    if (header->metadata_count) {
        dw_text_quote(&text, DW_METADATA_NAME);
        for (size_t i = 0; i < header->metadata_count; i++) {
            dw_text_puts(&text, i ? "," : ":{");
            dw_text_quote(&text, header->metadata[i].key);
            dw_text_puts(&text, ":");
            dw_text_quote(&text, header->metadata[i].value);
        }
        dw_text_puts(&text, "}");
    }
    for (size_t i = 0; i < header->tensor_count; i++) {
        if (i || header->metadata_count) dw_text_puts(&text, ",");
        format_tensor(&text, &header->tensors[i]);
    }
    dw_text_puts(&text, "}");
    while (!text.failed && text.length % 8)
        dw_text_puts(&text, " ");
    if (text.failed) {
        dw_text_free(&text);
        return no_memory(what);
    }
    uint64_t text_bytes = text.length - DW_HEADER_PREFIX;
    if (text_bytes > DW_HEADER_TEXT_MAX) {
        dw_text_free(&text);
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "%s: its header would have %" PRIu64 " bytes and the format allows %" PRIu64
                       "; split the checkpoint into shards",
                       what, text_bytes, DW_HEADER_TEXT_MAX);
    }
    for (int i = 0; i < DW_HEADER_PREFIX; i++)
        text.bytes[i] = (char)(text_bytes >> (8 * i));
    *bytes = text.bytes;
    *length = text.length;
    return DW_OK;
}

void dw_header_clear(dw_header *header) {
    free(header->tensors);
    free(header->by_name);
    free(header->metadata);
    dw_arena_clear(&header->arena);
    *header = (dw_header){0};
}
