/* Patterns of module names. */
#include <string.h>

#include "deepwell/plan.h"

/* A run of UTF-8 text with an end. */
typedef struct span {
    const char *at, *end;
} span;

/* The length of the character that starts here; a stray byte counts as one. */
static size_t character(span text) {
    size_t length = 1;
    while (text.at + length < text.end && ((unsigned char)text.at[length] & 0xC0) == 0x80)
        length++;
    return length;
}

/* Both are single characters: bytewise order of UTF-8 is the order of code points. */
static int compare(span a, span b) {
    size_t left = (size_t)(a.end - a.at), right = (size_t)(b.end - b.at);
    int order = memcmp(a.at, b.at, left < right ? left : right);
    return order ? order : (left > right) - (left < right);
}

/* Whether the set that starts behind "[" holds the character, and where the pattern goes on. False when the set has no
 * end: the bracket is then an ordinary character. */
static bool read_set(span pattern, span c, bool *holds, const char **next) {
    bool negated = pattern.at < pattern.end && *pattern.at == '!', found = false;
    if (negated) pattern.at++;
    for (bool first = true; pattern.at < pattern.end; first = false) {
        if (*pattern.at == ']' && !first) {
            *holds = found != negated;
            *next = pattern.at + 1;
            return true;
        }
        span low = {pattern.at, pattern.at + character(pattern)}, high = low;
        pattern.at = low.end;
        if (pattern.end - pattern.at >= 2 && pattern.at[0] == '-' && pattern.at[1] != ']') {
            pattern.at++;
            high = (span){pattern.at, pattern.at + character(pattern)};
            pattern.at = high.end;
        }
        found |= compare(low, c) <= 0 && compare(c, high) <= 0;
    }
    return false;
}

/* Matches one character of the text against one element of the pattern, not "*". */
static bool match_one(span pattern, span c, const char **next) {
    bool holds;
    if (*pattern.at == '?') {
        *next = pattern.at + 1;
        return true;
    }
    if (*pattern.at == '[' && read_set((span){pattern.at + 1, pattern.end}, c, &holds, next)) return holds;
    span own = {pattern.at, pattern.at + character(pattern)};
    *next = own.end;
    return compare(own, c) == 0;
}

/* The usual walk: a mismatch goes back to the last "*", which then takes one character more. */
static bool match(span text, span pattern) {
    const char *star = NULL, *resume = NULL;
    while (text.at < text.end) {
        const char *next;
        span c = {text.at, text.at + character(text)};
        if (pattern.at < pattern.end && *pattern.at == '*') {
            star = ++pattern.at;
            resume = text.at;
        } else if (pattern.at < pattern.end && match_one(pattern, c, &next)) {
            pattern.at = next;
            text.at = c.end;
        } else if (star) {
            pattern.at = star;
            resume += character((span){resume, text.end});
            text.at = resume;
        } else {
            return false;
        }
    }
    while (pattern.at < pattern.end && *pattern.at == '*')
        pattern.at++;
    return pattern.at == pattern.end;
}

bool dw_plan_matches(const char *name, const char *pattern) {
    if (!name || !pattern) return false;
    span wanted = {pattern, pattern + strlen(pattern)};
    const char *end = name + strlen(name);
    for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.'))
        if (match((span){name, dot}, wanted)) return true;
    return match((span){name, end}, wanted);
}
