/* What is wanted, read and checked by itself. Messages name the argument as the callers of every front end know it. */
#include <stdio.h>
#include <string.h>

#include "plan/plan.h"

static const char *const precisions[DW_PRECISION_COUNT] = {"mxfp8", "fp8", "bf16"};
static const char *const families[DW_FAMILY_COUNT] = {"cpu", "hopper", "blackwell"};
static const char *const strategies[DW_STRATEGY_COUNT] = {"auto", "mxfp8_dense", "mxfp8_moe", "bf16_fused"};
static const char *const usual_gpu[DW_FAMILY_COUNT] = {"cpu", "h100", "b200"};

enum { DEFAULT_TOKENS = 8192, DEFAULT_SEQUENCE = 4096, MEASURED_CPU_THREADS = 2 };

const char *dw_precision_name(dw_precision precision) {
    return precisions[precision];
}
const char *dw_family_name(dw_family family) {
    return families[family];
}
const char *dw_strategy_name(dw_strategy strategy) {
    return strategies[strategy];
}

/* The position of `text` among the names, the first for NULL; fails with all of them in the message. */
static dw_status find(const char *argument, const char *text, const char *const *names, int count, int *found) {
    *found = 0;
    if (!text) return DW_OK;
    for (int i = 0; i < count; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *found = i;
        return DW_OK;
    }
    char listed[160] = "";
    for (int i = 0; i < count; i++) {
        size_t length = strlen(listed);
        snprintf(listed + length, sizeof listed - length, "%s'%s'", i ? ", " : "", names[i]);
    }
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s='%.100s' is not known; expected one of %s", argument, text, listed);
}

static dw_status read_target(const dw_plan_options *options, dw_settings *settings) {
    static const char *const targets[] = {"auto", "cpu", "hopper", "blackwell"};
    int device, target;
    DW_TRY(find("device", options->device, families, DW_FAMILY_COUNT, &device));
    DW_TRY(find("target", options->target, targets, 4, &target));
    settings->device = (dw_family)device;
    settings->target = target ? (dw_family)(target - 1) : settings->device;
    if (settings->device != DW_FAMILY_CPU && settings->target != settings->device)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "target='%s' contradicts device='%s': other numerics than the device's are emulated on the CPU "
                       "only; use target='auto' or device='cpu'",
                       families[settings->target], families[settings->device]);
    const char *name = options->gpu ? options->gpu : usual_gpu[settings->target];
    DW_TRY(dw_device_facts_find(name, &settings->facts));
    if (strcmp(settings->facts.family, families[settings->target]) != 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gpu='%s' contradicts target='%s'; drop one of them", name,
                       families[settings->target]);
    return DW_OK;
}

static dw_status read_blocks(const dw_plan_options *options, dw_settings *settings) {
    int size = options->block_size;
    if (size != 0 && size != 32 && size != 128)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "block_size=%d is not known; expected 32, 128 or None", size);
    bool blackwell = settings->target == DW_FAMILY_BLACKWELL, fp8 = settings->precision == DW_PRECISION_FP8;
    if (size == 128 && blackwell)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "block_size=128 contradicts target='blackwell', whose tensor cores take blocks of 32; use "
                       "block_size=32");
    if (fp8 && size == 32)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "block_size=32 contradicts precision='fp8', whose FP32 scales are for blocks of 128; use "
                       "precision='mxfp8'");
    if (fp8 && blackwell)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "precision='fp8' contradicts target='blackwell', whose tensor cores scale blocks by E8M0 codes "
                       "only; use precision='mxfp8'");
    bool thirty_two = size == 32 || blackwell;
    bool hundred = !thirty_two && (size == 128 || settings->target == DW_FAMILY_HOPPER || fp8);
    settings->block = hundred ? DW_BLOCK_1X128 : DW_BLOCK_1X32;
    settings->weight_block = thirty_two ? DW_BLOCK_1X32 : DW_BLOCK_128X128;
    return DW_OK;
}

static dw_status read_strategy(const dw_plan_options *options, dw_settings *settings) {
    int strategy;
    DW_TRY(find("strategy", options->strategy, strategies, DW_STRATEGY_COUNT, &strategy));
    settings->strategy = (dw_strategy)strategy;
    const char *precision = precisions[settings->precision];
    bool quantizes = settings->strategy == DW_STRATEGY_DENSE || settings->strategy == DW_STRATEGY_MOE;
    if (quantizes ? settings->precision != DW_PRECISION_MXFP8
                  : settings->strategy == DW_STRATEGY_FUSED && settings->precision == DW_PRECISION_FP8)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "strategy='%s' contradicts precision='%s'; drop one of them",
                       strategies[strategy], precision);
    if (settings->strategy == DW_STRATEGY_FUSED) settings->precision = DW_PRECISION_BF16;
    precision = precisions[settings->precision];
    for (size_t i = 0; i < options->wish_count; i++) {
        const dw_plan_wish *wish = &options->wishes[i];
        if (strcmp(wish->decision, "keep") == 0) continue;
        if (settings->precision == DW_PRECISION_BF16)
            return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                           "strategy['%.200s']='%.40s' contradicts precision='bf16', which quantizes nothing; expected "
                           "'keep'",
                           wish->pattern, wish->decision);
        if (strcmp(wish->decision, precision) != 0)
            return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                           "strategy['%.200s']='%.40s' is not known; expected '%s' to convert or 'keep' to leave alone",
                           wish->pattern, wish->decision, precision);
    }
    return DW_OK;
}

dw_status dw_settings_read(const dw_plan_options *options, dw_settings *settings) {
    dw_settings read = {.options = options, .inference = options->inference, .cpu_scale = 1};
    int precision;
    DW_TRY(find("precision", options->precision, precisions, DW_PRECISION_COUNT, &precision));
    read.precision = (dw_precision)precision;
    DW_TRY(read_target(options, &read));
    DW_TRY(read_strategy(options, &read));
    DW_TRY(read_blocks(options, &read));
    if (options->tokens < 0 || options->sequence < 0 || options->cpu_threads < 0)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tokens, sequence and cpu_threads must not be negative");
    if (options->tokens > DW_PLAN_LARGEST)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "tokens=%lld is more than 2^40", (long long)options->tokens);
    read.tokens = options->tokens ? options->tokens : DEFAULT_TOKENS;
    read.sequence = options->sequence ? options->sequence : DEFAULT_SEQUENCE;
    if (!options->sequence && read.sequence > read.tokens) read.sequence = read.tokens;
    if (read.sequence > read.tokens)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "sequence=%lld is more than tokens=%lld of one pass",
                       (long long)read.sequence, (long long)read.tokens);
    if (options->cpu_threads) read.cpu_scale = (double)options->cpu_threads / MEASURED_CPU_THREADS;
    *settings = read;
    return DW_OK;
}

dw_status dw_plan_check_options(const dw_plan_options *options) {
    dw_settings settings;
    if (!options) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "options is NULL; pass the address of a dw_plan_options");
    return dw_settings_read(options, &settings);
}
