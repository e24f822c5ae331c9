/* deepwell plan: what converting a checkpoint's model would do on a GPU, from its headers and config.json alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "describe.h"
#include "io/output.h"

static const char help[] =
    "Usage: deepwell plan CHECKPOINT [OPTIONS]\n"
    "\n"
    "Says which layers of a model would train in FP8 on a GPU, why the others would not, and what time and memory "
    "that\n"
    "is predicted to take and to save. Reads the headers of the checkpoint and the config.json beside it, no weights.\n"
    "Parts that are not recognized are named and left alone. docs/plan.md explains the rules and the predictions.\n"
    "\n"
    "CHECKPOINT is a .safetensors file, the index of a sharded checkpoint, or a directory that holds one of the two.\n"
    "\n"
    "Options:\n"
    "  --target NAME        h100 (default), h200, b200, gb200, or cpu: this library's emulation\n"
    "  --seq-len N          tokens of a sequence (default 4096)\n"
    "  --batch N            sequences of a pass (default 2)\n"
    "  --precision NAME     mxfp8 (default), fp8 or bf16\n"
    "  --strategy NAME      auto (default), mxfp8_dense, mxfp8_moe or bf16_fused\n"
    "  --inference          no gradients\n"
    "  --skip PATTERN       leave layers alone whose name matches, e.g. '*.mlp.*'; may be repeated\n"
    "  --only PATTERN       convert those alone; may be repeated\n"
    "  --json               print JSON\n"
    "  --html FILE          write a page with a table that sorts, and bars\n"
    "  --force              replace an existing FILE\n"
    "  -h, --help           print this\n";

typedef struct plan_arguments {
    char *target, *sequence, *batch, *precision, *strategy, *html;
    char **skip, **only; /* end with NULL; NULL when none was given */
    int inference, json, force;
} plan_arguments;

static size_t count_of(char **texts) {
    size_t count = 0;
    while (texts && texts[count])
        count++;
    return count;
}

static dw_status write_page(const char *path, bool force, const char *text) {
    dw_output *output;
    DW_TRY(dw_output_create(path, force, &output));
    dw_status status = dw_output_write(output, 0, text, strlen(text));
    if (status == DW_OK) return dw_output_commit(output);
    dw_output_discard(output);
    return status;
}

static dw_status tell(const dw_plan *plan, const plan_arguments *arguments) {
    dw_plan_format format = arguments->html ? DW_PLAN_HTML : arguments->json ? DW_PLAN_JSON : DW_PLAN_TEXT;
    char *text;
    DW_TRY(dw_plan_explain(plan, format, &text));
    dw_status status = DW_OK;
    if (arguments->html)
        status = write_page(arguments->html, arguments->force != 0, text);
    else
        fputs(text, stdout);
    dw_plan_text_free(text);
    return status;
}

static dw_status run(const char *path, const plan_arguments *arguments, dw_plan_options *options) {
    dw_device_facts facts;
    DW_TRY(dw_device_facts_find(options->gpu, &facts));
    options->device = facts.family;
    cli_checkpoint checkpoint;
    cli_described described = {0};
    dw_plan *plan = NULL;
    dw_status status = dw_plan_check_options(options);
    if (status != DW_OK) return status;
    status = cli_checkpoint_open(path, &checkpoint);
    if (status == DW_OK) status = cli_describe(&checkpoint, strcmp(facts.family, "hopper") == 0, &described);
    if (status == DW_OK) status = dw_plan_create(&described.model, options, &plan);
    if (status == DW_OK) status = tell(plan, arguments);
    dw_plan_destroy(plan);
    cli_described_clear(&described);
    cli_checkpoint_close(&checkpoint);
    return status;
}

static int plan(const char *path, const plan_arguments *arguments) {
    int64_t sequence, batch;
    if (arguments->json && arguments->html) return cli_usage("--json and --html exclude each other");
    int code = cli_read_number("--seq-len", arguments->sequence, 1, 1 << 24, 4096, &sequence);
    if (code < 0) code = cli_read_number("--batch", arguments->batch, 1, 1 << 16, 2, &batch);
    if (code >= 0) return code;
    dw_plan_options options = {.precision = arguments->precision,
                               .strategy = arguments->strategy,
                               .gpu = arguments->target ? arguments->target : "h100",
                               .skip = (const char *const *)arguments->skip,
                               .skip_count = count_of(arguments->skip),
                               .only = (const char *const *)arguments->only,
                               .only_count = count_of(arguments->only),
                               .inference = arguments->inference != 0,
                               .tokens = sequence * batch,
                               .sequence = sequence};
    dw_cpu_info cpu;
    if (strcmp(options.gpu, "cpu") == 0 && dw_probe_cpu(&cpu) == DW_OK) options.cpu_threads = cpu.logical_processors;
    dw_status status = run(path, arguments, &options);
    return status == DW_OK ? cli_finish(CLI_OK) : cli_library_error();
}

static void free_list(char **texts) {
    for (char **text = texts; text && *text; text++)
        free(*text);
    free(texts);
}

int cmd_plan(int argc, const char **argv) {
    plan_arguments a = {0};
    const struct poptOption table[] = {
        {"target", '\0', POPT_ARG_STRING, &a.target, 0, NULL, NULL},
        {"seq-len", '\0', POPT_ARG_STRING, &a.sequence, 0, NULL, NULL},
        {"batch", '\0', POPT_ARG_STRING, &a.batch, 0, NULL, NULL},
        {"precision", '\0', POPT_ARG_STRING, &a.precision, 0, NULL, NULL},
        {"strategy", '\0', POPT_ARG_STRING, &a.strategy, 0, NULL, NULL},
        {"inference", '\0', POPT_ARG_NONE, &a.inference, 0, NULL, NULL},
        {"skip", '\0', POPT_ARG_ARGV, &a.skip, 0, NULL, NULL},
        {"only", '\0', POPT_ARG_ARGV, &a.only, 0, NULL, NULL},
        {"json", '\0', POPT_ARG_NONE, &a.json, 0, NULL, NULL},
        {"html", '\0', POPT_ARG_STRING, &a.html, 0, NULL, NULL},
        {"force", '\0', POPT_ARG_NONE, &a.force, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = cli_expect_operands(&arguments, 1, 1, "one CHECKPOINT");
    if (code < 0) code = plan(arguments.operands[0], &a);
    cli_arguments_free(&arguments);
    char *const texts[] = {a.target, a.sequence, a.batch, a.precision, a.strategy, a.html};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        free(texts[i]);
    free_list(a.skip);
    free_list(a.only);
    return code;
}
