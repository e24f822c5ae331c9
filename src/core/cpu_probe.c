/* Facts about the processor: CPUID on x86-64, /proc/cpuinfo on aarch64. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/status.h"
#include "deepwell/context.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Register sets the operating system saves; valid only when CPUID reports OSXSAVE. */
static unsigned saved_register_sets(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_bits(unsigned value, unsigned bits) {
    return (value & bits) == bits;
}

static void probe_processor(dw_cpu_info *info) {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return;
    memcpy(info->vendor, &b, 4);
    memcpy(info->vendor + 4, &d, 4);
    memcpy(info->vendor + 8, &c, 4);

    unsigned brand[12];
    bool named = true;
    for (unsigned i = 0; i < 3; i++)
        named &= __get_cpuid(0x80000002 + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2], &brand[4 * i + 3]);
    if (named) {
        char text[sizeof brand + 1] = {0};
        memcpy(text, brand, sizeof brand);
        snprintf(info->model, sizeof info->model, "%s", text + strspn(text, " "));
        for (size_t n = strlen(info->model); n > 0 && info->model[n - 1] == ' '; n--)
            info->model[n - 1] = 0;
    }

    unsigned features, extended, extended_c;
    if (!__get_cpuid(1, &a, &b, &features, &d) || !__get_cpuid_count(7, 0, &a, &extended, &extended_c, &d)) return;
    if (!has_bits(features, bit_OSXSAVE)) return;
    unsigned saved = saved_register_sets();
    /* The AVX2 kernels are compiled with FMA, F16C and BMI2, which every such processor has had. */
    info->has_avx2 = has_bits(saved, 0x06) && has_bits(features, bit_AVX | bit_FMA | bit_F16C) &&
                     has_bits(extended, bit_AVX2 | bit_BMI2);
    info->has_avx512 = info->has_avx2 && has_bits(saved, 0xE6) &&
                       has_bits(extended, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
                       has_bits(extended_c, bit_AVX512VBMI);
}

#else

/* Copies the value of the first line "key : value" of /proc/cpuinfo; leaves `value` alone when there is none. */
static void read_cpuinfo(const char *key, char *value, size_t capacity) {
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file) return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0) continue;
        char *text = colon + 1 + strspn(colon + 1, " \t");
        text[strcspn(text, "\n")] = 0;
        snprintf(value, capacity, "%s", text);
        break;
    }
    fclose(file);
}

static void probe_processor(dw_cpu_info *info) {
    char implementer[16] = "unknown", part[16] = "unknown";
    read_cpuinfo("CPU implementer", implementer, sizeof implementer);
    read_cpuinfo("CPU part", part, sizeof part);
    snprintf(info->vendor, sizeof info->vendor, "%s", implementer);
    snprintf(info->model, sizeof info->model, "implementer %s part %s", implementer, part);
    read_cpuinfo("model name", info->model, sizeof info->model);
}

#endif

static int usable_processors(void) {
    /* The kernel's mask may be wider than cpu_set_t; EINVAL says so. */
    for (int capacity = CPU_SETSIZE; capacity <= 1 << 20; capacity *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)capacity);
        if (!set) break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)capacity);
        int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

dw_status dw_probe_cpu(dw_cpu_info *info) {
    if (!info) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "info is NULL; pass the address of a dw_cpu_info");
    dw_cpu_info found = {.vendor = "unknown", .model = "unknown"};
    probe_processor(&found);
    found.logical_processors = usable_processors();
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) found.memory_bytes = (int64_t)pages * page;
    *info = found;
    return DW_OK;
}
