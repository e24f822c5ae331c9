/* What a checkpoint's config.json says of the model, and which families' layouts are known. */
#ifndef DW_IO_MODEL_CONFIG_H
#define DW_IO_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deepwell/status.h"

typedef struct dw_model_config {
    bool present;
    char family[64];                     /* model_type; "" when it is not told */
    bool known;                          /* the family's layout is */
    bool transposed;                     /* its linear weights are stored [in, out] */
    bool layer_norms;                    /* its norms are LayerNorms, which have no fused kernel */
    int64_t vocabulary, hidden;          /* 0 when not told */
    int64_t experts, experts_of_a_token; /* 0 when not told */
} dw_model_config;

/* Parses the text of a config.json; `what` names it in errors. CORRUPT when it is no JSON object. */
dw_status dw_model_config_parse(const char *what, const char *text, size_t length, dw_model_config *config);

/* Reads FOLDER/config.json. A missing file is no error: present is then false. CORRUPT when it is no JSON object. */
dw_status dw_model_config_read(const char *folder, dw_model_config *config);

#endif
