"""Quantization kernels against the device's copy bandwidth: plain (quantize) and fused with what produces (fused)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import gpu_common
from bench.gpu_common import DEVICE
from deepwell import _core
from deepwell import cuda_fused as cf
from deepwell import cuda_linear as cl

SIZES = ((16384, 4096), (16384, 14336), (131072, 2048), (8192, 7168))
BLOCKS = {"1x128": cl.GRADIENT, "128x128": cl.WEIGHT, "1x128 and 128x128": cl.ACTIVATION}
ORIENTATIONS = (("row", True, False), ("transposed", False, True), ("both", True, True))
CALLS = 6  # in a window; not a CUDA graph, in which a copy is another, slower one


def _copier() -> tuple[Callable[[int], Any], int]:
    """A device copy of at least 1 GiB, the ceiling, and the bytes it reads and writes."""
    source = torch.randn(1 << 29, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return lambda turn: target.copy_(source), 2 * source.nbytes


def _rate(size: int, milliseconds: float) -> float:
    return size / milliseconds / 1e9


def _compiled_torch_quantizer() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """PyTorch's composition, compiled: amax of each block, power-of-two scale, division, cast."""

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        blocks = x.view(x.shape[0], -1, 128).float()
        _, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True))
        scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent - 8)
        return (blocks / scale).to(torch.float8_e4m3fn).view(x.shape), scale

    # Without dynamic=False a second size would be compiled for all sizes, and run at half the speed.
    return torch.compile(quantize, dynamic=False)


def run_quantize(results: Path, rounds: int) -> Path:
    """quantize.json: TB/s read and written, by orientation, block and size."""
    result = gpu_common.new_result("quantize")
    copy, copy_bytes = _copier()
    composed = _compiled_torch_quantizer()
    for rows, cols in SIZES:
        count = gpu_common.rotation(2 * rows * cols)
        sources = [torch.randn(rows, cols, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
        for block, codes in BLOCKS.items():
            contenders: dict[str, Callable[[int], Any]] = {"copy": copy}
            sizes = {"copy": copy_bytes}
            for orientation, row, transposed in ORIENTATIONS:
                if codes == cl.ACTIVATION and orientation != "both":
                    continue
                contenders[orientation] = _quantizer(sources, codes, row, transposed)
                forms = row * cl.form_bytes(rows, cols, codes[0]) + transposed * cl.form_bytes(cols, rows, codes[1])
                sizes[orientation] = 2 * rows * cols + forms
            if block == "1x128":
                contenders["compile"] = lambda turn, sources=sources: composed(sources[turn % len(sources)])
                sizes["compile"] = 3 * rows * cols + 4 * rows * cols // 128
            times = gpu_common.interleaved(contenders, rounds, calls=CALLS, hide_host=True)
            rates = {name: _rate(sizes[name], time) for name, time in times.items()}
            for orientation, *_ in ORIENTATIONS:
                if orientation not in rates:
                    continue
                peers = ("copy", "compile") if orientation == "row" and "compile" in rates else ("copy",)
                case = f"BF16 to E4M3 {orientation} {block}, {rows}x{cols}"
                limit = rates["copy"]
                result.row(case, "read + written", "TB/s", rates[orientation], limit, **{p: rates[p] for p in peers})
    return result.write(results)


def _quantizer(sources: list[Tensor], codes: tuple[int, int], row: bool, transposed: bool) -> Callable[[int], None]:
    target = cl.Quantized()

    def call(turn: int) -> None:
        source = sources[turn % len(sources)]
        cl.quantize_into(target, source, *source.shape, codes, row, transposed)

    return call


def run_fused(results: Path, rounds: int) -> Path:
    """fused.json: TB/s of the unavoidable bytes of norms and gated activations that quantize, and of cross-entropy."""
    result = gpu_common.new_result("fused")
    copy, copy_bytes = _copier()
    for rows, cols in SIZES:
        contenders: dict[str, Callable[[int], Any]] = {"copy": copy}
        sizes = {"copy": copy_bytes}
        _norm_cases(rows, cols, contenders, sizes)
        _swiglu_cases(rows, cols, contenders, sizes)
        _measure(result, contenders, sizes, f"{rows}x{cols}", rounds)
    contenders, sizes = {"copy": copy}, {"copy": copy_bytes}
    _loss_cases(contenders, sizes)
    _measure(result, contenders, sizes, "8192x32000", rounds)
    return result.write(results)


def _measure(result: Any, contenders: dict[str, Any], sizes: dict[str, int], size: str, rounds: int) -> None:
    for metric, calls in (("read + written", CALLS), ("launched alone", 1)):
        times = gpu_common.interleaved(contenders, rounds, calls=calls, hide_host=True)
        rates = {name: _rate(sizes[name], time) for name, time in times.items()}
        copied = rates.pop("copy")
        for name, rate in rates.items():
            result.row(f"{name}, {size}", metric, "TB/s", rate, copied, copy=copied)


def _norm_cases(rows: int, cols: int, contenders: dict[str, Any], sizes: dict[str, int]) -> None:
    count = gpu_common.rotation(4 * rows * cols)
    xs = [torch.randn(rows, cols, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    dys = [torch.randn_like(x) for x in xs]
    weight = torch.randn(cols, device=DEVICE, dtype=torch.bfloat16)
    form, form_t = cl.form_bytes(rows, cols, cl.ACTIVATION[0]), cl.form_bytes(cols, rows, cl.ACTIVATION[1])
    matrix = 2 * rows * cols
    for label, transposed, size in (
        ("RMSNorm to BF16 and E4M3 row", False, 2 * matrix + form),
        ("RMSNorm to BF16 and E4M3 both", True, 2 * matrix + form + form_t),
    ):

        def forward(turn: int, transposed: bool = transposed) -> None:
            with torch.no_grad():
                cf.norm_forward(xs[turn % count], weight, 1e-5, 0.0, transposed)

        contenders[label], sizes[label] = forward, size
    rstd = torch.rand(rows, device=DEVICE) + 0.5
    contenders["RMSNorm backward"] = lambda turn: cf.norm_backward(
        dys[turn % count], xs[turn % count], weight, rstd, 0.0
    )
    sizes["RMSNorm backward"] = 3 * matrix


def _swiglu_cases(rows: int, cols: int, contenders: dict[str, Any], sizes: dict[str, int]) -> None:
    # `cols` is the width of the gate-up matrix: the activation has half of it.
    inner = cols // 2
    count = gpu_common.rotation(3 * rows * cols)
    gate_ups = [torch.randn(rows, cols, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    dys = [torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    half = cl.form_bytes(rows, inner, cl.ACTIVATION[0]) + cl.form_bytes(inner, rows, cl.ACTIVATION[1])
    whole = cl.form_bytes(rows, cols, cl.GRADIENT[0]) + cl.form_bytes(cols, rows, cl.GRADIENT[1])
    contenders["SwiGLU to E4M3 both"] = lambda turn: cf.swiglu_forward(gate_ups[turn % count], inner, True)
    sizes["SwiGLU to E4M3 both"] = 2 * rows * cols + half
    contenders["SwiGLU backward to E4M3 both"] = lambda turn: cf.swiglu_backward(
        dys[turn % count], gate_ups[turn % count], inner
    )
    sizes["SwiGLU backward to E4M3 both"] = 2 * rows * cols + 2 * rows * inner + whole


def _loss_cases(contenders: dict[str, Any], sizes: dict[str, int]) -> None:
    rows, vocabulary = 8192, 32000
    logits = torch.randn(rows, vocabulary, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,), device=DEVICE)
    lse, loss = torch.empty((2, rows), device=DEVICE)
    gradient = torch.full((rows,), 1 / rows, device=DEVICE)
    target = torch.empty_like(logits)
    _, stream = cl.place_of(DEVICE)
    shared = (logits.data_ptr(), cl.DTYPE[logits.dtype], rows, vocabulary, vocabulary, labels.data_ptr(), -100)

    def forward(turn: int) -> None:
        _core.cuda_cross_entropy(*shared, lse.data_ptr(), loss.data_ptr(), 0, 0, 0, 0, 0, stream)

    def backward(turn: int) -> None:
        addresses = (lse.data_ptr(), loss.data_ptr(), gradient.data_ptr(), 1, target.data_ptr(), vocabulary)
        _core.cuda_cross_entropy(*shared, *addresses, 0, stream)

    contenders["cross-entropy forward"], sizes["cross-entropy forward"] = forward, logits.nbytes
    contenders["cross-entropy backward"], sizes["cross-entropy backward"] = backward, 2 * logits.nbytes
