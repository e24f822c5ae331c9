/* A checkpoint's tensors as a model for the planner: which modules they belong to, and what those are. */
#ifndef CLI_DESCRIBE_H
#define CLI_DESCRIBE_H

#include "checkpoint.h"
#include "io/model_config.h"

typedef struct cli_described {
    dw_model model;
    dw_model_config config;
    dw_layer *layers;
    const char **names;
    size_t count, room;
    const char *remarks[8];
    size_t remark_count;
    bool fuses; /* norms, activations and the loss are to be told as fused */
    dw_arena arena;
} cli_described;

/* Describes an open checkpoint. Nothing is guessed in silence: what is not recognized is a layer of kind OTHER, and the
 * remarks say what was assumed. fuses: for a device on which the library fuses. Clear it also after a failure. */
dw_status cli_describe(const cli_checkpoint *checkpoint, bool fuses, cli_described *described);
void cli_described_clear(cli_described *described);

#endif
