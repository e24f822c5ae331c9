/* Status codes, error text and version.
 *
 * Every function of libdeepwell that can fail returns dw_status and writes its results only on DW_OK. The text of the
 * last failure is kept per thread. The library never exits, aborts or prints. */
#ifndef DEEPWELL_STATUS_H
#define DEEPWELL_STATUS_H

#if defined(__GNUC__)
#define DW_API __attribute__((visibility("default")))
#else
#define DW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define DW_VERSION_MAJOR 0
#define DW_VERSION_MINOR 1
#define DW_VERSION_PATCH 0

typedef enum dw_status {
    DW_OK = 0,
    DW_ERROR_INVALID_ARGUMENT = 1, /* the caller broke the documented contract */
    DW_ERROR_UNSUPPORTED = 2,      /* a sensible request that no kernel or format here serves */
    DW_ERROR_OUT_OF_MEMORY = 3,
    DW_ERROR_IO = 4,      /* the operating system refused; the text carries its reason */
    DW_ERROR_CORRUPT = 5, /* a file's content breaks its format */
    DW_ERROR_NOT_FOUND = 6,
    DW_ERROR_EXISTS = 7,
    DW_ERROR_CANCELLED = 8, /* a progress callback or a signal asked to stop */
    DW_ERROR_SELFTEST = 9,  /* a kernel disagreed with the reference */
    DW_ERROR_DEVICE = 10    /* the GPU driver reported an error; the text carries its words */
} dw_status;

/* "DW_OK", "DW_ERROR_IO", ...; "DW_ERROR_UNKNOWN" for any other value. Static storage. */
DW_API const char *dw_status_name(dw_status status);

/* One line about the last failure in the calling thread: what was wrong, what was expected, what to do. Empty before
 * any failure; unchanged by calls that succeed. Valid until the next failing call in the same thread. Never NULL. */
DW_API const char *dw_last_error(void);

/* Gets one line about something that went on in spite of it: a kernel that failed its self-test and is left out.
 * Called in the thread that found it, with none of the library's locks held. */
typedef void (*dw_warning_handler)(const char *text, void *data);

/* Sets the handler of the process; NULL, as at the start, for none. Returns without waiting for a call in progress. */
DW_API void dw_set_warning_handler(dw_warning_handler handler, void *data);

/* "MAJOR.MINOR.PATCH" of the library in use (the macros above are those of the header). */
DW_API const char *dw_version(void);

#ifdef __cplusplus
}
#endif
#endif
