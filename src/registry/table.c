#include "registry/table.h"

#include "core/status.h"
#include "cuda/host/quantize_launch.h"

/* The sets that rows name. */
#define BIT(value) (1u << (value))
#define FLOATS (BIT(DW_F32) | BIT(DW_F16) | BIT(DW_BF16))
#define FP8S (BIT(DW_E4M3) | BIT(DW_E5M2))
#define BLOCKS (BIT(DW_BLOCK_1X32) | BIT(DW_BLOCK_1X128) | BIT(DW_BLOCK_128X128))
#define ROUNDINGS (BIT(DW_ROUND_RCEIL) | BIT(DW_ROUND_FLOOR))
#define STRIDED (BIT(DW_SCALE_ROW) | BIT(DW_SCALE_MN_MAJOR))
#define LAYOUTS (STRIDED | BIT(DW_SCALE_TCGEN05))

#define CPU_QUANTIZE(name, isa, orientation, block, sources, elements, roundings, layouts, priority, entry)            \
    void entry(const dw_quantize_job *job, const dw_tile *tile);
#define CPU_DEQUANTIZE(name, isa, blocks, targets, elements, layouts, priority, entry)                                 \
    void entry(const dw_dequantize_job *job, const dw_tile *tile);
#include "registry/kernels.inc"

/* The number of each matrix kernel, see proof.h. */
enum {
#define CUDA_GEMM(name, ...) NUMBER_##name,
#include "registry/kernels.inc"
#define CUDA_GEMM_BF16(name, ...) NUMBER_##name,
#include "registry/kernels.inc"
};

#define TARGET_REF "ref"
#define TARGET_AVX2 "avx2"
#define TARGET_AVX512 "avx512"

#define CPU_QUANTIZE(name, isa_, orientation, block, sources, elements, roundings, layouts, priority, entry_)          \
    {.info = {#name, TARGET_##isa_, DW_OP_QUANTIZE, BIT(DW_ORIENT_##orientation), sources, elements,                   \
              BIT(DW_BLOCK_##block), roundings, layouts, priority, false, "", 1, ""},                                  \
     .device_type = DW_DEVICE_CPU,                                                                                     \
     .isa = DW_ISA_##isa_,                                                                                             \
     .entry.cpu_quantize = entry_},
#define CPU_DEQUANTIZE(name, isa_, blocks, targets, elements, layouts, priority, entry_)                               \
    {.info = {#name, TARGET_##isa_, DW_OP_DEQUANTIZE, BIT(DW_ORIENT_ROW), targets, elements, blocks, ROUNDINGS,        \
              layouts, priority, false, "", 1, ""},                                                                    \
     .device_type = DW_DEVICE_CPU,                                                                                     \
     .isa = DW_ISA_##isa_,                                                                                             \
     .entry.cpu_dequantize = entry_},
#define CUDA_QUANTIZE(name, target_, orientation, block, sources, elements, roundings, layouts, priority, entry_)      \
    {.info = {#name, target_, DW_OP_QUANTIZE, BIT(DW_ORIENT_##orientation), sources, elements, BIT(DW_BLOCK_##block),  \
              roundings, layouts, priority, false, "", 0, ""},                                                         \
     .device_type = DW_DEVICE_CUDA,                                                                                    \
     .proofs = &(dw_row_proofs){.known = {{{0}}}},                                                                     \
     .entry = {.launch_quantize = entry_}},

#define B_BLOCK_0 DW_BLOCK_128X128
#define B_BLOCK_1 DW_BLOCK_1X128
#define B_TEXT_0 "128x128"
#define B_TEXT_1 "1x128"
#define SCALES_0 "e8m0"
#define SCALES_1 "f32"
#define SCALE_LAYOUTS_0 BIT(DW_SCALE_MN_MAJOR)
#define SCALE_LAYOUTS_1 0
#define RESULT_0 BIT(DW_BF16)
#define RESULT_1 BIT(DW_F32)
#define GROUPS_NONE ""
#define GROUPS_M ", rows in groups"
#define GROUPS_K ", reduction in groups"
#define CUDA_GEMM(name_, tile_m, tile_n, chunk_n, warpgroups, k_split, stages, multicast, scale_f32, b_vector,         \
                  out_f32, store_buffers, grouped, splits)                                                             \
    {.info = {.name = #name_,                                                                                          \
              .target = "sm90",                                                                                        \
              .operation = DW_OP_GEMM,                                                                                 \
              .sources = RESULT_##out_f32,                                                                             \
              .elements = BIT(DW_E4M3),                                                                                \
              .blocks = BIT(DW_BLOCK_1X128) | BIT(B_BLOCK_##b_vector),                                                 \
              .layouts = SCALE_LAYOUTS_##scale_f32,                                                                    \
              .priority = 20,                                                                                          \
              .reason = "",                                                                                            \
              .alignment = 16,                                                                                         \
              .form = "1x128 by " B_TEXT_##b_vector ", " SCALES_##scale_f32 " scales" GROUPS_##grouped                 \
              ", tile " #tile_m "x" #tile_n},                                                                          \
     .device_type = DW_DEVICE_CUDA,                                                                                    \
     .entry = {.gemm = NUMBER_##name_}},
#define B_LIES_0 "B by rows"
#define B_LIES_1 "B across"
#define CUDA_GEMM_BF16(name_, grouped, b_across, multicast, out_f32)                                                   \
    {.info = {.name = #name_,                                                                                          \
              .target = "sm90",                                                                                        \
              .operation = DW_OP_GEMM,                                                                                 \
              .sources = RESULT_##out_f32,                                                                             \
              .elements = BIT(DW_BF16),                                                                                \
              .priority = 20,                                                                                          \
              .reason = "",                                                                                            \
              .alignment = 16,                                                                                         \
              .form = "unscaled" GROUPS_##grouped ", " B_LIES_##b_across ", tile 128x256"},                            \
     .device_type = DW_DEVICE_CUDA,                                                                                    \
     .entry = {.gemm = NUMBER_##name_}},
const dw_kernel_row dw_kernel_table[] = {
#include "registry/kernels.inc"
};
const size_t dw_kernel_table_size = sizeof dw_kernel_table / sizeof dw_kernel_table[0];

const char *dw_operation_name(dw_operation operation) {
    switch (operation) {
    case DW_OP_QUANTIZE: return "quantize";
    case DW_OP_DEQUANTIZE: return "dequantize";
    case DW_OP_GEMM: return "gemm";
    case DW_OP_COUNT: break;
    }
    return "?";
}

const char *dw_orientation_name(dw_orientation orientation) {
    switch (orientation) {
    case DW_ORIENT_ROW: return "row";
    case DW_ORIENT_TRANSPOSED: return "transposed";
    case DW_ORIENT_BOTH: return "both";
    case DW_ORIENT_COUNT: break;
    }
    return "?";
}

const char *dw_row_reason(const dw_context *context, const dw_kernel_row *row) {
    static const char *const lacks[DW_ISA_COUNT] = {
        "",
        "needs AVX2, FMA, F16C and BMI2 in the processor and the operating system",
        "needs AVX-512 F, BW, DQ, VL and VBMI in the processor and the operating system",
    };
    if (row->device_type != DW_DEVICE_CPU) return dw_cuda_target_reason(row->info.target);
    if (row->isa > context->hardware) return lacks[row->isa];
    if (row->isa > context->isa)
        return "the context is limited to a narrower instruction set (options.isa, DEEPWELL_ISA)";
    return "";
}

size_t dw_kernel_count(const dw_context *context) {
    (void)context; /* every context knows every row; they differ in what is available */
    return dw_row_count();
}

dw_status dw_kernel_get(const dw_context *context, size_t index, dw_kernel_info *info) {
    if (!context || !info) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "context or info is NULL; pass both");
    const dw_kernel_row *row = dw_row_at(index);
    if (!row)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "kernel index %zu is out of range; expected less than %zu", index,
                       dw_row_count());
    dw_kernel_info found = row->info;
    found.reason = dw_row_reason(context, row);
    found.available = !*found.reason;
    *info = found;
    return DW_OK;
}
