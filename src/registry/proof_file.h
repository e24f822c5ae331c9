/* Where passed self-tests are remembered: one small text file for each GPU and build of the library, in
 * $XDG_CACHE_HOME/deepwell, else ~/.cache/deepwell. It names the GPU, the driver and the build it is about; a file that
 * says anything else, or is damaged, or belongs to another user, counts as none and is replaced. */
#ifndef DW_REGISTRY_PROOF_FILE_H
#define DW_REGISTRY_PROOF_FILE_H

#include <stdbool.h>

typedef struct dw_proof_file {
    char folder[3072], path[4096];
    char header[512]; /* the lines the file must begin with */
} dw_proof_file;

/* The file for `device`. False when there can be none: no home, or the driver does not tell enough. */
bool dw_proof_file_of(int device, dw_proof_file *file);

/* Whether `key`, a line of text, was added. */
bool dw_proof_file_has(const dw_proof_file *file, const char *key);

/* Adds a key, replacing the file as a whole. A failure to write is nothing but a test that will run again. Of two
 * processes that add at the same time one may win, with the same consequence. */
void dw_proof_file_add(const dw_proof_file *file, const char *key);

#endif
