#include "core/status.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[1024];

static pthread_mutex_t warning_lock = PTHREAD_MUTEX_INITIALIZER;
static dw_warning_handler warning_handler;
static void *warning_data;

void dw_set_warning_handler(dw_warning_handler handler, void *data) {
    pthread_mutex_lock(&warning_lock);
    warning_handler = handler;
    warning_data = data;
    pthread_mutex_unlock(&warning_lock);
}

void dw_warn(const char *format, ...) {
    pthread_mutex_lock(&warning_lock);
    dw_warning_handler handler = warning_handler;
    void *data = warning_data;
    pthread_mutex_unlock(&warning_lock);
    if (!handler) return;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    handler(text, data);
}

dw_status dw_fail(dw_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

const char *dw_last_error(void) {
    return last_error;
}

const char *dw_status_name(dw_status status) {
    switch (status) {
    case DW_OK: return "DW_OK";
    case DW_ERROR_INVALID_ARGUMENT: return "DW_ERROR_INVALID_ARGUMENT";
    case DW_ERROR_UNSUPPORTED: return "DW_ERROR_UNSUPPORTED";
    case DW_ERROR_OUT_OF_MEMORY: return "DW_ERROR_OUT_OF_MEMORY";
    case DW_ERROR_IO: return "DW_ERROR_IO";
    case DW_ERROR_CORRUPT: return "DW_ERROR_CORRUPT";
    case DW_ERROR_NOT_FOUND: return "DW_ERROR_NOT_FOUND";
    case DW_ERROR_EXISTS: return "DW_ERROR_EXISTS";
    case DW_ERROR_CANCELLED: return "DW_ERROR_CANCELLED";
    case DW_ERROR_SELFTEST: return "DW_ERROR_SELFTEST";
    case DW_ERROR_DEVICE: return "DW_ERROR_DEVICE";
    }
    return "DW_ERROR_UNKNOWN";
}

#define TEXT_OF(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

const char *dw_version(void) {
    return VERSION_TEXT(DW_VERSION_MAJOR, DW_VERSION_MINOR, DW_VERSION_PATCH);
}
