"""Extents and values that meet the edges of the formats."""

from __future__ import annotations

import ml_dtypes
import numpy as np

EDGES = (0, 1, 15, 16, 31, 32, 33, 127, 128, 129, 200, 257)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def adversarial(rng: np.random.Generator, rows: int, cols: int, dtype: type) -> np.ndarray:
    """Values that meet the edges: wide ranges, subnormals, zeros, magnitudes just around 448·2^k, a rare fault."""
    x = np.ldexp(rng.standard_normal((rows, cols)), rng.integers(-30, 10, (rows, cols)))
    kinds = rng.integers(0, 12, (rows, cols))
    edge = np.ldexp(448.0 * (1 + rng.integers(-1, 2, (rows, cols)) * 2.0**-7), rng.integers(-14, 7, (rows, cols)))
    x = np.where(kinds == 0, edge, x)
    x = np.where(kinds == 1, 0.0, x)
    x = np.where(kinds == 2, np.ldexp(1.0, rng.integers(-149, -126, (rows, cols))), x)
    x = np.where(rng.random((rows, cols)) < 1e-4, np.inf, x)
    x = np.where(rng.random((rows, cols)) < 1e-4, np.nan, x)
    with np.errstate(over="ignore"):
        return x.astype(dtype)
