"""Weight gradients added straight into `.grad`, where that is what autograd would do anyway.

From the second micro-batch of an accumulated step on, autograd adds a fresh gradient to the one that is there: the
multiplication writes it, the addition reads both and writes one. The multiplication can add by itself. It may do so
where nobody would see the difference: the backward pass runs for its effect on `.grad` (not torch.autograd.grad, not
with create_graph), nothing is hooked to the parameter, and the gradient there is plain memory of the parameter's type.
Processes of torch.distributed are left alone, because its gradient hooks, on autograd's own nodes, cannot be seen.

In BF16 the product and the sum are rounded, as the usual way rounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def backward(gradients: Callable[..., tuple]) -> Callable[..., tuple]:
    """The backward method of an autograd.Function, for gradients(ctx, dy, in_place) that can add to `.grad` when
    in_place is true. It is false under create_graph (nothing else runs a backward pass with gradients enabled), whose
    results then refuse a second derivative."""
    once = once_differentiable(lambda ctx, dy: gradients(ctx, dy, False))

    def run(ctx: Any, dy: Tensor) -> tuple:
        return once(ctx, dy) if torch.is_grad_enabled() else gradients(ctx, dy, True)

    return run


def target(ctx: Any, weight: Tensor, position: int) -> Tensor | None:
    """The gradient to add to in the backward pass of `ctx`, whose argument number `position` is `weight`; None where
    the gradient must be returned. Only for a pass that is not differentiated itself (`backward` tells). Call `added`
    afterwards."""
    if type(weight) is not torch.nn.Parameter or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return None
    grad = weight.grad
    if (
        type(grad) is not Tensor
        or grad.dtype != weight.dtype
        or grad.shape != weight.shape
        or grad.requires_grad
        or grad.device != weight.device
        or not grad.is_contiguous()
        or grad.data_ptr() % 16
        or (torch.distributed.is_available() and torch.distributed.is_initialized())
    ):
        return None
    try:
        return grad if torch._C._will_engine_execute_node(ctx.next_functions[position][0]) else None
    except RuntimeError:  # torch.autograd.grad asks for this gradient itself
        return None


def stacked_target(ctx: Any, first: Tensor, second: Tensor, position: int) -> Tensor | None:
    """The same for two weights of one shape whose gradients lie one behind the other in one piece of memory, as the
    gradients of a gated MLP do that were made together: that piece, as one matrix."""
    grads = [target(ctx, weight, position + i) for i, weight in enumerate((first, second))]
    if grads[0] is None or grads[1] is None or grads[0].shape != grads[1].shape:
        return None
    upper, lower = grads
    if (
        lower.data_ptr() != upper.data_ptr() + upper.nbytes
        or lower.untyped_storage().data_ptr() != upper.untyped_storage().data_ptr()
    ):
        return None
    rows, cols = upper.shape
    return upper.as_strided((2 * rows, cols), (cols, 1))


def added(*grads: Tensor) -> None:
    """Tells PyTorch that these were written to."""
    for grad in grads:
        torch.autograd.graph.increment_version(grad)
