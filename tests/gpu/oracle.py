"""Quantization restated with PyTorch's own frexp and float8 cast on GPU tensors, and what follows from it for a
linear layer, in FP64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _scales(amax: Tensor) -> Tensor:
    """rceil scales for E4M3: the smallest power of two with amax / scale <= 448; 2^-127 for a block of zeros."""
    mantissa, exponent = torch.frexp(amax)  # amax = mantissa * 2^exponent, 0.5 <= mantissa < 1
    exponent = exponent - 1 - 8 + (2 * mantissa > 1.75).int()
    return torch.where(amax == 0, torch.full_like(amax, 2.0**-127), torch.ldexp(torch.ones_like(amax), exponent))


def decoded_1x128(x: Tensor) -> Tensor:
    """`x` [rows, cols] quantized in blocks of 1x128 and decoded, FP64."""
    rows, cols = x.shape
    blocks = F.pad(x.float(), (0, -cols % 128)).view(rows, -1, 128)
    scale = _scales(blocks.abs().amax(-1, keepdim=True))
    decoded = (blocks / scale).to(torch.float8_e4m3fn).double() * scale.double()
    return decoded.reshape(rows, -1)[:, :cols]


def decoded_128x128(w: Tensor) -> Tensor:
    """`w` quantized in square blocks and decoded, FP64."""
    rows, cols = w.shape
    padded = F.pad(w.float(), (0, -cols % 128, 0, -rows % 128))
    blocks = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scale = _scales(blocks.abs().amax((1, 3), keepdim=True))
    decoded = (blocks / scale).to(torch.float8_e4m3fn).double() * scale.double()
    return decoded.reshape(padded.shape)[:rows, :cols]


def linear(x: Tensor, w: Tensor, bias: Tensor | None, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dw of a linear layer with quantized operands, FP64."""
    weight = decoded_128x128(w)
    y = decoded_1x128(x) @ weight.t()
    if bias is not None:
        y = y + bias.double()
    dx = decoded_1x128(dy) @ weight
    dw = decoded_1x128(dy.t().contiguous()) @ decoded_128x128(x)
    return y, dx, dw


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖."""
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-300))
