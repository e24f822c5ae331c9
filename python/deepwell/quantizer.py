"""MXFPQuantizer: block-scaled FP8 of NumPy arrays and PyTorch tensors, and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core, arrays
from .errors import InvalidArgumentError

ELEMENTS = ("e4m3", "e5m2")
BLOCKS = ("1x32", "1x128", "128x128")
ROUNDINGS = ("rceil", "floor")
LAYOUTS = ("row", "mn_major", "tcgen05")
ORIENTATIONS = ("row", "transposed", "both")
ML_ELEMENTS = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
_SOURCE_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A block-scaled FP8 tensor.

    data: FP8 elements; uint8 for NumPy, torch.float8_e4m3fn or float8_e5m2 for PyTorch. The source's shape, or for
        `transposed` [cols, rows] of the source seen as a matrix (leading dimensions flattened).
    scale: E8M0 codes, 2-D, shaped by `layout`; uint8 for NumPy, torch.float8_e8m0fnu for PyTorch.
    element, block, rounding, layout: how it was made (names as in MXFPQuantizer).
    source_dtype: "float32", "float16" or "bfloat16".
    """

    data: Any
    scale: Any
    element: str
    block: str
    rounding: str
    layout: str
    transposed: bool
    source_dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `data`."""
        return tuple(self.data.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of elements and scales together."""
        return int(self.data.nbytes) + int(self.scale.nbytes)

    @property
    def typed_data(self) -> Any:
        """`data` as ml_dtypes.float8_e4m3fn or float8_e5m2, sharing memory (NumPy; a tensor is returned as it is).

        Raises UnsupportedError when ml_dtypes is not installed."""
        return arrays.ml_dtypes_view(self.data, ML_ELEMENTS[self.element]) if _is_numpy(self.data) else self.data

    @property
    def typed_scale(self) -> Any:
        """`scale` as ml_dtypes.float8_e8m0fnu, sharing memory (NumPy; a tensor is returned as it is)."""
        return arrays.ml_dtypes_view(self.scale, "float8_e8m0fnu") if _is_numpy(self.scale) else self.scale

    def __repr__(self) -> str:
        orientation = "transposed" if self.transposed else "row"
        return (
            f"QuantizedTensor({self.element}, block {self.block}, {self.rounding}, scales {self.layout} "
            f"{tuple(self.scale.shape)}, {orientation}, shape {self.shape}, from {self.source_dtype})"
        )


class MXFPQuantizer:
    """Quantizes to FP8 elements with one power-of-two (E8M0) scale for each block, and decodes.

    element: "e4m3" or "e5m2".
    block: which elements share a scale: "1x32" or "1x128" along the last dimension, or "128x128".
    rounding: "rceil" (the smallest power of two for which nothing saturates) or "floor" (OCP MX v1.0 section 6.3).
    layout: where scale codes lie: "row", "mn_major" (Hopper) or "tcgen05" (Blackwell; blocks 1x32 only).
    kernel: name of the row of `deepwell.kernels()` that must do the quantization; None lets the dispatcher choose.
        Every kernel gives the same bytes; this is for tests and measurements.

    Raises InvalidArgumentError for anything else. Instances hold no state and may be shared by threads; the GIL is
    released while the library works.
    """

    def __init__(
        self,
        element: str = "e4m3",
        block: str = "1x32",
        rounding: str = "rceil",
        layout: str = "row",
        *,
        kernel: str | None = None,
    ) -> None:
        self.element = one_of("element", element, ELEMENTS)
        self.block = one_of("block", block, BLOCKS)
        self.rounding = one_of("rounding", rounding, ROUNDINGS)
        self.layout = one_of("layout", layout, LAYOUTS)
        if layout == "tcgen05" and block != "1x32":
            raise InvalidArgumentError(f"layout 'tcgen05' holds scales of 1x32 blocks only, got block {block!r}")
        self.kernel = kernel
        self._kernel_index = -1 if kernel is None else _kernel_index(kernel)

    def __repr__(self) -> str:
        return (
            f"MXFPQuantizer(element={self.element!r}, block={self.block!r}, rounding={self.rounding!r}, "
            f"layout={self.layout!r})"
        )

    def scale_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Shape of the scales of a [rows, cols] matrix."""
        return _core.scale_shape(self.element, self.block, self.layout, rows, cols)

    def quantize_tensor(
        self, x: Any, orientation: str = "row", *, bf16: bool = False
    ) -> QuantizedTensor | tuple[QuantizedTensor, QuantizedTensor]:
        """Quantizes `x`: a NumPy array (float32, float16, ml_dtypes.bfloat16; uint16 with `bf16=True` holds BF16 bits)
        or a PyTorch tensor (float32, float16, bfloat16) of one or more dimensions; all but the last are flattened to
        rows.

        orientation: "row", blocks along the last dimension; "transposed", the transpose [cols, rows] quantized from the
            same source with blocks along the rows; "both", one read of the source, returned as (row, transposed).

        Raises InvalidArgumentError (dtype, 0-d, unknown orientation) and UnsupportedError (a device without kernels).
        """
        one_of("orientation", orientation, ORIENTATIONS)
        if _is_torch(x):
            return self._quantize_torch(x, orientation)
        if not isinstance(x, np.ndarray):
            raise InvalidArgumentError(
                f"cannot quantize a {type(x).__name__}; expected a NumPy array or a PyTorch tensor"
            )
        matrix = arrays.source_matrix(x, bf16)
        return self._quantize(matrix, tuple(x.shape), orientation, arrays.empty_bytes, arrays.empty_bytes)

    def dequantize(self, q: QuantizedTensor, dtype: Any = None) -> Any:
        """Decodes `q` (made by any MXFPQuantizer; its own format counts, not this object's) to an array or tensor of
        q.data's shape: for a transposed one, the transpose of what was quantized.

        dtype: NumPy: float32, float16, "bfloat16" (ml_dtypes; uint16 where that is missing), or uint16 for BF16 bits.
            PyTorch: torch.float32, float16 or bfloat16, or the name. None: the dtype that was quantized.
        Exact, but for float16 results and results below the target's subnormals, which round once to nearest even.
        """
        if not isinstance(q, QuantizedTensor):
            raise InvalidArgumentError(f"cannot dequantize a {type(q).__name__}; expected a QuantizedTensor")
        dtype = q.source_dtype if dtype is None else dtype
        rows, cols = arrays.flat_extent(q.shape)
        if _is_torch(q.data):
            import torch

            from . import tensors

            data, data_address = tensors.dense_bytes(q.data, "data")
            scale, scale_address = tensors.dense_bytes(q.scale, "scale")
            resolved, name = tensors.target_dtype(dtype)
            out = torch.empty(q.shape, dtype=resolved)
            out_address = out.data_ptr()
        else:
            data, data_address = arrays.dense_bytes(q.data, "data")
            scale, scale_address = arrays.dense_bytes(q.scale, "scale")
            resolved, name = arrays.target_dtype(dtype)
            out = np.empty(q.shape, dtype=resolved)
            out_address = out.ctypes.data
        expected = _core.scale_shape(q.element, q.block, q.layout, rows, cols)
        if tuple(scale.shape) != expected:
            raise InvalidArgumentError(
                f"scales of shape {tuple(scale.shape)} do not fit data of shape {q.shape}; expected {expected} for "
                f"block {q.block} and layout {q.layout}"
            )
        _core.dequantize(
            data_address, cols, scale_address, rows, cols, q.element, q.block, q.layout, out_address, name, cols
        )
        del data, scale  # they held the memory until here
        return out

    def _quantize_torch(self, x: Any, orientation: str) -> Any:
        from . import tensors

        return self._quantize(
            tensors.source_matrix(x),
            tuple(x.shape),
            orientation,
            lambda shape: tensors.empty_bytes(shape, tensors.ELEMENT_DTYPES[self.element]),
            lambda shape: tensors.empty_bytes(shape, tensors.SCALE_DTYPE),
        )

    def _quantize(
        self, m: arrays.Matrix, shape: tuple[int, ...], orientation: str, new_data: Any, new_scale: Any
    ) -> Any:
        results: list[QuantizedTensor] = []
        outputs: list[tuple[int, int, int] | None] = []
        for transposed in (False, True):
            if orientation == ("row" if transposed else "transposed"):
                outputs.append(None)
                continue
            rows, cols = (m.cols, m.rows) if transposed else (m.rows, m.cols)
            data, data_address = new_data((rows, cols) if transposed else shape)
            scale, scale_address = new_scale(self.scale_shape(rows, cols))
            outputs.append((data_address, cols, scale_address))
            results.append(
                QuantizedTensor(
                    data,
                    scale,
                    self.element,
                    self.block,
                    self.rounding,
                    self.layout,
                    transposed,
                    _SOURCE_NAMES[m.dtype],
                )
            )
        _core.quantize(
            m.address,
            m.dtype,
            m.rows,
            m.cols,
            m.ld,
            self.element,
            self.block,
            self.rounding,
            self.layout,
            outputs[0],
            outputs[1],
            self._kernel_index,
        )
        return tuple(results) if orientation == "both" else results[0]


def one_of(what: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` when it is one of `choices`, else InvalidArgumentError naming them."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{what}={value!r} is not known; expected one of {', '.join(map(repr, choices))}")
    return value


def _kernel_index(name: str) -> int:
    rows = _core.kernels()
    for index, row in enumerate(rows):
        if row["name"] == name:
            return index
    names = ", ".join(row["name"] for row in rows if row["operation"] == "quantize")
    raise InvalidArgumentError(f"no kernel is named {name!r}; the quantization kernels are {names}")


def _is_numpy(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def _is_torch(x: Any) -> bool:
    """Whether `x` is a tensor, without importing PyTorch: who holds a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, getattr(torch, "Tensor", ()))
