"""What it costs in accuracy that activations are transposed in square blocks on Hopper, on the processor.

Trains the demo's model with Hopper's data flow emulated exactly in its linear layers, then quantizes the activations
and gradients of one batch of the trained model both ways. Prints the tables of docs/numerics.md.

    .venv/bin/python -m bench.square_transposes [--steps 200]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deepwell
from deepwell.demo import training
from deepwell.demo.corpus import heldout_starts, load_corpus, training_starts
from deepwell.demo.model import ByteGPT

ROW = deepwell.MXFPQuantizer(block="1x128")
SQUARE = deepwell.MXFPQuantizer(block="128x128")
FACTORS = (1, 10, 100, 1000, 10000)
BATCH = 4  # windows of a training step; a quarter of the demo's, for the sake of time
MEASURED_STEPS = 4  # whose windows are quantized together


def decoded(x: Tensor, quantizer: deepwell.MXFPQuantizer) -> Tensor:
    """`x` quantized along its last dimension and decoded."""
    return quantizer.dequantize(quantizer.quantize_tensor(x.contiguous()), torch.float32)


def transposed(x: Tensor, quantizer: deepwell.MXFPQuantizer) -> Tensor:
    """The transpose of `x`, quantized and decoded."""
    return decoded(x.t(), quantizer)


class EmulatedProduct(torch.autograd.Function):
    """y = x · w^T as on Hopper, with x's transposed form in the blocks of `quantizer`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantizer: deepwell.MXFPQuantizer) -> Tensor:
        w = decoded(weight, SQUARE)
        ctx.save_for_backward(transposed(x, quantizer), w)
        return decoded(x, ROW) @ w.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        x_t, w = ctx.saved_tensors
        return decoded(dy, ROW) @ w, transposed(dy, ROW) @ x_t.t(), None


def emulate(model: nn.Module, quantizer: deepwell.MXFPQuantizer) -> None:
    """Replaces the products of the linear layers of all blocks."""
    for layer in layers(model).values():

        def forward(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            flat = x.reshape(-1, x.shape[-1])
            return EmulatedProduct.apply(flat, layer.weight, quantizer).view(*x.shape[:-1], -1)

        layer.forward = forward


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("blocks.")}


def operands(model: nn.Module, tokens: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output gradient of every linear layer, [tokens, features]."""
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer in layers(model).items():
        found[name] = []

        def forward(_: Any, inputs: tuple, seen: list[Tensor] = found[name]) -> None:
            seen.append(inputs[0].detach().flatten(0, -2))

        def backward(_: Any, __: tuple, gradients: tuple, seen: list[Tensor] = found[name]) -> None:
            seen.append(gradients[0].detach().flatten(0, -2))

        handles += [layer.register_forward_pre_hook(forward), layer.register_full_backward_hook(backward)]
    logits = model(tokens)
    nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    for handle in handles:
        handle.remove()
    return {name: (x, dy) for name, (x, dy) in found.items()}


def decibels(reference: Tensor, approximation: Tensor) -> float:
    """Signal to noise."""
    noise = (approximation.double() - reference.double()).square().sum()
    return 10 * math.log10(reference.double().square().sum() / noise)


def lost(reference: Tensor, approximation: Tensor) -> float:
    """The share of values that were not zero and became zero, in percent."""
    return 100 * float(((reference != 0) & (approximation == 0)).sum() / (reference != 0).sum())


def print_layers(found: dict[str, tuple[Tensor, Tensor]]) -> None:
    print("| layer | x^T 1x128 | x^T 128x128 | dy^T 1x128 | dy^T 128x128 | dw | dw, x^T square | dw, dy^T square |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (x, dy) in found.items():
        row, square = transposed(x, ROW), transposed(x, SQUARE)
        dy_row, dy_square = transposed(dy, ROW), transposed(dy, SQUARE)
        dw = dy.double().t() @ x.double()
        products = (dy_row @ row.t(), dy_row @ square.t(), dy_square @ row.t())
        forms = [
            f"{decibels(exact.t(), form):.1f} ({lost(exact.t(), form):.2f}%)"
            for exact, form in ((x, row), (x, square), (dy, dy_row), (dy, dy_square))
        ]
        cells = [name.removeprefix("blocks."), *forms, *(f"{decibels(dw, p):.1f}" for p in products)]
        print(f"| {' | '.join(cells)} |")


def print_outliers(found: dict[str, tuple[Tensor, Tensor]], kind: str) -> None:
    """One channel of every 128 (or one value of every 128x128) amplified; dw is judged where the outlier is not: on the
    columns of the other channels."""
    print(f"| {kind} amplified | x^T 1x128 | x^T 128x128 | lost, 1x128 | lost, 128x128 | dw 1x128 | dw 128x128 |")
    print("|---|---|---|---|---|---|---|")
    for factor in FACTORS:
        sums = torch.zeros(6, dtype=torch.float64)
        for x, dy in found.values():
            amplified = x.clone()
            amplified[:: 1 if kind == "channel" else 128, ::128] *= factor
            others = torch.arange(x.shape[1]) % 128 != 0
            exact = amplified.t()[others]
            row, square = transposed(amplified, ROW)[others], transposed(amplified, SQUARE)[others]
            dy_row = transposed(dy, ROW)
            dw = dy.double().t() @ exact.double().t()
            sums += torch.tensor(
                [
                    decibels(exact, row),
                    decibels(exact, square),
                    lost(exact, row),
                    lost(exact, square),
                    decibels(dw, dy_row @ row.t()),
                    decibels(dw, dy_row @ square.t()),
                ]
            )
        mean = (sums / len(found)).tolist()
        cells = [f"{factor}x", *(f"{v:.1f}" for v in mean[:2]), *(f"{v:.2f}%" for v in mean[2:4])]
        print(f"| {' | '.join([*cells, *(f'{v:.1f}' for v in mean[4:])])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="square blocks for transposed activations: what they cost")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = dataclasses.replace(training.CPU, steps=options.steps, batch=BATCH, heldout_windows=128)
    corpus = load_corpus(None)
    count = settings.steps + MEASURED_STEPS
    starts = training_starts(corpus, settings.shape.context, settings.batch, count, options.seed)
    heldout = heldout_starts(corpus, settings.shape.context, settings.heldout_windows)
    torch.manual_seed(options.seed)
    start = ByteGPT(settings.shape)

    full = copy.deepcopy(start)
    runs = {}
    for name, quantizer in (("full precision", None), ("x^T in 1x128", ROW), ("x^T in 128x128", SQUARE)):
        model = full if quantizer is None else copy.deepcopy(start)
        if quantizer is not None:
            emulate(model, quantizer)
        runs[name] = training.train(model, corpus, starts, heldout, settings, lambda *_: None)

    windows = starts[-MEASURED_STEPS:].reshape(-1, 1) + np.arange(settings.shape.context + 1)
    text = torch.from_numpy(corpus.train[windows]).long()
    found = operands(full, text[:, :-1], text[:, 1:])
    print(f"{options.steps} steps, seed {options.seed}, {found['blocks.0.mlp.up'][0].shape[0]} tokens\n")
    print("| run | final training loss | held-out loss |\n|---|---|---|")
    for name, run in runs.items():
        print(f"| {name} | {training.final_loss(run.losses):.4f} | {run.heldout_loss:.4f} |")
    print()
    print_layers(found)
    for kind in ("channel", "value"):
        print()
        print_outliers(found, kind)


if __name__ == "__main__":
    main()
