"""PyTorch tensors as the matrices that libdeepwell works on. Imported only where a tensor was seen."""

from __future__ import annotations

import torch

from .arrays import Matrix, flat_extent
from .errors import InvalidArgumentError, UnsupportedError

TORCH_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
ELEMENT_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
SCALE_DTYPE = torch.float8_e8m0fnu


def source_matrix(x: torch.Tensor) -> Matrix:
    """Views `x` (float32, float16 or bfloat16 on the CPU) as a matrix; copies only what has no row-major view."""
    name = TORCH_NAMES.get(x.dtype)
    if name is None:
        raise InvalidArgumentError(f"cannot quantize a tensor of {x.dtype}; expected float32, float16 or bfloat16")
    _check_cpu(x, "quantize")
    rows, cols = flat_extent(tuple(x.shape))
    x = x.detach().resolve_neg()
    if x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= max(cols, 1):
        return Matrix(x.data_ptr(), name, rows, cols, x.stride(0), x)
    x = x.contiguous()
    return Matrix(x.data_ptr(), name, rows, cols, cols, x)


def empty_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    tensor = torch.empty(shape, dtype=dtype)
    return tensor, tensor.data_ptr()


def dense_bytes(tensor: torch.Tensor, what: str) -> tuple[torch.Tensor, int]:
    """`tensor` (a 1-byte dtype on the CPU) as dense bytes and their address."""
    if not isinstance(tensor, torch.Tensor) or tensor.element_size() != 1:
        raise InvalidArgumentError(f"{what} must be a float8 or uint8 tensor, got {getattr(tensor, 'dtype', tensor)}")
    _check_cpu(tensor, "decode")
    tensor = tensor.detach().contiguous()
    return tensor, tensor.data_ptr()


def target_dtype(dtype: object) -> tuple[torch.dtype, str]:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype not in TORCH_NAMES:
        raise InvalidArgumentError(f"cannot decode to {dtype!r}; expected torch.float32, float16 or bfloat16")
    return dtype, TORCH_NAMES[dtype]  # type: ignore[index]


def _check_cpu(x: torch.Tensor, verb: str) -> None:
    if x.layout != torch.strided:
        raise InvalidArgumentError(f"cannot {verb} a tensor of layout {x.layout}; call .to_dense() first")
    if x.device.type != "cpu":
        raise UnsupportedError(
            f"cannot {verb} a tensor on {x.device}: this build has CPU kernels only; move it with .cpu()"
        )
