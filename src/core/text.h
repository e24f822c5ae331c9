/* A growing text, for the JSON that is written. A failed allocation is remembered, so only the end needs a check. */
#ifndef DW_CORE_TEXT_H
#define DW_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct dw_text {
    char *bytes; /* not terminated; malloc'ed */
    size_t length, capacity;
    bool failed;
} dw_text;

void dw_text_append(dw_text *text, const char *bytes, size_t length);
void dw_text_puts(dw_text *text, const char *string);
void dw_text_printf(dw_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The string (valid UTF-8) as a JSON string with its quotes. */
void dw_text_quote(dw_text *text, const char *string);

void dw_text_free(dw_text *text);

#endif
