"""Deepwell makes a PyTorch model train in block-scaled FP8 with one call.

    model = deepwell.optimize(model, precision="mxfp8")

What works on arrays (MXFPQuantizer, kernels, the dispatcher) needs NumPy only. The rest needs PyTorch, which is
imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _core
from .errors import (
    DeepwellError,
    DeviceError,
    InvalidArgumentError,
    OutOfMemoryError,
    SelftestError,
    UnsupportedError,
)
from .plan import Decision, LayerFacts, ModelFacts, PartFacts, Plan, Recipe
from .quantizer import MXFPQuantizer, QuantizedTensor
from .registry import DeepwellDispatcher, KernelInfo, kernels, load_plugin, register_kernel, unregister_kernel

if TYPE_CHECKING:
    from .analyze import ModelOptimizer
    from .api import QuantizationPlanner, explain, optimize, restore
    from .statistics import health

__version__: str = _core.version()

_NEEDS_TORCH = {
    "ModelOptimizer": "analyze",
    "QuantizationPlanner": "api",
    "explain": "api",
    "health": "statistics",
    "optimize": "api",
    "restore": "api",
}

__all__ = [
    "Decision",
    "DeepwellDispatcher",
    "DeepwellError",
    "DeviceError",
    "InvalidArgumentError",
    "KernelInfo",
    "LayerFacts",
    "MXFPQuantizer",
    "ModelFacts",
    "ModelOptimizer",
    "OutOfMemoryError",
    "PartFacts",
    "Plan",
    "QuantizationPlanner",
    "QuantizedTensor",
    "Recipe",
    "SelftestError",
    "UnsupportedError",
    "explain",
    "health",
    "kernels",
    "load_plugin",
    "optimize",
    "register_kernel",
    "restore",
    "unregister_kernel",
]


def __getattr__(name: str) -> Any:
    module = _NEEDS_TORCH.get(name)
    if module is None:
        raise AttributeError(f"module 'deepwell' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UnsupportedError(
            f"deepwell.{name} needs PyTorch, which is not installed; run `pip install torch`"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
