#include "io/record.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "core/text.h"
#include "io/json_object.h"

#define PREFIX "deepwell."

bool dw_record_owns_key(const char *key) {
    return strncmp(key, PREFIX, sizeof PREFIX - 1) == 0;
}

bool dw_record_present(const dw_header *header) {
    return dw_header_metadata(header, PREFIX "format") != NULL;
}

dw_status dw_record_add(dw_record *record, const char *name, dw_file_dtype source) {
    if (record->count == record->room) {
        size_t room = record->room ? record->room * 2 : 64;
        dw_record_entry *grown = realloc(record->entries, room * sizeof *grown);
        if (!grown) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name);
        record->entries = grown;
        record->room = room;
    }
    char *copy = dw_arena_copy(&record->arena, name, strlen(name));
    if (!copy) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name);
    record->entries[record->count++] = (dw_record_entry){copy, source};
    return DW_OK;
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const dw_record_entry *)a)->name, ((const dw_record_entry *)b)->name);
}

static int compare_name_to(const void *name, const void *element) {
    return strcmp(name, ((const dw_record_entry *)element)->name);
}

const dw_record_entry *dw_record_find(const dw_record *record, const char *name) {
    if (!record->count) return NULL;
    return bsearch(name, record->entries, record->count, sizeof *record->entries, compare_name_to);
}

dw_status dw_record_write(const dw_record *record, dw_header *header) {
    dw_text text = {0};
    dw_text_puts(&text, "{");
    for (size_t i = 0; i < record->count; i++) {
        if (i) dw_text_puts(&text, ",");
        dw_text_quote(&text, record->entries[i].name);
        dw_text_printf(&text, ":\"%s\"", dw_file_dtype_name(record->entries[i].source));
    }
    dw_text_append(&text, "}", 2); /* with its terminator */
    if (text.failed) {
        dw_text_free(&text);
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory for the metadata");
    }
    const struct {
        const char *key, *value;
    } lines[] = {
        {PREFIX "version", dw_version()},
        {PREFIX "format", "mxfp8"},
        {PREFIX "block", dw_block_name(record->spec.block)},
        {PREFIX "rounding", dw_rounding_name(record->spec.rounding)},
        {PREFIX "layout", dw_scale_layout_name(record->spec.layout)},
        {PREFIX "source_dtypes", text.bytes},
    };
    dw_status status = DW_OK;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0] && status == DW_OK; i++)
        status = dw_header_add_metadata(header, lines[i].key, lines[i].value);
    dw_text_free(&text);
    return status;
}

const dw_file_tensor *dw_record_scale_of(const dw_header *header, const char *name) {
    char *scale_name = malloc(strlen(name) + sizeof DW_SCALE_SUFFIX);
    if (!scale_name) return NULL;
    strcpy(scale_name, name);
    strcat(scale_name, DW_SCALE_SUFFIX);
    const dw_file_tensor *scale = dw_header_find(header, scale_name);
    free(scale_name);
    return scale;
}

/* Whether the two are a quantized matrix of this spec. */
static bool is_pair(const dw_quantize_spec *spec, const dw_file_tensor *data, const dw_file_tensor *scale) {
    int64_t shape[2];
    return data && scale && data->rank == 2 && scale->rank == 2 &&
           data->dtype == (spec->element == DW_E4M3 ? DW_FILE_F8_E4M3 : DW_FILE_F8_E5M2) &&
           scale->dtype == DW_FILE_F8_E8M0 && dw_scale_shape(spec, data->shape[0], data->shape[1], shape) == DW_OK &&
           scale->shape[0] == shape[0] && scale->shape[1] == shape[1];
}

bool dw_record_infer(const dw_file_tensor *data, const dw_file_tensor *scale, dw_quantize_spec *spec) {
    for (int block = 0; block < DW_BLOCK_COUNT; block++) {
        *spec = (dw_quantize_spec){
            .element = data->dtype == DW_FILE_F8_E5M2 ? DW_E5M2 : DW_E4M3,
            .block = (dw_block)block,
            .layout = DW_SCALE_ROW,
        };
        if (is_pair(spec, data, scale)) return true;
    }
    return false;
}

static dw_status read_setting(const char *what, const dw_header *header, const char *key, int count,
                              const char *(*name_of)(int), int *setting) {
    const char *value = dw_header_metadata(header, key);
    for (int i = 0; value && i < count; i++) {
        if (strcmp(value, name_of(i)) == 0) {
            *setting = i;
            return DW_OK;
        }
    }
    return dw_fail(DW_ERROR_UNSUPPORTED, "%s: metadata %s is \"%.40s\", which deepwell %s does not know", what, key,
                   value ? value : "", dw_version());
}

static const char *block_name(int value) {
    return dw_block_name((dw_block)value);
}
static const char *rounding_name(int value) {
    return dw_rounding_name((dw_rounding)value);
}
static const char *layout_name(int value) {
    (void)value;
    return dw_scale_layout_name(DW_SCALE_ROW);
}
static const char *format_name(int value) {
    (void)value;
    return "mxfp8";
}

static dw_status read_dtypes(const char *what, const dw_header *header, const char *text, dw_record *record) {
    dw_json_walk walk;
    DW_TRY(dw_json_walk_open(&walk, what, (dw_json_span){text, strlen(text)}));
    for (;;) {
        char *name;
        dw_json_span span;
        DW_TRY(dw_json_walk_next(&walk, &name, &span));
        if (!name) return DW_OK;
        json_t *value = NULL;
        dw_file_dtype source;
        dw_status status = dw_json_parse(what, name, span, 64, &value);
        if (status == DW_OK && (!json_is_string(value) || !dw_file_dtype_find(json_string_value(value), &source) ||
                                !dw_file_dtype_is_source(source)))
            status = dw_fail(DW_ERROR_CORRUPT,
                             "%s: metadata " PREFIX "source_dtypes: tensor %.200s: expected \"F32\", "
                             "\"F16\" or \"BF16\"",
                             what, name);
        if (status == DW_OK && !is_pair(&record->spec, dw_header_find(header, name), dw_record_scale_of(header, name)))
            status = dw_fail(DW_ERROR_CORRUPT,
                             "%s: metadata names the quantized tensor %.200s, but it or its scales are "
                             "missing or have other shapes",
                             what, name);
        if (status == DW_OK) status = dw_record_add(record, name, source);
        json_decref(value);
        free(name);
        DW_TRY(status);
    }
}

dw_status dw_record_read(const char *what, const dw_header *header, dw_record *record) {
    *record = (dw_record){0};
    if (!dw_record_present(header))
        return dw_fail(DW_ERROR_NOT_FOUND, "%s: was not written by deepwell quantize", what);
    int format = 0, block = 0, rounding = 0, layout = 0;
    DW_TRY(read_setting(what, header, PREFIX "format", 1, format_name, &format));
    DW_TRY(read_setting(what, header, PREFIX "block", DW_BLOCK_COUNT, block_name, &block));
    DW_TRY(read_setting(what, header, PREFIX "rounding", DW_ROUND_COUNT, rounding_name, &rounding));
    DW_TRY(read_setting(what, header, PREFIX "layout", 1, layout_name, &layout));
    record->spec = (dw_quantize_spec){
        .element = DW_E4M3, .block = (dw_block)block, .rounding = (dw_rounding)rounding, .layout = DW_SCALE_ROW};
    const char *text = dw_header_metadata(header, PREFIX "source_dtypes");
    dw_status status = text ? read_dtypes(what, header, text, record)
                            : dw_fail(DW_ERROR_CORRUPT, "%s: metadata " PREFIX "source_dtypes is missing", what);
    if (status == DW_OK && record->count) {
        qsort(record->entries, record->count, sizeof *record->entries, compare_entries);
        for (size_t i = 1; i < record->count && status == DW_OK; i++)
            if (compare_entries(&record->entries[i - 1], &record->entries[i]) == 0)
                status = dw_fail(DW_ERROR_CORRUPT, "%s: metadata names %.200s twice", what, record->entries[i].name);
    }
    if (status != DW_OK) dw_record_clear(record);
    return status;
}

void dw_record_clear(dw_record *record) {
    free(record->entries);
    dw_arena_clear(&record->arena);
    *record = (dw_record){0};
}
