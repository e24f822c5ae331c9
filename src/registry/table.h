/* The table's rows as the library sees them. */
#ifndef DW_REGISTRY_TABLE_H
#define DW_REGISTRY_TABLE_H

#include "core/context.h"
#include "cpu/cpu_kernel.h"
#include "deepwell/kernels.h"
#include "deepwell/plugin.h"
#include "registry/proof.h"

/* How a device kernel is started: enqueues the job on `stream`, including the zeroing of scale padding. The pointers in
 * the job are device pointers. */
typedef dw_status (*dw_quantize_launch)(dw_context *context, const dw_request *request, const dw_quantize_job *job,
                                        void *stream);
typedef dw_status (*dw_dequantize_launch)(dw_context *context, const dw_request *request, const dw_dequantize_job *job,
                                          void *stream);

typedef struct dw_kernel_row {
    dw_kernel_info info; /* `available` and `reason` depend on the context; see dw_row_reason */
    dw_device_type device_type;
    dw_isa isa; /* CPU rows only */
    union {     /* by device type and operation */
        dw_quantize_kernel cpu_quantize;
        dw_dequantize_kernel cpu_dequantize;
        dw_quantize_launch launch_quantize;
        dw_dequantize_launch launch_dequantize;
        size_t gemm; /* number of a matrix kernel, see proof.h */
    } entry;
    dw_row_proofs *proofs;          /* quantizing rows of a GPU only */
    const dw_plugin_kernel *plugin; /* a kernel from outside: its functions stand in for entry */
} dw_kernel_row;

extern const dw_kernel_row dw_kernel_table[];
extern const size_t dw_kernel_table_size;

/* The table's rows and those registered, in the order of dw_kernel_get. NULL for an index out of range. */
size_t dw_row_count(void);
const dw_kernel_row *dw_row_at(size_t index);

/* The best of `best` (NULL: none yet) and the registered rows for a request. */
const dw_kernel_row *dw_better_from_outside(const dw_context *context, const dw_request *request,
                                            const dw_kernel_row *best);

/* "" when the row can run here, else why not. Static storage. */
const char *dw_row_reason(const dw_context *context, const dw_kernel_row *row);

/* "" when the row serves the request (availability aside), else the name of what it does not serve. Static storage. */
const char *dw_row_mismatch(const dw_kernel_row *row, const dw_request *request);

/* The row for a request: dw_dispatch without an explanation. NULL when there is none. */
const dw_kernel_row *dw_find_row(const dw_context *context, const dw_request *request);
/* The same among the table's rows alone. */
const dw_kernel_row *dw_find_table_row(const dw_context *context, const dw_request *request);

/* The row to run among `count` rows: the same, but a row of a GPU that was not used there yet proves itself first, and
 * one that fails makes way for the next. */
const dw_kernel_row *dw_choose_row(dw_context *context, const dw_kernel_row *rows, size_t count,
                                   const dw_request *request);

/* Fails with UNSUPPORTED, saying that no row serves the request. */
dw_status dw_no_row(const dw_request *request);

/* Quantization and dequantization with a given row; they check the arguments and that the row serves them here. A NULL
 * row stands for the one that dispatch chooses. */
dw_status dw_quantize_with_row(dw_context *context, const dw_kernel_row *row, const dw_quantize_spec *spec,
                               const dw_tensor *source, const dw_quantized *by_row, const dw_quantized *transposed,
                               void *stream);
dw_status dw_dequantize_with_row(dw_context *context, const dw_kernel_row *row, const dw_quantize_spec *spec,
                                 const dw_quantized *source, const dw_tensor *target, void *stream);

/* Where the self-test of a GPU row keeps its matrices. */
typedef struct dw_selftest_device {
    int id;
    void *workspace; /* dw_kernel_selftest_workspace() bytes of device memory, 16-byte aligned */
    void *stream;
} dw_selftest_device;

/* What of a quantizing row one pair of types uses. */
typedef struct dw_selftest_part {
    dw_dtype source, element;
} dw_selftest_part;

/* dw_kernel_selftest_cuda for a row that need not be in the table, or, with few shapes, for a part of one. A NULL part
 * stands for all of it. */
dw_status dw_row_selftest_cuda(dw_context *context, const dw_kernel_row *row, const dw_selftest_part *part,
                               uint64_t seed, const dw_selftest_device *device, dw_selftest_result *result);

/* The same for a matrix kernel, by its number: all shapes, or the `few` that a first use can wait for. */
dw_status dw_gemm_selftest(size_t gemm, bool few, uint64_t seed, const dw_selftest_device *device,
                           dw_selftest_result *result);
/* The device memory that needs. */
size_t dw_gemm_selftest_workspace(void);

/* dw_kernel_selftest for a row that need not be in the table. */
dw_status dw_row_selftest(dw_context *context, const dw_kernel_row *row, uint64_t seed, dw_selftest_result *result);

#endif
