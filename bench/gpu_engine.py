"""Transformer Engine as a peer: its recipes on Hopper, and a linear layer of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Its recipes that a Hopper GPU runs: tensor-wise with the scales of this tensor and of those before, and block-wise.
RECIPES = {"te_current": "Float8CurrentScaling", "te_delayed": "DelayedScaling", "te_block": "Float8BlockScaling"}


def engine() -> tuple[ModuleType | None, str]:
    """transformer_engine.pytorch, or why it is not there."""
    try:
        return importlib.import_module("transformer_engine.pytorch"), ""
    except Exception as error:  # a broken installation says so in its own ways
        return None, f"not importable: {type(error).__name__}: {error}"


def recipe(name: str) -> Any:
    """A recipe of RECIPES as its authors configured it."""
    return getattr(importlib.import_module("transformer_engine.common.recipe"), RECIPES[name])()


def quantized(te: ModuleType, chosen: Any) -> AbstractContextManager[Any]:
    """Inside, its modules quantize by this recipe."""
    named = getattr(te, "autocast", None)  # before 2.8 it had another name
    return named(enabled=True, recipe=chosen) if named else te.fp8_autocast(enabled=True, fp8_recipe=chosen)


def linear(te: ModuleType, name: str, layer: nn.Linear) -> Callable[[Tensor, Tensor], None]:
    """Forward and backward of its linear layer with `layer`'s weight by one of its recipes. Nothing is said about
    micro-batches, so that every call quantizes the weight anew."""
    chosen = recipe(name)
    module = te.Linear(
        layer.in_features, layer.out_features, bias=False, params_dtype=layer.weight.dtype, device=layer.weight.device
    )
    with torch.no_grad():
        module.weight.copy_(layer.weight)

    def call(x: Tensor, dy: Tensor) -> None:
        module.weight.grad = None
        with quantized(te, chosen):
            y = module(x)
        y.backward(dy)

    return call


def peers(times: dict[str, float]) -> dict[str, float]:
    """The peers of a result among contenders' times: the best recipe, where all of them ran, and the block-wise one."""
    found = {}
    if all(name in times for name in RECIPES):
        found["te_best"] = min(times[name] for name in RECIPES)
    if "te_block" in times:
        found["te_block"] = times["te_block"]
    return found
