/* deepwell quantize: 2-D weights of a checkpoint become F8_E4M3 with F8_E8M0 scales, everything else is copied. */
#include <fnmatch.h>
#include <string.h>

#include "convert.h"
#include "core/status.h"
#include "io/record.h"
#include "selection.h"

static const char help[] =
    "Usage: deepwell quantize IN -o OUT [OPTIONS]\n"
    "\n"
    "Every 2-D weight NAME of type F32, F16 or BF16 becomes NAME as F8_E4M3 of the same shape and NAME_scale as\n"
    "F8_E8M0 [rows, ceil(cols/block)] ([ceil(rows/128), ceil(cols/128)] for 128x128). All else is copied unchanged.\n"
    "What was done is recorded in the file's metadata, so that dequantize can undo it.\n"
    "\n"
    "IN is a .safetensors file, the index of a sharded checkpoint (NAME.safetensors.index.json), or a directory that\n"
    "holds one of the two. For an index or a directory OUT is a directory: shards keep their names and a new index is\n"
    "written; for a directory small files such as config.json and the tokenizer are copied along.\n"
    "OUT appears when it is complete, or not at all.\n"
    "\n"
    "Embeddings, output heads, routers and norms stay as they are unless --all is given: names that match *embed*,\n"
    "*wte*, *wpe*, [*.]shared.weight, *lm_head*, [*.]head.weight, [*.]output.weight, *classifier*, [*.]score.weight,\n"
    "*router*, *.gate.weight, *.gate.wg.weight, *norm*. Tensors of other ranks are always copied.\n"
    "\n"
    "Options:\n"
    "  -o, --output OUT     where to write\n"
    "  --format mxfp8       the format (the only one so far, and the default)\n"
    "  --block SIZE         elements that share a scale: 32 (default), 128 or 128x128\n"
    "  --rounding MODE      how scales are chosen: rceil (default, nothing saturates) or floor (OCP MX 1.0)\n"
    "  --skip PATTERN       leave tensors alone whose name matches, e.g. '*.mlp.down_proj.*'; may be repeated\n"
    "  --all                convert embeddings, output heads, routers and norms too\n"
    "  --threads N          CPU threads (default: all, at most 16 are of use)\n"
    "  --force              replace an existing OUT\n"
    "  -h, --help           print this\n";

typedef struct quantize_state {
    dw_quantize_spec spec;
    char **skip; /* ends with NULL; NULL when none was given */
    bool all;
} quantize_state;

static bool is_skipped(const quantize_state *state, const char *name) {
    for (char **pattern = state->skip; pattern && *pattern; pattern++)
        if (fnmatch(*pattern, name, 0) == 0) return true;
    return !state->all && cli_kept_by_default(name);
}

/* NAME_scale must be free in this file and in the whole checkpoint. */
static dw_status check_scale_name(const cli_checkpoint *checkpoint, const dw_reader *reader, const char *name) {
    char scale[1024];
    if ((size_t)snprintf(scale, sizeof scale, "%s" DW_SCALE_SUFFIX, name) >= sizeof scale)
        return dw_fail(DW_ERROR_UNSUPPORTED, "%s: a tensor's name has more than 1000 bytes: %.60s...", reader->path,
                       name);
    if (!dw_header_find(&reader->header, scale) &&
        !(checkpoint->index_name && dw_index_find(&checkpoint->index, scale)))
        return DW_OK;
    return dw_fail(DW_ERROR_EXISTS,
                   "%s: the scales of %.200s would be named like the tensor %.200s, which exists; "
                   "leave it out with --skip",
                   reader->path, name, scale);
}

static dw_status plan_shard(const cli_checkpoint *checkpoint, cli_plan *plan, void *argument) {
    const quantize_state *state = argument;
    const dw_header *header = &plan->reader->header;
    dw_record record = {.spec = state->spec};
    if (dw_record_present(header))
        return dw_fail(DW_ERROR_EXISTS, "%s: is quantized already; dequantize it first", plan->reader->path);
    dw_status status = DW_OK;
    for (size_t i = 0; i < header->metadata_count && status == DW_OK; i++)
        if (!dw_record_owns_key(header->metadata[i].key))
            status = dw_header_add_metadata(&plan->header, header->metadata[i].key, header->metadata[i].value);
    for (size_t i = 0; i < header->tensor_count && status == DW_OK; i++) {
        const dw_file_tensor *tensor = &header->tensors[i];
        if (!cli_is_matrix(tensor) || is_skipped(state, tensor->name)) {
            status = cli_plan_copy(plan, tensor);
            continue;
        }
        status = check_scale_name(checkpoint, plan->reader, tensor->name);
        if (status == DW_OK) status = cli_plan_quantize(plan, tensor, &state->spec);
        if (status == DW_OK) status = dw_record_add(&record, tensor->name, tensor->dtype);
    }
    if (status == DW_OK) status = dw_record_write(&record, &plan->header);
    dw_record_clear(&record);
    return status;
}

static int run(const cli_arguments *arguments, const char *output, const char *format, const char *block,
               const char *rounding, const char *threads_text, quantize_state *state, bool force) {
    int code = cli_expect_operands(arguments, 1, 1, "one checkpoint, IN");
    int64_t threads;
    if (code < 0) code = cli_read_spec(block, rounding, &state->spec);
    if (code < 0) code = cli_read_number("--threads", threads_text, 1, 1024, 0, &threads);
    if (code >= 0) return code;
    if (format && strcmp(format, "mxfp8") != 0) return cli_usage("--format: \"%s\" is not mxfp8", format);
    if (!output) return cli_usage("expected an output, -o OUT");
    return cli_convert(&(cli_conversion){
        .label = "quantizing",
        .in = arguments->operands[0],
        .out = output,
        .force = force,
        .threads = (int)threads,
        .plan_shard = plan_shard,
        .nothing = "has nothing to quantize: no 2-D F32, F16 or BF16 tensor outside --skip and the defaults (--all)",
        .state = state,
    });
}

int cmd_quantize(int argc, const char **argv) {
    quantize_state state = {0};
    char *output = NULL, *format = NULL, *block = NULL, *rounding = NULL, *threads = NULL;
    int force = 0, all = 0;
    const struct poptOption table[] = {
        {"output", 'o', POPT_ARG_STRING, &output, 0, NULL, NULL},
        {"format", '\0', POPT_ARG_STRING, &format, 0, NULL, NULL},
        {"block", '\0', POPT_ARG_STRING, &block, 0, NULL, NULL},
        {"rounding", '\0', POPT_ARG_STRING, &rounding, 0, NULL, NULL},
        {"skip", '\0', POPT_ARG_ARGV, &state.skip, 0, NULL, NULL},
        {"all", '\0', POPT_ARG_NONE, &all, 0, NULL, NULL},
        {"threads", '\0', POPT_ARG_STRING, &threads, 0, NULL, NULL},
        {"force", '\0', POPT_ARG_NONE, &force, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    state.all = all != 0;
    if (code < 0) code = run(&arguments, output, format, block, rounding, threads, &state, force != 0);
    cli_arguments_free(&arguments);
    char *texts[] = {output, format, block, rounding, threads};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        free(texts[i]);
    for (char **pattern = state.skip; pattern && *pattern; pattern++)
        free(*pattern);
    free(state.skip);
    return code;
}
