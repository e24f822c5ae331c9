"""NumPy arrays as the matrices that libdeepwell works on. Knows nothing of PyTorch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .errors import InvalidArgumentError, UnsupportedError

NUMPY_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Matrix(NamedTuple):
    """A [rows, cols] view with inner stride 1; `owner` keeps the memory at `address` alive."""

    address: int
    dtype: str
    rows: int
    cols: int
    ld: int
    owner: Any


def flat_extent(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols) of a tensor seen as a matrix: all leading dimensions flattened, the last one kept."""
    if not shape:
        raise InvalidArgumentError("a 0-d tensor has no dimension to take blocks along; expected 1 or more dimensions")
    return math.prod(shape[:-1]), shape[-1]


def source_matrix(x: np.ndarray, bf16: bool) -> Matrix:
    """Views `x` (float32, float16, ml_dtypes.bfloat16, or uint16 holding BF16 bits when `bf16`) as a matrix; copies
    only what has no row-major view."""
    name = NUMPY_NAMES.get(x.dtype.name)
    if bf16 and x.dtype.name == "uint16":
        name = "bf16"
    if name is None or not x.dtype.isnative:
        hint = "; pass bf16=True if it holds BF16 bits" if x.dtype.name == "uint16" else ""
        raise InvalidArgumentError(
            f"cannot quantize a NumPy array of dtype {x.dtype}; expected float32, float16 or ml_dtypes.bfloat16 in "
            f"native byte order{hint}"
        )
    rows, cols = flat_extent(x.shape)
    size = x.dtype.itemsize
    if x.ndim == 2 and cols and x.strides[1] == size and x.strides[0] % size == 0 and x.strides[0] >= cols * size:
        return Matrix(x.ctypes.data, name, rows, cols, x.strides[0] // size, x)
    x = np.ascontiguousarray(x)
    return Matrix(x.ctypes.data, name, rows, cols, cols, x)


def empty_bytes(shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    array = np.empty(shape, dtype=np.uint8)
    return array, array.ctypes.data


def dense_bytes(array: np.ndarray, what: str) -> tuple[np.ndarray, int]:
    """`array` (uint8, or a 1-byte ml_dtypes type) as dense bytes and their address."""
    if not isinstance(array, np.ndarray) or array.dtype.itemsize != 1:
        raise InvalidArgumentError(f"{what} must be a uint8 array, got {getattr(array, 'dtype', type(array).__name__)}")
    array = np.ascontiguousarray(array)
    return array, array.ctypes.data


def bfloat16_dtype() -> np.dtype:
    """ml_dtypes' bfloat16, or uint16 for the bits when ml_dtypes is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    return np.dtype(ml_dtypes.bfloat16)


def target_dtype(dtype: Any) -> tuple[np.dtype, str]:
    """The NumPy dtype to allocate for a requested `dtype` and libdeepwell's name for it."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16_dtype(), "bf16"
    try:
        resolved = np.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is not None and resolved.name == "uint16":
        return resolved, "bf16"
    if resolved is None or resolved.name not in NUMPY_NAMES:
        raise InvalidArgumentError(
            f"cannot decode to dtype {dtype!r}; expected float32, float16, 'bfloat16' or uint16 (BF16 bits)"
        )
    return resolved, NUMPY_NAMES[resolved.name]


def ml_dtypes_view(array: np.ndarray, name: str) -> np.ndarray:
    """`array`'s bytes seen as ml_dtypes' type `name`, sharing memory."""
    try:
        import ml_dtypes
    except ImportError:
        raise UnsupportedError(
            f"a view as {name} needs ml_dtypes, which is not installed; run `pip install ml_dtypes`"
        ) from None
    return array.view(getattr(ml_dtypes, name))
