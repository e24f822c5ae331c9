"""Quantized operands for the GPU's matrix benchmarks, made by the library itself, and the calls that multiply them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from bench.gpu_common import DEVICE
from deepwell import _core
from deepwell import cuda_linear as cl

GROUP_M, GROUP_K = 0, 1
LAUNCHES = 6  # at least, in a graph


class Operand:
    """A random [rows, cols] matrix quantized in blocks of 1x128 or 128x128 with FP32 scales."""

    def __init__(self, rows: int, cols: int, block: int, groups: int = 1) -> None:
        self.rows, self.cols, self.block = rows, cols, block
        made = [self._part(rows // groups, cols, block) for _ in range(groups)]
        self.bytes = torch.cat([data for data, _ in made]) if groups > 1 else made[0][0]
        # 1x128: [k blocks, rows]; 128x128: [row blocks, k blocks rounded up to 4]
        self.scales = torch.cat([scales for _, scales in made]) if groups > 1 else made[0][1]

    @staticmethod
    def _part(rows: int, cols: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        target = cl.Quantized()
        source = torch.randn(rows, cols, device=DEVICE, dtype=torch.bfloat16)
        cl.quantize_into(target, source, rows, cols, (block, block), True, False)
        form = cl.made(target.row)
        flat = form.buffer[cl.scale_offset(rows, cols) :].view(torch.float32)
        across = cols // 128
        shape = (across, rows) if block == cl.BLOCK_1X128 else (rows // 128, -(-across // 4) * 4)
        data = form.buffer[: rows * cols].view(torch.float8_e4m3fn).view(rows, cols)
        return data, flat[: shape[0] * shape[1]].view(shape)

    @property
    def scaling(self) -> int:
        return cl.SCALING[self.block]

    def scales_by_row(self) -> torch.Tensor:
        """[rows or row blocks, k blocks], dense."""
        if self.block == cl.BLOCK_1X128:
            return self.scales.t().contiguous()
        return self.scales[:, : self.cols // 128].contiguous()


def product(a: Operand, b: Operand, out: torch.Tensor, backend: int) -> Callable[[], None]:
    workspace = torch.empty(cl.WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
    first = (
        *(a.bytes.data_ptr(), cl.E4M3, a.cols, a.scaling, a.scales.data_ptr()),
        *(b.bytes.data_ptr(), cl.E4M3, b.cols, b.scaling, b.scales.data_ptr()),
        *(out.data_ptr(), cl.DTYPE[out.dtype], out.shape[1], a.rows, b.rows, a.cols, 0, 0, 0),
        *(workspace.data_ptr(), workspace.numel(), 0),
    )

    def call(keep: Any = (a, b, out, workspace)) -> None:
        _core.cuda_gemm(*first, cl.place_of(DEVICE)[1], 0, backend)

    return call


def grouped(axis: int, ends: torch.Tensor, a: Operand, b: Operand, out: torch.Tensor) -> Callable[[], None]:
    groups = ends.numel()
    n = b.rows // groups if axis == GROUP_M else b.rows
    workspace = torch.empty(cl.WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
    first = (
        *(axis, groups, ends.data_ptr(), a.bytes.data_ptr(), a.cols, a.scales.data_ptr()),
        *(b.bytes.data_ptr(), b.cols, b.scaling, b.scales.data_ptr()),
        *(out.data_ptr(), cl.DTYPE[out.dtype], n, a.rows, n, a.cols, 0),
        *(workspace.data_ptr(), workspace.numel(), 0),
    )

    def call(keep: Any = (a, b, out, ends, workspace)) -> None:
        _core.cuda_grouped_gemm(*first, cl.place_of(DEVICE)[1], 0)

    return call


def grouped_bf16(
    axis: int, ends: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, across: bool = False
) -> Callable[[], None]:
    """GROUP_M: a [T, K], b [G, N, K] or across [G, K, N], out [T, N]. GROUP_K: a [T, M], b [T, N], out [G, M, N]."""
    n = out.shape[-1]
    m, k = a.shape if axis == GROUP_M else (a.shape[1], a.shape[0])
    workspace = torch.empty(cl.WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
    first = (
        *(axis, ends.numel(), ends.data_ptr(), a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(-2), int(across)),
        *(out.data_ptr(), cl.DTYPE[out.dtype], n, m, n, k, 0, workspace.data_ptr(), workspace.numel(), 0),
    )

    def call(keep: Any = (a, b, out, ends, workspace)) -> None:
        _core.cuda_grouped_gemm_bf16(*first, cl.place_of(DEVICE)[1])

    return call


def turns(calls: list[Callable[[], Any]]) -> Callable[[int], Any]:
    """One call after another, each on buffers of its own."""
    return lambda turn: calls[turn % len(calls)]()


def deep_gemm() -> tuple[ModuleType | None, str]:
    """DeepGEMM, or why it is not there."""
    try:
        return importlib.import_module("deep_gemm"), ""
    except Exception as error:  # a broken installation says so in its own ways
        return None, f"not importable: {type(error).__name__}: {error}"


def deep_gemm_scales(library: ModuleType, operand: Operand) -> torch.Tensor:
    """A 1x128 operand's scales as DeepGEMM's kernels read them, converted beforehand."""
    return library.get_mn_major_tma_aligned_tensor(operand.scales_by_row())
