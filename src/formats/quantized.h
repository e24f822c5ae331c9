/* Checks of quantized matrices that every operation taking or making one shares. */
#ifndef DW_FORMATS_QUANTIZED_H
#define DW_FORMATS_QUANTIZED_H

#include "core/tensor.h"
#include "deepwell/quantize.h"

/* A quantized matrix that has been checked. The scale view of FP32 factors covers their padding too. */
typedef struct dw_quantized_view {
    dw_view data, scale;
} dw_quantized_view;

/* INVALID_ARGUMENT unless `tensor` is on a known kind of device, and on the one that `first` is on. */
dw_status dw_check_device(const dw_tensor *tensor, const char *name, const dw_tensor *first);

/* Checks element type, scales and device of a quantized matrix; `names` are those of its data and scale in messages,
 * `factors` allows FP32 scales (deepwell/quantize.h). The caller checks the extents of the data. */
dw_status dw_check_quantized(const dw_quantized *quantized, const dw_quantize_spec *spec, const char *const names[2],
                             const dw_tensor *first, bool factors, dw_quantized_view *view);

#endif
