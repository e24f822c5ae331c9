#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"
#include "io/output.h"
#include "io/staging.h"

struct dw_output_directory {
    char *path;      /* the final name, no slash at the end */
    char *temporary; /* where the files are now: beside `path`, or inside when it holds files already */
    bool merge;      /* into files that are there */
};

/* Calls `act` for every entry; stops at the first failure. */
typedef dw_status (*entry_action)(const char *folder, const char *name, void *state);

static dw_status for_each_entry(const char *path, entry_action act, void *state) {
    DIR *stream = opendir(path);
    if (!stream) return dw_fail(DW_ERROR_IO, "cannot read the directory %s: %s", path, strerror(errno));
    dw_status status = DW_OK;
    const struct dirent *entry;
    while (status == DW_OK && (entry = readdir(stream)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = act(path, entry->d_name, state);
    closedir(stream);
    return status;
}

static dw_status count_entry(const char *folder, const char *name, void *state) {
    (void)folder;
    (void)name;
    ++*(size_t *)state;
    return DW_OK;
}

static dw_status remove_entry(const char *folder, const char *name, void *state) {
    (void)state;
    char *path = dw_path_join(folder, name);
    if (path) unlink(path);
    free(path);
    return DW_OK;
}

static void free_directory(dw_output_directory *directory) {
    free(directory->path);
    free(directory->temporary);
    free(directory);
}

static char *without_slashes(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return strndup(path, length);
}

dw_status dw_output_directory_create(const char *path, bool force, dw_output_directory **directory) {
    if (!path[0]) return dw_fail(DW_ERROR_IO, "cannot write \"\": expected the name of a directory");
    struct stat facts;
    size_t entries = 0;
    if (lstat(path, &facts) == 0) {
        if (stat(path, &facts) != 0 || !S_ISDIR(facts.st_mode))
            return dw_fail(DW_ERROR_EXISTS,
                           "%s exists and is not a directory; a sharded checkpoint becomes a directory, "
                           "choose another name",
                           path);
        DW_TRY(for_each_entry(path, count_entry, &entries));
        if (entries && !force)
            return dw_fail(DW_ERROR_EXISTS,
                           "%s exists and is not empty; choose another name or add --force to replace "
                           "files of the same names",
                           path);
    }
    dw_output_directory *made = calloc(1, sizeof *made);
    char *copy = without_slashes(path);
    char *folder = copy ? (entries ? strdup(copy) : dw_path_folder(copy)) : NULL;
    char *temporary = folder ? dw_staging_name(folder) : NULL;
    free(folder);
    int error = ENOMEM;
    if (made && temporary) {
        *made = (dw_output_directory){.path = copy, .temporary = temporary, .merge = entries != 0};
        if (mkdir(temporary, 0777) == 0) {
            *directory = made;
            return DW_OK;
        }
        error = errno;
    }
    free(made);
    free(temporary);
    free(copy);
    return dw_fail_write(path, error);
}

dw_status dw_output_directory_file(dw_output_directory *directory, const char *name, dw_output **output) {
    char *path = dw_path_join(directory->temporary, name), *shown = dw_path_join(directory->path, name);
    dw_status status = path && shown ? dw_output_create_as(path, shown, false, output)
                                     : dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name);
    free(path);
    free(shown);
    return status;
}

typedef struct merge_state {
    const dw_output_directory *directory;
    const char *only, *except;
} merge_state;

static dw_status move_entry(const char *folder, const char *name, void *state) {
    const merge_state *merge = state;
    if (merge->only && strcmp(name, merge->only) != 0) return DW_OK;
    if (merge->except && strcmp(name, merge->except) == 0) return DW_OK;
    char *from = dw_path_join(folder, name), *to = dw_path_join(merge->directory->path, name);
    dw_status status = DW_OK;
    if (!from || !to)
        status = dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name);
    else if (rename(from, to) != 0)
        status = dw_fail_write(to, errno);
    free(from);
    free(to);
    return status;
}

dw_status dw_output_directory_commit(dw_output_directory *directory, const char *last) {
    dw_status status = DW_OK;
    if (directory->merge) {
        merge_state state = {.directory = directory, .except = last};
        status = for_each_entry(directory->temporary, move_entry, &state);
        if (status == DW_OK && last) {
            state = (merge_state){.directory = directory, .only = last};
            status = for_each_entry(directory->temporary, move_entry, &state);
        }
        if (status == DW_OK) rmdir(directory->temporary);
    } else if (rename(directory->temporary, directory->path) != 0) {
        status = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR
                     ? dw_fail(DW_ERROR_EXISTS, "%s was created meanwhile; choose another name", directory->path)
                     : dw_fail_write(directory->path, errno);
    }
    if (status != DW_OK) {
        dw_output_directory_discard(directory);
        return status;
    }
    dw_sync_folder(directory->path);
    free_directory(directory);
    return DW_OK;
}

void dw_output_directory_discard(dw_output_directory *directory) {
    if (!directory) return;
    (void)for_each_entry(directory->temporary, remove_entry, NULL);
    rmdir(directory->temporary);
    free_directory(directory);
}
