/* Deepwell's C API. Include this; the parts are documented where they stand.
 *
 * Conventions: functions that can fail return dw_status and write outputs only on DW_OK; dw_last_error() has the
 * detail. Tensors are views, the caller owns all memory. The library never allocates device memory and never
 * synchronizes with a device, but for a kernel's self-test (dw_quantize, dw_kernel_selftest_cuda). Unless said
 * otherwise a function may be called from any thread. */
#ifndef DEEPWELL_H
#define DEEPWELL_H

#include "deepwell/context.h"
#include "deepwell/cuda.h"
#include "deepwell/fused.h"
#include "deepwell/kernels.h"
#include "deepwell/plan.h"
#include "deepwell/plugin.h"
#include "deepwell/quantize.h"
#include "deepwell/status.h"
#include "deepwell/types.h"

#endif
