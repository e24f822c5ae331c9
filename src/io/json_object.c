#include "io/json_object.h"

#include <stdlib.h>
#include <string.h>

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_space(dw_json_walk *walk) {
    while (walk->at < walk->end && is_space(*walk->at))
        walk->at++;
}

static dw_status broken(const dw_json_walk *walk, const char *problem) {
    return dw_fail(DW_ERROR_CORRUPT, "%s: the JSON text is broken at byte %zu: %s", walk->what,
                   (size_t)(walk->at - walk->begin), problem);
}

/* Leaves `at` behind the closing quote. */
static dw_status skip_string(dw_json_walk *walk) {
    for (walk->at++; walk->at < walk->end; walk->at++) {
        if (*walk->at == '\\' && walk->at + 1 < walk->end)
            walk->at++;
        else if (*walk->at == '"') {
            walk->at++;
            return DW_OK;
        }
    }
    return broken(walk, "a string does not end");
}

static dw_status skip_value(dw_json_walk *walk) {
    int depth = 0;
    while (walk->at < walk->end) {
        char c = *walk->at;
        if (c == '"') {
            DW_TRY(skip_string(walk));
            continue;
        }
        if (depth == 0 && (c == ',' || c == '}' || c == ']')) return DW_OK;
        if (c == '{' || c == '[') {
            if (++depth > DW_JSON_DEPTH_MAX) return broken(walk, "nested too deeply");
        } else if (c == '}' || c == ']') {
            depth--;
        }
        walk->at++;
    }
    return broken(walk, "the text ends inside an object");
}

dw_status dw_json_walk_open(dw_json_walk *walk, const char *what, dw_json_span span) {
    *walk = (dw_json_walk){
        .what = what, .at = span.text, .begin = span.text, .end = span.text + span.length, .first = true};
    skip_space(walk);
    if (walk->at == walk->end || *walk->at != '{') return broken(walk, "expected an object that starts with {");
    walk->at++;
    return DW_OK;
}

/* Parses a text that the scanner has delimited. */
static dw_status parse(const char *what, const char *name, dw_json_span span, json_t **value) {
    json_error_t error;
    *value = json_loadb(span.text, span.length, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);
    if (*value) return DW_OK;
    if (json_error_code(&error) == json_error_out_of_memory)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory while reading JSON", what);
    return dw_fail(DW_ERROR_CORRUPT, "%s: %.200s is not valid JSON: %s", what, name, error.text);
}

dw_status dw_json_walk_next(dw_json_walk *walk, char **key, dw_json_span *value) {
    *key = NULL;
    if (walk->done) return DW_OK;
    skip_space(walk);
    if (walk->first && walk->at < walk->end && *walk->at == '}') goto close;
    walk->first = false;
    if (walk->at == walk->end || *walk->at != '"') return broken(walk, "expected a name in quotes");
    dw_json_span quoted = {walk->at, 0};
    DW_TRY(skip_string(walk));
    quoted.length = (size_t)(walk->at - quoted.text);
    skip_space(walk);
    if (walk->at == walk->end || *walk->at != ':') return broken(walk, "expected : after a name");
    walk->at++;
    skip_space(walk);
    value->text = walk->at;
    DW_TRY(skip_value(walk));
    value->length = (size_t)(walk->at - value->text);
    if (*walk->at == ']') return broken(walk, "] without [");

    json_t *name;
    DW_TRY(parse(walk->what, "a name", quoted, &name));
    char *copy = json_is_string(name) ? strdup(json_string_value(name)) : NULL;
    json_decref(name);
    if (!copy) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory while reading JSON", walk->what);

    if (*walk->at == ',') {
        walk->at++;
        *key = copy;
        return DW_OK;
    }
    /* The closing brace is checked now, so a caller that stops at the last member has still seen the whole text. */
    walk->at++;
    skip_space(walk);
    if (walk->at != walk->end) {
        free(copy);
        return broken(walk, "text after the closing }");
    }
    walk->done = true;
    *key = copy;
    return DW_OK;
close:
    walk->at++;
    skip_space(walk);
    if (walk->at != walk->end) return broken(walk, "text after the closing }");
    walk->done = true;
    return DW_OK;
}

dw_status dw_json_parse(const char *what, const char *name, dw_json_span span, size_t limit, json_t **value) {
    if (span.length > limit)
        return dw_fail(DW_ERROR_CORRUPT, "%s: %.200s is described in %zu bytes, at most %zu are allowed", what, name,
                       span.length, limit);
    return parse(what, name, span, value);
}
