/* A GPU row proves itself before its first use: against the reference, on the GPU in question; one that quantizes, once
 * for each pair of source and element type (each is a kernel of its own). Passing is remembered across processes
 * (cache_file.h). */
#ifndef DW_REGISTRY_PROOF_H
#define DW_REGISTRY_PROOF_H

#include <stdatomic.h>

#include "deepwell/kernels.h"

struct dw_kernel_row;

enum { DW_PROOF_DEVICES = 64, DW_PROOF_SOURCES = 3, DW_PROOF_ELEMENTS = 2 };

enum { DW_PROOF_UNKNOWN = 0, DW_PROOF_TRUSTED = 1, DW_PROOF_REFUTED = 2 };

/* What is known of one row in this process; zeros at first. */
typedef struct dw_row_proofs {
    atomic_uchar known[DW_PROOF_DEVICES][DW_PROOF_SOURCES][DW_PROOF_ELEMENTS];
} dw_row_proofs;

/* Whether the row failed its self-test on the request's GPU. */
bool dw_row_refuted(const struct dw_kernel_row *row, const dw_request *request);

/* Whether the row may serve the request, which it fits: true for rows of the CPU; for those of a GPU it is found out
 * now if it is not known yet, in a stream and memory of its own, which the host waits for (tens of milliseconds). A
 * failure goes to the warning handler. A row that could not be tested, say for want of memory, may run, with a warning.
 */
bool dw_row_prove(dw_context *context, const struct dw_kernel_row *row, const dw_request *request);

/* The same for matrix kernels, by their number, which is the index of the block-scaled ones (gemm_sm90.h), after which
 * those for BF16 follow (gemm_bf16.h): what is known of each on a device (NULL: nothing is kept for that one), and
 * whether one may run there. */
const atomic_uchar *dw_gemm_proofs(int device);
bool dw_gemm_row_prove(size_t gemm, int device);

#endif
