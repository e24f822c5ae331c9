"""The specified arithmetic stated a second time, in NumPy and FP64, with ml_dtypes' casts for the elements. Written
from the formulas, block by block through padding and reshaping; shares nothing with the library."""

from __future__ import annotations

import ml_dtypes
import numpy as np

ELEMENT_TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
LARGEST_EXPONENT = {"e4m3": 8, "e5m2": 15}
BLOCK_SHAPES = {"1x32": (1, 32), "1x128": (1, 128), "128x128": (128, 128)}


def scale_exponent(amax: np.ndarray, element: str, rounding: str) -> np.ndarray:
    """The block's exponent before clamping, found by comparison instead of by bits. amax: FP64, positive."""
    exponent = np.floor(np.log2(amax)).astype(np.int64) - LARGEST_EXPONENT[element] - 2
    for _ in range(5):  # the logarithm is only a place to start from
        if rounding == "rceil":
            exponent += np.ldexp(LARGEST[element], exponent) < amax
        else:
            exponent += np.ldexp(1.0, exponent + LARGEST_EXPONENT[element] + 1) <= amax
    return exponent


def to_blocks(x: np.ndarray, block: str, fill: float) -> np.ndarray:
    """[R, C, block rows, block cols], padded with `fill`."""
    height, width = BLOCK_SHAPES[block]
    rows, cols = x.shape
    grid = (-(-rows // height), -(-cols // width))
    padded = np.full((grid[0] * height, grid[1] * width), fill, dtype=x.dtype)
    padded[:rows, :cols] = x
    return padded.reshape(grid[0], height, grid[1], width).transpose(0, 2, 1, 3)


def from_blocks(blocks: np.ndarray, rows: int, cols: int) -> np.ndarray:
    grid_rows, grid_cols, height, width = blocks.shape
    return blocks.transpose(0, 2, 1, 3).reshape(grid_rows * height, grid_cols * width)[:rows, :cols]


def quantize(x: np.ndarray, element: str, block: str, rounding: str) -> tuple[np.ndarray, np.ndarray]:
    """(bytes [rows, cols], codes [R, C]) of a 2-D array of any float dtype."""
    rows, cols = x.shape
    with np.errstate(invalid="ignore"):  # NaNs of a signalling pattern
        blocks = to_blocks(x.astype(np.float64), block, 0.0)
    finite = np.isfinite(blocks).all(axis=(2, 3))
    amax = np.abs(np.where(finite[:, :, None, None], blocks, 0.0)).max(axis=(2, 3), initial=0.0)
    exponent = np.full(amax.shape, -127, dtype=np.int64)
    some = amax > 0
    exponent[some] = scale_exponent(amax[some], element, rounding)
    codes = np.clip(exponent + 127, 0, 254)
    scaled = np.ldexp(np.where(finite[:, :, None, None], blocks, 0.0), -(codes - 127)[:, :, None, None])
    limit = LARGEST[element]
    elements = np.clip(scaled, -limit, limit).astype(ELEMENT_TYPES[element]).view(np.uint8)
    elements = np.where(finite[:, :, None, None], elements, np.uint8(0x7F))
    codes = np.where(finite, codes, 255).astype(np.uint8)
    return from_blocks(elements, rows, cols), codes


def decode(data: np.ndarray, codes: np.ndarray, element: str, block: str) -> np.ndarray:
    """FP64 values of bytes [rows, cols] with codes [R, C]."""
    rows, cols = data.shape
    height, width = BLOCK_SHAPES[block]
    exponent = np.repeat(np.repeat(codes.astype(np.int64) - 127, height, axis=0), width, axis=1)[:rows, :cols]
    values = np.ldexp(data.view(ELEMENT_TYPES[element]).astype(np.float64), exponent)
    return np.where(exponent == 128, np.nan, values)


def fake_quantize(x: np.ndarray, block: str, element: str = "e4m3", rounding: str = "rceil") -> np.ndarray:
    """x after quantizing and decoding, FP64."""
    return decode(*quantize(x, element, block, rounding), element, block)


def lay_out(codes: np.ndarray, layout: str) -> np.ndarray:
    """The grid of codes [R, C] in a scale layout, by its formula, padding zero."""
    rows, cols = codes.shape
    if layout == "row":
        return codes
    if layout == "mn_major":
        out = np.zeros((cols, -(-rows // 16) * 16), dtype=np.uint8)
        out[:, :rows] = codes.T
        return out
    atoms_per_row = -(-cols // 4)
    out = np.zeros(-(-rows // 128) * atoms_per_row * 512, dtype=np.uint8)
    for m in range(rows):
        for kb in range(cols):
            atom = (m // 128) * atoms_per_row + kb // 4
            out[atom * 512 + (m % 32) * 16 + ((m // 32) % 4) * 4 + kb % 4] = codes[m, kb]
    return out.reshape(-1, 512)
