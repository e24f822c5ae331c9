/* Which GPU a command uses. */
#include <string.h>

#include "cli.h"

int cli_read_gpu(const char *text, int64_t *gpu) {
    int code = cli_read_number("--gpu", text, 0, 1023, -1, gpu);
    if (code >= 0 || *gpu < 0) return code;
    dw_cuda_device_info info;
    return dw_cuda_device_get((int)*gpu, &info) == DW_OK ? -1 : cli_library_error();
}

bool cli_is_gpu_target(const char *target) {
    return strncmp(target, "sm", 2) == 0;
}

int cli_find_gpu(const char *target, int64_t chosen) {
    int count = 0;
    if (dw_cuda_device_count(&count) != DW_OK) return -1;
    for (int i = 0; i < count; i++) {
        dw_cuda_device_info info;
        if (chosen >= 0 && i != chosen) continue;
        if (dw_cuda_device_get(i, &info) == DW_OK && info.has_device_code && strcmp(info.target, target) == 0) return i;
    }
    return -1;
}
