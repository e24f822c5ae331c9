/* What files and directories under construction share. */
#ifndef DW_IO_STAGING_H
#define DW_IO_STAGING_H

#include "io/output.h"

/* Temporary names start with this; the rest is random. */
#define DW_STAGING_PREFIX ".deepwell-partial-"

/* A new temporary path in `folder`, malloc'ed; NULL when memory or randomness is out. */
char *dw_staging_name(const char *folder);

/* As dw_output_create; messages call the file `shown`. */
dw_status dw_output_create_as(const char *path, const char *shown, bool force, dw_output **output);

/* IO with the system's reason for `error` and what to do about it. */
dw_status dw_fail_write(const char *path, int error);

/* Brings the folder that holds `path` to the disk, as far as the file system can. */
void dw_sync_folder(const char *path);

#endif
