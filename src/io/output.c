#include "io/output.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"
#include "io/staging.h"

struct dw_output {
    char *path;      /* the name the commit gives */
    char *shown;     /* the name in messages: the user knows no staging directory */
    char *temporary; /* where it is now */
    int fd;
    bool force;
};

char *dw_staging_name(const char *folder) {
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) return NULL;
    char name[64];
    snprintf(name, sizeof name, DW_STAGING_PREFIX "%016" PRIx64, random);
    return dw_path_join(folder, name);
}

dw_status dw_fail_write(const char *path, int error) {
    const char *remedy = "";
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        remedy = "; free some space or choose another folder";
    else if (error == EACCES || error == EPERM || error == EROFS)
        remedy = "; choose a folder that you may write to";
    else if (error == ENOENT)
        remedy = "; create its folder first";
    return dw_fail(DW_ERROR_IO, "cannot write %s: %s%s", path, strerror(error), remedy);
}

static dw_status refuse_existing(const char *path) {
    return dw_fail(DW_ERROR_EXISTS, "%s exists; choose another name or add --force to replace it", path);
}

static void free_output(dw_output *output) {
    free(output->path);
    free(output->shown);
    free(output->temporary);
    free(output);
}

dw_status dw_output_create(const char *path, bool force, dw_output **output) {
    return dw_output_create_as(path, path, force, output);
}

static dw_status check_target(const char *path, bool force) {
    struct stat facts;
    if (path[0] == '\0' || path[strlen(path) - 1] == '/')
        return dw_fail(DW_ERROR_IO, "cannot write %s: expected the name of a file", path[0] ? path : "\"\"");
    if (lstat(path, &facts) == 0) {
        if (S_ISDIR(facts.st_mode))
            return dw_fail(DW_ERROR_EXISTS, "%s is a directory; give the name of a file in it", path);
        if (!S_ISREG(facts.st_mode) && !S_ISLNK(facts.st_mode))
            return dw_fail(DW_ERROR_EXISTS, "%s exists and is not a regular file; choose another name", path);
        if (!force) return refuse_existing(path);
    } else if (errno != ENOENT) {
        return dw_fail_write(path, errno);
    }
    return DW_OK;
}

dw_status dw_output_create_as(const char *path, const char *shown, bool force, dw_output **output) {
    DW_TRY(check_target(path, force));
    dw_output *made = calloc(1, sizeof *made);
    char *folder = dw_path_folder(path);
    if (!made || !folder) {
        free(made);
        free(folder);
        return dw_fail_write(shown, ENOMEM);
    }
    *made = (dw_output){.path = strdup(path), .shown = strdup(shown), .fd = -1, .force = force};
    int error = ENOMEM;
    if (made->path && made->shown) {
        for (int attempt = 0; attempt < 8 && made->fd < 0; attempt++) {
            free(made->temporary);
            made->temporary = dw_staging_name(folder);
            error = ENOMEM;
            if (!made->temporary) break;
            made->fd = open(made->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            error = errno;
            if (made->fd < 0 && error != EEXIST) break;
        }
    }
    free(folder);
    if (made->fd >= 0) {
        *output = made;
        return DW_OK;
    }
    free_output(made);
    return dw_fail_write(shown, error);
}

dw_status dw_output_reserve(dw_output *output, uint64_t bytes) {
    if (bytes == 0 || bytes > INT64_MAX) return DW_OK;
    int result;
    do
        result = fallocate(output->fd, 0, 0, (off_t)bytes);
    while (result != 0 && errno == EINTR);
    if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return DW_OK;
    return dw_fail_write(output->shown, errno);
}

/* Asks for the range to be written out now, while later parts are still being computed; the commit then waits less. */
static void start_writeback(const dw_output *output, uint64_t offset, uint64_t size) {
    (void)sync_file_range(output->fd, (off_t)offset, (off_t)size, SYNC_FILE_RANGE_WRITE);
}

dw_status dw_output_write(dw_output *output, uint64_t offset, const void *bytes, size_t size) {
    const char *from = bytes;
    uint64_t at = offset;
    size_t left = size;
    while (left) {
        ssize_t put = pwrite(output->fd, from, left, (off_t)at);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return dw_fail_write(output->shown, put < 0 ? errno : ENOSPC);
        from += put;
        at += (uint64_t)put;
        left -= (size_t)put;
    }
    if (size >= (size_t)1 << 20) start_writeback(output, offset, size);
    return DW_OK;
}

static dw_status copy_by_hand(dw_output *output, uint64_t offset, int source, uint64_t source_offset, uint64_t size,
                              void *buffer, size_t buffer_size) {
    while (size) {
        ssize_t got = pread(source, buffer, size < buffer_size ? (size_t)size : buffer_size, (off_t)source_offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return dw_fail(DW_ERROR_IO, "cannot read the source of %s: %s", output->shown, strerror(errno));
        if (got == 0)
            return dw_fail(DW_ERROR_CORRUPT, "the source of %s became shorter while it was read", output->shown);
        DW_TRY(dw_output_write(output, offset, buffer, (size_t)got));
        offset += (uint64_t)got;
        source_offset += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return DW_OK;
}

dw_status dw_output_copy(dw_output *output, uint64_t offset, int source, uint64_t source_offset, uint64_t size,
                         void *buffer, size_t buffer_size) {
    uint64_t copied = 0;
    while (copied < size) {
        off_t from = (off_t)(source_offset + copied), to = (off_t)(offset + copied);
        ssize_t put = copy_file_range(source, &from, output->fd, &to, (size_t)(size - copied), 0);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
            return dw_fail_write(output->shown, errno);
        if (put <= 0) break; /* not between these file systems */
        copied += (uint64_t)put;
    }
    if (copied >= (uint64_t)1 << 20) start_writeback(output, offset, copied);
    return copy_by_hand(output, offset + copied, source, source_offset + copied, size - copied, buffer, buffer_size);
}

/* Renames without replacing. Where the file system cannot, the name is looked up first. */
static int rename_new(const char *from, const char *to) {
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -1;
    struct stat facts;
    if (lstat(to, &facts) == 0) {
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

/* Makes the new name last; some file systems cannot sync a folder, and the data is safe by then. */
void dw_sync_folder(const char *path) {
    char *folder = dw_path_folder(path);
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    free(folder);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

dw_status dw_output_commit(dw_output *output) {
    dw_status status = DW_OK;
    if (fsync(output->fd) != 0) status = dw_fail_write(output->shown, errno);
    if (close(output->fd) != 0 && status == DW_OK) status = dw_fail_write(output->shown, errno);
    output->fd = -1;
    if (status == DW_OK) {
        int result =
            output->force ? rename(output->temporary, output->path) : rename_new(output->temporary, output->path);
        if (result != 0)
            status = errno == EEXIST ? refuse_existing(output->shown) : dw_fail_write(output->shown, errno);
    }
    if (status != DW_OK) {
        dw_output_discard(output);
        return status;
    }
    dw_sync_folder(output->path);
    free_output(output);
    return DW_OK;
}

void dw_output_discard(dw_output *output) {
    if (!output) return;
    if (output->fd >= 0) close(output->fd);
    unlink(output->temporary);
    free_output(output);
}
