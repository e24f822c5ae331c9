/* The element types of a safetensors file. */
#ifndef DW_IO_FILE_DTYPE_H
#define DW_IO_FILE_DTYPE_H

#include "deepwell/types.h"

typedef enum dw_file_dtype {
    DW_FILE_BOOL,
    DW_FILE_F4,
    DW_FILE_F6_E2M3,
    DW_FILE_F6_E3M2,
    DW_FILE_U8,
    DW_FILE_I8,
    DW_FILE_F8_E5M2,
    DW_FILE_F8_E4M3,
    DW_FILE_F8_E8M0,
    DW_FILE_F8_E4M3FNUZ,
    DW_FILE_F8_E5M2FNUZ,
    DW_FILE_I16,
    DW_FILE_U16,
    DW_FILE_F16,
    DW_FILE_BF16,
    DW_FILE_I32,
    DW_FILE_U32,
    DW_FILE_F32,
    DW_FILE_C64,
    DW_FILE_F64,
    DW_FILE_I64,
    DW_FILE_U64,
    DW_FILE_DTYPE_COUNT
} dw_file_dtype;

/* "F32", "F8_E4M3", ...: the name in the file. */
const char *dw_file_dtype_name(dw_file_dtype dtype);

/* Bits of one element: 4 to 64. Elements are packed; a tensor still occupies whole bytes. */
unsigned dw_file_dtype_bits(dw_file_dtype dtype);

/* The type of this name; false when the format has none. */
bool dw_file_dtype_find(const char *name, dw_file_dtype *dtype);

/* The library's type for it; false when it has none (integers, complex numbers, other floats). */
bool dw_file_dtype_core(dw_file_dtype dtype, dw_dtype *core);

/* F32, F16 or BF16: what quantize reads and dequantize writes. */
bool dw_file_dtype_is_source(dw_file_dtype dtype);

#endif
