"""The library's matrix kernels without their scales, compiled when asked for: ADD_UP 0 of gemm_block_scaled.cuh.

The tensor core then adds up the whole reduction by itself, and all else is the library's kernel: tiles, copies, stores
and launches. What such a kernel reaches, no way of applying scales in it can exceed."""

from __future__ import annotations

from typing import Any

from bench import matrix_kernels
from bench.matrix_kernels import DEVICE_SOURCES, ROWS, Kernel

# The row of the table of kernels that each is: of dense products, large and of few rows, and of groups along M.
TILES = ("192x128_pair_split", "192x128_split", "128x256", "128x256_deep", "128x256_pair_split", "128x128")
GROUPED_TILES = ("128x256", "128x256_split", "128x192", "256x128_pair_split")
VARIANTS = {tile: ROWS.format("nt", tile) for tile in TILES}
GROUPED = {f"grouped_{tile}": ROWS.format("grouped_m", tile) for tile in GROUPED_TILES}
VARIANTS |= GROUPED


def row_of(variant: str) -> dict[str, str]:
    """The parameters of a variant: those of its row in the table of kernels."""
    return matrix_kernels.row_named(VARIANTS[variant])


def source(variant: str) -> str:
    """The source of a variant."""
    return matrix_kernels.source(row_of(variant), f"unscaled_{variant}", {"ADD_UP": "0"})


def compile_variants() -> dict[str, bytes]:
    """The device code of each variant. Raises Unavailable without a compiler."""
    return matrix_kernels.compile_sources({variant: (source(variant), DEVICE_SOURCES) for variant in VARIANTS})


def load(variant: str, code: bytes, driver: Any = None) -> Kernel:
    """A variant, on PyTorch's current GPU; the calls that its `product` makes copy scales and do not apply them."""
    return Kernel(row_of(variant), f"unscaled_{variant}", code, driver)
