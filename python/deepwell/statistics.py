"""health: what quantization does to each layer's weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import nn

from . import _core, analyze, api, tensors
from .errors import InvalidArgumentError
from .explanation import align
from .plan import Plan, Recipe

_HEADINGS = ("layer", "blocks", "SQNR dB", "underflow", "saturated", "non-finite", "amax")


@dataclass(frozen=True)
class LayerHealth:
    """One weight against its quantized form. sqnr_db: signal-to-quantization-noise ratio, infinite when exact, NaN when
    nothing finite is left. underflow: part of the nonzero elements that became zero. saturated, nonfinite: elements."""

    name: str
    block: str
    sqnr_db: float
    underflow: float
    saturated: int
    nonfinite: int
    amax: float
    elements: int


class Health(Sequence[LayerHealth]):
    """The layers' statistics in the model's order. str() is an aligned table."""

    def __init__(self, layers: Sequence[LayerHealth]) -> None:
        self._layers = tuple(layers)

    @overload
    def __getitem__(self, index: int) -> LayerHealth: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerHealth]: ...
    def __getitem__(self, index: int | slice) -> LayerHealth | Sequence[LayerHealth]:
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerHealth]:
        return iter(self._layers)

    def __str__(self) -> str:
        rows = [
            (
                layer.name or "(the model)",
                layer.block,
                f"{layer.sqnr_db:.1f}",
                f"{100 * layer.underflow:.3f}%",
                str(layer.saturated),
                str(layer.nonfinite),
                f"{layer.amax:.3g}",
            )
            for layer in self._layers
        ]
        return "\n".join(align([_HEADINGS, *rows], right=(2, 3, 4, 5, 6)))

    __repr__ = __str__


def health(model: nn.Module) -> Health:
    """Measures the weights as they are now: of the converted layers of an optimized model, each with its own blocks, or
    of every nn.Linear that `deepwell.optimize(model)` would convert. Activations and gradients are not measured.

    Computed in FP64 against the weight itself. Raises InvalidArgumentError when there is no such layer, and for weights
    that are not on the CPU UnsupportedError."""
    analyze.check_model(model)
    plan = _plan_of(model)
    prefix = _plan_prefix(model)
    layers = []
    for decision in plan.converted:
        if decision.block:
            name = f"{prefix}{decision.name}".strip(".")
            weight = model.get_submodule(name).weight
            layers.append(_measure(name, weight.t() if decision.transposed else weight, plan.recipe))
    if not layers:
        raise InvalidArgumentError(
            f"no layer of this {type(model).__name__} is quantized by deepwell: registered kernels run all "
            "converted ones"
        )
    return Health(layers)


def _plan_of(model: nn.Module) -> Plan:
    try:
        return api.find_plan(model)
    except InvalidArgumentError:
        return api.QuantizationPlanner().plan(analyze.analyze(model))


def _plan_prefix(model: nn.Module) -> str:
    """Where in `model` the module is whose plan was found: a wrapper's own prefix, such as "module."."""
    return next((f"{name}." for name, module in model.named_modules() if name and api.carries_plan(module)), "")


def _measure(name: str, weight: Any, recipe: Recipe) -> LayerHealth:
    m = tensors.source_matrix(weight)
    stats = _core.measure(
        m.address, m.dtype, m.rows, m.cols, m.ld, recipe.element, recipe.weight_block, recipe.rounding
    )
    signal, noise = stats["signal_power"], stats["noise_power"]
    sqnr = math.nan if stats["nonfinite"] == stats["elements"] else math.inf
    if noise > 0:
        sqnr = 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    return LayerHealth(
        name,
        recipe.weight_block,
        sqnr,
        stats["underflowed"] / stats["nonzero"] if stats["nonzero"] else 0.0,
        stats["saturated"],
        stats["nonfinite"],
        stats["amax"],
        stats["elements"],
    )
