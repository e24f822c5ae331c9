/* The `deepwell` command: picks the subcommand. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const char help[] = "Usage: deepwell COMMAND [OPTIONS] [ARGUMENTS]\n"
                           "\n"
                           "Block-scaled FP8 for PyTorch models: checkpoints, numbers, kernels.\n"
                           "\n"
                           "Commands:\n"
                           "  info        this machine: processor, GPUs, kernels and why some are not available\n"
                           "  quantize    turn the 2-D weights of a safetensors checkpoint into MXFP8\n"
                           "  dequantize  turn them back\n"
                           "  inspect     list a checkpoint's tensors and what quantization costs each\n"
                           "  plan        tell what FP8 would do to a checkpoint's model on a GPU\n"
                           "  selftest    prove every kernel against the reference on this machine\n"
                           "  bench       measure every kernel against a copy of memory on this machine\n"
                           "  tune        find the fastest matrix kernels for a layer on this GPU, and remember them\n"
                           "\n"
                           "  deepwell COMMAND --help explains a command.\n"
                           "\n"
                           "Options:\n"
                           "  --version   print the version\n"
                           "  -h, --help  print this\n"
                           "\n"
                           "Environment:\n"
                           "  DEEPWELL_ISA      widest CPU instruction set to use: ref, avx2 or avx512\n"
                           "  DEEPWELL_THREADS  CPU threads to use where --threads is not given\n"
                           "\n"
                           "Exit code: 0, 1 when it failed, 2 when it was called wrongly.\n";

static const struct {
    const char *name;
    int (*run)(int argc, const char **argv);
} commands[] = {
    {"info", cmd_info}, {"quantize", cmd_quantize}, {"dequantize", cmd_dequantize}, {"inspect", cmd_inspect},
    {"plan", cmd_plan}, {"selftest", cmd_selftest}, {"bench", cmd_bench},           {"tune", cmd_tune},
};

/* A process started without its standard streams would open a checkpoint as one and print into it. */
static bool open_standard_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) return false;
    return true;
}

int main(int argc, char **argv) {
    if (!open_standard_streams()) return CLI_FAILED;
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is an error of the write, reported like a full disk */
    if (argc < 2) return cli_usage("expected a command");
    const char *name = argv[1];
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(name, commands[i].name) != 0) continue;
        cli_set_command(name);
        return commands[i].run(argc - 1, (const char **)argv + 1);
    }
    if (strcmp(name, "--version") == 0) {
        printf("deepwell %s\n", dw_version());
        return cli_finish(CLI_OK);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        fputs(help, stdout);
        return cli_finish(CLI_OK);
    }
    return name[0] == '-' ? cli_usage("%s: there is no such option", name)
                          : cli_usage("%s: there is no such command", name);
}
