/* Files that appear whole or not at all: written under a temporary name in the folder of the final one, then renamed.
 */
#ifndef DW_IO_OUTPUT_H
#define DW_IO_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deepwell/status.h"

typedef struct dw_output dw_output;

/* Starts a file that will be `path`. Without `force` an existing one is EXISTS, now or at the commit; with it a regular
 * file is replaced at the commit, anything else is EXISTS. IO when the folder cannot be written. */
dw_status dw_output_create(const char *path, bool force, dw_output **output);

/* Takes the room for `bytes` bytes at once where the file system can, so that a full disk is told before the work. */
dw_status dw_output_reserve(dw_output *output, uint64_t bytes);

/* Writes at a position. Several threads may write at once. IO. */
dw_status dw_output_write(dw_output *output, uint64_t offset, const void *bytes, size_t size);

/* Copies `size` bytes from a file, inside the kernel where it can. Several threads may copy at once. `buffer` is used
 * where it cannot. IO; CORRUPT when the source ends early. */
dw_status dw_output_copy(dw_output *output, uint64_t offset, int source, uint64_t source_offset, uint64_t size,
                         void *buffer, size_t buffer_size);

/* Brings the content to the disk, then gives it its name. The output is freed either way; on failure nothing is left.
 */
dw_status dw_output_commit(dw_output *output);

/* Removes what was written. NULL is allowed. */
void dw_output_discard(dw_output *output);

/* A directory that appears whole, with the same rules. */
typedef struct dw_output_directory dw_output_directory;

/* Starts a directory that will be `path`. An existing empty one is used. Without `force` one that holds anything is
 * EXISTS; with it, files of the same names are replaced at the commit and others stay. */
dw_status dw_output_directory_create(const char *path, bool force, dw_output_directory **directory);

/* Starts a file `name` (no slash) in it; commit it before the directory. */
dw_status dw_output_directory_file(dw_output_directory *directory, const char *name, dw_output **output);

/* Gives the files their names; `last` (may be NULL) after all others, so that an index never names a missing file. */
dw_status dw_output_directory_commit(dw_output_directory *directory, const char *last);
void dw_output_directory_discard(dw_output_directory *directory);

/* "FOLDER/NAME", malloc'ed; NULL when memory is out. `folder` "" gives NAME. */
char *dw_path_join(const char *folder, const char *name);
/* The folder of a path: "." for a bare name. malloc'ed; NULL when memory is out. */
char *dw_path_folder(const char *path);
/* The part behind the last slash. */
const char *dw_path_name(const char *path);

#endif
