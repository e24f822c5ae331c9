#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { OPTION_HELP = 'h' };

int cli_parse(int argc, const char **argv, const struct poptOption *table, const char *help, cli_arguments *arguments) {
    const struct poptOption all[] = {
        {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)table, 0, NULL, NULL},
        {"help", 'h', POPT_ARG_NONE, NULL, OPTION_HELP, NULL, NULL},
        POPT_TABLEEND,
    };
    *arguments = (cli_arguments){.context = poptGetContext("deepwell", argc, argv, all, 0)};
    if (!arguments->context) return cli_error("out of memory");
    int result;
    while ((result = poptGetNextOpt(arguments->context)) >= 0) {
        if (result == OPTION_HELP) {
            fputs(help, stdout);
            return cli_finish(CLI_OK);
        }
    }
    if (result < -1)
        return cli_usage("%s: %s", poptBadOption(arguments->context, POPT_BADOPTION_NOALIAS),
                         result == POPT_ERROR_BADOPT  ? "there is no such option"
                         : result == POPT_ERROR_NOARG ? "a value must follow"
                                                      : poptStrerror(result));
    arguments->operands = poptGetArgs(arguments->context);
    while (arguments->operands && arguments->operands[arguments->count])
        arguments->count++;
    return -1;
}

void cli_arguments_free(cli_arguments *arguments) {
    poptFreeContext(arguments->context);
    *arguments = (cli_arguments){0};
}

int cli_expect_operands(const cli_arguments *arguments, int least, int most, const char *names) {
    if (arguments->count < least) return cli_usage("expected %s", names);
    if (arguments->count > most)
        return cli_usage("\"%s\" is one argument too many, expected %s", arguments->operands[most],
                         most ? names : "none");
    return -1;
}

int cli_read_number(const char *option, const char *text, int64_t least, int64_t most, int64_t fallback,
                    int64_t *value) {
    *value = fallback;
    if (!text) return -1;
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno || end == text || *end || number < least || number > most)
        return cli_usage("%s: \"%s\" is no number from %" PRId64 " to %" PRId64, option, text, least, most);
    *value = number;
    return -1;
}

int cli_read_spec(const char *block, const char *rounding, dw_quantize_spec *spec) {
    *spec = (dw_quantize_spec){
        .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = DW_ROUND_RCEIL, .layout = DW_SCALE_ROW};
    if (block) {
        static const struct {
            const char *name;
            dw_block block;
        } blocks[] = {{"32", DW_BLOCK_1X32},
                      {"1x32", DW_BLOCK_1X32},
                      {"128", DW_BLOCK_1X128},
                      {"1x128", DW_BLOCK_1X128},
                      {"128x128", DW_BLOCK_128X128}};
        size_t i = 0, count = sizeof blocks / sizeof blocks[0];
        while (i < count && strcmp(block, blocks[i].name) != 0)
            i++;
        if (i == count) return cli_usage("--block: \"%s\" is not 32, 128 or 128x128", block);
        spec->block = blocks[i].block;
    }
    if (rounding) {
        int i = 0;
        while (i < DW_ROUND_COUNT && strcmp(rounding, dw_rounding_name((dw_rounding)i)) != 0)
            i++;
        if (i == DW_ROUND_COUNT) return cli_usage("--rounding: \"%s\" is not rceil or floor", rounding);
        spec->rounding = (dw_rounding)i;
    }
    return -1;
}
