/* Proves one row of the table, or the part of it that one pair of types uses: every combination of formats it serves,
 * on edge shapes and on shapes drawn from the seed, with adversarial data, odd strides and odd alignment. Outputs are
 * poisoned, so that an unwritten byte shows, and the gaps between rows and the memory around must keep their poison. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "cuda/host/driver.h"
#include "formats/block_scale.h"
#include "formats/scale_layout.h"
#include "registry/selftest_data.h"
#include "registry/selftest_oracle.h"
#include "registry/table.h"

enum { LARGEST = 300, FENCE = 64, DRAWN_SHAPES = 4 };

/* Memory for one matrix in a case, bounded by LARGEST + 16 columns of FP32, TCGEN05 padding and fences. */
enum { BUFFER = (LARGEST + 20) * (LARGEST + 20) * 4 + 2 * FENCE + 4096 };

/* Buffers that a kernel sees (source, two results with their scales: a GPU row has its own copies of them), then those
 * of the oracle. */
enum { KERNEL_BUFFERS = 5, BUFFERS = 7 };

typedef struct bench {
    dw_context *context;
    const dw_kernel_row *row;
    dw_random random;
    uint64_t seed;
    dw_selftest_result *result;
    char what[128];                   /* the case in words */
    uint8_t *memory;                  /* all buffers, one after another */
    const dw_selftest_device *device; /* GPU rows only */
    const dw_selftest_part *part;     /* NULL: all of the row */
    dw_cuda_scope scope;
    uint8_t *source, *data[2], *scale[2], *expected, *expected_scale;
} bench;

typedef struct output {
    uint8_t *memory; /* fence, matrix, fence */
    uint8_t poison;
    int64_t rows, cols, ld, size; /* size of an element */
    const char *name;
} output;

/* What the kernel is given for an address in the buffers. */
static void *kernel_address(const bench *on, uint8_t *host) {
    return on->device ? (uint8_t *)on->device->workspace + (host - on->memory) : host;
}

static dw_tensor kernel_view(const bench *on, uint8_t *host, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_tensor tensor = dw_matrix(kernel_address(on, host), dtype, rows, cols);
    tensor.strides[0] = ld;
    if (on->device) {
        tensor.device_type = DW_DEVICE_CUDA;
        tensor.device_id = on->device->id;
    }
    return tensor;
}

/* Quantizes between the kernel's own copies of the buffers. */
static dw_status quantize_on_device(bench *on, const dw_quantize_spec *spec, const dw_tensor *from,
                                    const dw_quantized *row, const dw_quantized *transposed) {
    const dw_cuda_driver *driver = on->scope.driver;
    const dw_cu_pointer there = (dw_cu_pointer)(uintptr_t)on->device->workspace;
    const size_t bytes = (size_t)KERNEL_BUFFERS * BUFFER;
    void *stream = on->device->stream;
    DW_TRY(dw_cuda_check(driver, driver->copy_to_device(there, on->memory, bytes, stream), "cuMemcpyHtoDAsync",
                         "self-test on device %d", on->device->id));
    DW_TRY(dw_quantize_with_row(on->context, on->row, spec, from, row, transposed, stream));
    DW_TRY(dw_cuda_check(driver, driver->copy_to_host(on->memory, there, bytes, stream), "cuMemcpyDtoHAsync",
                         "self-test on device %d", on->device->id));
    return dw_cuda_check(driver, driver->stream_synchronize(stream), "cuStreamSynchronize", "self-test on device %d",
                         on->device->id);
}

static void poison(output *out) {
    memset(out->memory, out->poison, BUFFER - FENCE); /* `memory` may begin a few bytes into its buffer */
}

static void mismatch(bench *on, const char *name, int r, int c, uint8_t got, uint8_t expected) {
    if (on->result->mismatches++ == 0)
        snprintf(on->result->first_mismatch, sizeof on->result->first_mismatch,
                 "%.72s: %.20s byte (%d, %d) is 0x%02X, expected 0x%02X, seed %llu", on->what, name, r, c, got,
                 expected, (unsigned long long)on->seed);
}

static void call_failed(bench *on) {
    if (on->result->mismatches++ == 0)
        snprintf(on->result->first_mismatch, sizeof on->result->first_mismatch, "%.72s: %.110s", on->what,
                 dw_last_error());
}

/* Compares the matrix with `expected` (dense) and all other memory with the poison. */
static void compare(bench *on, const output *out, const uint8_t *expected) {
    int64_t width = out->cols * out->size, pitch = out->ld * out->size;
    int64_t span = out->rows && out->cols ? (out->rows - 1) * pitch + width : 0;
    for (int64_t i = -FENCE; i < span + FENCE; i++) {
        bool inside = i >= 0 && i < span;
        int64_t r = inside ? i / pitch : i < 0 ? -1 : out->rows, c = inside ? i % pitch : i < 0 ? i : i - span;
        inside = inside && c < width;
        uint8_t wanted = inside ? expected[r * width + c] : out->poison, got = out->memory[FENCE + i];
        if (got != wanted) mismatch(on, out->name, (int)r, (int)c, got, wanted);
    }
}

/* A distance between rows: dense half of the time. */
static int64_t draw_stride(bench *on, int64_t cols) {
    return cols + (dw_random_next(&on->random) & 1 ? dw_random_between(&on->random, 1, 9) : 0);
}

/* What the row wants addresses and rows of the high-precision side to be multiples of, in bytes. */
static int64_t row_alignment(const bench *on, dw_dtype dtype) {
    int alignment = on->row->info.alignment;
    return alignment ? alignment : (int64_t)dw_dtype_size(dtype);
}

static int64_t draw_aligned_stride(bench *on, int64_t cols, dw_dtype dtype) {
    int64_t size = (int64_t)dw_dtype_size(dtype), alignment = row_alignment(on, dtype);
    int64_t unit = alignment > size ? alignment / size : 1;
    return (draw_stride(on, cols) + unit - 1) / unit * unit;
}

static dw_tensor view(void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_tensor tensor = dw_matrix(data, dtype, rows, cols);
    tensor.strides[0] = ld;
    return tensor;
}

static output draw_output(bench *on, uint8_t *memory, const char *name, int64_t rows, int64_t cols, int64_t ld,
                          int64_t size) {
    /* Two values that no NaN element and few scale codes have. */
    output out = {memory, dw_random_next(&on->random) & 1 ? 0xA5 : 0x5A, rows, cols, ld, size, name};
    poison(&out);
    return out;
}

/* What a case writes scales as: codes in a layout, or FP32 factors as dw_gemm reads them. */
typedef struct scale_form {
    bool factors,
        square;       /* square: factors of 128x128 blocks, in rows filled up to 4; else block by block down a column */
    int64_t shape[2]; /* as the view says it */
    int64_t rows, cols; /* as it lies in memory */
    int64_t size;
} scale_form;

static scale_form form_of(const dw_quantize_spec *spec, bool factors, int64_t rows, int64_t cols) {
    scale_form form = {.factors = factors, .square = spec->block == DW_BLOCK_128X128, .size = factors ? 4 : 1};
    dw_scale_shape(spec, rows, cols, form.shape); /* row layout when there are factors */
    form.rows = factors && !form.square ? form.shape[1] : form.shape[0];
    form.cols = !factors ? form.shape[1] : form.square ? (form.shape[1] + 3) / 4 * 4 : form.shape[0];
    return form;
}

static dw_tensor scale_view(const bench *on, const scale_form *form, uint8_t *memory) {
    dw_tensor tensor =
        kernel_view(on, memory, form->factors ? DW_F32 : DW_E8M0, form->shape[0], form->shape[1], form->shape[1]);
    if (form->factors) {
        tensor.strides[0] = form->square ? form->cols : 1;
        tensor.strides[1] = form->square ? 1 : form->cols;
    }
    return tensor;
}

/* 2^(code - 127) of each block where dw_gemm looks for it, zeros between. */
static void expect_factors(const scale_form *form, const uint8_t *codes, uint8_t *factors) {
    memset(factors, 0, (size_t)(form->rows * form->cols * form->size));
    for (int64_t r = 0; r < form->shape[0]; r++)
        for (int64_t c = 0; c < form->shape[1]; c++) {
            uint32_t code = codes[r * form->shape[1] + c];
            uint32_t bits = code == DW_SCALE_NAN ? 0x7FC00000u : code ? code << 23 : 0x00400000u;
            int64_t at = form->square ? r * form->cols + c : c * form->cols + r;
            memcpy(factors + 4 * at, &bits, sizeof bits);
        }
}

static void quantize_case(bench *on, const dw_quantize_spec *spec, bool factors, dw_dtype source,
                          dw_orientation orientation, int64_t rows, int64_t cols) {
    static const char *const names[2][2] = {{"row.data", "row.scale"}, {"transposed.data", "transposed.scale"}};
    snprintf(on->what, sizeof on->what, "%s %s%s from %s, %s, %s, [%lld, %lld]", dw_dtype_name(spec->element),
             dw_block_name(spec->block), spec->transposed_square ? " and 128x128" : "", dw_dtype_name(source),
             dw_rounding_name(spec->rounding), factors ? "f32 scales" : dw_scale_layout_name(spec->layout),
             (long long)rows, (long long)cols);
    const dw_quantize_spec specs[2] = {dw_result_spec(spec, false), dw_result_spec(spec, true)};
    int64_t ld = draw_aligned_stride(on, cols, source);
    uint8_t *data = on->source + dw_random_between(&on->random, 0, 3) * row_alignment(on, source);
    memset(on->source, 0xFF, BUFFER); /* NaN beyond the matrix: reading there spoils a block */
    dw_fill_adversarial(&on->random, data, source, rows, cols, ld);
    dw_tensor from = kernel_view(on, data, source, rows, cols, ld);

    bool wanted[2] = {orientation != DW_ORIENT_TRANSPOSED, orientation != DW_ORIENT_ROW};
    output out[2], scale[2];
    scale_form form[2];
    dw_quantized quantized[2];
    for (int t = 0; t < 2; t++) {
        if (!wanted[t]) continue;
        int64_t r = t ? cols : rows, c = t ? rows : cols;
        form[t] = form_of(&specs[t], factors, r, c);
        out[t] = draw_output(on, on->data[t], names[t][0], r, c, draw_stride(on, c), 1);
        scale[t] = draw_output(on, on->scale[t], names[t][1], form[t].rows, form[t].cols, form[t].cols, form[t].size);
        quantized[t].data = kernel_view(on, on->data[t] + FENCE, spec->element, r, c, out[t].ld);
        quantized[t].scale = scale_view(on, &form[t], on->scale[t] + FENCE);
    }
    on->result->cases++;
    const dw_quantized *row = wanted[0] ? &quantized[0] : NULL, *transposed = wanted[1] ? &quantized[1] : NULL;
    dw_status status = on->device ? quantize_on_device(on, spec, &from, row, transposed)
                                  : dw_quantize_with_row(on->context, on->row, spec, &from, row, transposed, NULL);
    if (status != DW_OK) {
        call_failed(on);
        return;
    }
    for (int t = 0; t < 2; t++) {
        if (!wanted[t]) continue;
        dw_expect_quantized(&specs[t], data, source, ld, rows, cols, t == 1, on->expected, on->expected_scale);
        compare(on, &out[t], on->expected);
        if (factors) expect_factors(&form[t], on->expected_scale, on->expected);
        compare(on, &scale[t], factors ? on->expected : on->expected_scale);
    }
}

static void dequantize_case(bench *on, const dw_quantize_spec *spec, dw_dtype target, int64_t rows, int64_t cols) {
    snprintf(on->what, sizeof on->what, "%s %s to %s, %s, [%lld, %lld]", dw_dtype_name(spec->element),
             dw_block_name(spec->block), dw_dtype_name(target), dw_scale_layout_name(spec->layout), (long long)rows,
             (long long)cols);
    int64_t shape[2] = {0, 0}, ld = draw_stride(on, cols), target_ld = draw_aligned_stride(on, cols, target);
    dw_scale_shape(spec, rows, cols, shape);
    for (int64_t i = 0; i < rows * ld; i++)
        on->data[0][i] = (uint8_t)dw_random_next(&on->random);
    /* Half of the codes are any, half are where the target's own range begins and ends. */
    for (int64_t i = 0; i < shape[0] * shape[1]; i++) {
        uint64_t bits = dw_random_next(&on->random);
        on->scale[0][i] = (uint8_t)(bits & 256    ? bits
                                    : bits & 512  ? 255 - bits % 16
                                    : bits & 1024 ? bits % 16
                                                  : 96 + bits % 48);
    }
    uint8_t *unaligned = on->source + dw_random_between(&on->random, 0, 3) * row_alignment(on, target);
    int64_t size = (int64_t)dw_dtype_size(target);
    output out = draw_output(on, unaligned, "target", rows, cols, target_ld, size);
    dw_quantized from = {.data = view(on->data[0], spec->element, rows, cols, ld),
                         .scale = dw_matrix(on->scale[0], DW_E8M0, shape[0], shape[1])};
    dw_tensor to = view(unaligned + FENCE, target, rows, cols, target_ld);
    on->result->cases++;
    if (dw_dequantize_with_row(on->context, on->row, spec, &from, &to, NULL) != DW_OK) {
        call_failed(on);
        return;
    }
    dw_expect_dequantized(spec, on->data[0], ld, on->scale[0], rows, cols, target, on->expected);
    compare(on, &out, on->expected);
}

/* All shapes for one combination of formats. */
static void run_shapes(bench *on, const dw_quantize_spec *spec, bool factors, dw_dtype source,
                       dw_orientation orientation) {
    /* For a part: whole tiles and vectors, then none that is whole. */
    static const int64_t few[][2] = {{128, 256}, {33, 129}, {129, 257}};
    if (on->part) {
        for (size_t i = 0; i < sizeof few / sizeof few[0]; i++)
            quantize_case(on, spec, factors, source, orientation, few[i][0], few[i][1]);
        return;
    }
    int64_t b = spec->block == DW_BLOCK_1X32 ? 32 : 128;
    const int64_t edges[][2] = {{0, 5},     {5, 0},         {1, 1},         {1, b - 1}, {1, b},        {1, b + 1},
                                {b - 1, 1}, {b, 1},         {b + 1, 1},     {b, b},     {17, b},       {b, 65},
                                {33, 129},  {b - 1, b + 1}, {b + 1, b - 1}, {129, 257}, {3, 2 * b + 7}};
    enum { EDGES = sizeof edges / sizeof edges[0] };
    for (int i = 0; i < EDGES + DRAWN_SHAPES; i++) {
        int64_t rows = i < EDGES ? edges[i][0] : dw_random_between(&on->random, 1, LARGEST);
        int64_t cols = i < EDGES ? edges[i][1] : dw_random_between(&on->random, 1, LARGEST);
        if (on->row->info.operation == DW_OP_QUANTIZE)
            quantize_case(on, spec, factors, source, orientation, rows, cols);
        else
            dequantize_case(on, spec, source, rows, cols);
    }
}

static bool has(uint32_t mask, int value) {
    return mask >> value & 1;
}

/* Whether the row serves the combination, and the part asks for it. */
static bool serves(const bench *on, const dw_quantize_spec *spec, int source, int orientation) {
    const dw_kernel_info *info = &on->row->info;
    if (on->part && ((int)on->part->source != source || on->part->element != spec->element)) return false;
    return has(info->sources, source) && has(info->elements, (int)spec->element) &&
           has(info->blocks, (int)spec->block) && has(info->roundings, (int)spec->rounding) &&
           has(info->layouts, (int)spec->layout) && has(info->orientations, orientation) &&
           (spec->layout != DW_SCALE_TCGEN05 || spec->block == DW_BLOCK_1X32);
}

/* Every combination the row's masks name. Dequantization ignores the rounding. On a GPU also with FP32 scales. */
static void run_formats(bench *on) {
    int roundings = on->row->info.operation == DW_OP_QUANTIZE ? DW_ROUND_COUNT : 1;
    for (int source = 0; source < DW_DTYPE_COUNT; source++)
        for (int element = 0; element < DW_DTYPE_COUNT; element++)
            for (int block = 0; block < DW_BLOCK_COUNT; block++)
                for (int rounding = 0; rounding < roundings; rounding++)
                    for (int layout = 0; layout < DW_SCALE_LAYOUT_COUNT; layout++)
                        for (int orientation = 0; orientation < DW_ORIENT_COUNT; orientation++) {
                            dw_quantize_spec spec = {.element = (dw_dtype)element,
                                                     .block = (dw_block)block,
                                                     .rounding = (dw_rounding)rounding,
                                                     .layout = (dw_scale_layout)layout};
                            if (!serves(on, &spec, source, orientation)) continue;
                            bool factors = on->device && layout == DW_SCALE_ROW && block != DW_BLOCK_1X32;
                            run_shapes(on, &spec, false, (dw_dtype)source, (dw_orientation)orientation);
                            if (factors) run_shapes(on, &spec, true, (dw_dtype)source, (dw_orientation)orientation);
                            if (!on->device || orientation != DW_ORIENT_BOTH || block != DW_BLOCK_1X128) continue;
                            spec.transposed_square = true;
                            run_shapes(on, &spec, false, (dw_dtype)source, DW_ORIENT_BOTH);
                            if (factors) run_shapes(on, &spec, true, (dw_dtype)source, DW_ORIENT_BOTH);
                        }
}

static dw_status run_row(bench *on) {
    uint8_t **buffers[BUFFERS] = {&on->source,   &on->data[0],  &on->data[1],       &on->scale[0],
                                  &on->scale[1], &on->expected, &on->expected_scale};
    on->memory = malloc((size_t)BUFFERS * BUFFER);
    if (!on->memory)
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "no memory for the self-test of %s (%zu bytes); free some memory",
                       on->row->info.name, (size_t)BUFFERS * BUFFER);
    memset(on->memory, 0, (size_t)BUFFERS * BUFFER);
    for (int i = 0; i < BUFFERS; i++)
        *buffers[i] = on->memory + (size_t)i * BUFFER;
    run_formats(on);
    free(on->memory);
    if (on->result->mismatches)
        return dw_fail(DW_ERROR_SELFTEST, "kernel %s differs from the reference in %lld bytes; first %s",
                       on->row->info.name, (long long)on->result->mismatches, on->result->first_mismatch);
    return DW_OK;
}

static dw_status check_available(const dw_context *context, const dw_kernel_row *row) {
    const char *reason = dw_row_reason(context, row);
    if (*reason) return dw_fail(DW_ERROR_UNSUPPORTED, "kernel %s is not available: %s", row->info.name, reason);
    return DW_OK;
}

dw_status dw_row_selftest(dw_context *context, const dw_kernel_row *row, uint64_t seed, dw_selftest_result *result) {
    *result = (dw_selftest_result){0};
    DW_TRY(check_available(context, row));
    if (row->device_type != DW_DEVICE_CPU)
        return dw_fail(DW_ERROR_UNSUPPORTED, "kernel %s runs on a GPU; test it with dw_kernel_selftest_cuda",
                       row->info.name);
    bench on = {.context = context, .row = row, .random = {seed}, .seed = seed, .result = result};
    return run_row(&on);
}

size_t dw_kernel_selftest_workspace(void) {
    const size_t quantize = (size_t)KERNEL_BUFFERS * BUFFER, gemm = dw_gemm_selftest_workspace();
    return quantize > gemm ? quantize : gemm;
}

dw_status dw_row_selftest_cuda(dw_context *context, const dw_kernel_row *row, const dw_selftest_part *part,
                               uint64_t seed, const dw_selftest_device *device, dw_selftest_result *result) {
    *result = (dw_selftest_result){0};
    DW_TRY(check_available(context, row));
    if (row->info.operation == DW_OP_GEMM) return dw_gemm_selftest(row->entry.gemm, false, seed, device, result);
    if (row->device_type != DW_DEVICE_CUDA || row->info.operation != DW_OP_QUANTIZE)
        return dw_fail(DW_ERROR_UNSUPPORTED, "kernel %s does not quantize on a GPU; test it with dw_kernel_selftest",
                       row->info.name);
    bench on = {.context = context,
                .row = row,
                .random = {seed},
                .seed = seed,
                .result = result,
                .device = device,
                .part = part};
    DW_TRY(dw_cuda_enter(device->id, &on.scope));
    dw_status status = run_row(&on);
    dw_cuda_leave(&on.scope);
    return status;
}
