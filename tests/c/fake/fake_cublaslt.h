/* A stand-in for cuBLASLt that multiplies on the CPU, in host memory, from its documentation alone: column-major
 * operands, and the layouts of scales as NVIDIA's "Narrow Precision Data Types Usage" states them. It shares no code
 * with the library, so a wrong argument gives a wrong product. Opened through DEEPWELL_LIBCUBLASLT; state at the symbol
 * "fake_lt". */
#ifndef DW_FAKE_CUBLASLT_H
#define DW_FAKE_CUBLASLT_H

#include <stdatomic.h>
#include <stddef.h>

#define FAKE_LT_WORKSPACE 4096 /* what every plan asks for */

typedef struct fake_lt_state {
    size_t version;
    atomic_int handles, live, heuristics, multiplications;
    int no_kernel;                                 /* heuristics find nothing */
    int matmul_result;                             /* returned by cublasLtMatmul when not 0 */
    const void *first_scale, *second_scale, *bias; /* of the last multiplication */
    const void *a, *b;
    void *workspace;
    size_t workspace_bytes;
    void *stream;
    float beta;
    unsigned int alignments[4]; /* A, B, C, D in the last preference */
    unsigned int reduction_mask;
    signed char fast;
} fake_lt_state;

#endif
