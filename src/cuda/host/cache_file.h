/* What is remembered about a GPU across processes: small text files of lines, in $XDG_CACHE_HOME/deepwell, else
 * ~/.cache/deepwell. A file names its format, the GPU, the driver and the build of the library it is about, and ends in
 * a hash; one that says anything else, or is damaged, or belongs to another user, counts as none and is replaced. */
#ifndef DW_CUDA_CACHE_FILE_H
#define DW_CUDA_CACHE_FILE_H

#include <stdbool.h>

typedef struct dw_cache_kind {
    const char *name;   /* the file's begins so */
    const char *title;  /* what the lines are, in words */
    int format;         /* of the lines */
    bool each_gpu;      /* a file for each GPU, else one for all of the same kind */
    const char *folder; /* an absolute path in place of the usual folder, or NULL */
} dw_cache_kind;

typedef struct dw_cache_file {
    char folder[3072], path[4096];
    char header[640]; /* the lines the file must begin with */
} dw_cache_file;

/* The file for `device` and this build. False when there can be none: no home, or the driver does not tell enough. */
bool dw_cache_file_of(int device, const dw_cache_kind *kind, dw_cache_file *file);

/* The lines, each ended by a newline, malloc'ed; NULL for none. `*foreign`: something is there, but not such a file. */
char *dw_cache_file_read(const dw_cache_file *file, bool *foreign);

/* Whether a new line takes the place of one that was there; either may be followed by others. */
typedef bool (*dw_cache_same)(const char *old, const char *added);

/* Adds a line, replacing the file as a whole; lines that are the `same` go. False when it could not be written. Several
 * processes may add at once. */
bool dw_cache_file_add(const dw_cache_file *file, const char *line, dw_cache_same same);

#endif
