#include "plan.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "io/record.h"

static dw_status no_memory(const cli_plan *plan) {
    return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", plan->reader->path);
}

static dw_status add_item(cli_plan *plan, cli_item item) {
    if (plan->item_count == plan->item_room) {
        size_t room = plan->item_room ? plan->item_room * 2 : 64;
        cli_item *grown = realloc(plan->items, room * sizeof *grown);
        if (!grown) return no_memory(plan);
        plan->items = grown;
        plan->item_room = room;
    }
    item.reader = plan->reader;
    plan->items[plan->item_count++] = item;
    return DW_OK;
}

/* A tensor that the newest item makes. */
static dw_status add_tensor(cli_plan *plan, cli_planned_tensor tensor) {
    if (plan->tensor_count == plan->tensor_room) {
        size_t room = plan->tensor_room ? plan->tensor_room * 2 : 64;
        cli_planned_tensor *grown = realloc(plan->tensors, room * sizeof *grown);
        if (!grown) return no_memory(plan);
        plan->tensors = grown;
        plan->tensor_room = room;
    }
    tensor.item = plan->item_count - 1;
    tensor.order = plan->tensor_count;
    plan->tensors[plan->tensor_count++] = tensor;
    return DW_OK;
}

dw_status cli_plan_copy(cli_plan *plan, const dw_file_tensor *source) {
    DW_TRY(add_item(plan, (cli_item){.action = CLI_COPY, .source = source}));
    return add_tensor(plan, (cli_planned_tensor){.name = source->name,
                                                 .origin = source->name,
                                                 .dtype = source->dtype,
                                                 .rank = source->rank,
                                                 .same_shape = source->shape});
}

dw_status cli_plan_quantize(cli_plan *plan, const dw_file_tensor *source, const dw_quantize_spec *spec) {
    cli_item item = {.action = CLI_QUANTIZE, .source = source, .spec = *spec};
    dw_file_dtype_core(source->dtype, &item.high);
    cli_planned_tensor scale = {.origin = source->name, .dtype = DW_FILE_F8_E8M0, .rank = 2, .is_scale = true};
    DW_TRY(dw_scale_shape(spec, source->shape[0], source->shape[1], scale.shape));
    size_t length = strlen(source->name);
    char *name = dw_arena_take(&plan->names, length + sizeof DW_SCALE_SUFFIX);
    if (!name) return no_memory(plan);
    memcpy(name, source->name, length);
    memcpy(name + length, DW_SCALE_SUFFIX, sizeof DW_SCALE_SUFFIX);
    scale.name = name;
    DW_TRY(add_item(plan, item));
    plan->converted++;
    DW_TRY(add_tensor(plan, (cli_planned_tensor){.name = source->name,
                                                 .origin = source->name,
                                                 .dtype = DW_FILE_F8_E4M3,
                                                 .rank = 2,
                                                 .same_shape = source->shape}));
    return add_tensor(plan, scale);
}

dw_status cli_plan_dequantize(cli_plan *plan, const dw_file_tensor *data, const dw_file_tensor *scale,
                              const dw_quantize_spec *spec, dw_file_dtype target) {
    cli_item item = {.action = CLI_DEQUANTIZE, .source = data, .scale = scale, .spec = *spec};
    dw_file_dtype_core(target, &item.high);
    DW_TRY(add_item(plan, item));
    plan->converted++;
    return add_tensor(
        plan, (cli_planned_tensor){
                  .name = data->name, .origin = data->name, .dtype = target, .rank = 2, .same_shape = data->shape});
}

/* Wide elements first, as the format's own writer does: every tensor then starts at a multiple of its element's size.
 */
static int compare_alignment(const void *a, const void *b) {
    const cli_planned_tensor *x = a, *y = b;
    unsigned left = dw_file_dtype_bits(x->dtype), right = dw_file_dtype_bits(y->dtype);
    if (left != right) return left > right ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

dw_status cli_plan_finish(cli_plan *plan, char **prefix, size_t *prefix_bytes) {
    if (plan->tensor_count) qsort(plan->tensors, plan->tensor_count, sizeof *plan->tensors, compare_alignment);
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const cli_planned_tensor *tensor = &plan->tensors[i];
        DW_TRY(dw_header_add_tensor(&plan->header, tensor->name, tensor->dtype, tensor->rank,
                                    tensor->same_shape ? tensor->same_shape : tensor->shape));
    }
    DW_TRY(dw_header_finish(plan->reader->path, &plan->header));
    DW_TRY(dw_header_format(plan->reader->path, &plan->header, prefix, prefix_bytes));
    for (size_t i = 0; i < plan->tensor_count; i++) {
        cli_item *item = &plan->items[plan->tensors[i].item];
        uint64_t position = *prefix_bytes + plan->header.tensors[i].begin;
        if (plan->tensors[i].is_scale)
            item->scale_target = position;
        else
            item->target = position;
    }
    return DW_OK;
}

uint64_t cli_plan_bytes(const cli_plan *plan) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan->item_count; i++)
        bytes += cli_item_bytes(&plan->items[i]);
    return bytes;
}

void cli_plan_clear(cli_plan *plan) {
    dw_header_clear(&plan->header);
    free(plan->items);
    free(plan->tensors);
    dw_arena_clear(&plan->names);
    *plan = (cli_plan){0};
}
