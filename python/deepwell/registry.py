"""Kernels: the library's table, the dispatcher over it, and implementations that users register for module types."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _core
from .errors import InvalidArgumentError, UnsupportedError
from .plan import PRECISIONS
from .quantizer import BLOCKS, ELEMENTS, LAYOUTS, ORIENTATIONS, ROUNDINGS, one_of


@dataclass(frozen=True)
class KernelInfo:
    """One kernel. For rows of the library's table the tuples name what it serves; for a registered implementation
    operation is the module type, target is "python" and the tuples are empty. reason: why it is not available.
    priority: among those that can serve a request the highest runs: 0 the scalar reference and the library's own way
    with a module, 10 AVX2, 20 AVX-512 and GPUs, 100 what `register_kernel` registered, and what a plug-in says for its
    own. alignment: bytes that the high-precision side must be aligned to, 0: its elements' size. form: of a matrix
    kernel ("gemm"), its operands, scales, groups and tile in words; sources is then the type of its result, blocks
    those of both operands, layouts empty when its scales are FP32, and the one with the least predicted time runs."""

    name: str
    target: str
    operation: str
    orientations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    roundings: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    priority: int = 0
    available: bool = True
    reason: str = ""
    alignment: int = 0
    form: str = ""


_REGISTERED_PRIORITY = 100


@dataclass(frozen=True)
class Dispatch:
    """The kernel that serves a request, and one line for each candidate saying why it was chosen or rejected."""

    kernel: KernelInfo
    explanation: str

    def __str__(self) -> str:
        return f"{self.kernel.name}\n{self.explanation}"


class DeepwellDispatcher:
    """Chooses kernels as the library itself does for each call: from its table, plug-ins and `register_kernel`."""

    def dispatch(
        self,
        operation: str = "quantize",
        *,
        rows: int | None = None,
        cols: int | None = None,
        orientation: str = "row",
        source: str = "bf16",
        element: str = "e4m3",
        block: str = "1x32",
        rounding: str = "rceil",
        layout: str = "row",
        device: str = "cpu",
        device_id: int = 0,
        alignment: int = 0,
        precision: str = "mxfp8",
    ) -> Dispatch:
        """The kernel for `operation` ("quantize" or "dequantize") of a [rows, cols] matrix whose high-precision side is
        `source` ("f32", "f16", "bf16") on `device` ("cpu", "cuda"), its address and rows multiples of `alignment` bytes
        (0: 256). Or, for the name of a module type such as "nn.Linear", what `optimize` runs its modules with at
        `precision`; the other arguments then do not matter.

        Raises InvalidArgumentError for unknown names and UnsupportedError, with every candidate's reason as its
        `explanation` attribute, when no kernel serves the request."""
        if isinstance(operation, str) and "." in operation:
            return _dispatch_module(operation, precision)
        one_of("operation", operation, ("quantize", "dequantize"))
        if rows is None or cols is None:
            raise InvalidArgumentError(f"rows={rows!r}, cols={cols!r}; expected both extents of the matrix")
        one_of("orientation", orientation, ORIENTATIONS)
        one_of("source", source, ("f32", "f16", "bf16"))
        one_of("element", element, ELEMENTS)
        one_of("block", block, BLOCKS)
        one_of("rounding", rounding, ROUNDINGS)
        one_of("layout", layout, LAYOUTS)
        one_of("device", device, ("cpu", "cuda"))
        index, explanation, message = _core.dispatch(
            operation, orientation, source, element, block, rounding, layout, rows, cols, device, device_id, alignment
        )
        if index is None:
            error = UnsupportedError(message)
            error.explanation = explanation  # type: ignore[attr-defined]
            raise error
        return Dispatch(KernelInfo(**_core.kernels()[index]), explanation)


@dataclass(frozen=True)
class RegisteredKernel:
    """A user's implementation of a module type. `forward(module, *args, **kwargs)` stands in for the module's own;
    `supports(module)` returns "" or the reason why it cannot take this module."""

    kind: str
    precision: str
    name: str
    module_type: type
    forward: Callable[..., Any]
    supports: Callable[[Any], str]


_registered: dict[tuple[str, str], RegisteredKernel] = {}


def kernels() -> list[KernelInfo]:
    """Every kernel there is: the library's table in order (also rows that this machine cannot run, with the reason),
    those of plug-ins, then the implementations registered with `register_kernel`."""
    table = [KernelInfo(**row) for row in _core.kernels()]
    return table + [_info(kernel) for kernel in _registered.values()]


def load_plugin(path: str | os.PathLike[str]) -> list[KernelInfo]:
    """Loads a shared object that exports `deepwell_plugin` (deepwell/plugin.h) and returns the kernels it registered.
    Each of the CPU has proved itself against the reference; each of a GPU does before its first use there. They stay
    for the life of the process.

    Raises InvalidArgumentError, SelftestError, or DeepwellError when it cannot be loaded. Runs the object's code."""
    before = len(_core.kernels())
    path = os.fspath(path)
    _core.load_plugin(path if os.sep in path else os.path.join(os.curdir, path))
    return [KernelInfo(**row) for row in _core.kernels()[before:]]


def _info(kernel: RegisteredKernel) -> KernelInfo:
    return KernelInfo(kernel.name, "python", kernel.kind, elements=(kernel.precision,), priority=_REGISTERED_PRIORITY)


def _dispatch_module(operation: str, precision: str) -> Dispatch:
    """The contest for a module type: what was registered for it, and the library's own way with linear layers."""
    kind, module_type = _resolve_type(operation)
    one_of("precision", precision, PRECISIONS)
    own = KernelInfo("deepwell", "library", kind, elements=(precision,))
    candidates = [_info(k) for k in _registered.values() if k.kind == kind and k.precision == precision]
    if _is_linear(module_type):
        candidates.append(own)
    lines = [
        f"rejected {k.name}: registered for {k.kind}" + ("" if k.kind != kind else f" at precision {k.precision}")
        for k in _registered.values()
        if k.kind != kind or k.precision != precision
    ]
    if not candidates:
        error = UnsupportedError(f"nothing is registered for {kind} at precision {precision!r}")
        error.explanation = "".join(f"{line}\n" for line in lines)  # type: ignore[attr-defined]
        raise error
    chosen = max(candidates, key=lambda k: k.priority)
    for candidate in candidates:
        lines.append(
            f"chosen   {candidate.name}: highest priority of those that serve this ({candidate.priority}), where it "
            "supports the module"
            if candidate is chosen
            else f"rejected {candidate.name}: priority {candidate.priority} is not the highest"
        )
    return Dispatch(chosen, "".join(f"{line}\n" for line in lines))


def _is_linear(module_type: type) -> bool:
    from torch import nn

    return issubclass(module_type, nn.Linear)


def register_kernel(
    module_type: str | type, precision: str = "mxfp8", *, name: str | None = None
) -> Callable[[Any], Any]:
    """Decorator that makes `deepwell.optimize` run your implementation for every module of a type.

        @deepwell.register_kernel("nn.Linear", precision="mxfp8")
        def my_linear(module, x):
            return ...

    module_type: "nn.Linear" and the like for torch.nn, a dotted path ("package.module.Class"), or the class. It applies
        to modules of this type and of subclasses that inherit its forward.
    precision: the precision of `optimize` for which it is used.
    name: shown in plans and `kernels()`; the decorated object's own name by default.

    What is decorated is a function `forward(module, *args, **kwargs)` with the arguments and result of the module's own
    forward, differentiable by PyTorch's autograd; or a class (made once, without arguments) or object with such a
    method `forward` and, if it cannot take every module, a method `supports(module)` that returns "" or the reason in
    words. It is returned unchanged. `unregister_kernel` undoes the registration; models converted with it keep asking
    for it.

    Raises InvalidArgumentError for an unknown type, a type that has a kernel for this precision already, and an object
    of another form."""
    kind, resolved = _resolve_type(module_type)
    _check_precision(precision)
    key = (kind, precision)

    def decorate(implementation: Any) -> Any:
        if key in _registered:
            raise InvalidArgumentError(
                f"{kind} has the registered kernel {_registered[key].name!r} for precision {precision!r} already; "
                f"call deepwell.unregister_kernel({kind!r}, precision={precision!r}) first"
            )
        instance = implementation() if isinstance(implementation, type) else implementation
        forward = getattr(instance, "forward", instance)
        supports = getattr(instance, "supports", _supports_all)
        if not callable(forward) or not callable(supports):
            raise InvalidArgumentError(
                f"cannot register {implementation!r} for {kind}; expected a function forward(module, ...) or an object "
                "with a method forward and, optionally, supports"
            )
        shown = name or getattr(implementation, "__name__", type(implementation).__name__)
        if shown == "deepwell" or any(shown == kernel.name for kernel in kernels()):
            raise InvalidArgumentError(f"a kernel is named {shown!r} already; pass another one as name=")
        _registered[key] = RegisteredKernel(kind, precision, shown, resolved, forward, supports)
        return implementation

    return decorate


def unregister_kernel(module_type: str | type, precision: str = "mxfp8") -> None:
    """Undoes `register_kernel`. Raises InvalidArgumentError when nothing is registered for this type and precision."""
    kind, _ = _resolve_type(module_type)
    if _registered.pop((kind, precision), None) is None:
        raise InvalidArgumentError(f"no kernel is registered for {kind} and precision {precision!r}")


def kernel_for(module: Any, precision: str) -> RegisteredKernel | None:
    """The registered kernel whose type is the nearest in `module`'s ancestry that still owns its forward."""
    for ancestor in type(module).__mro__:
        if ancestor.__dict__.get("_deepwell_original") is not None:
            continue
        kernel = _registered.get((kind_of(ancestor), precision))
        if kernel is not None and kernel.module_type is ancestor:
            return kernel if _inherits_forward(module, ancestor) else None
    return None


def registered(kind: str, precision: str) -> RegisteredKernel:
    """The kernel a converted module runs. Raises UnsupportedError when it is not registered (any more)."""
    kernel = _registered.get((kind, precision))
    if kernel is None:
        raise UnsupportedError(
            f"this {kind} was converted with a registered kernel for precision {precision!r} that is not registered in "
            "this process; register it again, or call deepwell.restore(model)"
        )
    return kernel


def kind_of(module_type: type) -> str:
    """A module type's public name: "nn.Linear" for torch.nn's own, else its dotted path."""
    module = module_type.__module__
    if module.startswith("torch.nn.modules."):
        return f"nn.{module_type.__qualname__}"
    return f"{module}.{module_type.__qualname__}"


def _inherits_forward(module: Any, ancestor: type) -> bool:
    return type(module).forward is ancestor.forward  # type: ignore[attr-defined]


def _supports_all(module: Any) -> str:
    return ""


def _check_precision(precision: str) -> None:
    one_of("precision", precision, PRECISIONS)
    if precision != "mxfp8":
        raise UnsupportedError(
            f"precision={precision!r} is not available in this version of deepwell; register for precision='mxfp8'"
        )


def _resolve_type(module_type: str | type) -> tuple[str, type]:
    try:
        from torch import nn
    except ModuleNotFoundError:
        raise UnsupportedError(
            "deepwell.register_kernel needs PyTorch, which is not installed; run `pip install torch`"
        ) from None

    resolved: Any = module_type
    if isinstance(module_type, str):
        path = f"torch.{module_type}" if module_type.startswith("nn.") else module_type
        package, _, attribute = path.rpartition(".")
        try:
            resolved = getattr(importlib.import_module(package), attribute) if package else None
        except (ImportError, AttributeError):
            resolved = None
    if not (isinstance(resolved, type) and issubclass(resolved, nn.Module)):
        raise InvalidArgumentError(
            f"{module_type!r} names no module type; expected 'nn.Linear', a dotted path to an nn.Module class, or the "
            "class"
        )
    return kind_of(resolved), resolved
