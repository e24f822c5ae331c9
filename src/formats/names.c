/* Sizes and names of the enumerations in deepwell/types.h. */
#include "deepwell/types.h"

size_t dw_dtype_size(dw_dtype dtype) {
    switch (dtype) {
    case DW_F32: return 4;
    case DW_F16:
    case DW_BF16: return 2;
    case DW_E4M3:
    case DW_E5M2:
    case DW_E8M0: return 1;
    case DW_DTYPE_COUNT: break;
    }
    return 0;
}

const char *dw_dtype_name(dw_dtype dtype) {
    switch (dtype) {
    case DW_F32: return "f32";
    case DW_F16: return "f16";
    case DW_BF16: return "bf16";
    case DW_E4M3: return "e4m3";
    case DW_E5M2: return "e5m2";
    case DW_E8M0: return "e8m0";
    case DW_DTYPE_COUNT: break;
    }
    return "?";
}

const char *dw_block_name(dw_block block) {
    switch (block) {
    case DW_BLOCK_1X32: return "1x32";
    case DW_BLOCK_1X128: return "1x128";
    case DW_BLOCK_128X128: return "128x128";
    case DW_BLOCK_COUNT: break;
    }
    return "?";
}

const char *dw_rounding_name(dw_rounding rounding) {
    switch (rounding) {
    case DW_ROUND_RCEIL: return "rceil";
    case DW_ROUND_FLOOR: return "floor";
    case DW_ROUND_COUNT: break;
    }
    return "?";
}

const char *dw_scale_layout_name(dw_scale_layout layout) {
    switch (layout) {
    case DW_SCALE_ROW: return "row";
    case DW_SCALE_MN_MAJOR: return "mn_major";
    case DW_SCALE_TCGEN05: return "tcgen05";
    case DW_SCALE_LAYOUT_COUNT: break;
    }
    return "?";
}
