"""A linear layer with all its quantization, forward and backward, against PyTorch's own; and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import gpu_common
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


def run(results: Path, rounds: int) -> Path:
    """linear.json: TFLOP/s of forward and backward together, weights quantized anew each time; and, for the layer of
    8192 x 14336 x 4096, the milliseconds of its quantization and those of its multiplications, in rows of their own."""
    result = gpu_common.new_result("linear")
    for tokens, outputs, inputs in SHAPES:
        layer = nn.Linear(inputs, outputs, bias=False, device=DEVICE, dtype=torch.bfloat16)
        count = gpu_common.rotation(2 * tokens * (inputs + outputs))
        xs = [torch.randn(tokens, inputs, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in range(count)]
        dys = [torch.randn(tokens, outputs, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]

        def forget(turn: int, xs: Any = xs, dys: Any = dys, layer: nn.Linear = layer, count: int = count) -> Any:
            x, dy = xs[turn % count], dys[turn % count]
            x.__dict__.clear()
            dy.__dict__.clear()
            x.grad = layer.weight.grad = None
            cl.forget_weights()
            return x, dy

        def eager(turn: int, layer: nn.Linear = layer, forget: Any = forget) -> None:
            x, dy = forget(turn)
            layer(x).backward(dy)

        def deepwell(turn: int, layer: nn.Linear = layer, forget: Any = forget) -> None:
            x, dy = forget(turn)
            cuda_eager.linear(x, layer.weight, None, torch.bfloat16).backward(dy)

        contenders: dict[str, Callable[[int], Any]] = {"eager": eager, "deepwell": deepwell}
        if (tokens, outputs, inputs) == (8192, 14336, 4096):
            contenders["quantization"] = _quantization(forget, layer)
            contenders["products"] = _products(layer, xs[0], dys[0])
        times = gpu_common.interleaved(contenders, rounds)
        operations = 6 * tokens * outputs * inputs
        rates = {name: operations / times[name] / 1e9 for name in ("eager", "deepwell")}
        case = f"{tokens} x {outputs} x {inputs}"
        result.row(case, "forward + backward", "TFLOP/s", rates["deepwell"], eager=rates["eager"])
        if "quantization" in times:
            result.row(f"{case}, quantization", "all of it", "ms", times["quantization"])
            result.row(f"{case}, products", "all three", "ms", times["products"])
    return result.write(results)


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
