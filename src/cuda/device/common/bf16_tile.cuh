/* quantize_square_tile for BF16 (included by square_tile.cuh, which says who holds what): the same bytes from packed
 * arithmetic, two elements an instruction where the processor allows it.
 *
 * Two facts carry it. Scaling by 2^-e is exact in BF16, as in FP32: BF16 has FP32's exponents, and a product too small
 * for it converts to zero either way. And amax, exponent and scale of two blocks fit the halves of one word, since
 * adding 0x1F to a BF16 magnitude carries into its exponent exactly when adding 0x1FFFFF does in FP32.
 *
 * Row amax of 8 rows over the lanes of a block is a reduction that also deals the rows out: at each of the first two
 * steps a lane passes on half of the rows it holds, so that at the end every lane knows one pair of rows, computes its
 * scale once, and hands it to the others. */
#ifndef DW_DEVICE_BF16_TILE_CUH
#define DW_DEVICE_BF16_TILE_CUH

/* Codes and scale inverses (BF16) of two blocks, one in each half. */
typedef struct scale_pair {
    uint32_t codes, inverses;
} scale_pair;

DW_DEVICE scale_pair bf16_scale_pair(uint32_t amax, uint32_t round_add, int element) {
    const uint32_t bias = (element == DW_E4M3 ? 8u : 15u) * 0x10001u;
    const uint32_t exponent = (amax + (round_add >> 16) * 0x10001u) >> 7 & 0x01FF01FFu;
    const uint32_t code = max_u16x2(exponent, bias) - bias;
    const uint32_t nonfinite = (amax + 0x00800080u) >> 15 & 0x00010001u;
    scale_pair pair = {code | nonfinite * 0xFFu, (0x7F007F00u - (code << 7)) | nonfinite * 0x7FFFu};
    return pair;
}

/* Elements 0, 1 of `a` and of `b`, both already scaled, as four FP8 bytes. */
DW_DEVICE uint32_t pack_bf16x4(uint32_t a, uint32_t b, int element) {
    return pack_fp8x4(__uint_as_float(a << 16), __uint_as_float(a & 0xFFFF0000u), __uint_as_float(b << 16),
                      __uint_as_float(b & 0xFFFF0000u), element);
}

/* Column maxima of this lane's rows (a square block: those of the warp's units) to shared memory, and row maxima as
 * words of two rows. */
DW_DEVICE void bf16_amax(square_tile_shared *s, const square_tile_place *at, const square_tile_units *t,
                         uint32_t rows[4], bool want_transposed, bool square) {
    uint4 column = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i += 2) {
        uint32_t row[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint4 v = t->v[i + k][0];
            const uint4 m = make_uint4(magnitude(v.x, DW_BF16), magnitude(v.y, DW_BF16), magnitude(v.z, DW_BF16),
                                       magnitude(v.w, DW_BF16));
            row[k] = max_u16x2(max_u16x2(m.x, m.y), max_u16x2(m.z, m.w));
            column = make_uint4(max_u16x2(column.x, m.x), max_u16x2(column.y, m.y), max_u16x2(column.z, m.z),
                                max_u16x2(column.w, m.w));
        }
        rows[i / 2] = max_u16x2(__byte_perm(row[0], row[1], 0x5410), __byte_perm(row[0], row[1], 0x7632));
    }
    if (square) {
        square_amax_partial(s, max_u16x2(max_u16x2(column.x, column.y), max_u16x2(column.z, column.w)), DW_BF16);
    } else if (want_transposed) {
        *(uint4 *)&s->column_amax[at->lane_row / LANE_ROWS][at->lane_unit * 4] = column;
    }
}

/* The maximum over the lanes of a block of one pair of rows: pair number lane_unit / (lanes / 4) % 4. */
DW_DEVICE uint32_t deal_row_amax(const uint32_t rows[4], const square_tile_place *at, int lanes) {
    const bool upper = at->lane_unit & lanes / 2, odd = at->lane_unit & lanes / 4;
    uint32_t kept[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t passed = upper ? rows[i] : rows[i + 2];
        kept[i] = max_u16x2(upper ? rows[i + 2] : rows[i], __shfl_xor_sync(0xFFFFFFFFu, passed, lanes / 2));
    }
    uint32_t amax =
        max_u16x2(odd ? kept[1] : kept[0], __shfl_xor_sync(0xFFFFFFFFu, odd ? kept[0] : kept[1], lanes / 4));
#pragma unroll
    for (int distance = lanes / 8; distance > 0; distance /= 2) {
        amax = max_u16x2(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
    }
    return amax;
}

/* Row blocks: elements to memory, codes to shared memory. */
DW_DEVICE void quantize_bf16_rows(square_tile_shared *s, const dw_cuda_quantized *out, const square_tile_place *at,
                                  const square_tile_units *t, const uint32_t rows[4], uint32_t round_add, bool whole,
                                  int element, int block) {
    const int lanes = block == DW_BLOCK_1X32 ? 4 : 16;
    const scale_pair mine = bf16_scale_pair(deal_row_amax(rows, at, lanes), round_add, element);
    if (at->lane_unit % (lanes / 4) == 0) {
        const int pair = at->lane_unit / (lanes / 4) % 4;
        *(uint16_t *)&s->row_codes[at->lane_unit / lanes * TILE + at->lane_row + 2 * pair] =
            (uint16_t)__byte_perm(mine.codes, 0, 0x4420);
    }
    const int col = at->col0 + at->lane_unit * 8;
    uint8_t *to = out->data + (at->row0 + at->lane_row) * out->ld + col;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const uint32_t pair = __shfl_sync(0xFFFFFFFFu, mine.inverses, i / 2 * (lanes / 4), lanes);
        const uint32_t inverse = __byte_perm(pair, 0, i & 1 ? 0x3232 : 0x1010);
        const uint4 v = t->v[i][0];
        if (whole) {
            st_global_v2(to, pack_bf16x4(mul_rn_bf16x2(v.x, inverse), mul_rn_bf16x2(v.y, inverse), element),
                         pack_bf16x4(mul_rn_bf16x2(v.z, inverse), mul_rn_bf16x2(v.w, inverse), element));
            to += out->ld;
        } else {
            store_unit(out, at->row0 + at->lane_row + i, col, at->rows, at->cols, v, __uint_as_float(inverse << 16),
                       DW_BF16, element);
        }
    }
}

/* Codes and inverses of two columns and one block of rows a thread. */
DW_DEVICE void bf16_column_scales(square_tile_shared *s, uint32_t round_add, bool square, int element, int block) {
    const int groups = block == DW_BLOCK_1X32 ? 4 : 1, parts = 16 / groups;
    const int thread = tile_thread(), group = thread / (TILE / 2), pair = thread % (TILE / 2);
    if (group < groups) {
        uint32_t amax = 0;
        if (square) {
            amax = square_amax(s, 0) * 0x10001u;
        } else {
#pragma unroll
            for (int i = 0; i < parts; i++) {
                amax = max_u16x2(amax, s->column_amax[group * parts + i][pair]);
            }
        }
        const scale_pair scale = bf16_scale_pair(amax, round_add, element);
        s->column_inverse_pairs[group][pair] = scale.inverses;
        ((uint16_t *)s->column_codes)[group * (TILE / 2) + pair] = (uint16_t)__byte_perm(scale.codes, 0, 0x4420);
    }
}

/* This lane's elements of a part of the columns, scaled along these, into the shared transpose. */
DW_DEVICE void quantize_bf16_columns(square_tile_shared *s, const square_tile_place *at, const square_tile_units *t,
                                     int part, int element, int block) {
    const int group = block == DW_BLOCK_1X32 ? at->lane_row / 32 : 0, pairs = 4 / TILE_PARTS;
    const uint4 inverses = *(const uint4 *)&s->column_inverse_pairs[group][at->lane_unit * 4];
    uint2 *to = (uint2 *)s->transposed + at->lane_unit * (32 * pairs) + (at->lane_row / 8 ^ at->lane_unit);
#pragma unroll
    for (int n = 0; n < pairs; n++) {
        const int k = part * pairs + n;
        uint32_t word[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            const uint4 v = t->v[i][0];
            word[i] = mul_rn_bf16x2(k == 0   ? v.x
                                    : k == 1 ? v.y
                                    : k == 2 ? v.z
                                             : v.w,
                                    k == 0   ? inverses.x
                                    : k == 1 ? inverses.y
                                    : k == 2 ? inverses.z
                                             : inverses.w);
        }
        float low[LANE_ROWS], high[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            low[i] = __uint_as_float(word[i] << 16);
            high[i] = __uint_as_float(word[i] & 0xFFFF0000u);
        }
        to[32 * n] = make_uint2(pack_fp8x4(low[0], low[1], low[2], low[3], element),
                                pack_fp8x4(low[4], low[5], low[6], low[7], element));
        to[32 * n + 16] = make_uint2(pack_fp8x4(high[0], high[1], high[2], high[3], element),
                                     pack_fp8x4(high[4], high[5], high[6], high[7], element));
    }
}

/* As quantize_square_tile, but `s` may be in use by the same threads' tile before: no barrier is needed between. */
DW_DEVICE void quantize_bf16_tile(square_tile_shared *s, const dw_cuda_quantized *row,
                                  const dw_cuda_quantized *transposed, const square_tile_place *at,
                                  square_tile_units *t, uint32_t round_add, bool want_row, bool want_transposed,
                                  bool square, int element, int block) {
    const int thread = tile_thread(), block_cols = block_columns(block), blocks = TILE / block_cols;
    uint32_t rows[4];
    bf16_amax(s, at, t, rows, want_transposed, square);
    if (want_row) {
        if (row->vector && tile_is_whole(at)) {
            quantize_bf16_rows(s, row, at, t, rows, round_add, true, element, block);
        } else {
            quantize_bf16_rows(s, row, at, t, rows, round_add, false, element, block);
        }
    }
    forget_unpacked(t, DW_BF16);
    tile_barrier();
    if (want_transposed) {
        bf16_column_scales(s, round_add, square, element, block);
    }
    if (want_row) {
        /* From the last threads on: with one block a row the first ones are busy with columns. */
        store_scales(&row->scale, s->row_codes, TILE, blocks, at->row0, at->col0 / block_cols,
                     TILE_THREADS - 1 - thread, TILE_THREADS);
    }
    tile_barrier();
    if (want_transposed) {
#pragma unroll
        for (int part = 0; part < TILE_PARTS; part++) {
            if (part > 0) {
                tile_barrier();
            }
            quantize_bf16_columns(s, at, t, part, element, block);
            tile_barrier();
            store_tile_columns(s, transposed, at, part, DW_BF16);
        }
        store_column_scales(s, transposed, at, square, block);
    }
}

#endif
