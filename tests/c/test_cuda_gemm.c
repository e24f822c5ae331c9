/* dw_gemm without a GPU: what it hands to cuBLASLt is executed by a stand-in that knows only NVIDIA's documentation,
 * and the product compared with one computed here from the quantized operands in Deepwell's own layouts. */
#include <dlfcn.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "cuda/host/cublaslt_api.h"
#include "cuda/host/gemm_plan.h"
#include "cuda/host/images.h"
#include "deepwell/deepwell.h"
#include "fake/fake_cublaslt.h"
#include "fake/fake_cuda.h"

static fake_cuda_state *fake;
static fake_lt_state *lt;
static dw_context *context;
static uint64_t seed;

static void contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" does not say \"%s\"", text, part);
}

static uint64_t next_random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static void *fresh(size_t bytes) {
    void *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
    assert_non_null(memory);
    memset(memory, 0xCD, (bytes + 511) / 256 * 256); /* poison */
    return memory;
}

static dw_tensor on_gpu(void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_tensor t = dw_matrix(data, dtype, rows, cols);
    t.device_type = DW_DEVICE_CUDA;
    t.strides[0] = ld;
    return t;
}

/* ---- a problem, in memory that stands for the device's ---- */

typedef struct operand {
    dw_gemm_operand view;
    double *values; /* decoded, [rows, k] */
    void *memory[2];
} operand;

static double fp8_value(uint8_t byte, dw_dtype dtype) {
    int mantissa_bits = dtype == DW_E4M3 ? 3 : 2, bias = dtype == DW_E4M3 ? 7 : 15;
    int exponent = (byte & 0x7F) >> mantissa_bits, mantissa = byte & ((1 << mantissa_bits) - 1);
    double one = 1 << mantissa_bits;
    double v = exponent ? ldexp(1 + mantissa / one, exponent - bias) : ldexp(mantissa / one, 1 - bias);
    return byte & 0x80 ? -v : v;
}

static uint8_t random_fp8(dw_dtype dtype) {
    uint8_t byte = (uint8_t)next_random();
    int magnitude = byte & 0x7F, limit = dtype == DW_E4M3 ? 0x7E : 0x7B; /* finite ones */
    return magnitude <= limit ? byte : (uint8_t)(byte & 0x80);
}

static size_t code_index(const dw_quantize_spec *spec, int64_t r, int64_t c, int64_t grid_rows, int64_t grid_cols) {
    switch (spec->layout) {
    case DW_SCALE_MN_MAJOR: return (size_t)(c * (ceil_div(grid_rows, 16) * 16) + r);
    case DW_SCALE_TCGEN05:
        return (size_t)((r / 128 * ceil_div(grid_cols, 4) + c / 4) * 512 + r % 32 * 16 + r / 32 % 4 * 4 + c % 4);
    default: return (size_t)(r * grid_cols + c);
    }
}

/* Random elements and scales between 2^-3 and 2^4; everything the layouts leave out is poisoned. */
static operand make_operand(dw_dtype dtype, dw_gemm_scaling scaling, dw_dtype scale_dtype, dw_scale_layout layout,
                            int64_t rows, int64_t k, int64_t ld) {
    operand o = {.values = malloc(sizeof(double) * (size_t)(rows * k + 1))};
    size_t element = dw_dtype_size(dtype);
    o.memory[0] = fresh((size_t)(rows * ld) * element + 16);
    o.view = (dw_gemm_operand){.data = on_gpu(o.memory[0], dtype, rows, k, ld), .scaling = scaling, .layout = layout};
    int block = scaling == DW_GEMM_1X32 ? 32 : 128, square = scaling == DW_GEMM_128X128;
    int64_t grid_rows = square ? ceil_div(rows, 128) : rows, grid_cols = ceil_div(k, block);
    double *grid = NULL;
    if (scaling == DW_GEMM_TENSOR) {
        o.memory[1] = fresh(sizeof(float));
        *(float *)o.memory[1] = 0.375f;
        o.view.scale = (dw_tensor){.data = o.memory[1], .dtype = DW_F32, .device_type = DW_DEVICE_CUDA, .rank = 0};
    } else if (scaling != DW_GEMM_UNSCALED) {
        grid = malloc(sizeof(double) * (size_t)(grid_rows * grid_cols + 1));
        for (int64_t i = 0; i < grid_rows * grid_cols; i++)
            grid[i] = ldexp(1.0, (int)(next_random() % 8) - 3);
        if (scale_dtype == DW_F32) {
            int64_t row_stride = square ? ceil_div(grid_cols, 4) * 4 : 1, col_stride = square ? 1 : grid_rows;
            float *scales = o.memory[1] =
                fresh(sizeof(float) * (size_t)(grid_rows * row_stride + grid_cols * col_stride));
            for (int64_t r = 0; r < grid_rows; r++)
                for (int64_t c = 0; c < grid_cols; c++)
                    scales[r * row_stride + c * col_stride] = (float)grid[r * grid_cols + c];
            o.view.scale = on_gpu(scales, DW_F32, grid_rows, grid_cols, row_stride);
            o.view.scale.strides[1] = col_stride;
        } else {
            dw_quantize_spec spec = {.element = dtype, .layout = layout};
            spec.block = square ? DW_BLOCK_128X128 : block == 32 ? DW_BLOCK_1X32 : DW_BLOCK_1X128;
            int64_t shape[2];
            assert_int_equal(dw_scale_shape(&spec, rows, k, shape), DW_OK);
            uint8_t *codes = o.memory[1] = fresh((size_t)(shape[0] * shape[1]));
            memset(codes, 0xFF, (size_t)(shape[0] * shape[1])); /* NaN wherever nothing should be read */
            for (int64_t r = 0; r < grid_rows; r++)
                for (int64_t c = 0; c < grid_cols; c++)
                    codes[code_index(&spec, r, c, grid_rows, grid_cols)] =
                        (uint8_t)(127 + ilogb(grid[r * grid_cols + c]));
            o.view.scale = on_gpu(codes, DW_E8M0, shape[0], shape[1], shape[1]);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < k; c++) {
            double scale = scaling == DW_GEMM_UNSCALED ? 1.0
                           : scaling == DW_GEMM_TENSOR ? 0.375
                                                       : grid[(square ? r / 128 : r) * grid_cols + c / block];
            if (element == 1) {
                uint8_t byte = random_fp8(dtype);
                ((uint8_t *)o.memory[0])[r * ld + c] = byte;
                o.values[r * k + c] = fp8_value(byte, dtype) * scale;
            } else { /* BF16 of a small integer over 16: exact */
                float f = (float)((int)(next_random() % 65) - 32) / 16.0f;
                uint32_t bits;
                memcpy(&bits, &f, 4);
                ((uint16_t *)o.memory[0])[r * ld + c] = (uint16_t)(bits >> 16);
                o.values[r * k + c] = f;
            }
        }
    free(grid);
    return o;
}

static void free_operand(operand *o) {
    free(o->values);
    free(o->memory[0]);
    free(o->memory[1]);
}

typedef struct problem {
    dw_gemm_args args;
    operand a, b;
    void *d, *bias, *workspace;
    int64_t m, n, k, d_ld;
} problem;

static float bf16_at(const void *data, int64_t i) {
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static float result_at(const problem *p, int64_t i) {
    return p->args.d.dtype == DW_F32 ? ((float *)p->d)[i] : bf16_at(p->d, i);
}

static problem make_problem(operand a, operand b, dw_dtype d_dtype, int64_t d_pad, bool bias, bool accumulate) {
    problem p = {.a = a, .b = b};
    p.m = a.view.data.shape[0];
    p.n = b.view.data.shape[0];
    p.k = a.view.data.shape[1];
    p.d_ld = p.n + d_pad;
    size_t element = dw_dtype_size(d_dtype);
    p.d = fresh((size_t)(p.m * p.d_ld) * element);
    for (int64_t i = 0; i < p.m * p.d_ld; i++) {
        if (d_dtype == DW_F32)
            ((float *)p.d)[i] = (float)(i % 97);
        else
            ((uint16_t *)p.d)[i] = (uint16_t)(0x4000 + i % 97);
    }
    p.args = (dw_gemm_args){.a = a.view,
                            .b = b.view,
                            .d = on_gpu(p.d, d_dtype, p.m, p.n, p.d_ld),
                            .accumulate = accumulate,
                            .backend = DW_GEMM_CUBLASLT};
    if (bias) {
        bool fp8 = dw_dtype_size(a.view.data.dtype) == 1;
        p.bias = fresh(sizeof(float) * (size_t)p.n);
        p.args.bias = on_gpu(p.bias, fp8 || d_dtype == DW_BF16 ? DW_BF16 : DW_F32, p.n, 1, 1);
        p.args.bias.rank = 1;
        for (int64_t i = 0; i < p.n; i++) {
            if (p.args.bias.dtype == DW_BF16)
                ((uint16_t *)p.bias)[i] = (uint16_t)(0x3F80 + i % 50);
            else
                ((float *)p.bias)[i] = (float)(i % 50);
        }
    }
    return p;
}

static void give_workspace(problem *p) {
    assert_int_equal(dw_gemm_workspace_size(context, &p->args, &p->args.workspace_bytes), DW_OK);
    p->args.workspace = p->workspace = fresh(p->args.workspace_bytes);
}

static void free_problem(problem *p) {
    free_operand(&p->a);
    free_operand(&p->b);
    free(p->d);
    free(p->bias);
    free(p->workspace);
}

/* Runs it and compares every element, and the padding between rows, with FP64 arithmetic on the decoded operands. The
 * stand-in sums in FP64 too, so the results agree to one rounding of the output: 2^-8 for BF16, 2^-23 for F32, and for
 * F32 the order of a few hundred FP64 additions. */
static void check_product(problem *p) {
    size_t bytes = (size_t)(p->m * p->d_ld) * dw_dtype_size(p->args.d.dtype);
    problem before = *p;
    before.d = malloc(bytes + 1);
    memcpy(before.d, p->d, bytes);
    if (dw_gemm(context, &p->args, (void *)0x57) != DW_OK) fail_msg("%s", dw_last_error());
    double relative = p->args.d.dtype == DW_F32 ? 0x1p-22 : 0x1p-8;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->d_ld; j++) {
            int64_t at = i * p->d_ld + j;
            if (j >= p->n) {
                if (result_at(p, at) != result_at(&before, at)) fail_msg("padding of row %" PRId64 " was written", i);
                continue;
            }
            double sum = 0, size = 0;
            for (int64_t x = 0; x < p->k; x++) {
                double term = p->a.values[i * p->k + x] * p->b.values[j * p->k + x];
                sum += term;
                size += fabs(term);
            }
            if (p->bias) sum += p->args.bias.dtype == DW_BF16 ? bf16_at(p->bias, j) : ((float *)p->bias)[j];
            if (p->args.accumulate) sum += result_at(&before, at);
            if (!(fabs(result_at(p, at) - sum) <= relative * fabs(sum) + 0x1p-40 * size))
                fail_msg("element (%" PRId64 ", %" PRId64 ") is %.9g and should be %.9g", i, j, result_at(p, at), sum);
        }
    free(before.d);
}

/* What common/scale_decode does, so that decoded scales can be followed through to the product. */
static void decode_on_cpu(const char *symbol, const dw_cu_launch_config *config, void **arguments) {
    assert_string_equal(symbol, "scale_decode_f32");
    assert_true(fake_is_programmatic(config));
    dw_scale_decode_params params;
    memcpy(&params, arguments[0], sizeof params);
    for (uint32_t y = 0; y < config->grid[1]; y++) {
        const dw_scale_decode_job *job = &params.jobs[y];
        int64_t threads = (int64_t)config->grid[0] * config->block[0];
        assert_true(threads >= job->outer * job->inner_padded);
        for (int64_t t = 0; t < threads && t < job->outer * job->inner_padded; t++) {
            int64_t outer = t / job->inner_padded, inner = t % job->inner_padded;
            job->scales[t] = 0;
            if (inner < job->inner) {
                int code = job->codes[outer * job->code_outer + inner * job->code_inner];
                job->scales[t] = code == 255 ? NAN : (float)ldexp(1.0, code - 127);
            }
        }
    }
}

static int reset(void **state) {
    (void)state;
    fake->fail = NULL;
    fake->fail_result = FAKE_RESULT;
    fake->on_launch = decode_on_cpu;
    fake->major[0] = 9;
    fake->minor[0] = 0;
    lt->version = 130000;
    lt->no_kernel = lt->matmul_result = 0;
    return 0;
}

/* ---- products ---- */

static void hopper_scales_as_cublaslt_reads_them(void **state) {
    (void)state;
    static const struct {
        dw_gemm_scaling a, b;
    } pairs[] = {{DW_GEMM_1X128, DW_GEMM_128X128}, {DW_GEMM_128X128, DW_GEMM_1X128}, {DW_GEMM_1X128, DW_GEMM_1X128}};
    static const int64_t sizes[][3] = {{4, 8, 16}, {132, 136, 528}, {128, 128, 128}, {12, 136, 144}, {260, 16, 640}};
    for (size_t s = 0; s < sizeof pairs / sizeof *pairs; s++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
            operand a = make_operand(DW_E4M3, pairs[s].a, DW_F32, DW_SCALE_ROW, m, k, k + 32 * (i % 2));
            operand b = make_operand(i % 2 ? DW_E5M2 : DW_E4M3, pairs[s].b, DW_F32, DW_SCALE_ROW, n, k, k);
            problem p = make_problem(a, b, i % 2 ? DW_F32 : DW_BF16, i % 3 ? 8 : 0, i > 1, i > 2);
            give_workspace(&p);
            check_product(&p);
            assert_ptr_equal(lt->a, p.b.memory[0]); /* cuBLASLt's first operand is our b */
            assert_ptr_equal(lt->first_scale, p.b.memory[1]);
            assert_ptr_equal(lt->second_scale, p.a.memory[1]);
            assert_ptr_equal(lt->stream, (void *)0x57);
            assert_int_equal(p.args.workspace_bytes, FAKE_LT_WORKSPACE); /* nothing to decode */
            free_problem(&p);
        }
}

static void hopper_scales_from_codes(void **state) {
    (void)state;
    if (dw_cuda_image_total == 0) skip();
    static const struct {
        dw_gemm_scaling a, b;
        dw_scale_layout a_layout, b_layout;
    } cases[] = {{DW_GEMM_1X128, DW_GEMM_128X128, DW_SCALE_MN_MAJOR, DW_SCALE_MN_MAJOR},
                 {DW_GEMM_1X128, DW_GEMM_128X128, DW_SCALE_ROW, DW_SCALE_ROW},
                 {DW_GEMM_128X128, DW_GEMM_1X128, DW_SCALE_ROW, DW_SCALE_MN_MAJOR},
                 {DW_GEMM_1X128, DW_GEMM_1X128, DW_SCALE_MN_MAJOR, DW_SCALE_ROW}};
    static const int64_t sizes[][3] = {{4, 8, 16}, {132, 136, 528}, {20, 136, 128}, {520, 16, 272}};
    for (size_t s = 0; s < sizeof cases / sizeof *cases; s++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
            operand a = make_operand(DW_E4M3, cases[s].a, DW_E8M0, cases[s].a_layout, m, k, k);
            operand b = make_operand(DW_E4M3, cases[s].b, DW_E8M0, cases[s].b_layout, n, k, k);
            problem p = make_problem(a, b, DW_BF16, 0, false, false);
            give_workspace(&p);
            int launches = fake->launches;
            check_product(&p);
            assert_int_equal(fake->launches, launches + 1); /* both operands in one */
            assert_true(p.args.workspace_bytes > FAKE_LT_WORKSPACE);
            free_problem(&p);
        }
    /* One operand decoded, the other not. */
    operand a = make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, 36, 384, 384);
    operand b = make_operand(DW_E4M3, DW_GEMM_128X128, DW_E8M0, DW_SCALE_ROW, 144, 384, 384);
    problem p = make_problem(a, b, DW_F32, 0, false, true);
    give_workspace(&p);
    check_product(&p);
    free_problem(&p);
}

static void blackwell_scales(void **state) {
    (void)state;
    fake->major[0] = 10;
    static const int64_t sizes[][3] = {{1, 8, 16}, {130, 136, 528}, {128, 128, 128}, {33, 8, 160}, {300, 72, 48}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
        operand a = make_operand(DW_E4M3, DW_GEMM_1X32, DW_E8M0, DW_SCALE_TCGEN05, m, k, k);
        operand b = make_operand(DW_E4M3, DW_GEMM_1X32, DW_E8M0, DW_SCALE_TCGEN05, n, k, k + 16);
        problem p = make_problem(a, b, i % 2 ? DW_F32 : DW_BF16, 8, i % 2, i > 2);
        give_workspace(&p);
        check_product(&p);
        free_problem(&p);
    }
}

static void tensor_wise_and_unscaled(void **state) {
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        operand a = make_operand(DW_E5M2, DW_GEMM_TENSOR, DW_F32, DW_SCALE_ROW, 7, 48, 64);
        operand b = make_operand(DW_E4M3, DW_GEMM_TENSOR, DW_F32, DW_SCALE_ROW, 24, 48, 48);
        problem p = make_problem(a, b, DW_BF16, 0, true, false);
        p.args.fast_accumulation = fast;
        give_workspace(&p);
        check_product(&p);
        assert_int_equal(lt->fast, fast);
        free_problem(&p);
    }
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 3, 7}, {64, 40, 33}, {1, 9, 130}, {17, 1, 2}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int f32 = 0; f32 < 2; f32++) {
            operand a = make_operand(DW_BF16, DW_GEMM_UNSCALED, DW_F32, DW_SCALE_ROW, sizes[i][0], sizes[i][2],
                                     sizes[i][2] + 3);
            operand b =
                make_operand(DW_BF16, DW_GEMM_UNSCALED, DW_F32, DW_SCALE_ROW, sizes[i][1], sizes[i][2], sizes[i][2]);
            problem p = make_problem(a, b, f32 ? DW_F32 : DW_BF16, (int64_t)i, i % 2, i > 1);
            give_workspace(&p);
            check_product(&p);
            free_problem(&p);
        }
}

static problem small_bf16(int64_t m, int64_t n, int64_t k) {
    return make_problem(make_operand(DW_BF16, DW_GEMM_UNSCALED, DW_F32, DW_SCALE_ROW, m, k, k),
                        make_operand(DW_BF16, DW_GEMM_UNSCALED, DW_F32, DW_SCALE_ROW, n, k, k), DW_BF16, 0, false,
                        false);
}

static problem small_fp8(void) {
    return make_problem(make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, 16, 256, 256),
                        make_operand(DW_E4M3, DW_GEMM_128X128, DW_F32, DW_SCALE_ROW, 32, 256, 256), DW_BF16, 0, false,
                        false);
}

static void empty_products(void **state) {
    (void)state;
    int multiplications = lt->multiplications, memsets = fake->memsets;
    static const int64_t nothing[][3] = {{0, 8, 16}, {8, 0, 16}, {0, 0, 0}};
    for (size_t i = 0; i < 3; i++) {
        problem p = small_bf16(nothing[i][0], nothing[i][1], nothing[i][2]);
        assert_int_equal(dw_gemm_workspace_size(context, &p.args, &p.args.workspace_bytes), DW_OK);
        assert_int_equal(p.args.workspace_bytes, 0);
        assert_int_equal(dw_gemm(context, &p.args, NULL), DW_OK);
        free_problem(&p);
    }
    assert_int_equal(fake->memsets, memsets);
    problem p = small_bf16(6, 10, 0);
    p.args.d.strides[0] = 12;
    assert_int_equal(dw_gemm(context, &p.args, NULL), DW_OK); /* an empty sum is zero */
    assert_int_equal(fake->memsets, memsets + 1);
    assert_int_equal(fake->memset_last.target, (uint64_t)(uintptr_t)p.d);
    assert_int_equal(fake->memset_last.pitch, 24);
    assert_int_equal(fake->memset_last.width, 20);
    assert_int_equal(fake->memset_last.height, 6);
    assert_int_equal(fake->memset_last.value, 0);
    p.args.accumulate = true;
    assert_int_equal(dw_gemm(context, &p.args, NULL), DW_OK);
    assert_int_equal(fake->memsets, memsets + 1);
    p.args.accumulate = false;
    p.args.bias = on_gpu(p.d, DW_BF16, 10, 1, 1);
    p.args.bias.rank = 1;
    assert_int_equal(dw_gemm(context, &p.args, NULL), DW_ERROR_UNSUPPORTED);
    free_problem(&p);
    assert_int_equal(lt->multiplications, multiplications);
}

/* ---- plans ---- */

static void plans_are_kept(void **state) {
    (void)state;
    problem p = small_fp8();
    give_workspace(&p);
    size_t made = dw_gemm_plan_made();
    int heuristics = lt->heuristics;
    for (int i = 0; i < 5; i++) {
        p.args.accumulate = i % 2; /* not part of the plan */
        check_product(&p);
        assert_true(lt->beta == (float)(i % 2));
    }
    assert_int_equal(dw_gemm_plan_made(), made);
    assert_int_equal(lt->heuristics, heuristics);
    assert_int_equal(lt->alignments[0], 256);
    assert_int_equal(lt->alignments[3], 256);
    assert_int_equal(lt->reduction_mask, 2); /* split sums stay in FP32 */
    assert_int_equal(lt->workspace_bytes, FAKE_LT_WORKSPACE);

    p.args.a.data.data = (char *)p.args.a.data.data + 32; /* other alignment, other plan; the data are garbage now */
    assert_int_equal(dw_gemm(context, &p.args, NULL), DW_OK);
    assert_int_equal(dw_gemm_plan_made(), made + 1);
    assert_int_equal(lt->alignments[1], 32);
    assert_int_equal(lt->alignments[0], 256);
    free_problem(&p);

    int handles = lt->handles;
    p = small_bf16(8, 8, 8);
    p.args.a.data.device_id = p.args.b.data.device_id = p.args.d.device_id = 1;
    give_workspace(&p);
    check_product(&p); /* another device: another context, handle and plan */
    assert_int_equal(lt->handles, handles + 1);
    free_problem(&p);
}

static void many_shapes_do_not_grow_for_ever(void **state) {
    (void)state;
    problem p = small_bf16(1, 1, 1);
    give_workspace(&p);
    for (int64_t m = 1; m <= 6000; m++) {
        p.args.a.data.shape[0] = p.args.d.shape[0] = m;
        p.args.a.data.strides[0] = p.args.d.strides[0] = 1;
        size_t bytes;
        assert_int_equal(dw_gemm_workspace_size(context, &p.args, &bytes), DW_OK);
    }
    assert_true(lt->live <= 4 * 4096); /* an operation and three layouts for each plan kept */
    assert_true(lt->live > 4 * 4000);
    free_problem(&p);
}

#define THREADS 6
static atomic_int wrong;

static void *multiply_often(void *unused) {
    (void)unused;
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER; /* the random numbers are shared */
    pthread_mutex_lock(&making);
    problem p = small_fp8();
    give_workspace(&p);
    pthread_mutex_unlock(&making);
    for (int i = 0; i < 20; i++) {
        if (dw_gemm(context, &p.args, NULL) != DW_OK) atomic_fetch_add(&wrong, 1);
        double sum = 0; /* with somebody else's scales this is off by a power of two at least */
        for (int64_t x = 0; x < p.k; x++)
            sum += p.a.values[5 * p.k + x] * p.b.values[7 * p.k + x];
        if (!(fabs(result_at(&p, 5 * p.d_ld + 7) - sum) <= 0x1p-8 * fabs(sum) + 1e-9)) atomic_fetch_add(&wrong, 1);
    }
    free_problem(&p);
    return NULL;
}

static void threads_do_not_mix_pointers(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, multiply_often, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(wrong, 0);
}

/* ---- refusals ---- */

static void refused(const dw_gemm_args *args, dw_status expected, const char *part) {
    int multiplications = lt->multiplications, launches = fake->launches;
    dw_status status = dw_gemm(context, args, NULL);
    if (status != expected) fail_msg("%s instead of %s (%s)", dw_status_name(status), dw_status_name(expected), part);
    contains(dw_last_error(), part);
    if (strchr(dw_last_error(), '\n')) fail_msg("more than one line: %s", dw_last_error());
    assert_int_equal(lt->multiplications, multiplications);
    assert_int_equal(fake->launches, launches);
}

#define REFUSED(change, status, part)                                                                                  \
    do {                                                                                                               \
        dw_gemm_args args = p.args;                                                                                    \
        change;                                                                                                        \
        refused(&args, status, part);                                                                                  \
    } while (0)

static void bad_arguments_are_refused(void **state) {
    (void)state;
    problem p = small_fp8();
    give_workspace(&p);
    const dw_status invalid = DW_ERROR_INVALID_ARGUMENT, unsupported = DW_ERROR_UNSUPPORTED;
    char *address = p.args.a.data.data;
    REFUSED(args.a.data.device_type = DW_DEVICE_CPU, invalid, "a is not on a GPU");
    REFUSED(args.b.data.device_id = 1, invalid, "b is on GPU 1");
    REFUSED(args.a.data.rank = 3, invalid, "rank 3");
    REFUSED(args.a.data.strides[1] = 2, invalid, "inner stride 2");
    REFUSED(args.a.data.strides[0] = 255, invalid, "row stride 255");
    REFUSED(args.a.data.strides[0] = 264, invalid, "row stride 264");
    REFUSED(args.a.data.data = address + 8, invalid, "aligned to 16");
    REFUSED(args.a.data.data = NULL, invalid, "a has no data");
    REFUSED(args.b.data.shape[1] = 128, invalid, "must");
    REFUSED(args.d.shape[1] = 24, invalid, "d is [16, 24]");
    REFUSED(args.d.dtype = DW_E4M3, unsupported, "d is e4m3");
    REFUSED(args.d.strides[0] = 36, invalid, "row stride of 72 bytes");
    REFUSED(args.d.data = (char *)p.d + 4, invalid, "aligned to 16");
    REFUSED(args.a.data.dtype = DW_F32, unsupported, "a is f32");
    REFUSED(args.a.data.dtype = DW_BF16, unsupported, "FP8 operands have scales");
    REFUSED(args.a.scaling = DW_GEMM_UNSCALED, unsupported, "unscaled");
    REFUSED(args.a.scaling = 17, invalid, "17");
    REFUSED(args.a.scale.shape[0] = 15, invalid, "a_scale must have shape [16, 2]");
    REFUSED(args.a.scale.strides[1] = 32, invalid, "(1, 16) are expected");
    REFUSED((args.a.scale.strides[0] = 2, args.a.scale.strides[1] = 1), invalid, "(1, 16) are expected");
    REFUSED(args.a.scale.data = (char *)p.a.memory[1] + 4, invalid, "aligned to 16");
    REFUSED(args.a.scale.data = NULL, invalid, "a_scale has no data");
    REFUSED(args.a.scale.dtype = DW_BF16, invalid, "a_scale is bf16");
    REFUSED(args.a.scale.device_type = DW_DEVICE_CPU, invalid, "a_scale must be on GPU 0");
    REFUSED(args.fast_accumulation = true, unsupported, "fast accumulation");
    REFUSED(args.workspace_bytes = FAKE_LT_WORKSPACE - 1, invalid, "4096 are needed");
    REFUSED(args.workspace = (char *)p.workspace + 128, invalid, "aligned to 256");
    REFUSED(args.workspace = NULL, invalid, "aligned to 256");
    REFUSED((args.bias = on_gpu(p.d, DW_BF16, 31, 1, 1), args.bias.rank = 1), invalid, "vector of 32");
    REFUSED((args.bias = on_gpu(p.d, DW_F32, 32, 1, 1), args.bias.rank = 1), unsupported, "bias is f32");
    REFUSED((args.bias = on_gpu((char *)p.d + 2, DW_BF16, 32, 1, 1), args.bias.rank = 1), invalid, "aligned to 16");
    REFUSED((args.b.data.dtype = DW_E5M2, args.a.data.dtype = DW_E5M2), unsupported, "e5m2");
    REFUSED((args.a.data.device_id = args.b.data.device_id = args.d.device_id = args.a.scale.device_id =
                 args.b.scale.device_id = 7),
            invalid, "device 7");
    free_problem(&p);
}

static void strides_of_square_scales_are_checked(void **state) {
    (void)state; /* the one that gives wrong results in silence: columns rounded up to a multiple of 4 */
    problem p = make_problem(make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, 16, 640, 640),
                             make_operand(DW_E4M3, DW_GEMM_128X128, DW_F32, DW_SCALE_ROW, 256, 640, 640), DW_BF16, 0,
                             false, false);
    give_workspace(&p);
    assert_int_equal(p.args.b.scale.strides[0], 8);
    REFUSED(args.b.scale.strides[0] = 5, DW_ERROR_INVALID_ARGUMENT, "(8, 1) are expected");
    check_product(&p);
    free_problem(&p);
}

static void sizes_cublaslt_cannot_do(void **state) {
    (void)state;
    static const struct {
        int64_t m, n, k;
        const char *part;
    } sizes[] = {{16, 32, 136, "K = 136"}, {6, 32, 128, "M = 6"}, {16, 12, 128, "N = 12"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t ld = ceil_div(sizes[i].k, 16) * 16, pad = ceil_div(sizes[i].n, 8) * 8 - sizes[i].n;
        problem p = make_problem(make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, sizes[i].m, sizes[i].k, ld),
                                 make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, sizes[i].n, sizes[i].k, ld),
                                 DW_BF16, pad, false, false);
        refused(&p.args, DW_ERROR_UNSUPPORTED, sizes[i].part);
        free_problem(&p);
    }
}

static void scalings_that_do_not_pair(void **state) {
    (void)state;
    for (int a = 0; a < DW_GEMM_SCALING_COUNT; a++)
        for (int b = 0; b < DW_GEMM_SCALING_COUNT; b++) {
            bool a_block = a == DW_GEMM_1X128 || a == DW_GEMM_128X128,
                 b_block = b == DW_GEMM_1X128 || b == DW_GEMM_128X128;
            bool pairs = (a == b && a != DW_GEMM_128X128) || (a_block && b_block && a != b);
            operand sides[2];
            for (int s = 0; s < 2; s++) {
                dw_gemm_scaling scaling = s ? b : a;
                bool tiled = scaling == DW_GEMM_1X32;
                sides[s] =
                    make_operand(scaling == DW_GEMM_UNSCALED ? DW_BF16 : DW_E4M3, scaling, tiled ? DW_E8M0 : DW_F32,
                                 tiled ? DW_SCALE_TCGEN05 : DW_SCALE_ROW, 16, 128, 128);
            }
            problem p = make_problem(sides[0], sides[1], DW_BF16, 0, false, false);
            dw_gemm_problem prepared;
            dw_status status = dw_gemm_prepare(&p.args, true, &prepared);
            if (status != (pairs ? DW_OK : DW_ERROR_UNSUPPORTED))
                fail_msg("%s by %s: %s", dw_gemm_scaling_name(a), dw_gemm_scaling_name(b), dw_status_name(status));
            free_problem(&p);
        }
    problem p = small_fp8(); /* codes in a layout of the other architecture */
    p.args.a.scale.dtype = DW_E8M0;
    p.args.a.layout = DW_SCALE_TCGEN05;
    refused(&p.args, DW_ERROR_UNSUPPORTED, "mn_major");
    free_problem(&p);
}

static void versions_without_the_feature(void **state) {
    (void)state;
    static const struct {
        dw_gemm_scaling a, b;
        int major, minor;
        size_t version;
        const char *part; /* NULL: available */
    } cases[] = {
        {DW_GEMM_1X128, DW_GEMM_128X128, 9, 0, 120900, NULL},
        {DW_GEMM_1X128, DW_GEMM_128X128, 9, 0, 120804, "cuBLASLt 12.9 or later; this one is 12.8"},
        {DW_GEMM_128X128, DW_GEMM_1X128, 10, 0, 130000, "compute capability 9.0 (Hopper); this GPU has 10.0"},
        {DW_GEMM_1X128, DW_GEMM_1X128, 8, 9, 130000, "this GPU has 8.9"},
        {DW_GEMM_1X32, DW_GEMM_1X32, 10, 0, 120800, NULL},
        {DW_GEMM_1X32, DW_GEMM_1X32, 10, 3, 130000, NULL},
        {DW_GEMM_1X32, DW_GEMM_1X32, 10, 0, 120605, "cuBLASLt 12.8 or later; this one is 12.6"},
        {DW_GEMM_1X32, DW_GEMM_1X32, 9, 0, 130000, "(Blackwell); this GPU has 9.0"},
        {DW_GEMM_TENSOR, DW_GEMM_TENSOR, 9, 0, 120100, NULL},
        {DW_GEMM_TENSOR, DW_GEMM_TENSOR, 8, 0, 130000, "this GPU has 8.0"},
        {DW_GEMM_UNSCALED, DW_GEMM_UNSCALED, 8, 0, 120100, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dw_gemm_problem p = {.a_scaling = cases[i].a, .b_scaling = cases[i].b};
        dw_status status = dw_gemm_available(&p, cases[i].major, cases[i].minor, cases[i].version);
        assert_int_equal(status, cases[i].part ? DW_ERROR_UNSUPPORTED : DW_OK);
        if (cases[i].part) contains(dw_last_error(), cases[i].part);
    }
    problem p = make_problem(make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, 64, 256, 256),
                             make_operand(DW_E4M3, DW_GEMM_1X128, DW_F32, DW_SCALE_ROW, 64, 256, 256), DW_BF16, 0,
                             false, false);
    fake->major[0] = 10; /* through the whole call */
    refused(&p.args, DW_ERROR_UNSUPPORTED, "Hopper");
    fake->major[0] = 9;
    lt->no_kernel = 1;
    refused(&p.args, DW_ERROR_UNSUPPORTED, "has no kernel for 64x64x256 (MxNxK), e4m3 1x128 by e4m3 1x128 -> bf16");
    contains(dw_last_error(), "CUBLAS_STATUS_NOT_SUPPORTED");
    lt->no_kernel = 0;
    give_workspace(&p);
    check_product(&p); /* refusals are not remembered */
    lt->matmul_result = 13;
    assert_int_equal(dw_gemm(context, &p.args, NULL), DW_ERROR_DEVICE);
    contains(dw_last_error(), "cublasLtMatmul");
    contains(dw_last_error(), "CUBLAS_STATUS_FAKE (13)");
    free_problem(&p);
    assert_int_equal(dw_gemm(NULL, &p.args, NULL), DW_ERROR_INVALID_ARGUMENT);
    assert_int_equal(dw_gemm(context, NULL, NULL), DW_ERROR_INVALID_ARGUMENT);
    assert_int_equal(dw_gemm_workspace_size(context, &p.args, NULL), DW_ERROR_INVALID_ARGUMENT);
}

static void library_is_identified(void **state) {
    (void)state;
    size_t version = 0;
    const char *path = NULL;
    assert_int_equal(dw_cublaslt_version(&version, &path), DW_OK);
    assert_int_equal(version, 130000);
    contains(path, "fake_cublaslt");
}

int main(void) {
    setenv("DEEPWELL_LIBCUDA", FAKE_LIBCUDA, 1);
    setenv("DEEPWELL_LIBCUBLASLT", FAKE_LIBCUBLASLT, 1);
    void *cuda = dlopen(FAKE_LIBCUDA, RTLD_NOW | RTLD_LOCAL),
         *cublaslt = dlopen(FAKE_LIBCUBLASLT, RTLD_NOW | RTLD_LOCAL);
    if (!cuda || !cublaslt || dw_context_create(NULL, &context) != DW_OK) {
        fprintf(stderr, "cannot start: %s\n", dlerror());
        return 1;
    }
    fake = dlsym(cuda, "fake_cuda");
    lt = dlsym(cublaslt, "fake_lt");
    const char *given = getenv("DEEPWELL_TEST_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u | 1;
    printf("DEEPWELL_TEST_SEED=%" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(library_is_identified, reset),
        cmocka_unit_test_setup(hopper_scales_as_cublaslt_reads_them, reset),
        cmocka_unit_test_setup(hopper_scales_from_codes, reset),
        cmocka_unit_test_setup(blackwell_scales, reset),
        cmocka_unit_test_setup(tensor_wise_and_unscaled, reset),
        cmocka_unit_test_setup(empty_products, reset),
        cmocka_unit_test_setup(plans_are_kept, reset),
        cmocka_unit_test_setup(threads_do_not_mix_pointers, reset),
        cmocka_unit_test_setup(bad_arguments_are_refused, reset),
        cmocka_unit_test_setup(strides_of_square_scales_are_checked, reset),
        cmocka_unit_test_setup(sizes_cublaslt_cannot_do, reset),
        cmocka_unit_test_setup(scalings_that_do_not_pair, reset),
        cmocka_unit_test_setup(versions_without_the_feature, reset),
        cmocka_unit_test_setup(many_shapes_do_not_grow_for_ever, reset),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    dw_context_destroy(context);
    return result;
}
