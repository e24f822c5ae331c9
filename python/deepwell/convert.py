"""Class swapping: how one module starts and stops running through Deepwell.

A converted module's class becomes a subclass of its own class with another forward. Parameters, buffers, hooks and
attributes stay where they are, isinstance stays true, and the module gains one private attribute that names its recipe.
The subclasses are made on demand, so pickling and copying go through the original class (see __reduce_ex__)."""

from __future__ import annotations

import copyreg
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import cuda_linear, ops, registry
from .errors import InvalidArgumentError, UnsupportedError
from .plan import Recipe

RECIPE = "_deepwell_recipe"
HOPPER_RECIPE = str(Recipe(activation_block="1x128", weight_block="128x128"))
KERNEL = "_deepwell_kernel"


class Converted:
    """What every converted class has: its original, and pickling by way of it."""

    _deepwell_original: ClassVar[type]
    _deepwell_behaviour: ClassVar[type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The generated class has no importable name. The default reduction names it in one place, which is replaced; a
        # class that brings its own reduction is left to it.
        reduced = super().__reduce_ex__(protocol)
        own = type(self)
        if reduced[0] is copyreg.__newobj__ and reduced[1] and reduced[1][0] is own:
            return (_rebuild, (own._deepwell_behaviour.__name__, own._deepwell_original, *reduced[1][1:]), *reduced[2:])
        return reduced


class MXLinear(Converted):
    """forward of a converted nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] -> [..., out_features], in the dtype nn.Linear would give."""
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        device = input.device.type
        out_dtype = input.dtype
        if device != "meta" and torch.is_autocast_enabled(device):
            out_dtype = torch.get_autocast_dtype(device)
        elif input.dtype != weight.dtype:
            raise InvalidArgumentError(
                f"linear layer with a weight of {weight.dtype} got an input of {input.dtype}; cast one of them, or use "
                "torch.autocast"
            )
        if device == "cuda":
            if self._deepwell_recipe != HOPPER_RECIPE:  # type: ignore[attr-defined]
                raise UnsupportedError(
                    f"a layer converted for the CPU got an input on {input.device}; call deepwell.restore(model), move "
                    "the model, and deepwell.optimize it there"
                )
            if not torch.compiler.is_compiling() and not ops.transforms_active():
                return cuda_linear.linear(input, weight, self.bias, out_dtype)  # type: ignore[attr-defined]
        elif device not in ("cpu", "meta"):
            raise UnsupportedError(
                f"a converted layer got an input on {input.device}; expected the CPU or a Hopper GPU"
            )
        save_x = torch.is_grad_enabled() and weight.requires_grad
        return ops.mx_linear(input, weight, self.bias, self._deepwell_recipe, out_dtype, save_x)  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        recipe = Recipe.parse(self.__dict__[RECIPE])
        return (
            f"{super().extra_repr()}, mxfp8 {recipe.element}, blocks {recipe.activation_block}, "  # type: ignore[misc]
            f"weight {recipe.weight_block}"
        )


class KernelModule(Converted):
    """forward of a module that a registered kernel runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return registry.registered(*self.__dict__[KERNEL]).forward(self, *args, **kwargs)


_BEHAVIOURS: dict[str, type[Converted]] = {}
_classes: dict[str, weakref.WeakKeyDictionary[type, type]] = {}
_attributes: set[str] = set()  # what conversion leaves in modules' __dict__


def register_behaviour(behaviour: type[Converted], *attributes: str) -> None:
    """Makes a kind of forward known; `attributes` are what its modules carry and lose again when reverted."""
    _BEHAVIOURS[behaviour.__name__] = behaviour
    _classes[behaviour.__name__] = weakref.WeakKeyDictionary()
    _attributes.update(attributes)


register_behaviour(MXLinear, RECIPE)
register_behaviour(KernelModule, KERNEL)


def convert_linear(module: nn.Module, recipe: Recipe) -> None:
    """Makes `module`, an nn.Linear, run through deepwell::mx_linear."""
    module.__dict__[RECIPE] = str(recipe)
    swap(module, MXLinear)


def convert_to_kernel(module: nn.Module, kernel: registry.RegisteredKernel) -> None:
    """Makes `module` run `kernel`."""
    module.__dict__[KERNEL] = (kernel.kind, kernel.precision)
    swap(module, KernelModule)


def is_converted(module: nn.Module) -> bool:
    return isinstance(module, Converted)


def check_revertible(module: nn.Module) -> None:
    """Raises InvalidArgumentError when a converted module's class is no longer the one it was given."""
    own = type(module)
    if "_deepwell_original" not in own.__dict__:
        raise InvalidArgumentError(
            f"cannot restore a {own.__name__}: its class was changed again after deepwell.optimize (by a "
            "parametrization, say); undo that first"
        )


def revert(module: nn.Module) -> None:
    """Gives a converted module its own class back."""
    module.__class__ = type(module)._deepwell_original  # type: ignore[attr-defined]
    _drop_attributes(module)


def converted_class(behaviour: str, original: type) -> type:
    """The subclass of `original` with this behaviour; the same one each time, so that type checks and compiled graphs
    hold across modules."""
    known = _classes[behaviour].get(original)
    if known is None:
        base = _BEHAVIOURS[behaviour]
        prefix = "MX" if base is MXLinear else "Deepwell"
        known = type(
            f"{prefix}{original.__name__}",
            (base, original),
            {
                "__module__": original.__module__,
                "__doc__": original.__doc__,
                "_deepwell_original": original,
                "_deepwell_behaviour": base,
            },
        )
        _classes[behaviour][original] = known
    return known


def _drop_attributes(module: nn.Module) -> None:
    for attribute in _attributes:
        module.__dict__.pop(attribute, None)


def swap(module: nn.Module, behaviour: type[Converted]) -> None:
    """Gives `module` this behaviour's forward."""
    try:
        module.__class__ = converted_class(behaviour.__name__, type(module))
    except TypeError as error:
        _drop_attributes(module)
        raise UnsupportedError(f"cannot convert a {type(module).__name__}: {error}; name it in skip") from error


def _rebuild(behaviour: str, original: type, *arguments: Any) -> Any:
    """An empty module of the converted class, for pickle and copy to fill."""
    cls = converted_class(behaviour, original)
    return cls.__new__(cls, *arguments)
