/* Reading the header of a safetensors file. Nothing in it is believed: every number is checked against the size of the
 * file before anything depends on it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "io/header.h"
#include "io/json_object.h"

enum {
    TENSOR_TEXT_MAX = 4096, /* bytes that describe one tensor; two hundred dimensions fit */
};

dw_status dw_header_frame(const char *what, const uint8_t prefix[DW_HEADER_PREFIX], uint64_t file_bytes,
                          uint64_t *text_bytes) {
    if (file_bytes < DW_HEADER_PREFIX + 2)
        return dw_fail(DW_ERROR_CORRUPT, "%s: has %" PRIu64 " bytes, too few for a safetensors file", what, file_bytes);
    uint64_t length = 0;
    for (int i = 0; i < DW_HEADER_PREFIX; i++)
        length |= (uint64_t)prefix[i] << (8 * i);
    if (length > DW_HEADER_TEXT_MAX)
        return dw_fail(DW_ERROR_CORRUPT,
                       "%s: is no safetensors file: it claims a header of %" PRIu64
                       " bytes and the format allows %" PRIu64,
                       what, length, DW_HEADER_TEXT_MAX);
    if (length > file_bytes - DW_HEADER_PREFIX)
        return dw_fail(DW_ERROR_CORRUPT,
                       "%s: is truncated or no safetensors file: it claims a header of %" PRIu64 " bytes and %" PRIu64
                       " follow; fetch it again",
                       what, length, file_bytes - DW_HEADER_PREFIX);
    *text_bytes = length;
    return DW_OK;
}

static dw_status wrong(const char *what, const char *name, const char *problem) {
    return dw_fail(DW_ERROR_CORRUPT, "%s: tensor %.200s: %s", what, name, problem);
}

/* A non-negative integer of the text; JSON's are at most 63 bits wide, so it fits either type. */
static bool count_of(const json_t *value, uint64_t *count) {
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *count = (uint64_t)json_integer_value(value);
    return true;
}

static dw_status read_tensor(const char *what, const char *name, const json_t *value, uint64_t data_bytes,
                             dw_header *header) {
    if (!json_is_object(value)) return wrong(what, name, "expected an object with dtype, shape and data_offsets");
    const json_t *dtype = json_object_get(value, "dtype");
    const json_t *shape = json_object_get(value, "shape");
    const json_t *offsets = json_object_get(value, "data_offsets");
    if (!dtype || !shape || !offsets || json_object_size(value) != 3)
        return wrong(what, name, "expected exactly the members dtype, shape and data_offsets");

    dw_file_tensor tensor = {.name = name};
    if (!json_is_string(dtype)) return wrong(what, name, "its dtype is not a string");
    if (!dw_file_dtype_find(json_string_value(dtype), &tensor.dtype))
        return dw_fail(DW_ERROR_UNSUPPORTED,
                       "%s: tensor %.200s: the format has no dtype %.40s; a newer version of this "
                       "program may know it",
                       what, name, json_string_value(dtype));
    if (!json_is_array(shape)) return wrong(what, name, "its shape is not a list");
    int64_t extents[TENSOR_TEXT_MAX / 2];
    tensor.rank = (int)json_array_size(shape); /* bounded by the length of the text */
    tensor.shape = extents;
    for (int i = 0; i < tensor.rank; i++) {
        uint64_t extent;
        if (!count_of(json_array_get(shape, (size_t)i), &extent))
            return wrong(what, name, "its shape holds something else than non-negative integers");
        extents[i] = (int64_t)extent;
    }
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !count_of(json_array_get(offsets, 0), &tensor.begin) || !count_of(json_array_get(offsets, 1), &tensor.end))
        return wrong(what, name, "its data_offsets are not two non-negative integers");
    if (tensor.begin > tensor.end || tensor.end > data_bytes)
        return dw_fail(DW_ERROR_CORRUPT,
                       "%s: tensor %.200s: its bytes %" PRIu64 " to %" PRIu64 " are not within the file's %" PRIu64
                       " data bytes; the file is truncated or damaged",
                       what, name, tensor.begin, tensor.end, data_bytes);
    uint64_t bytes;
    if (!dw_tensor_bytes(tensor.dtype, tensor.rank, extents, &bytes))
        return wrong(what, name, "its shape's size overflows or is no whole number of bytes");
    if (bytes != tensor.end - tensor.begin)
        return dw_fail(DW_ERROR_CORRUPT,
                       "%s: tensor %.200s: shape and dtype need %" PRIu64 " bytes, data_offsets give %" PRIu64, what,
                       name, bytes, tensor.end - tensor.begin);
    return dw_header_place_tensor(header, &tensor);
}

static dw_status read_metadata(const char *what, dw_json_span span, dw_header *header) {
    dw_json_walk walk;
    DW_TRY(dw_json_walk_open(&walk, what, span));
    for (;;) {
        char *key;
        dw_json_span value_span;
        DW_TRY(dw_json_walk_next(&walk, &key, &value_span));
        if (!key) return DW_OK;
        json_t *value = NULL;
        /* Looked at before it is parsed: a list here could be as long as the header and its tree much larger. */
        dw_status status = value_span.length && value_span.text[0] == '"'
                               ? dw_json_parse(what, key, value_span, DW_JSON_TEXT_MAX, &value)
                               : dw_fail(DW_ERROR_CORRUPT, "%s: metadata %.200s is not a string", what, key);
        if (status == DW_OK) status = dw_header_add_metadata(header, key, json_string_value(value));
        json_decref(value);
        free(key);
        DW_TRY(status);
    }
}

static dw_status read_members(const char *what, dw_json_span text, uint64_t data_bytes, dw_header *header) {
    dw_json_walk walk;
    bool seen_metadata = false;
    DW_TRY(dw_json_walk_open(&walk, what, text));
    for (;;) {
        char *name;
        dw_json_span span;
        DW_TRY(dw_json_walk_next(&walk, &name, &span));
        if (!name) return DW_OK;
        dw_status status;
        if (strcmp(name, DW_METADATA_NAME) == 0) {
            status = seen_metadata ? dw_fail(DW_ERROR_CORRUPT, "%s: has two " DW_METADATA_NAME " members", what)
                                   : read_metadata(what, span, header);
            seen_metadata = true;
        } else {
            json_t *value = NULL;
            status = dw_json_parse(what, name, span, TENSOR_TEXT_MAX, &value);
            if (status == DW_OK) status = read_tensor(what, name, value, data_bytes, header);
            json_decref(value);
        }
        free(name);
        DW_TRY(status);
    }
}

static int compare_ranges(const void *a, const void *b) {
    const dw_file_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static dw_status check_cover(const char *what, const dw_header *header, uint64_t data_bytes) {
    uint64_t at = 0;
    for (size_t i = 0; i < header->tensor_count; i++) {
        const dw_file_tensor *tensor = &header->tensors[i];
        if (tensor->begin != at)
            return dw_fail(DW_ERROR_CORRUPT, "%s: tensor %.200s %s at data byte %" PRIu64 ", expected %" PRIu64, what,
                           tensor->name, tensor->begin < at ? "overlaps another: it starts" : "starts behind a hole",
                           tensor->begin, at);
        at = tensor->end;
    }
    if (at != data_bytes)
        return dw_fail(DW_ERROR_CORRUPT, "%s: %" PRIu64 " bytes after the last tensor belong to none", what,
                       data_bytes - at);
    return DW_OK;
}

dw_status dw_header_parse(const char *what, const char *text, size_t length, uint64_t data_bytes, dw_header *header) {
    *header = (dw_header){0};
    dw_status status = DW_OK;
    if (length == 0 || text[0] != '{')
        status = dw_fail(DW_ERROR_CORRUPT, "%s: is no safetensors file: its header does not start with {", what);
    if (status == DW_OK) status = read_members(what, (dw_json_span){text, length}, data_bytes, header);
    if (status == DW_OK) {
        header->data_bytes = data_bytes;
        if (header->tensor_count) qsort(header->tensors, header->tensor_count, sizeof *header->tensors, compare_ranges);
        status = check_cover(what, header, data_bytes);
    }
    if (status == DW_OK) status = dw_header_finish(what, header);
    if (status == DW_ERROR_EXISTS) status = DW_ERROR_CORRUPT; /* a duplicate in a file is the file's fault */
    if (status != DW_OK) dw_header_clear(header);
    return status;
}
