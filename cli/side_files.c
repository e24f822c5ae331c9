#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"
#include "core/status.h"

enum { SIDE_FILE_MAX = 64 << 20, COPY_BUFFER = 1 << 20 };

/* Weights of this or another format, and indexes of them: they would describe the model before the conversion. */
static bool is_weights(const char *name) {
    static const char *const suffixes[] = {".safetensors", ".index.json", ".bin",  ".pt",      ".pth",
                                           ".ckpt",        ".gguf",       ".onnx", ".msgpack", ".h5"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        size_t tail = strlen(suffixes[i]);
        if (length >= tail && strcmp(name + length - tail, suffixes[i]) == 0) return true;
    }
    return false;
}

static dw_status copy_file(int source, uint64_t size, const char *name, dw_output_directory *directory) {
    dw_output *output;
    void *buffer = malloc(COPY_BUFFER);
    if (!buffer) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name);
    dw_status status = dw_output_directory_file(directory, name, &output);
    if (status == DW_OK) {
        status = dw_output_copy(output, 0, source, 0, size, buffer, COPY_BUFFER);
        if (status == DW_OK)
            status = dw_output_commit(output);
        else
            dw_output_discard(output);
    }
    free(buffer);
    return status;
}

/* Follows links, since model caches are made of them. */
static dw_status consider(int folder, const char *name, dw_output_directory *directory, size_t *copied) {
    if (name[0] == '.' || is_weights(name)) return DW_OK;
    struct stat facts;
    if (fstatat(folder, name, &facts, 0) != 0 || !S_ISREG(facts.st_mode)) return DW_OK;
    if (facts.st_size > SIDE_FILE_MAX) {
        cli_note("left out %s: with more than 64 MiB it is taken for weights; copy it if it is wanted", name);
        return DW_OK;
    }
    int source = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (source < 0) return dw_fail(DW_ERROR_IO, "cannot read %s: %s", name, strerror(errno));
    dw_status status = copy_file(source, (uint64_t)facts.st_size, name, directory);
    close(source);
    if (status == DW_OK) ++*copied;
    return status;
}

dw_status cli_copy_side_files(const cli_checkpoint *checkpoint, dw_output_directory *directory, size_t *copied) {
    DIR *stream = opendir(checkpoint->folder);
    if (!stream) return dw_fail(DW_ERROR_IO, "cannot read the directory %s: %s", checkpoint->folder, strerror(errno));
    dw_status status = DW_OK;
    const struct dirent *entry;
    while (status == DW_OK && (entry = readdir(stream)))
        status = consider(dirfd(stream), entry->d_name, directory, copied);
    closedir(stream);
    return status;
}
