/* deepwell inspect: what a checkpoint holds, and what quantizing each matrix would cost. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "core/status.h"
#include "inspect_report.h"
#include "signals.h"
#include "workers.h"

static const char help[] =
    "Usage: deepwell inspect FILE [OPTIONS]\n"
    "\n"
    "Lists the tensors of a checkpoint with dtypes, shapes and sizes. For every 2-D tensor of type F32, F16 or BF16\n"
    "it also tells what quantizing it to E4M3 would cost: SQNR, the signal-to-quantization-noise ratio in decibels,\n"
    "and underflow, the part of the nonzero elements that would become zero. Tensors that are quantized already are\n"
    "shown as such.\n"
    "\n"
    "FILE may be a .safetensors file, an index of shards, or a directory that holds one of the two.\n"
    "\n"
    "Options:\n"
    "  --list           read the headers only, measure nothing\n"
    "  --block SIZE     elements that share a scale: 32 (default), 128 or 128x128\n"
    "  --rounding MODE  rceil (default) or floor\n"
    "  --threads N      CPU threads (default: all, at most 16 are of use)\n"
    "  --json           print JSON\n"
    "  -h, --help       print this\n";

/* One line for each tensor, in the order of the files and their data. */
static dw_status describe(const cli_checkpoint *checkpoint, cli_report *report) {
    size_t count = 0;
    for (size_t i = 0; i < checkpoint->count; i++)
        count += checkpoint->shards[i].reader->header.tensor_count;
    report->lines = calloc(count ? count : 1, sizeof *report->lines);
    report->records = calloc(checkpoint->count, sizeof *report->records);
    if (!report->lines || !report->records) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory");
    for (size_t i = 0; i < checkpoint->count; i++) {
        const dw_reader *reader = checkpoint->shards[i].reader;
        bool recorded = dw_record_present(&reader->header);
        if (recorded) DW_TRY(dw_record_read(reader->path, &reader->header, &report->records[i]));
        for (size_t k = 0; k < reader->header.tensor_count; k++)
            cli_report_add(report, i, &reader->header.tensors[k], recorded);
    }
    return DW_OK;
}

static dw_status measure(const cli_checkpoint *checkpoint, int threads, cli_report *report) {
    cli_item *items = calloc(report->count ? report->count : 1, sizeof *items);
    if (!items) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory");
    size_t count = 0;
    uint64_t total = 0, done = 0;
    for (size_t i = 0; i < report->count; i++) {
        cli_report_line *line = &report->lines[i];
        if (!line->measurable) continue;
        cli_item item = {.action = CLI_MEASURE,
                         .reader = checkpoint->shards[line->shard].reader,
                         .source = line->tensor,
                         .spec = report->spec,
                         .stats = &line->stats};
        dw_file_dtype_core(line->tensor->dtype, &item.high);
        items[count++] = item;
        total += cli_item_bytes(&item);
    }
    cli_workers *workers = NULL;
    cli_progress progress;
    dw_status status = cli_workers_start(threads, &workers);
    if (status == DW_OK) {
        cli_progress_start(&progress, "measuring", total);
        status = cli_workers_run(workers, items, count, &progress, &done);
        cli_progress_end(&progress);
    }
    cli_workers_end(workers);
    free(items);
    report->measured = status == DW_OK;
    return status;
}

static int inspect(const char *path, int threads, bool list, bool json, cli_report *report) {
    cli_checkpoint checkpoint;
    dw_status status = cli_checkpoint_open(path, &checkpoint);
    report->checkpoint = &checkpoint;
    if (status == DW_OK) status = describe(&checkpoint, report);
    if (status == DW_OK && !list) {
        cli_signals_catch();
        status = measure(&checkpoint, threads, report);
    }
    if (status == DW_OK) status = json ? cli_report_json(report) : cli_report_text(report);
    for (size_t i = 0; report->records && i < checkpoint.count; i++)
        dw_record_clear(&report->records[i]);
    free(report->records);
    free(report->lines);
    cli_checkpoint_close(&checkpoint);
    if (status == DW_ERROR_CANCELLED) {
        cli_error("interrupted");
        return cli_signal_die();
    }
    return status == DW_OK ? cli_finish(CLI_OK) : cli_library_error();
}

int cmd_inspect(int argc, const char **argv) {
    char *block = NULL, *rounding = NULL, *threads_text = NULL;
    int list = 0, json = 0;
    const struct poptOption table[] = {
        {"list", '\0', POPT_ARG_NONE, &list, 0, NULL, NULL},
        {"block", '\0', POPT_ARG_STRING, &block, 0, NULL, NULL},
        {"rounding", '\0', POPT_ARG_STRING, &rounding, 0, NULL, NULL},
        {"threads", '\0', POPT_ARG_STRING, &threads_text, 0, NULL, NULL},
        {"json", '\0', POPT_ARG_NONE, &json, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    cli_report report = {0};
    int64_t threads = 0;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = cli_expect_operands(&arguments, 1, 1, "one checkpoint, FILE");
    if (code < 0) code = cli_read_spec(block, rounding, &report.spec);
    if (code < 0) code = cli_read_number("--threads", threads_text, 1, 1024, 0, &threads);
    if (code < 0) code = inspect(arguments.operands[0], (int)threads, list != 0, json != 0, &report);
    cli_arguments_free(&arguments);
    free(block);
    free(rounding);
    free(threads_text);
    return code;
}
