/* What every command of `deepwell` shares: exit codes, messages, options. */
#ifndef CLI_H
#define CLI_H

#include <popt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deepwell/deepwell.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* The commands: `argv[0]` is the command's name. They return the exit code. */
int cmd_info(int argc, const char **argv);
int cmd_quantize(int argc, const char **argv);
int cmd_dequantize(int argc, const char **argv);
int cmd_inspect(int argc, const char **argv);
int cmd_plan(int argc, const char **argv);
int cmd_selftest(int argc, const char **argv);
int cmd_bench(int argc, const char **argv);
int cmd_tune(int argc, const char **argv);

/* ---- messages: one line on standard error each, "deepwell COMMAND: ..." ---- */

/* Names the command in the messages that follow; NULL before one is known. */
void cli_set_command(const char *name);

/* What the user typed wrong, and a pointer to the help. Returns CLI_USAGE. */
int cli_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What went wrong. Returns CLI_FAILED. */
int cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* dw_last_error() as the message. Returns CLI_FAILED. */
int cli_library_error(void);
/* Something worth saying that is no failure. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes out standard output. Returns `code`, or CLI_FAILED with a message when it cannot be written. */
int cli_finish(int code);

/* ---- options ---- */

typedef struct cli_arguments {
    poptContext context;
    const char **operands;
    int count;
} cli_arguments;

/* Parses `argv` with `table` (ended by POPT_TABLEEND; help is added). Returns -1 to go on, else the exit code: the help
 * was printed or an option was wrong. Call cli_arguments_free in either case. */
int cli_parse(int argc, const char **argv, const struct poptOption *table, const char *help, cli_arguments *arguments);
void cli_arguments_free(cli_arguments *arguments);

/* Checks the number of operands; `names` describes them, e.g. "IN". -1 or CLI_USAGE. */
int cli_expect_operands(const cli_arguments *arguments, int least, int most, const char *names);

/* The value of an option as a number in [least, most]; `fallback` when it was not given. -1 or CLI_USAGE. */
int cli_read_number(const char *option, const char *text, int64_t least, int64_t most, int64_t fallback,
                    int64_t *value);

/* --block and --rounding into a specification of E4M3 elements and row layout. NULL texts: 1x32, rceil. -1 or
 * CLI_USAGE. */
int cli_read_spec(const char *block, const char *rounding, dw_quantize_spec *spec);

/* ---- GPUs ---- */

/* --gpu: -1 for none given. -1 or CLI_USAGE, or CLI_FAILED when there is no such GPU. */
int cli_read_gpu(const char *text, int64_t *gpu);

/* Whether a kernel of this target ("sm90", "avx2", ...) runs on a GPU. */
bool cli_is_gpu_target(const char *target);

/* The first GPU that kernels of the target are for, or `chosen` (-1: any) if it is one; else -1. */
int cli_find_gpu(const char *target, int64_t chosen);

/* ---- text ---- */

/* Replaces what could move a terminal's cursor or end the line, so that names out of files are safe to print. */
void cli_clean(char *text);

/* "1.50 GB": decimal units. */
const char *cli_size(uint64_t bytes, char buffer[32]);

/* A name matches a filter: a pattern with * ? [ ], or else a part of the name; NULL matches all. */
bool cli_matches(const char *filter, const char *name);

double cli_seconds(void); /* of a steady clock */

#endif
