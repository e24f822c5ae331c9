#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli.h"

static const char *command;

void cli_set_command(const char *name) {
    command = name;
}

void cli_clean(char *text) {
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        /* C1 controls are U+0080 to U+009F: C2 80 to C2 9F. */
        if (*c < 0x20 || *c == 0x7F) *c = '?';
        if (*c == 0xC2 && c[1] >= 0x80 && c[1] <= 0x9F) c[0] = c[1] = '?';
    }
}

static void print_line(const char *format, va_list arguments, const char *end) {
    char line[1280];
    vsnprintf(line, sizeof line, format, arguments);
    cli_clean(line);
    fprintf(stderr, "deepwell%s%s: %s%s\n", command ? " " : "", command ? command : "", line, end);
}

int cli_usage(const char *format, ...) {
    char remedy[64];
    snprintf(remedy, sizeof remedy, "; see deepwell %s%s--help", command ? command : "", command ? " " : "");
    va_list arguments;
    va_start(arguments, format);
    print_line(format, arguments, remedy);
    va_end(arguments);
    return CLI_USAGE;
}

int cli_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line(format, arguments, "");
    va_end(arguments);
    return CLI_FAILED;
}

void cli_note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line(format, arguments, "");
    va_end(arguments);
}

int cli_library_error(void) {
    return cli_error("%s", dw_last_error());
}

int cli_finish(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    return cli_error("cannot write to standard output: %s", strerror(errno));
}

const char *cli_size(uint64_t bytes, char buffer[32]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.995 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1000;
        unit++;
    }
    snprintf(buffer, 32, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

bool cli_matches(const char *filter, const char *name) {
    if (!filter) return true;
    return strpbrk(filter, "*?[") ? fnmatch(filter, name, 0) == 0 : strstr(name, filter) != NULL;
}

double cli_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
