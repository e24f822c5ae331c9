#include "io/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"

/* Opens a regular file; O_NONBLOCK so that a pipe answers instead of waiting for its other end. */
static dw_status open_regular(const char *path, int *fd, struct stat *facts) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) {
        dw_status status = errno == ENOENT || errno == ENOTDIR ? DW_ERROR_NOT_FOUND : DW_ERROR_IO;
        return dw_fail(status, "cannot open %s: %s", path, strerror(errno));
    }
    const char *problem = NULL;
    if (fstat(*fd, facts) != 0)
        problem = strerror(errno);
    else if (S_ISDIR(facts->st_mode))
        problem = "it is a directory";
    else if (!S_ISREG(facts->st_mode))
        problem = "it is not a regular file";
    if (!problem) return DW_OK;
    close(*fd);
    return dw_fail(DW_ERROR_IO, "cannot read %s: %s", path, problem);
}

static dw_status read_exactly(int fd, const char *path, uint64_t offset, void *bytes, size_t size) {
    char *to = bytes;
    while (size) {
        ssize_t got = pread(fd, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return dw_fail(DW_ERROR_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0)
            return dw_fail(DW_ERROR_CORRUPT, "%s: became shorter while it was read; is something writing it?", path);
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return DW_OK;
}

dw_status dw_reader_read(const dw_reader *reader, uint64_t offset, void *bytes, size_t size) {
    return read_exactly(reader->fd, reader->path, reader->data_offset + offset, bytes, size);
}

static dw_status read_header(dw_reader *reader, uint64_t file_bytes) {
    uint8_t prefix[DW_HEADER_PREFIX] = {0};
    if (file_bytes >= sizeof prefix) DW_TRY(read_exactly(reader->fd, reader->path, 0, prefix, sizeof prefix));
    uint64_t length;
    DW_TRY(dw_header_frame(reader->path, prefix, file_bytes, &length));
    reader->data_offset = DW_HEADER_PREFIX + length;
    char *text = malloc((size_t)length + 1); /* that many bytes are in the file */
    if (!text) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory for the header", reader->path);
    dw_status status = read_exactly(reader->fd, reader->path, DW_HEADER_PREFIX, text, (size_t)length);
    if (status == DW_OK)
        status = dw_header_parse(reader->path, text, (size_t)length, file_bytes - reader->data_offset, &reader->header);
    free(text);
    return status;
}

dw_status dw_reader_open(const char *path, dw_reader **reader) {
    struct stat facts;
    int fd;
    DW_TRY(open_regular(path, &fd, &facts));
    dw_reader *opened = calloc(1, sizeof *opened);
    char *copy = strdup(path);
    if (!opened || !copy) {
        free(opened);
        free(copy);
        close(fd);
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", path);
    }
    *opened = (dw_reader){.path = copy, .fd = fd, .device = facts.st_dev, .inode = facts.st_ino};
    dw_status status = read_header(opened, (uint64_t)facts.st_size);
    if (status != DW_OK) {
        dw_reader_close(opened);
        return status;
    }
    /* Advice only; the file reads as well without it. */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    *reader = opened;
    return DW_OK;
}

void dw_reader_close(dw_reader *reader) {
    if (!reader) return;
    close(reader->fd);
    dw_header_clear(&reader->header);
    free(reader->path);
    free(reader);
}

dw_status dw_read_file(const char *path, size_t limit, char **bytes, size_t *length) {
    struct stat facts;
    int fd;
    DW_TRY(open_regular(path, &fd, &facts));
    dw_status status = DW_OK;
    char *text = NULL;
    if ((uint64_t)facts.st_size > limit)
        status = dw_fail(DW_ERROR_CORRUPT, "%s: has %" PRIu64 " bytes, at most %zu are allowed", path,
                         (uint64_t)facts.st_size, limit);
    else if (!(text = malloc((size_t)facts.st_size + 1)))
        status = dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", path);
    else
        status = read_exactly(fd, path, 0, text, (size_t)facts.st_size);
    close(fd);
    if (status != DW_OK) {
        free(text);
        return status;
    }
    text[facts.st_size] = '\0';
    *bytes = text;
    *length = (size_t)facts.st_size;
    return DW_OK;
}
