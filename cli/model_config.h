/* What a checkpoint's config.json says of the model, and which families' layouts are known. */
#ifndef CLI_MODEL_CONFIG_H
#define CLI_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "deepwell/status.h"

typedef struct cli_config {
    bool present;
    char family[64];                     /* model_type; "" when it is not told */
    bool known;                          /* the family's layout is */
    bool transposed;                     /* its linear weights are stored [in, out] */
    bool layer_norms;                    /* its norms are LayerNorms, which have no fused kernel */
    int64_t vocabulary, hidden;          /* 0 when not told */
    int64_t experts, experts_of_a_token; /* 0 when not told */
} cli_config;

/* Reads FOLDER/config.json. A missing file is no error: present is then false. CORRUPT when it is no JSON object. */
dw_status cli_config_read(const char *folder, cli_config *config);

#endif
