/* Which weights are quantized by default. */
#ifndef CLI_SELECTION_H
#define CLI_SELECTION_H

#include "io/header.h"

#include "cli.h"

/* Why the name is kept in high precision by default ("embedding", "output head", "router", "norm"); NULL when it is
 * not. */
const char *cli_kept_by_default(const char *name);

/* Whether a tensor can be quantized at all: two dimensions, F32, F16 or BF16. */
bool cli_is_matrix(const dw_file_tensor *tensor);

#endif
