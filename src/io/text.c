#include "io/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void dw_text_append(dw_text *text, const char *bytes, size_t length) {
    if (text->failed || length == 0) return;
    if (text->capacity - text->length < length) {
        size_t capacity = text->capacity ? text->capacity : 256;
        while (capacity - text->length < length)
            capacity *= 2;
        char *grown = realloc(text->bytes, capacity);
        if (!grown) {
            text->failed = true;
            return;
        }
        text->bytes = grown;
        text->capacity = capacity;
    }
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

void dw_text_puts(dw_text *text, const char *string) {
    dw_text_append(text, string, strlen(string));
}

void dw_text_printf(dw_text *text, const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof line)
        text->failed = true;
    else
        dw_text_append(text, line, (size_t)length);
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
