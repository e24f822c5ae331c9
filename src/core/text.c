#include "core/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `length` more bytes; false, and remembered, when memory is out. */
static bool grow(dw_text *text, size_t length) {
    if (text->failed) return false;
    if (text->capacity - text->length >= length) return true;
    size_t capacity = text->capacity ? text->capacity : 256;
    while (capacity - text->length < length)
        capacity *= 2;
    char *grown = realloc(text->bytes, capacity);
    if (!grown) {
        text->failed = true;
        return false;
    }
    text->bytes = grown;
    text->capacity = capacity;
    return true;
}

void dw_text_append(dw_text *text, const char *bytes, size_t length) {
    if (length == 0 || !grow(text, length)) return;
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

void dw_text_puts(dw_text *text, const char *string) {
    dw_text_append(text, string, strlen(string));
}

void dw_text_printf(dw_text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) text->failed = true;
    if (length <= 0 || !grow(text, (size_t)length + 1)) return; /* one more for the terminator, which is not kept */
    va_start(arguments, format);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    text->length += (size_t)length;
}

void dw_text_quote(dw_text *text, const char *string) {
    dw_text_append(text, "\"", 1);
    const char *plain = string;
    for (const char *c = string; *c; c++) {
        if ((unsigned char)*c >= 0x20 && *c != '"' && *c != '\\') continue;
        dw_text_append(text, plain, (size_t)(c - plain));
        if (*c == '"' || *c == '\\')
            dw_text_printf(text, "\\%c", *c);
        else
            dw_text_printf(text, "\\u%04x", (unsigned)*c);
        plain = c + 1;
    }
    dw_text_puts(text, plain);
    dw_text_append(text, "\"", 1);
}

void dw_text_free(dw_text *text) {
    free(text->bytes);
    *text = (dw_text){0};
}
