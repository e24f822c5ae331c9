"""A linear layer with all its quantization, forward and backward, against PyTorch's own and
Transformer Engine's; and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bench import gpu_common, gpu_engine
from bench.gpu_common import DEVICE
from deepwell import cuda_eager
from deepwell import cuda_linear as cl

# tokens, out_features, in_features
SHAPES = (
    (8192, 4096, 4096),
    (8192, 14336, 4096),
    (8192, 4096, 14336),
    (16384, 6144, 2048),
    (8192, 1024, 4096),
    (4096, 4096, 4096),
    (2048, 2048, 2048),
)
DETAILED = (8192, 14336, 4096)
CALLS = 8  # in one window


def run(results: Path, rounds: int) -> Path:
    """linear.json: TFLOP/s of forward and backward together, weights quantized anew in every call. Each shape has two
    rows: one of windows of CALLS calls as they come, where whoever's host code is slower than the device pays for it,
    and one with the host's time hidden, the device's alone. For the layer of DETAILED also the device's milliseconds of
    quantization and of multiplication, in rows of their own."""
    result = gpu_common.new_result("linear")
    te, reason = gpu_engine.engine()
    failures = {} if te is not None else dict.fromkeys(gpu_engine.RECIPES, reason)
    for shape in SHAPES:
        tokens, outputs, inputs = shape
        layer = nn.Linear(inputs, outputs, bias=False, device=DEVICE, dtype=torch.bfloat16)
        forget = _buffers(layer, tokens)
        contenders = _layers(layer, forget)
        if te is not None:
            contenders |= _engine_layers(te, layer, forget, failures)
        parts = {}
        if shape == DETAILED:
            parts = {"quantization": _quantization(forget, layer), "products": _products(layer, *forget(0))}
        case, operations = f"{tokens} x {outputs} x {inputs}", 6 * tokens * outputs * inputs
        windows = (
            (case, gpu_common.interleaved(contenders, rounds, calls=CALLS)),
            (
                f"{case}, device's time",
                gpu_common.interleaved({**contenders, **parts}, rounds, calls=CALLS, hide_host=True),
            ),
        )
        for label, times in windows:
            peers = {"eager": times["eager"], **gpu_engine.peers(times)}
            rates = {name: operations / time / 1e9 for name, time in peers.items()}
            result.row(label, "forward + backward", "TFLOP/s", operations / times["deepwell"] / 1e9, **rates)
        for part, what in (("quantization", "all of it"), ("products", "all three")) if parts else ():
            result.row(f"{case}, {part}", what, "ms", times[part])
    if "te_block" in failures:
        result.absent("te_block", failures["te_block"])
    if failures:
        result.absent("te_best", "; ".join(f"{name}: {why}" for name, why in failures.items()))
    return result.write(results)


def _buffers(layer: nn.Linear, tokens: int) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """Gives input and gradient for a turn, with nothing remembered of an earlier one: no gradient, no FP8 copy."""
    count = gpu_common.rotation(2 * tokens * (layer.in_features + layer.out_features))
    xs, dys = (
        [torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
        for width in (layer.in_features, layer.out_features)
    )
    for x in xs:
        x.requires_grad_()

    def forget(turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, dy = xs[turn % count], dys[turn % count]
        x.__dict__.clear()
        dy.__dict__.clear()
        x.grad = layer.weight.grad = None
        cl.forget_weights()
        return x, dy

    return forget


def _layers(layer: nn.Linear, forget: Any) -> dict[str, Callable[[int], None]]:
    def eager(turn: int) -> None:
        x, dy = forget(turn)
        layer(x).backward(dy)

    def deepwell(turn: int) -> None:
        x, dy = forget(turn)
        cuda_eager.linear(x, layer.weight, None, torch.bfloat16).backward(dy)

    return {"eager": eager, "deepwell": deepwell}


def _engine_layers(
    te: ModuleType, layer: nn.Linear, forget: Any, failures: dict[str, str]
) -> dict[str, Callable[[int], None]]:
    """A contender for each recipe of Transformer Engine that runs here; why the others do not goes to `failures`."""
    made: dict[str, Callable[[int], None]] = {}
    for name in gpu_engine.RECIPES:
        if name in failures:
            continue
        try:
            call = gpu_engine.linear(te, name, layer)
            call(*forget(0))
            torch.cuda.synchronize()
        except Exception as error:  # whatever it lacks on this machine
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        made[name] = lambda turn, call=call: call(*forget(turn))
    return made


def _quantization(forget: Any, layer: nn.Linear) -> Callable[[int], None]:
    def call(turn: int) -> None:
        x, dy = forget(turn)
        cl.quantized_activation(x, True, True)
        cl.quantized_gradient(dy, True, True)
        cl.quantized_weight(layer.weight, True, True)

    return call


def _products(layer: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> Callable[[int], None]:
    xq, dyq = cl.Quantized(), cl.Quantized()
    cl.quantize_into(xq, x, *x.shape, cl.ACTIVATION, True, True)
    cl.quantize_into(dyq, dy, *dy.shape, cl.GRADIENT, True, True)
    wq = cl.Quantized()
    cl.quantize_into(wq, layer.weight, *layer.weight.shape, cl.WEIGHT, True, True)

    def call(turn: int) -> None:
        cl.product(xq.row, wq.row, None, x, torch.bfloat16)
        cl.product(dyq.row, wq.transposed, None, dy, torch.bfloat16)
        cl.weight_gradient(dyq.transposed, xq.transposed, torch.bfloat16)

    return call
