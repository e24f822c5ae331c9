/* GPUs: what is there, and matrix multiplication on it.
 *
 * The CUDA driver (libcuda.so.1) and cuBLASLt are opened at run time, the copies PyTorch has loaded when there are any;
 * DEEPWELL_LIBCUDA and DEEPWELL_LIBCUBLASLT name other files. On a machine without a driver everything here answers
 * DW_ERROR_UNSUPPORTED and says so. Work goes into the calling thread's current CUDA context when that is on the device
 * in question, else into the device's primary context, the one PyTorch and the CUDA runtime use. A process that was
 * forked after CUDA was used gets DW_ERROR_DEVICE. Nothing here allocates device memory or waits for a device. */
#ifndef DEEPWELL_CUDA_H
#define DEEPWELL_CUDA_H

#include "deepwell/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices ---- */

typedef struct dw_cuda_device_info {
    char name[128]; /* "NVIDIA H100 80GB HBM3" */
    int compute_major, compute_minor;
    int multiprocessors;
    int64_t memory_bytes;
    int64_t l2_bytes;
    int64_t shared_per_block_bytes; /* the most dynamic shared memory one block may ask for */
    int64_t shared_per_multiprocessor_bytes;
    int clock_khz; /* the highest of the multiprocessors */
    int memory_clock_khz, memory_bus_bits;
    double memory_bandwidth; /* bytes per second, from the two above; 0 when the driver does not tell */
    int copy_engines;
    int pci_domain, pci_bus, pci_device;
    char target[8];       /* "sm90", "sm100": the kernels that are for this GPU; "" when there are none */
    bool has_device_code; /* the library holds device code for it */
} dw_cuda_device_info;

/* Version of the driver's interface, 1000 * major + 10 * minor. Errors: UNSUPPORTED (no driver, or one older than
 * CUDA 12.0; the text says which), DEVICE. */
DW_API dw_status dw_cuda_driver_version(int *version);

/* The GPUs this process sees (CUDA_VISIBLE_DEVICES applies); 0 is an answer too. Errors as dw_cuda_driver_version. */
DW_API dw_status dw_cuda_device_count(int *count);

/* Facts about GPU `device`, from the driver. Makes no context. Errors: INVALID_ARGUMENT for a device that is not there,
 * and those above. */
DW_API dw_status dw_cuda_device_get(int device, dw_cuda_device_info *info);

/* The device code this library was built with: number of images, and name ("common/scale_decode"), architectures
 * ("sm_90a sm_100f") and bytes (a fatbin) of each. 0 images: built without the CUDA compiler. Any result may be NULL.
 * Static storage. Errors: INVALID_ARGUMENT for an index out of range. */
DW_API size_t dw_cuda_image_count(void);
DW_API dw_status dw_cuda_image_get(size_t index, const char **name, const char **architectures, const void **bytes,
                                   size_t *size);

/* ---- matrix multiplication: D[M, N] = A[M, K] B[N, K]^T (+ bias[N]) (+ D) ---- */

/* How an operand is scaled; "row" is a row of the operand as stored, with the reduction along it. */
typedef enum dw_gemm_scaling {
    DW_GEMM_UNSCALED = 0,
    DW_GEMM_TENSOR = 1,  /* one FP32 scale */
    DW_GEMM_1X128 = 2,   /* Hopper */
    DW_GEMM_128X128 = 3, /* Hopper; the other operand is then 1x128 */
    DW_GEMM_1X32 = 4,    /* Blackwell */
    DW_GEMM_SCALING_COUNT
} dw_gemm_scaling;

/* data [rows, K], inner stride 1. scale multiplies the elements of its block:
 *   TENSOR          F32, one element of any rank.
 *   1X128, 128X128  with R x C the grid of blocks (R = rows or ceil(rows/128), C = ceil(K/128)), one of
 *                   E8M0, in `layout` ROW [R, C] or MN_MAJOR [C, R rounded up to 16], dense, as dw_quantize writes them
 *                   (dw_gemm then decodes them into the workspace, in one small launch), or
 *                   F32 [R, C], exactly as cuBLASLt reads them: strides (1, rows) for 1X128, (C rounded up to 4, 1) for
 *                   128X128. The stride of an extent of one does not matter.
 *   1X32            E8M0, `layout` TCGEN05, dense.
 * Alignment: FP8 data and its row stride 16 bytes (BF16, F16: their own size, though 16 is faster); F32 block scales
 * and TCGEN05 codes 16 bytes. */
typedef struct dw_gemm_operand {
    dw_tensor data;
    dw_gemm_scaling scaling;
    dw_tensor scale;        /* ignored for UNSCALED */
    dw_scale_layout layout; /* of E8M0 scales */
} dw_gemm_operand;

/* Who multiplies. OWN: the library's Hopper kernels, for e4m3 by e4m3 with block scales and a BF16 or F32 result; E8M0
 * scales of 1x128 blocks must be MN_MAJOR. */
typedef enum dw_gemm_backend {
    DW_GEMM_AUTO = 0, /* OWN where it can, else CUBLASLT; DEEPWELL_GEMM=cublaslt in the environment: CUBLASLT */
    DW_GEMM_OWN = 1,
    DW_GEMM_CUBLASLT = 2
} dw_gemm_backend;

typedef struct dw_gemm_args {
    dw_gemm_operand a, b;
    dw_tensor d; /* [M, N], BF16, F16 or F32, inner stride 1; alignment as the operands */
    /* [N], dense, 16-byte aligned, or rank 0 (a zeroed tensor) for none. With FP8 operands BF16, but F16 for an F16
     * result; otherwise D's type. */
    dw_tensor bias;
    bool accumulate;        /* adds into D: to a BF16 D what the sums round to */
    bool fast_accumulation; /* FP8 on Hopper with TENSOR scales: sums stay in the tensor core's 14 bits; faster */
    /* Device memory, 256-byte aligned, whatever is in it; may be NULL when workspace_bytes is 0. CUBLASLT fails with
     * less than dw_gemm_workspace_size says; OWN then takes a kernel that does without, a few percent slower. No other
     * call that may run at the same time may be given the same: sums could be wrong, or the GPU hang. */
    void *workspace;
    size_t workspace_bytes;
    dw_gemm_backend backend;
} dw_gemm_args;

/* No plan asks for more than this, besides the decoded scales. */
#define DW_GEMM_WORKSPACE_MAX ((size_t)32 << 20)

/* Bytes of workspace of which dw_gemm makes use for these arguments. Data pointers may be NULL (their alignment is then
 * taken as that of fresh memory, 256 bytes); everything else must be as in the call. Errors as dw_gemm. */
DW_API dw_status dw_gemm_workspace_size(dw_context *context, const dw_gemm_args *args, size_t *bytes);

/* Multiplies on `stream` (a CUstream; NULL is the default stream) of the device the tensors are on:
 *
 * - bf16 by bf16, f16 by f16, unscaled.
 * - e4m3 by e4m3, e4m3 by e5m2, e5m2 by e4m3 with one scale each (TENSOR by TENSOR): compute capability 9.0 or later.
 * - The same with block scales on Hopper, 1X128 by 1X128, 1X128 by 128X128 or 128X128 by 1X128: 9.0 exactly; the
 * library's own kernels, or cuBLASLt 12.9 or later with M and N multiples of 4 (the last pair is cuBLASLt's alone).
 * - The same with block scales on Blackwell, 1X32 by 1X32: 10.0 or later; cuBLASLt 12.8 or later.
 *
 * FP8 needs K a multiple of 16, and N times the bytes of D's type a multiple of 16.
 * Products of decoded elements, FP32 sums, reductions split only in FP32, which depends on the sizes, the GPU and
 * whether the workspace is enough (the same of them: the same bits); D is rounded once, a BF16 D that was added to
 * twice. An empty M or N is a success that does nothing; K = 0 without bias clears D, or leaves it when accumulating. D
 * may overlap nothing else.
 *
 * The algorithm is chosen once per device, shapes, types and alignment. Several threads may call at once. A call can be
 * captured in a CUDA graph once the same call has been made outside of one (the first one loads code).
 *
 * Errors: INVALID_ARGUMENT (shapes, dtypes, strides, alignment, devices, a workspace too small), UNSUPPORTED (no
 * driver, no cuBLASLt, or it has no kernel for this; the text says which), DEVICE. Source of the scale layouts:
 * NVIDIA's cuBLAS documentation, "128-element 1D and 128x128 2D Block Scaling" and "1D Block Scaling Factors Layout".
 */
DW_API dw_status dw_gemm(dw_context *context, const dw_gemm_args *args, void *stream);

/* ---- grouped matrix multiplication (mixture of experts), Hopper ---- */

typedef enum dw_group_axis {
    DW_GROUP_M = 0, /* D[T, N]: rows of A in groups, group g times its own B[g]: experts' forward and data gradient */
    DW_GROUP_K = 1  /* D[g] = A[:, group g] B[:, group g]^T: experts' weight gradients */
} dw_group_axis;

/* Groups of any size, zero included, known only to the device.
 *
 * - GROUP_M: a [T, K], b [G, N, K], d [T, N]; b's scales are the groups' grids one below the other, G * ceil(N/128)
 * rows of blocks.
 * - GROUP_K: a [M, T], b [N, T], d [G, M, N]; scales as in dw_gemm.
 *
 * bf16 by bf16, unscaled:
 * - GROUP_M: a [T, K] by rows; b by rows or, with its last two strides exchanged, lying as [G, K, N]: forward and data
 *   gradient take the same weights, whichever way they lie. K and N multiples of 8.
 * - GROUP_K: a and b with strides (1, distance), lying as [T, M] and [T, N]: activations and gradients as they are; the
 *   distances and N multiples of 8 (of 4 for F32 d). Groups may end anywhere.
 *
 * e4m3 by e4m3; a in 1x128 blocks; b in 128x128 (GROUP_M, GROUP_K) or 1x128 (GROUP_K); scales as dw_gemm takes them. d:
 * BF16, or F32 for GROUP_K. Three-dimensional tensors are dense. K (GROUP_M) or T (GROUP_K) a multiple of 16, N times
 * the bytes of d's type too; addresses aligned to 16 bytes. With F32 scales T (GROUP_M), or M and N (GROUP_K, of those
 * in 1x128 blocks), are multiples of 4.
 *
 * ends: G numbers in device memory: where each group ends along T; never decreasing, the last at most T. For
 * GROUP_K of e4m3 each is a multiple of 128, since a block of one group must not reach into the next (fill up with zero
 * rows). Rows of D beyond the last end are not written. An empty group leaves nothing (GROUP_M) or zeros in its D, or
 * adds nothing when accumulating (GROUP_K). */
typedef struct dw_grouped_gemm_args {
    dw_gemm_operand a, b;
    dw_tensor d;
    const int32_t *ends;
    int64_t groups; /* G */
    dw_group_axis axis;
    bool accumulate; /* adds into d; a BF16 d is added to what the sums round to, and rounded again */
    /* Device memory, 256-byte aligned, whatever is in it; NULL with 0 bytes for none. With
     * dw_grouped_gemm_workspace_size bytes what does not fill a wave of tiles is shared out, for a few percent, and
     * tiles of groups along K, which take as long as their groups are, go to whichever block is free, of e4m3 into bf16
     * the longest ones in parts. No other call
     * that may run at the same time may be given the same: results could be wrong, or the GPU hang. */
    void *workspace;
    size_t workspace_bytes;
} dw_grouped_gemm_args;

/* Bytes of workspace of which a call with these arguments, addresses too, makes use: up to 18 MB of e4m3, up to 16
 * bytes of bf16. Like the call it tests a kernel at its first use. Errors as dw_grouped_gemm's. */
DW_API dw_status dw_grouped_gemm_workspace_size(dw_context *context, const dw_grouped_gemm_args *args, size_t *bytes);

/* Multiplies on `stream`. Can be captured in a CUDA graph once the same call has been made outside of one. Never waits
 * for the device but at a kernel's first use on a GPU, which is tested there, in a stream of its own; one that fails is
 * left out, with a warning, and nothing but the library's own kernels takes its place. With the same sizes of groups
 * and workspace twice the same bits, whatever is in it; which tiles are split, and so how sums round, depends on the
 * sizes of all groups: one expert's results may differ in their last bits with another's number of rows.
 *
 * Errors: INVALID_ARGUMENT (a misaligned workspace too), UNSUPPORTED (not a Hopper GPU, no driver, formats, or every
 * kernel of these formats failed its self-test on that GPU), DEVICE. */
DW_API dw_status dw_grouped_gemm(dw_context *context, const dw_grouped_gemm_args *args, void *stream);

/* ---- tuning: which of the library's own Hopper kernels is the fastest for a shape ---- */

typedef struct dw_gemm_tuned {
    const char *kernel, *predicted; /* the fastest, and the one that is used where nothing was measured; static */
    int band, predicted_band;       /* rows of tiles walked together, of either */
    double seconds, predicted_seconds;
    int measured;    /* combinations of kernel and band */
    bool remembered; /* in the file; else by this process only, which a warning said */
} dw_gemm_tuned;

/* Runs the product of `args` with every kernel that can, in turns, and remembers the fastest: from then on dw_gemm
 * takes it for products of exactly these M, N, K (and groups), formats of scales and blocks, and type of d. It is
 * remembered for this process, and for later ones in $XDG_CACHE_HOME/deepwell (else ~/.cache/deepwell) in one text file
 * for each kind of GPU and build of the library, which holds for one driver; another or a damaged file is ignored with
 * a warning and replaced. DEEPWELL_TUNING in the environment: off to use no file and refuse to tune, or an absolute
 * path of another folder. A kernel whose reduction is split may round differently in the last bits.
 *
 * A measurement: it waits for the stream, so it can't be captured in a graph; tens of products run. `d` and the
 * arguments' workspace are overwritten. Before every product the workspace is written; give it the size of the L2 cache
 * (dw_cuda_device_info) so that operands come from memory, as in training; without one they come from wherever they
 * are, and no tile is split. A kernel that won with a workspace is not taken for calls that give less than it wants.
 * Groups are measured as `ends` has them. A choice that shapes alone suggest stays unless another is faster by one
 * percent. Errors: those of dw_gemm, UNSUPPORTED for what the own kernels do not serve, for groups of bf16, whose
 * kernels are chosen by shape, or when tuning is off, INVALID_ARGUMENT for a DEEPWELL_TUNING that is nonsense,
 * OUT_OF_MEMORY when more shapes were tuned than are kept (1536 on each device). */
DW_API dw_status dw_gemm_tune(dw_context *context, const dw_gemm_args *args, void *stream, dw_gemm_tuned *tuned);
DW_API dw_status dw_grouped_gemm_tune(dw_context *context, const dw_grouped_gemm_args *args, void *stream,
                                      dw_gemm_tuned *tuned);

/* Version of the cuBLASLt in use, 10000 * major + 100 * minor + patch, and the file it came from (static storage);
 * either result may be NULL. Errors: UNSUPPORTED when there is none. */
DW_API dw_status dw_cublaslt_version(size_t *version, const char **path);

#ifdef __cplusplus
}
#endif
#endif
