/* Walks the members of a JSON object without building a tree of the whole text.
 *
 * A tree costs a hostile text's writer three bytes and its reader two hundred. Here the text is cut into members by a
 * scanner that only knows strings and brackets, and each key and each small value goes through the JSON parser alone,
 * so memory stays near the size of the text. Whatever the scanner lets through, the parser still has to accept. */
#ifndef DW_IO_JSON_OBJECT_H
#define DW_IO_JSON_OBJECT_H

#include <stdbool.h>

#include <jansson.h>

#include "core/status.h"

/* The file format's own limit for a header; used for indexes too. */
#define DW_JSON_TEXT_MAX ((size_t)100000000)

/* Brackets inside one member's value. Deeper is an error. */
#define DW_JSON_DEPTH_MAX 8

typedef struct dw_json_span {
    const char *text;
    size_t length;
} dw_json_span;

typedef struct dw_json_walk {
    const char *what; /* names the text in errors, e.g. a file's path */
    const char *at, *end, *begin;
    bool first, done;
} dw_json_walk;

/* Starts at the object that fills `span` (white space around it is allowed). CORRUPT when it is no object. */
dw_status dw_json_walk_open(dw_json_walk *walk, const char *what, dw_json_span span);

/* The next member: decodes its key (malloc'ed, the caller frees it) and gives the span of its value. *key is NULL at
 * the end of the object. CORRUPT on text that is no JSON, OUT_OF_MEMORY. */
dw_status dw_json_walk_next(dw_json_walk *walk, char **key, dw_json_span *value);

/* Parses one value of at most `limit` bytes: no duplicate keys, valid UTF-8, nothing after it. `name` is the key, for
 * errors. The caller releases *value with json_decref. */
dw_status dw_json_parse(const char *what, const char *name, dw_json_span span, size_t limit, json_t **value);

#endif
