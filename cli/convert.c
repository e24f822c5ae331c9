#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/status.h"
#include "core/text.h"
#include "signals.h"
#include "workers.h"

/* A conversion under way. */
typedef struct conversion_course {
    const cli_conversion *conversion;
    cli_checkpoint checkpoint;
    cli_plan *plans; /* one for each shard */
    char **prefixes;
    size_t *prefix_bytes;
    cli_workers *workers;
    cli_progress progress;
    uint64_t done, written;
    size_t side_files;
} conversion_course;

/* IN itself must survive, --force or not. */
static dw_status refuse_input_as_output(const conversion_course *course) {
    const char *out = course->conversion->out;
    struct stat facts, folder;
    if (stat(out, &facts) != 0) return DW_OK;
    bool same =
        stat(course->checkpoint.folder, &folder) == 0 && facts.st_dev == folder.st_dev && facts.st_ino == folder.st_ino;
    for (size_t i = 0; i < course->checkpoint.count && !same; i++) {
        const dw_reader *reader = course->checkpoint.shards[i].reader;
        same = facts.st_dev == reader->device && facts.st_ino == reader->inode;
    }
    return same ? dw_fail(DW_ERROR_EXISTS, "%s is the input; choose another output", out) : DW_OK;
}

static dw_status plan_all(conversion_course *course) {
    const cli_conversion *conversion = course->conversion;
    size_t count = course->checkpoint.count, converted = 0;
    course->plans = calloc(count, sizeof *course->plans);
    course->prefixes = calloc(count, sizeof *course->prefixes);
    course->prefix_bytes = calloc(count, sizeof *course->prefix_bytes);
    if (!course->plans || !course->prefixes || !course->prefix_bytes)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "out of memory");
    for (size_t i = 0; i < count; i++) {
        cli_plan *plan = &course->plans[i];
        plan->reader = course->checkpoint.shards[i].reader;
        DW_TRY(conversion->plan_shard(&course->checkpoint, plan, conversion->state));
        DW_TRY(cli_plan_finish(plan, &course->prefixes[i], &course->prefix_bytes[i]));
        converted += plan->converted;
    }
    return converted ? DW_OK : dw_fail(DW_ERROR_NOT_FOUND, "%s: %s", conversion->in, conversion->nothing);
}

/* Fills and commits the file of shard `i`; `output` is used up either way. */
static dw_status write_shard(conversion_course *course, size_t i, dw_output *output) {
    cli_plan *plan = &course->plans[i];
    uint64_t bytes = course->prefix_bytes[i] + plan->header.data_bytes;
    for (size_t k = 0; k < plan->item_count; k++)
        plan->items[k].output = output;
    dw_status status = dw_output_reserve(output, bytes);
    if (status == DW_OK) status = dw_output_write(output, 0, course->prefixes[i], course->prefix_bytes[i]);
    if (status == DW_OK)
        status = cli_workers_run(course->workers, plan->items, plan->item_count, &course->progress, &course->done);
    if (status == DW_OK && cli_signal()) status = dw_fail(DW_ERROR_CANCELLED, "interrupted");
    if (status != DW_OK) {
        dw_output_discard(output);
        return status;
    }
    course->written += bytes;
    return dw_output_commit(output);
}

static dw_status add_to_index(const conversion_course *course, size_t i, dw_index *index, uint64_t *total) {
    const cli_plan *plan = &course->plans[i];
    for (size_t k = 0; k < plan->tensor_count; k++) {
        if (!cli_checkpoint_lists(&course->checkpoint, plan->tensors[k].origin)) continue;
        DW_TRY(dw_index_add(index, plan->tensors[k].name, course->checkpoint.shards[i].name));
        *total += plan->header.tensors[k].end - plan->header.tensors[k].begin;
    }
    return DW_OK;
}

static dw_status write_index(const conversion_course *course, dw_output_directory *directory) {
    dw_index index = {0};
    dw_text text = {0};
    dw_output *output;
    uint64_t total = 0;
    const char *name = course->checkpoint.index_name;
    dw_status status = DW_OK;
    for (size_t i = 0; i < course->checkpoint.count && status == DW_OK; i++)
        status = add_to_index(course, i, &index, &total);
    if (status == DW_OK) status = dw_index_finish(name, course->checkpoint.index.metadata, total, &index);
    if (status == DW_OK) {
        dw_index_format(&index, &text);
        status = text.failed ? dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", name)
                             : dw_output_directory_file(directory, name, &output);
    }
    if (status == DW_OK) {
        status = dw_output_write(output, 0, text.bytes, text.length);
        if (status == DW_OK)
            status = dw_output_commit(output);
        else
            dw_output_discard(output);
    }
    dw_text_free(&text);
    dw_index_clear(&index);
    return status;
}

static dw_status write_directory(conversion_course *course) {
    const cli_conversion *conversion = course->conversion;
    dw_output_directory *directory;
    DW_TRY(dw_output_directory_create(conversion->out, conversion->force, &directory));
    dw_status status = DW_OK;
    for (size_t i = 0; i < course->checkpoint.count && status == DW_OK; i++) {
        dw_output *output;
        status = dw_output_directory_file(directory, course->checkpoint.shards[i].name, &output);
        if (status == DW_OK) status = write_shard(course, i, output);
    }
    if (status == DW_OK && course->checkpoint.index_name) status = write_index(course, directory);
    if (status == DW_OK && course->checkpoint.directory)
        status = cli_copy_side_files(&course->checkpoint, directory, &course->side_files);
    if (status == DW_OK && cli_signal()) status = dw_fail(DW_ERROR_CANCELLED, "interrupted");
    if (status == DW_OK) return dw_output_directory_commit(directory, course->checkpoint.index_name);
    dw_output_directory_discard(directory);
    return status;
}

static dw_status write_file(conversion_course *course) {
    dw_output *output;
    DW_TRY(dw_output_create(course->conversion->out, course->conversion->force, &output));
    return write_shard(course, 0, output);
}

static dw_status run_course(conversion_course *course) {
    const cli_conversion *conversion = course->conversion;
    DW_TRY(cli_checkpoint_open(conversion->in, &course->checkpoint));
    DW_TRY(refuse_input_as_output(course));
    bool directory = course->checkpoint.index_name || course->checkpoint.directory;
    size_t length = strlen(conversion->out);
    if (directory && length > 12 && strcmp(conversion->out + length - 12, ".safetensors") == 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s is not one file, so its output %s must be named like a directory",
                       conversion->in, conversion->out);
    DW_TRY(plan_all(course));
    DW_TRY(cli_workers_start(conversion->threads, &course->workers));
    uint64_t total = 0;
    for (size_t i = 0; i < course->checkpoint.count; i++)
        total += cli_plan_bytes(&course->plans[i]);
    cli_progress_start(&course->progress, conversion->label, total);
    dw_status status = directory ? write_directory(course) : write_file(course);
    cli_progress_end(&course->progress);
    return status;
}

static void free_course(conversion_course *course) {
    cli_workers_end(course->workers);
    for (size_t i = 0; i < course->checkpoint.count; i++) {
        if (course->plans) cli_plan_clear(&course->plans[i]);
        if (course->prefixes) free(course->prefixes[i]);
    }
    free(course->plans);
    free(course->prefixes);
    free(course->prefix_bytes);
    cli_checkpoint_close(&course->checkpoint);
}

static void print_summary(const conversion_course *course, double seconds) {
    size_t converted = 0, kept = 0;
    char before[32], after[32];
    for (size_t i = 0; i < course->checkpoint.count; i++) {
        converted += course->plans[i].converted;
        kept += course->plans[i].item_count - course->plans[i].converted;
    }
    printf("%s: %zu tensors converted, %zu copied; %s read, %s written in %.1f s\n", course->conversion->out, converted,
           kept, cli_size(course->done, before), cli_size(course->written, after), seconds);
    if (course->side_files) printf("%s: %zu other files copied\n", course->conversion->out, course->side_files);
}

int cli_convert(const cli_conversion *conversion) {
    cli_signals_catch();
    double started = cli_seconds();
    conversion_course course = {.conversion = conversion};
    dw_status status = run_course(&course);
    if (status == DW_OK) print_summary(&course, cli_seconds() - started);
    free_course(&course);
    if (status == DW_ERROR_CANCELLED) {
        cli_error("interrupted; nothing was written to %s", conversion->out);
        return cli_signal_die();
    }
    return status == DW_OK ? cli_finish(CLI_OK) : cli_library_error();
}
