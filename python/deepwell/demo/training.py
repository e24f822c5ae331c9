"""One training run: the same batches in the same order for whatever model it is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .corpus import Corpus, windows_at
from .model import ModelShape

EVALUATION_BATCH = 32


class NonFiniteLossError(Exception):
    """Training diverged; the message says where."""


@dataclass(frozen=True)
class Settings:
    """All that fixes a run besides the text and the seed."""

    shape: ModelShape
    batch: int
    steps: int
    learning_rate: float
    heldout_windows: int
    autocast: bool  # BF16 arithmetic around FP32 parameters, as GPUs are trained


# Measured on two cores of an AMD EPYC of 2021: both runs together take 140 seconds, held-out evaluation included. Over
# five seeds MXFP8 ended between 0.34% below full precision and 0.08% above it.
CPU = Settings(ModelShape(256, 2, 4, 1024, 128), 16, 240, 2e-3, 1024, False)
# About 300 million parameters in the blocks, matrices large enough that FP8 wins on a GPU.
GPU = Settings(ModelShape(2048, 6, 16, 8192, 512), 32, 300, 4e-4, 1024, True)
QUICK = Settings(ModelShape(128, 1, 2, 512, 64), 4, 20, 3e-3, 16, False)


@dataclass(frozen=True)
class Run:
    losses: list[float]  # nats per byte, one for each step
    heldout_loss: float
    seconds: float


def train(
    model: nn.Module,
    corpus: Corpus,
    starts: np.ndarray,
    heldout: np.ndarray,
    settings: Settings,
    on_step: Callable[[int, float], None],
) -> Run:
    """Trains on the windows that begin at starts[step], then evaluates on those that begin at `heldout`.

    Calls on_step(steps done, loss) after each step. Raises NonFiniteLossError."""
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, settings)
    began = time.perf_counter()  # the process's first optimizer imports much of PyTorch, which is not training
    losses = []
    model.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        tokens, targets = _batch(corpus.train, starts[step], settings, device)
        loss = _loss(model, tokens, targets, settings)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss became {value} in step {step + 1} of {settings.steps}")
        losses.append(value)
        on_step(step + 1, value)
    heldout_loss = evaluate(model, corpus.heldout, heldout, settings)
    if not math.isfinite(heldout_loss):
        raise NonFiniteLossError(f"the held-out loss is {heldout_loss} after {settings.steps} steps")
    return Run(losses, heldout_loss, time.perf_counter() - began)


@torch.no_grad()
def evaluate(model: nn.Module, stream: np.ndarray, starts: np.ndarray, settings: Settings) -> float:
    """Mean loss in nats per byte over the windows that begin at `starts`."""
    device = next(model.parameters()).device
    model.eval()
    total = 0.0
    for first in range(0, len(starts), EVALUATION_BATCH):
        chosen = starts[first : first + EVALUATION_BATCH]
        tokens, targets = _batch(stream, chosen, settings, device)
        total += _loss(model, tokens, targets, settings).item() * len(chosen)
    model.train()
    return total / len(starts)


def arithmetic(device: torch.device, settings: Settings) -> torch.autocast:
    """The context in which the model runs: BF16 around FP32 parameters, or FP32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms) do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)


def learning_rate(step: int, settings: Settings) -> float:
    """Rises linearly over the first quarter of the steps, then falls along a cosine to a twentieth of the peak."""
    warmup = max(1, settings.steps // 4)
    rise = min(1.0, (step + 1) / warmup)
    progress = max(0, step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def final_steps(steps: int) -> int:
    """Over how many of the last steps the final training loss is a mean."""
    return min(50, max(1, steps // 4))


def final_loss(losses: list[float]) -> float:
    """The mean loss of the last `final_steps` steps: one batch alone is noise many times the difference sought."""
    last = losses[-final_steps(len(losses)) :]
    return sum(last) / len(last)


def relative_difference(full_precision: list[float], mxfp8: list[float]) -> float:
    """(mxfp8 - full precision) / full precision of the final losses. The steps' batches are the same on both sides."""
    reference = final_loss(full_precision)
    return (final_loss(mxfp8) - reference) / reference


def _batch(stream: np.ndarray, starts: np.ndarray, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, targets = windows_at(stream, starts, settings.shape.context)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(targets).to(device)


def _loss(model: nn.Module, tokens: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    with arithmetic(tokens.device, settings):
        logits = model(tokens)
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
