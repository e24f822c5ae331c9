/* Quantization of a 128x128 tile in registers, along its rows, along its columns, or as one square block: the part
 * shared by every kernel that writes a transposed result.
 *
 * Who holds what: 256 threads, 8 warps. Warp w, lane (half, l), half = lane / 16, l = lane % 16, holds rows
 * 16 w + 8 half + (0..7) of the columns of its units: 16 bytes at column l * unit and, for FP32, a second 16 bytes 64
 * columns on. So a half warp reads 256 contiguous bytes of one row, row amax is a shuffle among 16 lanes or fewer,
 * column amax is first a maximum inside the lane, and a lane owns 8 consecutive rows of a column: 8 bytes of the
 * transposed result.
 *
 * The transposed bytes pass through shared memory, [128 columns][128 bytes]. Lanes of a half warp write 8-byte chunks
 * of 16 different columns at the same chunk index; XOR with the writer's l spreads them over all banks, and the reader,
 * who takes 16 bytes of a column, undoes it (an odd XOR swaps the halves of its 16 bytes). */
#ifndef DW_DEVICE_SQUARE_TILE_CUH
#define DW_DEVICE_SQUARE_TILE_CUH

#include "common/row_tile.cuh"

#define TILE 128
#define TILE_THREADS 256
#define TILE_WARPS 8
#define LANE_ROWS 8

/* Groups of TILE_THREADS threads in a thread block, each with a tile of its own; a kernel that has several defines this
 * before it includes this file. Named barriers 1.. are the groups'. */
#ifndef TILE_GROUPS
#define TILE_GROUPS 1
#endif

/* The transposed bytes pass through shared memory in this many parts, each of some columns of every unit: 1 or, for
 * BF16, 2, where a kernel that has no room for more defines it before it includes this file. */
#ifndef TILE_PARTS
#define TILE_PARTS 1
#endif

/* This thread's number in its group. */
DW_DEVICE int tile_thread(void) {
    return TILE_GROUPS == 1 ? (int)threadIdx.x : (int)threadIdx.x % TILE_THREADS;
}

/* A barrier of the group. */
DW_DEVICE void tile_barrier(void) {
    if (TILE_GROUPS == 1) {
        __syncthreads();
    } else {
        bar_sync(1 + threadIdx.x / TILE_THREADS, TILE_THREADS);
    }
}

typedef struct square_tile_shared {
    uint4 transposed[TILE * TILE / 16 / TILE_PARTS];
    union {
        uint32_t column_amax_f32[TILE_WARPS][TILE];     /* FP16 uses the first half of each row, packed */
        uint32_t column_amax[2 * TILE_WARPS][TILE / 2]; /* BF16: [8 rows][two columns] */
    };
    union {
        float column_inverse[4][TILE]; /* [rows / B][column] */
        uint32_t column_inverse_pairs[4][TILE / 2];
    };
    uint8_t row_codes[4 * TILE]; /* [block][row] */
    uint8_t column_codes[4 * TILE];
    uint32_t warp_amax[TILE_WARPS];
} square_tile_shared;

/* Units of one lane: [row][0], and [row][1] for FP32. */
typedef struct square_tile_units {
    uint4 v[LANE_ROWS][2];
} square_tile_units;

typedef struct square_tile_place {
    int row0, col0; /* of the tile */
    int rows, cols; /* of the matrix */
    int lane_row;   /* first of this lane's rows, in the tile */
    int lane_unit;  /* l */
} square_tile_place;

DW_DEVICE square_tile_place place_in_tile(int row0, int col0, int rows, int cols) {
    const int thread = tile_thread();
    square_tile_place at = {row0, col0, rows, cols, thread / 16 * LANE_ROWS, thread % 16};
    return at;
}

/* Which tile block `index` of the grid takes. */
DW_DEVICE void raster_tile(const dw_cuda_raster *raster, uint32_t index, int *tile_row, int *tile_col) {
    const uint32_t band_tiles = (uint32_t)(raster->band * raster->tile_cols);
    const uint32_t band = index / band_tiles, inside = index % band_tiles;
    const uint32_t first = band * (uint32_t)raster->band;
    const uint32_t height = min((uint32_t)raster->band, (uint32_t)raster->tile_rows - first);
    *tile_row = (int)(first + inside % height);
    *tile_col = (int)(inside / height);
}

/* Column in the tile of element i of this lane's units. */
DW_DEVICE int lane_column(const square_tile_place *at, int i, int source) {
    const int n = unit_elements(source);
    return i / n * 64 + at->lane_unit * n + i % n;
}

DW_DEVICE bool tile_is_whole(const square_tile_place *at) {
    return at->row0 + TILE <= at->rows && at->col0 + TILE <= at->cols;
}

DW_DEVICE void load_tile(square_tile_units *t, const square_tile_place *at, const void *matrix, int64_t ld, int vector,
                         int source) {
    const int units = source == DW_F32 ? 2 : 1;
    if (vector && tile_is_whole(at)) {
        const int size = source == DW_F32 ? 4 : 2;
        const char *from = (const char *)matrix +
                           ((at->row0 + at->lane_row) * ld + at->col0 + at->lane_unit * unit_elements(source)) * size;
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
            for (int k = 0; k < units; k++) {
                t->v[i][k] = ld_global_no_allocate_v4(from + i * ld * size + k * 256);
            }
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int k = 0; k < units; k++) {
            t->v[i][k] = load_unit(matrix, ld, at->row0 + at->lane_row + i,
                                   at->col0 + lane_column(at, k * unit_elements(source), source), at->rows, at->cols,
                                   vector, source);
        }
    }
}

/* Stops the compiler from keeping what it computed from the units before this point: without it the unpacked floats of
 * one orientation are held for the other, twice the registers the packed tile takes. */
DW_DEVICE void forget_unpacked(square_tile_units *t, int source) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        asm volatile("" : "+r"(t->v[i][0].x), "+r"(t->v[i][0].y), "+r"(t->v[i][0].z), "+r"(t->v[i][0].w));
        if (source == DW_F32) {
            asm volatile("" : "+r"(t->v[i][1].x), "+r"(t->v[i][1].y), "+r"(t->v[i][1].z), "+r"(t->v[i][1].w));
        }
    }
}

/* ---- along rows ----------------------------------------------------------------------------------------------------
 */

/* Stores the bytes of one row of this lane. `whole`: as below. */
DW_DEVICE void store_tile_row(const dw_cuda_quantized *out, const square_tile_place *at, const square_tile_units *t,
                              int i, float inverse0, float inverse1, bool whole, int source, int element) {
    const int n = unit_elements(source), units = source == DW_F32 ? 2 : 1;
    const int row = at->row0 + at->lane_row + i;
#pragma unroll
    for (int k = 0; k < units; k++) {
        const int col = at->col0 + lane_column(at, k * n, source);
        const float inverse = k == 0 ? inverse0 : inverse1;
        if (whole) {
            uint8_t *to = out->data + row * out->ld + col;
            uint32_t low = quantize_quarter(t->v[i][k], 0, inverse, source, element);
            if (n == 8) {
                st_global_v2(to, low, quantize_quarter(t->v[i][k], 1, inverse, source, element));
            } else {
                st_global_u32(to, low);
            }
        } else {
            store_unit(out, row, col, at->rows, at->cols, t->v[i][k], inverse, source, element);
        }
    }
}

/* Row blocks of the tile: elements to memory, codes to shared memory. `whole`: the tile is inside the matrix and `out`
 * aligned. */
DW_DEVICE void quantize_tile_rows(square_tile_shared *s, const dw_cuda_quantized *out, const square_tile_place *at,
                                  const square_tile_units *t, uint32_t round_add, bool whole, int source, int element,
                                  int block) {
    if (source == DW_F32) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            uint32_t amax0 = unit_amax(t->v[i][0], source), amax1 = unit_amax(t->v[i][1], source);
            if (block == DW_BLOCK_1X128) {
                amax0 = max(amax0, amax1);
            }
#pragma unroll
            for (int distance = block == DW_BLOCK_1X128 ? 8 : 4; distance > 0; distance /= 2) {
                amax0 = max(amax0, __shfl_xor_sync(0xFFFFFFFFu, amax0, distance));
                if (block == DW_BLOCK_1X32) {
                    amax1 = max(amax1, __shfl_xor_sync(0xFFFFFFFFu, amax1, distance));
                }
            }
            uint32_t code0 = scale_code(amax0, round_add, element), code1 = code0;
            if (block == DW_BLOCK_1X32) {
                code1 = scale_code(amax1, round_add, element);
                if (at->lane_unit % 8 == 0) {
                    s->row_codes[at->lane_unit / 8 * TILE + at->lane_row + i] = (uint8_t)code0;
                    s->row_codes[(2 + at->lane_unit / 8) * TILE + at->lane_row + i] = (uint8_t)code1;
                }
            } else if (at->lane_unit == 0) {
                s->row_codes[at->lane_row + i] = (uint8_t)code0;
            }
            store_tile_row(out, at, t, i, scale_inverse(code0), scale_inverse(code1), whole, source, element);
        }
        return;
    }
    const int lanes = block == DW_BLOCK_1X32 ? 4 : 16;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i += 2) {
        /* Two rows share a word through the shuffles. */
        uint32_t a = unit_amax(t->v[i][0], source), b = unit_amax(t->v[i + 1][0], source);
        uint32_t amax = max_u16x2(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
#pragma unroll
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            amax = max_u16x2(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
        }
        uint32_t code0 = scale_code(amax_as_f32(amax & 0xFFFFu, source), round_add, element);
        uint32_t code1 = scale_code(amax_as_f32(amax >> 16, source), round_add, element);
        if (at->lane_unit % lanes == 0) {
            uint8_t *codes = s->row_codes + at->lane_unit / lanes * TILE + at->lane_row + i;
            *(uint16_t *)codes = (uint16_t)(code0 | code1 << 8);
        }
        store_tile_row(out, at, t, i, scale_inverse(code0), 0.0f, whole, source, element);
        store_tile_row(out, at, t, i + 1, scale_inverse(code1), 0.0f, whole, source, element);
    }
}

/* ---- square blocks --------------------------------------------------------------------------------------------- */

/* The largest magnitude among this warp's units, also to shared memory. 16-bit sources: `amax` still has two maxima. */
DW_DEVICE uint32_t square_amax_partial(square_tile_shared *s, uint32_t amax, int source) {
    if (source != DW_F32) {
        amax = max(amax & 0xFFFFu, amax >> 16);
    }
    amax = __reduce_max_sync(0xFFFFFFFFu, amax);
    s->warp_amax[tile_thread() / 32] = amax;
    return amax;
}

/* That of the tile, given that of the own warp or zero. A barrier stands before. */
DW_DEVICE uint32_t square_amax(const square_tile_shared *s, uint32_t amax) {
#pragma unroll
    for (int w = 0; w < TILE_WARPS; w++) {
        amax = max(amax, s->warp_amax[w]);
    }
    return amax;
}

/* The scale of one square block at (r, c) of the grid, and the padding that the last block of a line owns. */
DW_DEVICE void store_square_scale(const dw_cuda_scale *s, int r, int c, int grid_rows, int grid_cols, uint32_t code) {
    store_scale(s, r, c, code);
    const int32_t padded_rows = r == grid_rows - 1 ? max(s->padded_rows, r + 1) : r + 1;
    const int32_t factor_cols = c == grid_cols - 1 ? max(s->factor_cols, c + 1) : c + 1;
    for (int i = r + 1; s->codes != NULL && i < padded_rows; i++) {
        s->codes[i * s->row_stride + c * s->col_stride] = 0;
    }
    for (int i = c + 1; s->factors != NULL && i < factor_cols; i++) {
        s->factors[r * s->factor_row_stride + i * s->factor_col_stride] = 0.0f;
    }
}

/* ---- along columns -------------------------------------------------------------------------------------------------
 */

/* Column maxima over this warp's 16 rows, and that of all of it where the block is square, to shared memory. */
DW_DEVICE void column_amax_partial(square_tile_shared *s, const square_tile_place *at, const square_tile_units *t,
                                   bool square, int source) {
    const int units = source == DW_F32 ? 2 : 1;
    uint32_t all = 0;
#pragma unroll
    for (int k = 0; k < units; k++) {
        uint32_t m[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            m[0] = larger(m[0], magnitude(t->v[i][k].x, source), source);
            m[1] = larger(m[1], magnitude(t->v[i][k].y, source), source);
            m[2] = larger(m[2], magnitude(t->v[i][k].z, source), source);
            m[3] = larger(m[3], magnitude(t->v[i][k].w, source), source);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            m[i] = larger(m[i], __shfl_xor_sync(0xFFFFFFFFu, m[i], 16), source);
        }
        if (tile_thread() % 32 < 16) {
            uint4 *to = (uint4 *)s->column_amax_f32[tile_thread() / 32] + k * 16 + at->lane_unit;
            *to = make_uint4(m[0], m[1], m[2], m[3]);
        }
        all = larger(all, larger(larger(m[0], m[1], source), larger(m[2], m[3], source), source), source);
    }
    if (square) {
        square_amax_partial(s, all, source);
    }
}

/* Joins the warps' maxima: codes and inverses of every column block of the tile. A barrier stands before and after. */
DW_DEVICE void column_scales(square_tile_shared *s, uint32_t round_add, bool square, int source, int element,
                             int block) {
    const int groups = block == DW_BLOCK_1X32 ? 4 : 1, warps = TILE_WARPS / groups;
    for (int i = tile_thread(); i < groups * TILE; i += TILE_THREADS) {
        const int column = i % TILE, group = i / TILE;
        uint32_t amax = square ? square_amax(s, 0) : 0;
#pragma unroll
        for (int w = 0; w < warps; w++) {
            const uint32_t *row = s->column_amax_f32[group * warps + w];
            amax = max(amax, source == DW_F32 ? row[column] : ((const uint16_t *)row)[column]);
        }
        uint32_t code = scale_code(amax_as_f32(amax, source), round_add, element);
        s->column_inverse[group][column] = scale_inverse(code);
        s->column_codes[group * TILE + column] = (uint8_t)code;
    }
}

/* This lane's elements, scaled per column (or all by `inverse` for a square block), into the shared transpose. */
DW_DEVICE void quantize_tile_columns(square_tile_shared *s, const square_tile_place *at, const square_tile_units *t,
                                     float inverse, int source, int element, int block) {
    const int n = unit_elements(source);
    const float *inverses = s->column_inverse[block == DW_BLOCK_1X32 ? at->lane_row / 32 : 0];
    uint2 *shared = (uint2 *)s->transposed;
    float4 scales[2];
    if (block != DW_BLOCK_128X128) {
        scales[0] = *(const float4 *)(inverses + lane_column(at, 0, source));
        scales[1] = *(const float4 *)(inverses + lane_column(at, 4, source));
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int column = lane_column(at, j, source);
        const float scale = block == DW_BLOCK_128X128 ? inverse
                            : j % 4 == 0              ? scales[j / 4].x
                            : j % 4 == 1              ? scales[j / 4].y
                            : j % 4 == 2              ? scales[j / 4].z
                                                      : scales[j / 4].w;
        float e[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            e[i] = unit_element(t->v[i][j / n], j % n, source) * scale;
        }
        shared[column * 16 + (at->lane_row / 8 ^ at->lane_unit)] =
            make_uint2(pack_fp8x4(e[0], e[1], e[2], e[3], element), pack_fp8x4(e[4], e[5], e[6], e[7], element));
    }
}

/* The shared transpose, or the part of it that is there, to memory: 8 lanes write the 128 bytes of a column. */
DW_DEVICE void store_tile_columns(const square_tile_shared *s, const dw_cuda_quantized *out,
                                  const square_tile_place *at, int part, int source) {
    const int passes = TILE * 8 / TILE_PARTS / TILE_THREADS, stride = TILE_THREADS / 8 * TILE_PARTS;
    const uint32_t unit = (uint32_t)unit_elements(source), own = unit / TILE_PARTS; /* columns of a unit in a part */
    const bool whole = out->vector && tile_is_whole(at);
    const uint32_t chunk = (uint32_t)tile_thread() % 8, slot = (uint32_t)tile_thread() / 8;
    const uint32_t first = slot / own * unit + (uint32_t)part * own + slot % own;
    const int row = at->row0 + (int)chunk * 16;
    uint8_t *to = out->data + (at->col0 + (int)first) * out->ld + row;
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        const uint32_t column = (uint32_t)(pass * stride) + first, writer = column / unit % 16;
        uint4 v = s->transposed[(uint32_t)(pass * TILE_THREADS) + slot * 8 + (chunk ^ writer / 2)];
        if (writer & 1) {
            v = make_uint4(v.z, v.w, v.x, v.y);
        }
        if (whole) {
            st_global_v4(to, v);
        } else if (at->col0 + (int)column < at->cols) {
#pragma unroll
            for (int i = 0; i < 16; i++) {
                uint32_t word = i < 4 ? v.x : i < 8 ? v.y : i < 12 ? v.z : v.w;
                if (row + i < at->rows) {
                    to[i] = (uint8_t)(word >> 8 * (i & 3));
                }
            }
        }
        to += stride * out->ld;
    }
}

/* The scales of the transposed result, of which column_codes holds those of every column block (of a square block:
 * all the same). */
DW_DEVICE void store_column_scales(const square_tile_shared *s, const dw_cuda_quantized *out,
                                   const square_tile_place *at, bool square, int block) {
    const int thread = tile_thread();
    if (square) {
        if (thread == 0) {
            store_square_scale(&out->scale, at->col0 / TILE, at->row0 / TILE, (at->cols + TILE - 1) / TILE,
                               (at->rows + TILE - 1) / TILE, s->column_codes[0]);
        }
        return;
    }
    store_scales(&out->scale, s->column_codes, TILE, TILE / block_columns(block), at->col0,
                 at->row0 / block_columns(block), thread, TILE_THREADS);
}

#include "common/bf16_tile.cuh"

/* ---- the whole tile
 * -------------------------------------------------------------------------------------------------- */

/* 1xB blocks of a tile held in registers, in the orientations asked for; `square`, which goes with 1x128: the transpose
 * as one square block. Begins with `s` free and ends with it in use: a caller that goes on to another tile puts a
 * barrier between. */
DW_DEVICE void quantize_square_tile(square_tile_shared *s, const dw_cuda_quantized *row,
                                    const dw_cuda_quantized *transposed, const square_tile_place *at,
                                    square_tile_units *t, uint32_t round_add, bool want_row, bool want_transposed,
                                    bool square, int source, int element, int block) {
    if (source == DW_BF16) {
        quantize_bf16_tile(s, row, transposed, at, t, round_add, want_row, want_transposed, square, element, block);
        return;
    }
    const int thread = tile_thread(), block_cols = block_columns(block), blocks = TILE / block_cols;
    if (want_transposed) {
        column_amax_partial(s, at, t, square, source);
    }
    if (want_row) {
        if (row->vector && tile_is_whole(at)) {
            quantize_tile_rows(s, row, at, t, round_add, true, source, element, block);
        } else {
            quantize_tile_rows(s, row, at, t, round_add, false, source, element, block);
        }
    }
    forget_unpacked(t, source);
    tile_barrier();
    if (want_transposed) {
        column_scales(s, round_add, square, source, element, block);
        tile_barrier();
        quantize_tile_columns(s, at, t, 0.0f, source, element, block);
        tile_barrier();
        store_tile_columns(s, transposed, at, 0, source);
        store_column_scales(s, transposed, at, square, block);
    }
    if (want_row) {
        store_scales(&row->scale, s->row_codes, TILE, blocks, at->row0, at->col0 / block_cols, thread, TILE_THREADS);
    }
}

#endif
