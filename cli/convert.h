/* The common course of quantize and dequantize: IN to OUT, file by file. */
#ifndef CLI_CONVERT_H
#define CLI_CONVERT_H

#include "checkpoint.h"
#include "plan.h"

typedef struct cli_conversion {
    const char *label; /* of the progress bar, e.g. "quantizing" */
    const char *in, *out;
    bool force;
    int threads; /* 0: the default */
    /* Decides about every tensor of a shard: fills `plan`, whose reader is set, and its metadata. */
    dw_status (*plan_shard)(const cli_checkpoint *checkpoint, cli_plan *plan, void *state);
    const char *nothing; /* the error when no tensor of any shard is converted */
    void *state;
} cli_conversion;

/* Runs it and prints a summary. Returns the exit code. Nothing is left at OUT unless it succeeds. */
int cli_convert(const cli_conversion *conversion);

/* Copies the small files beside a checkpoint (configuration, tokenizer, ...) into a directory under construction:
 * regular files below 64 MiB, not hidden, not weights in any format, not the index. */
dw_status cli_copy_side_files(const cli_checkpoint *checkpoint, dw_output_directory *directory, size_t *copied);

#endif
