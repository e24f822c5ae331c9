/* How library code reports failure: `return dw_fail(DW_ERROR_IO, "%s: %s", path, strerror(errno));` */
#ifndef DW_CORE_STATUS_H
#define DW_CORE_STATUS_H

#include "deepwell/status.h"

/* Stores the formatted text as the calling thread's last error and returns `status`. */
dw_status dw_fail(dw_status status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Tells the process's warning handler, if there is one. Call it with no lock held. */
void dw_warn(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* Evaluates a dw_status expression and returns it from the enclosing function unless it is DW_OK. */
#define DW_TRY(expression)                                                                                             \
    do {                                                                                                               \
        dw_status dw_try_status = (expression);                                                                        \
        if (dw_try_status != DW_OK) return dw_try_status;                                                              \
    } while (0)

#endif
