/* The checkpoint a command reads: one file, or shards with an index. */
#ifndef CLI_CHECKPOINT_H
#define CLI_CHECKPOINT_H

#include "io/index.h"
#include "io/reader.h"

#include "cli.h"

typedef struct cli_shard {
    dw_reader *reader;
    const char *name; /* of the file, without its folder */
} cli_shard;

typedef struct cli_checkpoint {
    char *path;       /* as the user gave it */
    char *folder;     /* that holds the files */
    bool directory;   /* the user named a directory, not a file */
    char *index_name; /* NULL for a single file */
    dw_index index;
    cli_shard *shards;
    size_t count;
} cli_checkpoint;

/* Opens IN: a .safetensors file, an index (NAME.safetensors.index.json), or a directory that holds one of the two.
 * Reads every header; every tensor that the index lists must be in its shard. Close it also after a failure. */
dw_status cli_checkpoint_open(const char *path, cli_checkpoint *checkpoint);
void cli_checkpoint_close(cli_checkpoint *checkpoint);

/* Whether the index lists the tensor; true for any tensor of a single file. */
bool cli_checkpoint_lists(const cli_checkpoint *checkpoint, const char *tensor);

#endif
