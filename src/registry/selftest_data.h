/* Random and adversarial inputs for self-tests and tests: reproducible from a seed. */
#ifndef DW_REGISTRY_SELFTEST_DATA_H
#define DW_REGISTRY_SELFTEST_DATA_H

#include "deepwell/quantize.h"

typedef struct dw_random {
    uint64_t state;
} dw_random;

uint64_t dw_random_next(dw_random *random);

/* Uniform in [low, high]. */
int64_t dw_random_between(dw_random *random, int64_t low, int64_t high);

/* Fills a [rows, cols] matrix (any alignment) with patches of 32 x 32 whose kind is drawn for each: plain numbers,
 * numbers of every exponent, zeros of both signs, subnormals, values half-way between two elements, largest magnitudes
 * just below, at and above the largest element times a power of two, single NaNs and infinities. */
void dw_fill_adversarial(dw_random *random, void *data, dw_dtype dtype, int64_t rows, int64_t cols, int64_t ld);

#endif
