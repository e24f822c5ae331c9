/* Quantization through the public API against the second statement, on every instruction set this machine has. */
#include "matrices.h"

static const dw_dtype sources[3] = {DW_F32, DW_F16, DW_BF16};

/* Calls `check` for every instruction set. */
static void on_every_isa(void (*check)(dw_context *context)) {
    const char *isas[3];
    int count = runnable_isas(isas);
    for (int i = 0; i < count; i++) {
        dw_context *context = make_context(2, isas[i]);
        check(context);
        dw_context_destroy(context);
    }
}

static dw_quantize_spec nth_spec(int n) {
    return (dw_quantize_spec){.element = n & 1 ? DW_E5M2 : DW_E4M3,
                              .block = (dw_block)(n / 4 % 3),
                              .rounding = (dw_rounding)(n / 2 % 2),
                              .layout = DW_SCALE_ROW};
}
enum { SPECS = 12 };

/* All 65,536 encodings, each alone in its block, then with neighbours. */
static void check_every_half(dw_context *context) {
    uint16_t *source = malloc(65536 * sizeof *source);
    for (int kind = 1; kind < 3; kind++)
        for (int n = 0; n < SPECS; n++) {
            dw_quantize_spec spec = nth_spec(n);
            for (uint32_t i = 0; i < 65536; i++)
                source[i] = (uint16_t)i;
            /* A 128x128 block cannot hold one element of a larger matrix, so its rows are quantized one by one. */
            int64_t rows = spec.block == DW_BLOCK_128X128 ? 1 : 65536;
            for (int64_t first = 0; first < 65536; first += rows) {
                dw_tensor from = dw_matrix(source + first, sources[kind], rows, 1);
                dw_quantized to = make_quantized(&spec, rows, 1);
                ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, NULL));
                assert_stated(&spec, &to, source + first, sources[kind], 1, 1);
                free_quantized(&to);
            }
            dw_tensor from = dw_matrix(source, sources[kind], 256, 256);
            dw_quantized to = make_quantized(&spec, 256, 256), transposed = make_quantized(&spec, 256, 256);
            for (int order = 0; order < 2; order++) {
                ASSERT_OK(dw_quantize(context, &spec, &from, &to, &transposed, NULL));
                assert_stated(&spec, &to, source, sources[kind], 256, 1);
                assert_stated(&spec, &transposed, source, sources[kind], 1, 256);
                /* Again with neighbours drawn by chance. */
                dw_random random = {test_seed + (uint64_t)n};
                for (int64_t i = 65535; i > 0; i--) {
                    int64_t j = dw_random_between(&random, 0, i);
                    uint16_t swap = source[i];
                    source[i] = source[j];
                    source[j] = swap;
                }
            }
            free_quantized(&to);
            free_quantized(&transposed);
        }
    free(source);
}

static void every_half_precision_input(void **state) {
    (void)state;
    on_every_isa(check_every_half);
}

/* Random and adversarial matrices, dense and strided, all orientations. */
static void check_adversarial(dw_context *context) {
    static const int64_t sizes[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 257};
    enum { SIZES = sizeof sizes / sizeof sizes[0], LARGEST = 257 + 5 };
    dw_random random = {test_seed};
    uint8_t *source = malloc(LARGEST * LARGEST * 4 + 8);
    for (int round = 0; round < 40; round++)
        for (int n = 0; n < SPECS; n++)
            for (int kind = 0; kind < 3; kind++) {
                dw_quantize_spec spec = nth_spec(n);
                int64_t rows = sizes[dw_random_between(&random, 0, SIZES - 1)];
                int64_t cols = sizes[dw_random_between(&random, 0, SIZES - 1)];
                if (rows * cols > 10000 && round > 4) continue;
                int64_t ld = cols + dw_random_between(&random, 0, 5);
                dw_fill_adversarial(&random, source, sources[kind], rows, cols, ld);
                dw_tensor from = strided(source, sources[kind], rows, cols, ld);
                dw_quantized row = make_quantized(&spec, rows, cols), transposed = make_quantized(&spec, cols, rows);
                int64_t which = dw_random_between(&random, 0, 2);
                ASSERT_OK(dw_quantize(context, &spec, &from, which == 1 ? NULL : &row, which == 0 ? NULL : &transposed,
                                      NULL));
                if (which != 1) assert_stated(&spec, &row, source, sources[kind], ld, 1);
                if (which != 0) assert_stated(&spec, &transposed, source, sources[kind], 1, ld);
                if (which == 2 && spec.block == DW_BLOCK_128X128)
                    for (int64_t i = 0; i < rows * cols; i++)
                        assert_int_equal(((uint8_t *)row.data.data)[i],
                                         ((uint8_t *)transposed.data.data)[i % cols * rows + i / cols]);
                free_quantized(&row);
                free_quantized(&transposed);
            }
    free(source);
}

static void adversarial_matrices(void **state) {
    (void)state;
    on_every_isa(check_adversarial);
}

/* A square transposed form beside rows of 1x128: each result is the one that its own block alone gives. */
static void check_square_transposed(dw_context *context) {
    static const int64_t sizes[] = {0, 1, 127, 128, 129, 300};
    enum { SIZES = sizeof sizes / sizeof sizes[0], LARGEST = 300 };
    dw_random random = {test_seed};
    uint8_t *source = malloc(LARGEST * LARGEST * 4);
    for (int n = 0; n < SIZES * SIZES; n++)
        for (int which = 0; which < 3; which++) {
            dw_quantize_spec spec = nth_spec(4 + n % 4);
            spec.transposed_square = true;
            dw_quantize_spec square = nth_spec(8 + n % 4);
            int64_t rows = sizes[n / SIZES], cols = sizes[n % SIZES];
            dw_dtype dtype = sources[n % 3];
            dw_fill_adversarial(&random, source, dtype, rows, cols, cols);
            dw_tensor from = dw_matrix(source, dtype, rows, cols);
            dw_quantized row = make_quantized(&spec, rows, cols), transposed = make_quantized(&square, cols, rows);
            ASSERT_OK(
                dw_quantize(context, &spec, &from, which == 1 ? NULL : &row, which == 0 ? NULL : &transposed, NULL));
            if (which != 1) assert_stated(&spec, &row, source, dtype, cols, 1);
            if (which != 0) assert_stated(&square, &transposed, source, dtype, 1, cols);
            free_quantized(&row);
            free_quantized(&transposed);
        }
    free(source);
}

static void square_transposed_forms(void **state) {
    (void)state;
    on_every_isa(check_square_transposed);
}

/* make_quantized with elements aligned for stores that bypass the caches. */
static dw_quantized make_aligned(const dw_quantize_spec *spec, int64_t rows, int64_t cols) {
    dw_quantized quantized = make_quantized(spec, rows, cols);
    free(quantized.data.data);
    assert_int_equal(posix_memalign(&quantized.data.data, 64, (size_t)(rows * cols)), 0);
    memset(quantized.data.data, 0xC3, (size_t)(rows * cols));
    return quantized;
}

static void assert_same(const dw_quantized *one, const dw_quantized *other) {
    assert_memory_equal(one->data.data, other->data.data, (size_t)(one->data.shape[0] * one->data.shape[1]));
    assert_memory_equal(one->scale.data, other->scale.data, (size_t)(one->scale.shape[0] * one->scale.shape[1]));
}

/* Both orientations of `from`, and each alone, on every instruction set, with one and two threads,
 * against the reference. */
static void assert_as_reference(dw_context *reference, const dw_quantize_spec *spec, const dw_tensor *from) {
    const char *isas[3];
    int count = runnable_isas(isas);
    int64_t rows = from->shape[0], cols = from->shape[1];
    dw_quantized right = make_quantized(spec, rows, cols), right_t = make_quantized(spec, cols, rows);
    ASSERT_OK(dw_quantize(reference, spec, from, &right, &right_t, NULL));
    for (int i = 0; i < 2 * count; i++) {
        dw_context *context = make_context(1 + i % 2, isas[i / 2]);
        dw_quantized row = make_aligned(spec, rows, cols), transposed = make_aligned(spec, cols, rows);
        ASSERT_OK(dw_quantize(context, spec, from, &row, &transposed, NULL));
        assert_same(&row, &right);
        assert_same(&transposed, &right_t);
        memset(transposed.data.data, 0xC3, (size_t)(rows * cols));
        ASSERT_OK(dw_quantize(context, spec, from, NULL, &transposed, NULL));
        assert_same(&transposed, &right_t);
        memset(row.data.data, 0xC3, (size_t)(rows * cols));
        ASSERT_OK(dw_quantize(context, spec, from, &row, NULL, NULL));
        assert_same(&row, &right);
        free_quantized(&row);
        free_quantized(&transposed);
        dw_context_destroy(context);
    }
    free_quantized(&right);
    free_quantized(&right_t);
}

/* Matrices of more rows and columns than a kernel takes at a time, cut by one and by two threads; and one whose output
 * bypasses the caches. The reference states what is right: statement by statement this would take minutes. */
static void several_pieces(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1200, 777}, {515, 1100}, {1088, 8256}};
    dw_context *reference = make_context(2, "ref");
    dw_random random = {test_seed};
    for (int shape = 0; shape < 3; shape++) {
        int64_t rows = shapes[shape][0], cols = shapes[shape][1];
        uint8_t *source = malloc((size_t)(rows * cols) * 4);
        for (int n = 0; n < SPECS; n++) {
            dw_quantize_spec spec = nth_spec(n);
            dw_dtype kind = sources[(n + shape) % 3];
            if (shape == 2 && (n & 3)) continue; /* one format and rounding for each block */
            dw_fill_adversarial(&random, source, kind, rows, cols, cols);
            dw_tensor from = dw_matrix(source, kind, rows, cols);
            assert_as_reference(reference, &spec, &from);
        }
        free(source);
    }
    dw_context_destroy(reference);
}

/* What training data looks like, and kernels are quickest with: magnitudes of a few powers of two, large columns, areas
 * of zeros and of other magnitudes, here and there an element far below its neighbours or one that is not finite. */
static void fill_ordinary(dw_random *random, uint16_t *source, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t r = i / cols, c = i % cols, area = (r / 96 + c / 160) % 8;
        int exponent = area == 0 ? -30 : area == 1 ? 5 : 0;
        if (c % 67 == 3) exponent += 6;
        if (dw_random_between(random, 0, 999) == 0) exponent -= (int)dw_random_between(random, 6, 26);
        float x = ldexpf((float)(dw_random_between(random, -32768, 32767) + dw_random_between(random, -32768, 32767)),
                         exponent - 14);
        if (area == 2 && dw_random_between(random, 0, 3)) x = 0;
        if (area == 3 && dw_random_between(random, 0, 49999) == 0) x = dw_random_between(random, 0, 1) ? NAN : INFINITY;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        source[i] = (uint16_t)(bits >> 16);
    }
}

static void ordinary_matrices(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{800, 896}, {2080, 4224}}; /* the second bypasses the caches */
    dw_context *reference = make_context(2, "ref");
    dw_random random = {test_seed};
    for (int shape = 0; shape < 2; shape++) {
        int64_t rows = shapes[shape][0], cols = shapes[shape][1];
        uint16_t *source = malloc((size_t)(rows * cols) * sizeof *source);
        dw_tensor from = dw_matrix(source, DW_BF16, rows, cols);
        for (int n = 0; n < SPECS; n++) {
            dw_quantize_spec spec = nth_spec(n);
            if (shape == 1 && (n & 3)) continue;
            fill_ordinary(&random, source, rows, cols);
            assert_as_reference(reference, &spec, &from);
        }
        free(source);
    }
    dw_context_destroy(reference);
}

/* BF16 words of which blocks of every kind that needs care are made, whatever their orientation: areas of 32 x 32, or
 * of 128 x 128 for square blocks. Kinds from 9 have an amax about the least that kernels serve in lanes, the even ones
 * among them one that is not rounded up. */
enum { EXTREME_KINDS = 24 };
static uint16_t extreme_word(dw_random *random, int kind) {
    static const int least[5] = {21, 22, 23, 37, 38};
    static const int lowest[4] = {20, 21, 23, 38}; /* exponent fields about the least that kernels serve in lanes */
    uint16_t sign = (uint16_t)(dw_random_between(random, 0, 1) << 15);
    int exponent = 127, fraction = (int)dw_random_between(random, 0, 127);
    switch (kind) {
    case 0: return sign; /* zeros with signs */
    case 1: exponent = 0; break;
    case 2: exponent = lowest[dw_random_between(random, 0, 3)] + (int)dw_random_between(random, -1, 1); break;
    case 3: exponent = 254 - (int)dw_random_between(random, 0, 1); break;
    case 4: exponent -= (int)dw_random_between(random, 0, 24); break; /* many small elements */
    case 5: fraction = 0x5E + fraction % 8; break;                    /* about 1.75 */
    case 6: return dw_random_between(random, 0, 7) ? (uint16_t)(sign | 0x3F80 | fraction) : sign;
    case 7: exponent -= dw_random_between(random, 0, 499) ? 0 : 14 + fraction % 6; break; /* one here and there */
    case 8: exponent += dw_random_between(random, 0, 99) ? 0 : 128; break;                /* infinity, NaN */
    default:
        exponent = (kind < 19 ? least[(kind - 9) / 2] : exponent) - (int)dw_random_between(random, 0, 3);
        if (kind % 2 == 0) fraction %= 0x61;
        break;
    }
    return (uint16_t)(sign | exponent << 7 | fraction);
}

/* An output whose lines are apart, aligned or not, filled with 0xC3. */
static dw_quantized make_apart(const dw_quantize_spec *spec, int64_t rows, int64_t cols, int64_t ld) {
    dw_quantized quantized = make_quantized(spec, rows, cols);
    free(quantized.data.data);
    void *data = NULL;
    assert_int_equal(posix_memalign(&data, 64, (size_t)(rows * ld)), 0);
    memset(data, 0xC3, (size_t)(rows * ld));
    quantized.data = strided(data, spec->element, rows, cols, ld);
    return quantized;
}

/* That a result with lines apart equals a dense one, with nothing written between the lines. */
static void assert_same_apart(const dw_quantized *apart, const dw_quantized *dense) {
    int64_t rows = dense->data.shape[0], cols = dense->data.shape[1], ld = apart->data.strides[0];
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *line = (const uint8_t *)apart->data.data + r * ld;
        assert_memory_equal(line, (const uint8_t *)dense->data.data + r * cols, (size_t)cols);
        for (int64_t c = cols; c < ld; c++)
            assert_int_equal(line[c], 0xC3);
    }
    assert_memory_equal(apart->scale.data, dense->scale.data, scale_bytes_of(dense));
}

/* Blocks and elements that need care among those that do not, in matrices of whole and of ragged pieces, in every
 * layout of the scales, with lines apart in source and outputs. */
static void extremes_in_pieces(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{256, 1024, 64}, {416, 705, 7}, {640, 1152, 32}}; /* and what lies between */
    const char *isas[3];
    int count = runnable_isas(isas);
    dw_context *reference = make_context(2, "ref");
    dw_random random = {test_seed};
    for (int n = 0; n < 3 * SPECS * DW_SCALE_LAYOUT_COUNT; n++) {
        const int64_t *shape = shapes[n % 3];
        int64_t rows = shape[0], cols = shape[1], ld = cols + shape[2];
        dw_quantize_spec spec = nth_spec(n / 3 % SPECS);
        spec.layout = (dw_scale_layout)(n / 3 / SPECS);
        if (spec.layout == DW_SCALE_TCGEN05 && spec.block != DW_BLOCK_1X32) continue;
        uint16_t *source = malloc((size_t)(rows * ld) * sizeof *source);
        uint8_t kinds[20][37]; /* 640 / 32, 1152 / 32 and one more */
        for (int i = 0; i < 20 * 37; i++)
            kinds[i / 37][i % 37] = (uint8_t)dw_random_between(&random, 0, EXTREME_KINDS - 1);
        int64_t side = spec.block == DW_BLOCK_128X128 ? 128 : 32; /* of areas, in each of which one element differs */
        for (int64_t i = 0; i < rows * ld; i++) {
            int64_t area = dw_random_between(&random, 0, side * side - 1) ? i % ld / side : 0;
            source[i] = extreme_word(&random, kinds[i / ld / side][area]);
        }
        dw_tensor from = strided(source, DW_BF16, rows, cols, ld);
        dw_quantized right = make_quantized(&spec, rows, cols), right_t = make_quantized(&spec, cols, rows);
        ASSERT_OK(dw_quantize(reference, &spec, &from, &right, &right_t, NULL));
        for (int i = 0; i < count; i++) {
            dw_context *context = make_context(1, isas[i]);
            dw_quantized row = make_apart(&spec, rows, cols, cols + shape[2]);
            dw_quantized transposed = make_apart(&spec, cols, rows, rows + shape[2]);
            ASSERT_OK(dw_quantize(context, &spec, &from, &row, &transposed, NULL));
            assert_same_apart(&row, &right);
            assert_same_apart(&transposed, &right_t);
            memset(row.data.data, 0xC3, (size_t)(rows * (cols + shape[2])));
            ASSERT_OK(dw_quantize(context, &spec, &from, &row, NULL, NULL));
            assert_same_apart(&row, &right);
            memset(transposed.data.data, 0xC3, (size_t)(cols * (rows + shape[2])));
            ASSERT_OK(dw_quantize(context, &spec, &from, NULL, &transposed, NULL));
            assert_same_apart(&transposed, &right_t);
            free_quantized(&row);
            free_quantized(&transposed);
            dw_context_destroy(context);
        }
        free_quantized(&right);
        free_quantized(&right_t);
        free(source);
    }
    dw_context_destroy(reference);
}

/* amax just below, at and just above 1.75 * 2^k for every k that FP32 has. */
static void check_boundaries(dw_context *context) {
    float source[3][32];
    for (int k = -126; k < 128; k++)
        for (int n = 0; n < SPECS; n++) {
            dw_quantize_spec spec = nth_spec(n);
            spec.block = DW_BLOCK_1X32;
            float at = (float)ldexp(1.75, k), amax[3] = {nextafterf(at, 0), at, nextafterf(at, INFINITY)};
            for (int r = 0; r < 3; r++)
                for (int c = 0; c < 32; c++)
                    source[r][c] = c == 11 ? -amax[r] : (float)ldexp(amax[r], -c);
            dw_tensor from = dw_matrix(source, DW_F32, 3, 32);
            dw_quantized to = make_quantized(&spec, 3, 32);
            ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, NULL));
            assert_stated(&spec, &to, source, DW_F32, 32, 1);
            const uint8_t *codes = to.scale.data;
            int emax = spec.element == DW_E4M3 ? 8 : 15, code = k - emax + 127;
            if (code > 0) {
                assert_int_equal(codes[0], code);
                assert_int_equal(codes[1], code);
                assert_int_equal(codes[2], code + (spec.rounding == DW_ROUND_RCEIL));
            }
            free_quantized(&to);
        }
}

static void largest_magnitudes_at_the_boundary(void **state) {
    (void)state;
    on_every_isa(check_boundaries);
}

/* Bytes worked out by hand. */
static void check_known_blocks(dw_context *context) {
    float source[5][32] = {{0}};
    source[0][0] = 448, source[0][1] = -1, source[0][2] = 0.3f, source[0][3] = -0.0f; /* code 127: scale 1 */
    source[1][0] = 450;                                                               /* rceil 128, floor 127 */
    source[2][5] = NAN, source[2][0] = 1;
    source[3][31] = -INFINITY;
    source[4][0] = 0x1p-149f; /* code 0: scaled by 2^127 it is 2^-22, below half of 2^-9 */
    dw_tensor from = dw_matrix(source, DW_F32, 5, 32);
    for (int rounding = 0; rounding < 2; rounding++) {
        dw_quantize_spec spec = {
            .element = DW_E4M3, .block = DW_BLOCK_1X32, .rounding = (dw_rounding)rounding, .layout = DW_SCALE_ROW};
        dw_quantized to = make_quantized(&spec, 5, 32);
        ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, NULL));
        const uint8_t *data = to.data.data, *codes = to.scale.data;
        const uint8_t first[6] = {0x7E, 0xB8, 0x2A, 0x80, 0, 0};
        assert_memory_equal(data, first, 6);
        assert_int_equal(data[32], rounding ? 0x7E : 0x76); /* 450 / 2 = 225 becomes 224 */
        for (int c = 0; c < 64; c++)
            assert_int_equal(data[64 + c], 0x7F);
        assert_int_equal(data[128], 0);
        const uint8_t wanted[5] = {127, rounding ? 127 : 128, 255, 255, 0};
        assert_memory_equal(codes, wanted, 5);
        free_quantized(&to);
    }
}

static void known_blocks(void **state) {
    (void)state;
    on_every_isa(check_known_blocks);
}

/* What dequantization gives back is the product of element and scale, in every layout. */
static void check_round_trip(dw_context *context) {
    enum { ROWS = 141, COLS = 197 };
    dw_random random = {test_seed};
    float *source = malloc(ROWS * COLS * 4), *target = malloc(ROWS * COLS * 4);
    dw_fill_adversarial(&random, source, DW_F32, ROWS, COLS, COLS);
    dw_tensor from = dw_matrix(source, DW_F32, ROWS, COLS), back = dw_matrix(target, DW_F32, ROWS, COLS);
    for (int n = 0; n < SPECS; n++) {
        dw_quantize_spec spec = nth_spec(n);
        number_format format = format_of(spec.element);
        dw_quantized plain = make_quantized(&spec, ROWS, COLS);
        ASSERT_OK(dw_quantize(context, &spec, &from, &plain, NULL, NULL));
        const uint8_t *data = plain.data.data, *codes = plain.scale.data;
        int64_t wide = spec.block == DW_BLOCK_1X32 ? 32 : 128, high = spec.block == DW_BLOCK_128X128 ? 128 : 1;
        for (int layout = 0; layout < DW_SCALE_LAYOUT_COUNT; layout++) {
            spec.layout = (dw_scale_layout)layout;
            if (spec.layout == DW_SCALE_TCGEN05 && spec.block != DW_BLOCK_1X32) continue;
            dw_quantized to = make_quantized(&spec, ROWS, COLS);
            ASSERT_OK(dw_quantize(context, &spec, &from, &to, NULL, NULL));
            assert_memory_equal(to.data.data, data, ROWS * COLS);
            memset(target, 0xC3, ROWS * COLS * 4);
            ASSERT_OK(dw_dequantize(context, &spec, &to, &back, NULL));
            for (int64_t i = 0; i < ROWS * COLS; i++) {
                int code = codes[i / COLS / high * ((COLS + wide - 1) / wide) + i % COLS / wide];
                double wanted = code == 255 ? (double)NAN : ldexp(format.magnitude[data[i] & 0x7F], code - 127);
                wanted = (double)(float)(data[i] & 0x80 ? -wanted : wanted); /* 2^128, from near FLT_MAX, is infinity */
                double got = (double)target[i];
                assert_true(isnan(wanted) ? isnan(got) : got == wanted && signbit(got) == signbit(wanted));
            }
            free_quantized(&to);
        }
        free_quantized(&plain);
        free(format.magnitude);
    }
    free(source);
    free(target);
}

static void round_trips(void **state) {
    (void)state;
    on_every_isa(check_round_trip);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_precision_input),
        cmocka_unit_test(adversarial_matrices),
        cmocka_unit_test(square_transposed_forms),
        cmocka_unit_test(several_pieces),
        cmocka_unit_test(ordinary_matrices),
        cmocka_unit_test(extremes_in_pieces),
        cmocka_unit_test(largest_magnitudes_at_the_boundary),
        cmocka_unit_test(known_blocks),
        cmocka_unit_test(round_trips),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
