#include "registry/selftest_data.h"

#include "formats/decode.h"

enum { PATCH = 32 };

typedef enum pattern {
    PLAIN,      /* magnitudes within a few powers of two, as in a network */
    EXPONENTS,  /* any finite encoding of the type */
    ZEROS,      /* both signs */
    SUBNORMALS, /* of the type, and its smallest normals */
    TIES,       /* half-way between neighbouring elements once scaled */
    BOUNDARY,   /* amax one unit below, at, or one unit above 1.75 * 2^k */
    SPARSE,     /* one element among zeros */
    ONE_NAN,
    ONE_INFINITY,
    LARGEST, /* near the largest finite number of the type */
    PATTERNS
} pattern;

uint64_t dw_random_next(dw_random *random) {
    /* splitmix64: any seed will do, 0 included. */
    uint64_t z = random->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int64_t dw_random_between(dw_random *random, int64_t low, int64_t high) {
    return low + (int64_t)(dw_random_next(random) % (uint64_t)(high - low + 1));
}

/* The patch's own choices, drawn once. */
typedef struct patch_kind {
    pattern kind;
    int exponent;           /* field value that PLAIN, TIES and BOUNDARY stay near */
    int64_t special;        /* index in the patch of the odd one out */
    uint32_t special_value; /* its encoding */
} patch_kind;

static patch_kind draw_patch(dw_random *random, dw_float_format format) {
    int fields =
        (int)(format.infinity >> format.fraction_bits); /* exponent fields of finite numbers: 0 to fields - 1 */
    uint32_t unit = 1u << format.fraction_bits;
    patch_kind patch = {.kind = (pattern)dw_random_between(random, 0, PATTERNS - 1),
                        .exponent = (int)dw_random_between(random, 1, fields - 1),
                        .special = dw_random_between(random, 0, PATCH * PATCH - 1)};
    /* Faults are rarer than the rest: a block that holds one says nothing about its other elements. */
    if ((patch.kind == ONE_NAN || patch.kind == ONE_INFINITY) && dw_random_between(random, 0, 3)) patch.kind = PLAIN;
    uint32_t sign = (uint32_t)(dw_random_next(random) & 1) << format.sign_shift;
    switch (patch.kind) {
    case ONE_NAN:
        patch.special_value = sign | format.infinity | (uint32_t)dw_random_between(random, 1, unit - 1);
        break;
    case ONE_INFINITY: patch.special_value = sign | format.infinity; break;
    case SPARSE: patch.special_value = sign | (uint32_t)dw_random_between(random, 1, format.infinity - 1); break;
    case BOUNDARY:
        patch.special_value = sign | (((uint32_t)patch.exponent << format.fraction_bits) + unit / 4 * 3 +
                                      (uint32_t)dw_random_between(random, 0, 2) - 1);
        break;
    default: patch.special = -1; break;
    }
    return patch;
}

static uint32_t draw_value(dw_random *random, dw_float_format format, const patch_kind *patch) {
    uint32_t fraction = (1u << format.fraction_bits) - 1;
    uint32_t bits = (uint32_t)dw_random_next(random);
    uint32_t sign = (bits >> 31) << format.sign_shift;
    int field = patch->exponent;
    switch (patch->kind) {
    case ZEROS:
    case SPARSE: return sign;
    case EXPONENTS: return sign | (uint32_t)dw_random_between(random, 0, format.infinity - 1);
    case SUBNORMALS: return sign | (bits & (2 * fraction + 1));
    case LARGEST: return sign | (format.infinity - 1 - (bits & 0xF));
    case TIES:
        /* Only the bits down to half of an E4M3 or E5M2 unit, or one unit of the type beside that. */
        field -= (int)dw_random_between(random, 0, 24);
        fraction &= bits & ~(fraction >> 4);
        fraction += (uint32_t)dw_random_between(random, 0, 7) == 0;
        break;
    case BOUNDARY:
        field -= (int)dw_random_between(random, 1, 20);
        fraction &= bits;
        break;
    default:
        field -= (int)dw_random_between(random, 0, 6);
        fraction &= bits;
        break;
    }
    return sign | (uint32_t)(field > 0 ? field : 0) << format.fraction_bits | fraction;
}

void dw_fill_adversarial(dw_random *random, void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    dw_float_format format = dw_float(dtype);
    for (int64_t r0 = 0; r0 < rows; r0 += PATCH) {
        for (int64_t c0 = 0; c0 < cols; c0 += PATCH) {
            patch_kind patch = draw_patch(random, format);
            for (int64_t i = 0; i < PATCH * PATCH; i++) {
                int64_t r = r0 + i / PATCH, c = c0 + i % PATCH;
                if (r >= rows || c >= cols) continue;
                uint32_t bits = i == patch.special ? patch.special_value : draw_value(random, format, &patch);
                dw_store_bits(data, dtype, r * ld + c, bits);
            }
        }
    }
}
