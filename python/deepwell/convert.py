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

from . import cuda_eager, ops, registry
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
        """input [..., in_features] -> [..., out_features], in the dtype nn.Linear would give. Vectors (one token alone)
        and tensors of more than four dimensions are not quantized."""
        if input.dim() not in _QUANTIZED_DIMENSIONS:
            return self._deepwell_original.forward(self, input)  # type: ignore[attr-defined]
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        out_dtype = _out_dtype(input, weight)
        if input.is_cuda:
            _check_hopper_recipe(self._deepwell_recipe, input)  # type: ignore[attr-defined]
            if not torch.compiler.is_compiling() and not ops.transforms_active():
                return cuda_eager.linear(input, weight, self.bias, out_dtype)  # type: ignore[attr-defined]
        return _multiply(self, input, weight, out_dtype)

    def extra_repr(self) -> str:
        return _described(self, super().extra_repr())  # type: ignore[misc]


class MXOwnLinear(MXLinear):
    """forward of a converted module that computes what nn.Linear does in a forward of its own, whose parameter may have
    any name."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (x,) = inputs or named.values()
        return super().forward(x)


class MXTransposedLinear(Converted):
    """forward of a converted module that computes x · weight + bias, its weight [in_features, out_features] (the Conv1D
    of GPT-2). On the CPU only: what is cached of a weight on a GPU is of the parameter as it lies."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (x,) = inputs or named.values()
        if x.dim() not in _QUANTIZED_DIMENSIONS:
            return self._deepwell_original.forward(self, x)  # type: ignore[attr-defined]
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        if x.is_cuda:
            _check_hopper_recipe("", x)
        return _multiply(self, x, weight.t(), _out_dtype(x, weight))

    def extra_repr(self) -> str:
        return _described(self, super().extra_repr())  # type: ignore[misc]


_QUANTIZED_DIMENSIONS = (0, 2, 3, 4)  # of the input; 0 is an error, which the operator words


def _out_dtype(input: Tensor, weight: Tensor) -> torch.dtype:
    device = input.device.type
    if device not in ("cpu", "meta", "cuda"):
        raise UnsupportedError(f"a converted layer got an input on {input.device}; expected the CPU or a Hopper GPU")
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if input.dtype != weight.dtype:
        raise InvalidArgumentError(
            f"linear layer with a weight of {weight.dtype} got an input of {input.dtype}; cast one of them, or use "
            "torch.autocast"
        )
    return input.dtype


def _check_hopper_recipe(recipe: str, input: Tensor) -> None:
    if recipe != HOPPER_RECIPE:
        raise UnsupportedError(
            f"a layer converted for the CPU got an input on {input.device}; call deepwell.restore(model), move "
            "the model, and deepwell.optimize it there"
        )


def _multiply(module: Any, input: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    save_x = torch.is_grad_enabled() and weight.requires_grad
    return ops.mx_linear(input, weight, module.bias, module._deepwell_recipe, out_dtype, save_x)


def _described(module: nn.Module, own: str) -> str:
    recipe = Recipe.parse(module.__dict__[RECIPE])
    how = f"mxfp8 {recipe.element}, blocks {recipe.activation_block}, weight {recipe.weight_block}"
    return f"{own}, {how}" if own else how


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
register_behaviour(MXOwnLinear, RECIPE)
register_behaviour(MXTransposedLinear, RECIPE)
register_behaviour(KernelModule, KERNEL)


def convert_linear(module: nn.Module, recipe: Recipe, transposed: bool = False) -> None:
    """Makes `module`, which computes a linear layer, run through deepwell::mx_linear. transposed: its weight is
    [in_features, out_features]."""
    module.__dict__[RECIPE] = str(recipe)
    plain = type(module).forward is nn.Linear.forward
    swap(module, MXTransposedLinear if transposed else MXLinear if plain else MXOwnLinear)


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
        prefix = "MX" if base.__name__.startswith("MX") else "Deepwell"
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
