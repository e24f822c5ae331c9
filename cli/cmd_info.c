/* deepwell info: what this machine offers and what of it can be used. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char help[] =
    "Usage: deepwell info [--json]\n"
    "\n"
    "Shows this machine's processor and GPUs, every kernel, and why those that cannot run here cannot.\n"
    "\n"
    "Options:\n"
    "  --json      print JSON\n"
    "  -h, --help  print this\n";

enum { GPUS_MAX = 64 };

typedef struct machine_facts {
    dw_context *context;
    dw_cpu_info cpu;
    int gpu_count, driver_version; /* 1000 * major + 10 * minor; 0 without a driver */
    dw_cuda_device_info gpus[GPUS_MAX];
    char gpu_note[512]; /* why there are none, "" when there are */
} machine_facts;

/* A machine without a GPU is nothing to complain about, but the reason belongs in the answer. */
static void find_gpus(machine_facts *facts) {
    int count = 0;
    if (dw_cuda_driver_version(&facts->driver_version) != DW_OK || dw_cuda_device_count(&count) != DW_OK) {
        snprintf(facts->gpu_note, sizeof facts->gpu_note, "none: %s", dw_last_error());
        return;
    }
    if (count == 0)
        snprintf(facts->gpu_note, sizeof facts->gpu_note, "none: the CUDA driver shows this process no GPU");
    for (int i = 0; i < count && i < GPUS_MAX; i++) {
        if (dw_cuda_device_get(i, &facts->gpus[i]) != DW_OK) {
            snprintf(facts->gpu_note, sizeof facts->gpu_note, "GPU %d: %s", i, dw_last_error());
            return;
        }
        facts->gpu_count++;
    }
}

/* The names of a mask's bits: appended to a JSON list, or to a text with commas. */
static json_t *mask_json(uint32_t mask, int count, const char *(*name_of)(int)) {
    json_t *names = json_array();
    for (int i = 0; i < count; i++)
        if (mask >> i & 1) json_array_append_new(names, json_string(name_of(i)));
    return names;
}

static void append_mask(char *text, size_t size, uint32_t mask, int count, const char *(*name_of)(int)) {
    for (int i = 0; i < count; i++) {
        size_t length = strlen(text);
        bool first = length == 0 || text[length - 1] == ' ';
        if (mask >> i & 1) snprintf(text + length, size - length, "%s%s", first ? "" : ",", name_of(i));
    }
}

static const char *dtype_name(int value) {
    return dw_dtype_name((dw_dtype)value);
}
static const char *block_name(int value) {
    return dw_block_name((dw_block)value);
}
static const char *rounding_name(int value) {
    return dw_rounding_name((dw_rounding)value);
}
static const char *layout_name(int value) {
    return dw_scale_layout_name((dw_scale_layout)value);
}
static const char *orientation_name(int value) {
    return dw_orientation_name((dw_orientation)value);
}

static json_t *kernel_json(const dw_kernel_info *info) {
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:i, s:b, s:s, s:s}", "name", info->name, "target",
                     info->target, "operation", dw_operation_name(info->operation), "orientations",
                     mask_json(info->orientations, DW_ORIENT_COUNT, orientation_name), "sources",
                     mask_json(info->sources, DW_DTYPE_COUNT, dtype_name), "elements",
                     mask_json(info->elements, DW_DTYPE_COUNT, dtype_name), "blocks",
                     mask_json(info->blocks, DW_BLOCK_COUNT, block_name), "roundings",
                     mask_json(info->roundings, DW_ROUND_COUNT, rounding_name), "layouts",
                     mask_json(info->layouts, DW_SCALE_LAYOUT_COUNT, layout_name), "priority", info->priority,
                     "available", info->available, "reason", info->reason, "form", info->form);
}

static int print_json(const machine_facts *facts) {
    json_t *kernels = json_array(), *gpus = json_array();
    size_t count = dw_kernel_count(facts->context);
    for (size_t i = 0; i < count; i++) {
        dw_kernel_info info;
        if (dw_kernel_get(facts->context, i, &info) == DW_OK) json_array_append_new(kernels, kernel_json(&info));
    }
    for (int i = 0; i < facts->gpu_count; i++) {
        const dw_cuda_device_info *gpu = &facts->gpus[i];
        char capability[16];
        snprintf(capability, sizeof capability, "%d.%d", gpu->compute_major, gpu->compute_minor);
        json_array_append_new(gpus,
                              json_pack("{s:i, s:s, s:s, s:s, s:b, s:i, s:I, s:I, s:f}", "index", i, "name", gpu->name,
                                        "compute_capability", capability, "target", gpu->target, "has_device_code",
                                        gpu->has_device_code, "multiprocessors", gpu->multiprocessors, "memory_bytes",
                                        (json_int_t)gpu->memory_bytes, "l2_bytes", (json_int_t)gpu->l2_bytes,
                                        "memory_bandwidth_bytes_per_s", gpu->memory_bandwidth));
    }
    const dw_cpu_info *cpu = &facts->cpu;
    json_t *root = json_pack("{s:s, s:{s:s, s:s, s:i, s:I, s:b, s:b, s:s, s:i}, s:o, s:s, s:i, s:o}", "version",
                             dw_version(), "cpu", "vendor", cpu->vendor, "model", cpu->model, "logical_processors",
                             cpu->logical_processors, "memory_bytes", (json_int_t)cpu->memory_bytes, "has_avx2",
                             cpu->has_avx2, "has_avx512", cpu->has_avx512, "isa", dw_context_isa(facts->context),
                             "threads", dw_context_threads(facts->context), "gpus", gpus, "gpu_note", facts->gpu_note,
                             "cuda_driver_version", facts->driver_version, "kernels", kernels);
    if (!root || json_array_size(kernels) != count) {
        json_decref(root);
        return cli_error("out of memory for the report");
    }
    json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
    return cli_finish(CLI_OK);
}

static void print_serves(const dw_kernel_info *info, const char *serves) {
    if (info->available)
        printf("  %-40s  %s\n", info->name, serves);
    else
        printf("  %-40s  not available: %s\n", info->name, info->reason);
}

static void print_kernel(const dw_kernel_info *info) {
    char serves[160] = "";
    if (*info->form) {
        print_serves(info, info->form);
        return;
    }
    append_mask(serves, sizeof serves, info->sources, DW_DTYPE_COUNT, dtype_name);
    strncat(serves, info->operation == DW_OP_QUANTIZE ? " -> " : " <- ", sizeof serves - strlen(serves) - 1);
    append_mask(serves, sizeof serves, info->elements, DW_DTYPE_COUNT, dtype_name);
    strncat(serves, "  scales ", sizeof serves - strlen(serves) - 1);
    append_mask(serves, sizeof serves, info->layouts, DW_SCALE_LAYOUT_COUNT, layout_name);
    print_serves(info, serves);
}

static int print_text(const machine_facts *facts) {
    const dw_cpu_info *cpu = &facts->cpu;
    char memory[32];
    printf("deepwell    %s\n", dw_version());
    printf("processor   %s, %d logical, %s of memory\n", cpu->model[0] ? cpu->model : "unknown",
           cpu->logical_processors, cli_size((uint64_t)cpu->memory_bytes, memory));
    printf("            avx2 %s, avx512 %s; in use: %s, %d thread%s\n", cpu->has_avx2 ? "yes" : "no",
           cpu->has_avx512 ? "yes" : "no", dw_context_isa(facts->context), dw_context_threads(facts->context),
           dw_context_threads(facts->context) == 1 ? "" : "s");
    for (int i = 0; i < facts->gpu_count; i++) {
        const dw_cuda_device_info *gpu = &facts->gpus[i];
        printf("GPU %-2d      %s, compute capability %d.%d, %d multiprocessors, %s of memory\n", i, gpu->name,
               gpu->compute_major, gpu->compute_minor, gpu->multiprocessors,
               cli_size((uint64_t)gpu->memory_bytes, memory));
        if (!gpu->has_device_code) printf("            no device code for it in this build\n");
    }
    if (facts->gpu_note[0]) printf("GPUs        %s\n", facts->gpu_note);
    if (facts->driver_version)
        printf("CUDA        driver for %d.%d\n", facts->driver_version / 1000, facts->driver_version % 1000 / 10);
    printf("kernels\n");
    for (size_t i = 0; i < dw_kernel_count(facts->context); i++) {
        dw_kernel_info info;
        if (dw_kernel_get(facts->context, i, &info) != DW_OK) return cli_library_error();
        print_kernel(&info);
    }
    return cli_finish(CLI_OK);
}

int cmd_info(int argc, const char **argv) {
    int json = 0;
    const struct poptOption table[] = {
        {"json", '\0', POPT_ARG_NONE, &json, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    cli_arguments arguments;
    int code = cli_parse(argc, argv, table, help, &arguments);
    if (code < 0) code = cli_expect_operands(&arguments, 0, 0, "none");
    cli_arguments_free(&arguments);
    if (code >= 0) return code;
    static machine_facts facts;
    if (dw_probe_cpu(&facts.cpu) != DW_OK || dw_context_create(NULL, &facts.context) != DW_OK)
        return cli_library_error();
    find_gpus(&facts);
    code = json ? print_json(&facts) : print_text(&facts);
    dw_context_destroy(facts.context);
    return code;
}
