#include "io/file_dtype.h"

#include <string.h>

static const struct {
    const char *name;
    unsigned bits;
    dw_dtype core; /* DW_DTYPE_COUNT: none */
} types[DW_FILE_DTYPE_COUNT] = {
    [DW_FILE_BOOL] = {"BOOL", 8, DW_DTYPE_COUNT},
    [DW_FILE_F4] = {"F4", 4, DW_DTYPE_COUNT},
    [DW_FILE_F6_E2M3] = {"F6_E2M3", 6, DW_DTYPE_COUNT},
    [DW_FILE_F6_E3M2] = {"F6_E3M2", 6, DW_DTYPE_COUNT},
    [DW_FILE_U8] = {"U8", 8, DW_DTYPE_COUNT},
    [DW_FILE_I8] = {"I8", 8, DW_DTYPE_COUNT},
    [DW_FILE_F8_E5M2] = {"F8_E5M2", 8, DW_E5M2},
    [DW_FILE_F8_E4M3] = {"F8_E4M3", 8, DW_E4M3},
    [DW_FILE_F8_E8M0] = {"F8_E8M0", 8, DW_E8M0},
    [DW_FILE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, DW_DTYPE_COUNT},
    [DW_FILE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, DW_DTYPE_COUNT},
    [DW_FILE_I16] = {"I16", 16, DW_DTYPE_COUNT},
    [DW_FILE_U16] = {"U16", 16, DW_DTYPE_COUNT},
    [DW_FILE_F16] = {"F16", 16, DW_F16},
    [DW_FILE_BF16] = {"BF16", 16, DW_BF16},
    [DW_FILE_I32] = {"I32", 32, DW_DTYPE_COUNT},
    [DW_FILE_U32] = {"U32", 32, DW_DTYPE_COUNT},
    [DW_FILE_F32] = {"F32", 32, DW_F32},
    [DW_FILE_C64] = {"C64", 64, DW_DTYPE_COUNT},
    [DW_FILE_F64] = {"F64", 64, DW_DTYPE_COUNT},
    [DW_FILE_I64] = {"I64", 64, DW_DTYPE_COUNT},
    [DW_FILE_U64] = {"U64", 64, DW_DTYPE_COUNT},
};

const char *dw_file_dtype_name(dw_file_dtype dtype) {
    return types[dtype].name;
}

unsigned dw_file_dtype_bits(dw_file_dtype dtype) {
    return types[dtype].bits;
}

bool dw_file_dtype_find(const char *name, dw_file_dtype *dtype) {
    for (int i = 0; i < DW_FILE_DTYPE_COUNT; i++) {
        if (strcmp(types[i].name, name) == 0) {
            *dtype = (dw_file_dtype)i;
            return true;
        }
    }
    return false;
}

bool dw_file_dtype_core(dw_file_dtype dtype, dw_dtype *core) {
    if (types[dtype].core == DW_DTYPE_COUNT) return false;
    *core = types[dtype].core;
    return true;
}

bool dw_file_dtype_is_source(dw_file_dtype dtype) {
    return dtype == DW_FILE_F32 || dtype == DW_FILE_F16 || dtype == DW_FILE_BF16;
}
