/* deepwell dequantize: NAME and NAME_scale become NAME in high precision again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "core/status.h"
#include "io/record.h"

static const char help[] =
    "Usage: deepwell dequantize IN -o OUT [OPTIONS]\n"
    "\n"
    "Every pair NAME (F8_E4M3 or F8_E5M2) and NAME_scale (F8_E8M0) becomes NAME in the dtype it had before; all else\n"
    "is copied unchanged. The pairs and dtypes are those that quantize recorded in the file. In a file without such a\n"
    "record the pairs are found by their names, dtypes and shapes, and --dtype is required.\n"
    "\n"
    "IN and OUT may be a file, an index or a directory, as for quantize.\n"
    "\n"
    "Options:\n"
    "  -o, --output OUT  where to write\n"
    "  --dtype TYPE      bf16, f16 or f32 in place of the dtype recorded\n"
    "  --threads N       CPU threads (default: all, at most 16 are of use)\n"
    "  --force           replace an existing OUT\n"
    "  -h, --help        print this\n";

typedef struct dequantize_state {
    bool has_dtype;
    dw_file_dtype dtype;
} dequantize_state;

/* Finds the pair that a tensor is the data of. */
static bool find_pair(const dw_header *header, const dw_record *record, bool recorded, const dw_file_tensor *tensor,
                      const dw_file_tensor **scale, dw_quantize_spec *spec) {
    *scale = dw_record_scale_of(header, tensor->name);
    if (recorded) {
        *spec = record->spec;
        return dw_record_find(record, tensor->name) != NULL;
    }
    return dw_record_infer(tensor, *scale, spec);
}

/* Whether a tensor is the scales of a pair: they are not written. */
static bool is_scale_of_pair(const dw_header *header, const dw_record *record, bool recorded,
                             const dw_file_tensor *tensor) {
    size_t length = strlen(tensor->name), tail = sizeof DW_SCALE_SUFFIX - 1;
    if (tensor->dtype != DW_FILE_F8_E8M0 || length <= tail ||
        strcmp(tensor->name + length - tail, DW_SCALE_SUFFIX) != 0)
        return false;
    char *name = strndup(tensor->name, length - tail);
    const dw_file_tensor *data = name ? dw_header_find(header, name) : NULL;
    free(name);
    const dw_file_tensor *scale;
    dw_quantize_spec spec;
    return data && find_pair(header, record, recorded, data, &scale, &spec);
}

static dw_status plan_tensor(const dequantize_state *state, const dw_record *record, bool recorded,
                             const dw_file_tensor *tensor, cli_plan *plan) {
    const dw_header *header = &plan->reader->header;
    const dw_file_tensor *scale;
    dw_quantize_spec spec;
    if (is_scale_of_pair(header, record, recorded, tensor)) return DW_OK;
    if (!find_pair(header, record, recorded, tensor, &scale, &spec)) return cli_plan_copy(plan, tensor);
    if (!state->has_dtype && !recorded)
        return dw_fail(DW_ERROR_NOT_FOUND, "%s: does not say what dtype %.200s had; give --dtype", plan->reader->path,
                       tensor->name);
    dw_file_dtype target = state->has_dtype ? state->dtype : dw_record_find(record, tensor->name)->source;
    return cli_plan_dequantize(plan, tensor, scale, &spec, target);
}

static dw_status plan_shard(const cli_checkpoint *checkpoint, cli_plan *plan, void *argument) {
    (void)checkpoint;
    const dw_header *header = &plan->reader->header;
    dw_record record = {0};
    bool recorded = dw_record_present(header);
    if (recorded) DW_TRY(dw_record_read(plan->reader->path, header, &record));
    dw_status status = DW_OK;
    for (size_t i = 0; i < header->metadata_count && status == DW_OK; i++)
        if (!recorded || !dw_record_owns_key(header->metadata[i].key))
            status = dw_header_add_metadata(&plan->header, header->metadata[i].key, header->metadata[i].value);
    for (size_t i = 0; i < header->tensor_count && status == DW_OK; i++)
        status = plan_tensor(argument, &record, recorded, &header->tensors[i], plan);
    dw_record_clear(&record);
    return status;
}

static int run(const cli_arguments *arguments, const char *output, const char *dtype, const char *threads_text,
               bool force) {
    static const struct {
        const char *name;
        dw_file_dtype dtype;
    } dtypes[] = {{"bf16", DW_FILE_BF16}, {"f16", DW_FILE_F16}, {"f32", DW_FILE_F32}};
    dequantize_state state = {0};
    int64_t threads;
    int code = cli_expect_operands(arguments, 1, 1, "one checkpoint, IN");
    if (code < 0) code = cli_read_number("--threads", threads_text, 1, 1024, 0, &threads);
    if (code >= 0) return code;
    for (size_t i = 0; dtype && i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtype, dtypes[i].name) == 0) state = (dequantize_state){true, dtypes[i].dtype};
    if (dtype && !state.has_dtype) return cli_usage("--dtype: \"%s\" is not bf16, f16 or f32", dtype);
    if (!output) return cli_usage("expected an output, -o OUT");
    return cli_convert(&(cli_conversion){
        .label = "dequantizing",
        .in = arguments->operands[0],
        .out = output,
        .force = force,
        .threads = (int)threads,
        .plan_shard = plan_shard,
        .nothing = "has nothing to dequantize: no pair NAME and NAME_scale of FP8 data and F8_E8M0 scales",
        .state = &state,
    });
}

int cmd_dequantize(int argc, const char **argv) {
    char *output = NULL, *dtype = NULL, *threads = NULL;
    int force = 0;
    const struct poptOption table[] = {
        {"output", 'o', POPT_ARG_STRING, &output, 0, NULL, NULL},
        {"dtype", '\0', POPT_ARG_STRING, &dtype, 0, NULL, NULL},
        {"threads", '\0', POPT_ARG_STRING, &threads, 0, NULL, NULL},
        {"force", '\0', POPT_ARG_NONE, &force, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = run(&arguments, output, dtype, threads, force != 0);
    cli_arguments_free(&arguments);
    free(output);
    free(dtype);
    free(threads);
    return code;
}
