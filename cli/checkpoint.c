#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "core/status.h"
#include "io/output.h"

static const char file_suffix[] = ".safetensors";
static const char index_suffix[] = ".safetensors.index.json";

static bool ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), tail = strlen(suffix);
    return length > tail && strcmp(text + length - tail, suffix) == 0;
}

static dw_status no_memory(const char *what) {
    return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", what);
}

/* The names in a directory with one suffix: how many, and the one to use: `preferred` when it is there, else the first
 * in the alphabet. */
static dw_status find_by_suffix(const char *folder, const char *suffix, const char *preferred, size_t *count,
                                char **found) {
    DIR *stream = opendir(folder);
    if (!stream) return dw_fail(DW_ERROR_IO, "cannot read the directory %s: %s", folder, strerror(errno));
    *count = 0;
    *found = NULL;
    bool sure = false;
    dw_status status = DW_OK;
    const struct dirent *entry;
    while (status == DW_OK && !sure && (entry = readdir(stream))) {
        if (entry->d_name[0] == '.' || !ends_with(entry->d_name, suffix)) continue;
        sure = strcmp(entry->d_name, preferred) == 0;
        ++*count;
        if (*found && !sure && strcmp(entry->d_name, *found) > 0) continue;
        free(*found);
        *found = strdup(entry->d_name);
        if (!*found) status = no_memory(folder);
    }
    closedir(stream);
    if (sure) *count = 1;
    return status;
}

/* Which file of a directory is the checkpoint: its index, else its only .safetensors file. */
static dw_status choose_file(const char *folder, char **name, bool *is_index) {
    size_t count;
    *is_index = true;
    DW_TRY(find_by_suffix(folder, index_suffix, "model.safetensors.index.json", &count, name));
    if (count == 0) {
        *is_index = false;
        DW_TRY(find_by_suffix(folder, file_suffix, "model.safetensors", &count, name));
    }
    if (count == 1) return DW_OK;
    if (count == 0) return dw_fail(DW_ERROR_NOT_FOUND, "%s: holds no .safetensors file and no index of one", folder);
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s: holds %zu checkpoints, %s among them; name the one you mean", folder,
                   count, *name);
}

static dw_status open_shard(cli_checkpoint *checkpoint, const char *path, const char *name) {
    dw_reader *reader;
    DW_TRY(dw_reader_open(path, &reader));
    checkpoint->shards[checkpoint->count++] = (cli_shard){.reader = reader, .name = name};
    return DW_OK;
}

/* Every shard stays open: a file that is exchanged meanwhile does no harm. */
static void allow_many_files(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static dw_status open_shards(cli_checkpoint *checkpoint, const char *index_path) {
    DW_TRY(dw_index_read(index_path, &checkpoint->index));
    const dw_index *index = &checkpoint->index;
    checkpoint->shards = calloc(index->shard_count, sizeof *checkpoint->shards);
    if (!checkpoint->shards) return no_memory(index_path);
    allow_many_files();
    for (size_t i = 0; i < index->shard_count; i++) {
        char *path = dw_path_join(checkpoint->folder, index->shards[i]);
        dw_status status = path ? open_shard(checkpoint, path, index->shards[i]) : no_memory(index_path);
        free(path);
        DW_TRY(status);
    }
    for (size_t i = 0; i < index->entry_count; i++) {
        const dw_index_entry *entry = &index->entries[i];
        if (!dw_header_find(&checkpoint->shards[entry->shard].reader->header, entry->tensor))
            return dw_fail(DW_ERROR_CORRUPT, "%s: lists tensor %.200s in %s, which does not hold it", index_path,
                           entry->tensor, index->shards[entry->shard]);
    }
    return DW_OK;
}

dw_status cli_checkpoint_open(const char *path, cli_checkpoint *checkpoint) {
    *checkpoint = (cli_checkpoint){.path = strdup(path)};
    if (!checkpoint->path) return no_memory(path);
    struct stat facts;
    char *file;
    bool is_index = ends_with(path, index_suffix);
    checkpoint->directory = stat(path, &facts) == 0 && S_ISDIR(facts.st_mode);
    if (checkpoint->directory) {
        char *name = NULL;
        dw_status status = choose_file(path, &name, &is_index);
        checkpoint->folder = strdup(path);
        file = status == DW_OK && checkpoint->folder ? dw_path_join(path, name) : NULL;
        free(name);
        DW_TRY(status);
    } else {
        checkpoint->folder = dw_path_folder(path);
        file = strdup(path);
    }
    dw_status status = DW_OK;
    if (!file || !checkpoint->folder) {
        status = no_memory(path);
    } else if (is_index) {
        checkpoint->index_name = strdup(dw_path_name(file));
        status = checkpoint->index_name ? open_shards(checkpoint, file) : no_memory(path);
    } else {
        checkpoint->shards = calloc(1, sizeof *checkpoint->shards);
        status = checkpoint->shards ? open_shard(checkpoint, file, NULL) : no_memory(path);
        if (status == DW_OK) checkpoint->shards[0].name = dw_path_name(checkpoint->shards[0].reader->path);
    }
    free(file);
    return status;
}

void cli_checkpoint_close(cli_checkpoint *checkpoint) {
    for (size_t i = 0; i < checkpoint->count; i++)
        dw_reader_close(checkpoint->shards[i].reader);
    free(checkpoint->shards);
    dw_index_clear(&checkpoint->index);
    free(checkpoint->index_name);
    free(checkpoint->folder);
    free(checkpoint->path);
    *checkpoint = (cli_checkpoint){0};
}

bool cli_checkpoint_lists(const cli_checkpoint *checkpoint, const char *tensor) {
    return !checkpoint->index_name || dw_index_find(&checkpoint->index, tensor);
}
