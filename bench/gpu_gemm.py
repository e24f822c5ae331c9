"""Dense FP8 products with block scales on Hopper: the library's kernels, DeepGEMM and cuBLASLt, on the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_common
from bench.gpu_common import DEVICE
from bench.gpu_operands import LAUNCHES, Operand, deep_gemm, deep_gemm_scales, product, turns
from deepwell import cuda_linear as cl

# M, N, K
SHAPES = (
    (8192, 4096, 4096),
    (8192, 14336, 4096),
    (8192, 4096, 14336),
    (8192, 8192, 8192),
    (16384, 6144, 2048),
    (4096, 7168, 2048),
)
SMALL = tuple((m, n, 4096) for n in (4096, 14336) for m in (16, 64, 128, 256, 512))


def run_gemm(results: Path, rounds: int) -> Path:
    """gemm.json: TFLOP/s of forward and data-gradient products, A in 1x128 and B in 128x128 blocks, BF16 result."""
    result = gpu_common.new_result("gemm")
    library, reason = deep_gemm()
    if library is None:
        result.absent("deepgemm", reason)
    for m, n, k in (*SHAPES, *SMALL):
        count = gpu_common.rotation(m * k + n * k + 2 * m * n)
        operands = [(Operand(m, k, cl.BLOCK_1X128), Operand(n, k, cl.BLOCK_128X128)) for _ in range(count)]
        outs = [torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
        pairs = list(zip(operands, outs, strict=True))
        contenders: dict[str, Callable[[int], Any]] = {
            "deepwell": turns([product(a, b, out, cl.BACKEND_AUTO) for (a, b), out in pairs]),
            "cublaslt_block": turns([product(a, b, out, cl.BACKEND_CUBLASLT) for (a, b), out in pairs]),
            "cublaslt_row": turns([row_wise(a, b) for a, b in operands]),
        }
        if (m, n, k) in SMALL:
            contenders["own"] = turns([product(a, b, out, cl.BACKEND_OWN) for (a, b), out in pairs])
        if library is not None:
            contenders["deepgemm"] = turns([deep_gemm_nt(library, a, b, out) for (a, b), out in pairs])
        times = gpu_common.interleaved(contenders, rounds, launches=max(LAUNCHES, count))
        rates = {name: 2 * m * n * k / time / 1e9 for name, time in times.items()}
        case = f"{m} x {n} x {k}"
        own = rates.pop("own", None)
        result.row(case, "product", "TFLOP/s", rates.pop("deepwell"), **rates)
        if own is not None:
            result.row(case, "product, own kernels", "TFLOP/s", own)
    return result.write(results)


def run_wgrad(results: Path, rounds: int) -> Path:
    """gemm_wgrad.json: TFLOP/s of weight gradients into FP32, A in 1x128 blocks, B in 128x128 and in 1x128 blocks.
    The peers multiply 1x128 by 1x128."""
    result = gpu_common.new_result("gemm_wgrad")
    library, reason = deep_gemm()
    if library is None:
        result.absent("deepgemm", reason)
    for m, n, k in SHAPES:
        count = gpu_common.rotation(m * k + n * k + 4 * m * n)
        a = [Operand(m, k, cl.BLOCK_1X128) for _ in range(count)]
        square = [Operand(n, k, cl.BLOCK_128X128) for _ in range(count)]
        vector = [Operand(n, k, cl.BLOCK_1X128) for _ in range(count)]
        outs = [torch.empty(m, n, device=DEVICE) for _ in range(count)]
        contenders: dict[str, Callable[[int], Any]] = {}
        for name, b, backend in (
            ("square", square, cl.BACKEND_AUTO),
            ("vector", vector, cl.BACKEND_AUTO),
            ("cublaslt_block", vector, cl.BACKEND_CUBLASLT),
        ):
            contenders[name] = turns([product(a[i], b[i], outs[i], backend) for i in range(count)])
        if library is not None:
            contenders["deepgemm"] = turns([_deep_gemm_wgrad(library, a[i], vector[i], outs[i]) for i in range(count)])
        times = gpu_common.interleaved(contenders, rounds, launches=max(LAUNCHES, count))
        rates = {name: 2 * m * n * k / time / 1e9 for name, time in times.items()}
        case, squared, vectored = f"{m} x {n} x {k}", rates.pop("square"), rates.pop("vector")
        result.row(case, "1x128 by 128x128", "TFLOP/s", squared, **rates)
        result.row(case, "1x128 by 1x128", "TFLOP/s", vectored, **rates)
    return result.write(results)


def row_wise(a: Operand, b: Operand) -> Callable[[], Any]:
    """cuBLASLt with one scale a row, fast accumulation: it has no block scaling to do."""
    one_a = torch.ones(a.rows, 1, device=DEVICE)
    one_b = torch.ones(1, b.rows, device=DEVICE)
    return lambda: torch._scaled_mm(a.bytes, b.bytes.t(), one_a, one_b, out_dtype=torch.bfloat16, use_fast_accum=True)


def deep_gemm_nt(library: Any, a: Operand, b: Operand, out: torch.Tensor) -> Callable[[], Any]:
    left, right = (a.bytes, deep_gemm_scales(library, a)), (b.bytes, b.scales_by_row())
    return lambda: library.fp8_gemm_nt(left, right, out, disable_ue8m0_cast=True)


def _deep_gemm_wgrad(library: Any, a: Operand, b: Operand, out: torch.Tensor) -> Callable[[], Any]:
    left, right = (a.bytes, deep_gemm_scales(library, a)), (b.bytes, deep_gemm_scales(library, b))
    return lambda: library.fp8_gemm_nt(left, right, out, c=out, disable_ue8m0_cast=True, recipe=(1, 1, 128))
