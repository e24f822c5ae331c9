"""Grouped products of mixture-of-experts layers on Hopper, FP8 and BF16, against DeepGEMM and PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_common
from bench.gpu_common import DEVICE
from bench.gpu_operands import (
    GROUP_K,
    GROUP_M,
    LAUNCHES,
    Operand,
    deep_gemm,
    deep_gemm_scales,
    grouped,
    grouped_bf16,
    turns,
)
from deepwell import cuda_linear as cl

# tokens, experts, N, K
SHAPES = (
    (65536, 128, 1536, 2048),
    (65536, 128, 2048, 768),
    (32768, 8, 28672, 4096),
    (32768, 8, 4096, 14336),
    (65536, 64, 4096, 7168),
)
ROUTINGS = ("equal", "Zipf", "half on one", "three of four empty")


def ends_of(tokens: int, experts: int, routing: str) -> list[int]:
    """Where each expert's tokens end, in multiples of 128."""
    shares = {
        "equal": [1.0] * experts,
        "Zipf": [1 / (i + 1) for i in range(experts)],
        "half on one": [experts - 1.0] + [1.0] * (experts - 1),
        "three of four empty": [float(i % 4 == 0) for i in range(experts)],
    }[routing]
    order = torch.randperm(experts, generator=torch.Generator().manual_seed(3)).tolist()
    shares = [shares[i] for i in order]
    blocks, ends, reached = tokens // 128, [], 0.0
    for share in shares:
        reached += share / sum(shares)
        ends.append(round(reached * blocks) * 128)
    ends[-1] = tokens
    return ends


def on_device(ends: list[int]) -> torch.Tensor:
    return torch.tensor(ends, dtype=torch.int32, device=DEVICE)


def run_grouped(results: Path, rounds: int) -> Path:
    """grouped.json: TFLOP/s of experts' forward products, A in 1x128 and B in 128x128 blocks, BF16 result. Peers run
    equal groups; the library uneven ones as well. torch: row-wise FP8, no block scales."""
    result = gpu_common.new_result("grouped")
    library, reason = deep_gemm()
    if library is None:
        result.absent("deepgemm", reason)
    for tokens, experts, n, k in SHAPES:
        a = Operand(tokens, k, cl.BLOCK_1X128)
        b = Operand(experts * n, k, cl.BLOCK_128X128, groups=experts)
        out = torch.empty(tokens, n, device=DEVICE, dtype=torch.bfloat16)
        ends = {routing: on_device(ends_of(tokens, experts, routing)) for routing in ROUTINGS}
        contenders: dict[str, Callable[[int], Any]] = {
            routing: turns([grouped(GROUP_M, ends[routing], a, b, out)]) for routing in ROUTINGS
        }
        contenders["torch"] = turns([row_wise(a, b, experts, n, ends["equal"])])
        if library is not None:
            contenders["deepgemm"] = turns([deep_gemm_grouped(library, a, b, experts, n, out)])
        times = gpu_common.interleaved(contenders, rounds, launches=LAUNCHES)
        rates = {name: 2 * tokens * n * k / time / 1e9 for name, time in times.items()}
        own = {routing: rates.pop(routing) for routing in ROUTINGS}
        case = f"{tokens} tokens, {experts} experts, {n} x {k}"
        for routing in ROUTINGS:
            result.row(case, routing, "TFLOP/s", own[routing], **(rates if routing == "equal" else {}))
        del a, b, out, contenders
        torch.cuda.empty_cache()
    return result.write(results)


def run_wgrad(results: Path, rounds: int) -> Path:
    """grouped_wgrad.json: TFLOP/s of experts' weight gradients. dy transposed in 1x128 blocks, x transposed in 128x128
    or 1x128 blocks, BF16 and FP32 results; the form that layers use also with uneven groups. grouped_mm is PyTorch's,
    in BF16."""
    result = gpu_common.new_result("grouped_wgrad")
    for tokens, experts, n, k in SHAPES:
        dy = Operand(n, tokens, cl.BLOCK_1X128)
        ends = {routing: on_device(ends_of(tokens, experts, routing)) for routing in ROUTINGS}
        uneven = [routing for routing in ROUTINGS if routing != "equal"]
        contenders: dict[str, Callable[[int], Any]] = {}
        for block, label in ((cl.BLOCK_128X128, "1x128 by 128x128"), (cl.BLOCK_1X128, "1x128 by 1x128")):
            x = Operand(k, tokens, block)
            for dtype, name in ((torch.bfloat16, "BF16"), (torch.float32, "FP32")):
                out = torch.empty(experts, n, k, device=DEVICE, dtype=dtype)
                contenders[f"{label}, {name}"] = turns([grouped(GROUP_K, ends["equal"], dy, x, out)])
                if block == cl.BLOCK_128X128 and dtype == torch.bfloat16:
                    for routing in uneven:
                        contenders[f"{label}, {name}, {routing}"] = turns([grouped(GROUP_K, ends[routing], dy, x, out)])
        dy16 = torch.randn(tokens, n, device=DEVICE, dtype=torch.bfloat16)
        x16 = torch.randn(tokens, k, device=DEVICE, dtype=torch.bfloat16)
        contenders["grouped_mm"] = turns([_torch_wgrad(dy16, x16, ends["equal"])])
        times = gpu_common.interleaved(contenders, rounds, launches=LAUNCHES)
        rates = {name: 2 * tokens * n * k / time / 1e9 for name, time in times.items()}
        peer = rates.pop("grouped_mm")
        case = f"{tokens} tokens, {experts} experts, {n} x {k}"
        for metric, rate in rates.items():
            beside = {} if metric.endswith(tuple(uneven)) else {"grouped_mm": peer}  # which runs equal groups
            result.row(case, metric, "TFLOP/s", rate, **beside)
        del dy, x, out, dy16, x16, contenders
        torch.cuda.empty_cache()
    return result.write(results)


def run_bf16(results: Path, rounds: int) -> Path:
    """grouped_bf16.json: TFLOP/s of experts' three products in BF16, weights [experts, N, K]; grouped_mm is PyTorch's.
    The library's also with uneven groups, and weight gradients in FP32."""
    result = gpu_common.new_result("grouped_bf16")
    bf16 = {"device": DEVICE, "dtype": torch.bfloat16}
    for tokens, experts, n, k in SHAPES:
        x, dy = torch.randn(tokens, k, **bf16), torch.randn(tokens, n, **bf16)
        w = torch.randn(experts, n, k, **bf16)
        y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
        dw32 = torch.empty(w.shape, device=DEVICE, dtype=torch.float32)
        ends = {routing: on_device(ends_of(tokens, experts, routing)) for routing in ROUTINGS}
        equal = ends["equal"]
        products: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[], Any]]] = {
            "forward": (
                lambda e, x=x, w=w, y=y: grouped_bf16(GROUP_M, e, x, w, y),
                lambda x=x, w=w, e=equal: torch._grouped_mm(x, w.transpose(-2, -1), e),
            ),
            "data gradient": (
                lambda e, dy=dy, w=w, dx=dx: grouped_bf16(GROUP_M, e, dy, w, dx, across=True),
                lambda dy=dy, w=w, e=equal: torch._grouped_mm(dy, w, e),
            ),
            "weight gradient": (
                lambda e, dy=dy, x=x, dw=dw: grouped_bf16(GROUP_K, e, dy, x, dw),
                _torch_wgrad(dy, x, equal),
            ),
        }
        case = f"{tokens} tokens, {experts} experts, {n} x {k}"
        for metric, (own, peer) in products.items():
            contenders = {routing: turns([own(ends[routing])]) for routing in ROUTINGS}
            contenders["grouped_mm"] = turns([peer])
            if metric == "weight gradient":
                contenders["FP32"] = turns([grouped_bf16(GROUP_K, equal, dy, x, dw32)])
            times = gpu_common.interleaved(contenders, rounds, launches=LAUNCHES)
            rates = {name: 2 * tokens * n * k / time / 1e9 for name, time in times.items()}
            result.row(case, metric, "TFLOP/s", rates.pop("equal"), grouped_mm=rates.pop("grouped_mm"))
            for name, rate in rates.items():
                result.row(case, f"{metric}, {name}", "TFLOP/s", rate)
        del x, dy, w, y, dx, dw, dw32, products, contenders, own, peer
        torch.cuda.empty_cache()
    return result.write(results)


def row_wise(a: Operand, b: Operand, experts: int, n: int, ends: torch.Tensor) -> Callable[[], Any]:
    ones_a = torch.ones(a.rows, device=DEVICE)
    ones_b = torch.ones(experts, n, device=DEVICE)
    weights = b.bytes.view(experts, n, b.cols).transpose(-2, -1)
    return lambda: torch._scaled_grouped_mm(
        a.bytes, weights, ones_a, ones_b, ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def deep_gemm_grouped(
    library: Any, a: Operand, b: Operand, experts: int, n: int, out: torch.Tensor
) -> Callable[[], Any]:
    left = (a.bytes, deep_gemm_scales(library, a))
    right = (b.bytes.view(experts, n, b.cols), b.scales_by_row().view(experts, n // 128, b.cols // 128))
    owners = (torch.arange(a.rows, device=DEVICE) // (a.rows // experts)).int()
    return lambda: library.m_grouped_fp8_gemm_nt_contiguous(left, right, out, owners, disable_ue8m0_cast=True)


def _torch_wgrad(dy: torch.Tensor, x: torch.Tensor, ends: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch._grouped_mm(dy.t(), x, ends)
