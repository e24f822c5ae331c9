"""The operators under torch.func: grad, vjp, jacrev and vmap, nested in any way.

Autograd formulas registered with torch.library do not work inside torch.func transforms; an autograd.Function with
setup_context does. Each level of transforms runs one of these and calls the next level, the last the operator itself.
vmap runs each example on its own, which is what blocks along tokens mean.

torch.compile cannot trace any of this; it is told so, and runs it as it stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .errors import UnsupportedError


@torch.compiler.disable
def linear(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """deepwell::mx_linear at the present level of transforms."""
    if ops.transforms_active():
        return _Linear.apply(*arguments)
    return torch.ops.deepwell.mx_linear(*arguments)


def linear_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """deepwell::mx_linear_backward at the present level of transforms."""
    if ops.transforms_active():
        return _LinearBackward.apply(*arguments)
    return torch.ops.deepwell.mx_linear_backward(*arguments)


def _each_example(
    function: Any, info: Any, in_dims: tuple, arguments: tuple
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    if info.batch_size == 0:
        raise UnsupportedError(
            "torch.vmap over a batch of no examples is not available for a layer converted by deepwell"
        )
    results = [
        function(*(a if d is None else a.select(d, example) for a, d in zip(arguments, in_dims, strict=True)))
        for example in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _no_forward_mode(*_: Any) -> None:
    raise UnsupportedError(
        "forward-mode derivatives (torch.func.jvp, jacfwd) of a layer converted by deepwell are not available; use "
        "reverse mode (vjp, jacrev), or call deepwell.restore(model)"
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return linear(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1], output[2])
        ops.save_for_backward(ctx, inputs, output)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple:
        return ops.gradients(ctx, dy, linear_backward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        return _each_example(linear, info, in_dims, arguments)

    jvp = staticmethod(_no_forward_mode)


class _LinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return linear_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Nothing to keep: there is no derivative of this one."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        return _each_example(linear_backward, info, in_dims, arguments)

    backward = staticmethod(ops.no_second_derivative)
    jvp = staticmethod(_no_forward_mode)
