/* An open safetensors file. Read with pread, never mapped: a file that shrinks meanwhile is an error, not a signal. */
#ifndef DW_IO_READER_H
#define DW_IO_READER_H

#include <sys/types.h>

#include "io/header.h"

typedef struct dw_reader {
    char *path;
    int fd;
    dev_t device; /* identity of the file, to tell when it would be overwritten */
    ino_t inode;
    uint64_t data_offset; /* where the data starts in the file */
    dw_header header;
} dw_reader;

/* Opens `path`, a regular file, and reads its header. NOT_FOUND, IO, CORRUPT, UNSUPPORTED (dtype), OUT_OF_MEMORY. */
dw_status dw_reader_open(const char *path, dw_reader **reader);
void dw_reader_close(dw_reader *reader);

/* Reads `size` bytes at `offset` of the data. Several threads may read at once. IO; CORRUPT when the file has shrunk.
 */
dw_status dw_reader_read(const dw_reader *reader, uint64_t offset, void *bytes, size_t size);

/* Reads a whole regular file of at most `limit` bytes: malloc'ed, terminated. CORRUPT when it is larger. */
dw_status dw_read_file(const char *path, size_t limit, char **bytes, size_t *length);

#endif
