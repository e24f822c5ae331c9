/* What becomes of every tensor of a file: the header of the new file and the work that fills it. */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include "tiles.h"

typedef struct cli_planned_tensor {
    const char *name;
    const char *origin; /* the tensor of the input that it comes from */
    dw_file_dtype dtype;
    int rank;
    int64_t shape[2];          /* when it differs from the origin's */
    const int64_t *same_shape; /* else */
    size_t item, order;
    bool is_scale;
} cli_planned_tensor;

typedef struct cli_plan {
    const dw_reader *reader;
    dw_header header; /* of the output; metadata is added by whoever plans */
    cli_item *items;  /* in the order of the input's data */
    size_t item_count, item_room;
    cli_planned_tensor *tensors;
    size_t tensor_count, tensor_room;
    dw_arena names;
    size_t converted; /* tensors that were quantized or dequantized */
} cli_plan;

/* Start from {.reader = ...}; call one of these for each tensor that is kept, in the order of the data. */
dw_status cli_plan_copy(cli_plan *plan, const dw_file_tensor *source);
dw_status cli_plan_quantize(cli_plan *plan, const dw_file_tensor *source, const dw_quantize_spec *spec);
dw_status cli_plan_dequantize(cli_plan *plan, const dw_file_tensor *data, const dw_file_tensor *scale,
                              const dw_quantize_spec *spec, dw_file_dtype target);

/* Lays the output out: `*prefix` (malloc'ed) is what stands before the data; items get their positions. */
dw_status cli_plan_finish(cli_plan *plan, char **prefix, size_t *prefix_bytes);

/* Input bytes that its work reads. */
uint64_t cli_plan_bytes(const cli_plan *plan);

void cli_plan_clear(cli_plan *plan);

#endif
