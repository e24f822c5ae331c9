"""Gradients added in place for two weights at once (one weight: test_gpu_linear_stand_in.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepwell import accumulate


def _gradients(ctx: Any, dy: Tensor, in_place: bool) -> tuple:
    x, first, second = ctx.saved_tensors
    product = torch.cat([dy.t() @ x, 2 * dy.t() @ x])
    grad = accumulate.stacked_target(ctx, first, second, 1) if in_place else None
    ctx.added.append(grad is not None)
    if grad is None:
        return None, product[: len(first)], product[len(first) :], None
    grad += product
    accumulate.added(first.grad, second.grad)
    return None, None, None, None


class Pair(torch.autograd.Function):
    """x · first^T + 2 x · second^T, whose weight gradients are made in one piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, added: list[bool]) -> Tensor:
        ctx.save_for_backward(x, first, second)
        ctx.added = added
        return x @ first.t() + 2 * x @ second.t()

    backward = staticmethod(accumulate.backward(_gradients))


def test_two_gradients_in_one_piece_are_added_to_in_place(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = (nn.Parameter(torch.randn(16, 8)) for _ in range(2))
    xs = [torch.randn(4, 8) for _ in range(3)]
    added: list[bool] = []

    def backward(x: Tensor) -> None:
        Pair.apply(x, first, second, added).sum().backward()

    backward(xs[0])
    grads = first.grad, second.grad
    backward(xs[1])
    backward(xs[2])
    assert added == [False, True, True]
    assert first.grad is grads[0]
    assert second.grad is grads[1]
    expected = torch.ones(16, 1) * sum(x.sum(0) for x in xs)
    torch.testing.assert_close(first.grad, expected)
    torch.testing.assert_close(second.grad, 2 * expected)

    # Apart in memory, or one of them missing: autograd adds.
    first.grad = first.grad.clone()
    backward(xs[0])
    second.grad = None
    backward(xs[0])
    assert added[3:] == [False, False]
    torch.testing.assert_close(first.grad, expected + 2 * torch.ones(16, 1) * xs[0].sum(0))


def test_frozen_weights_have_no_target() -> None:
    first, second = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16, 8), requires_grad=False)
    first.grad = torch.zeros(16, 8)
    added: list[bool] = []
    Pair.apply(torch.randn(4, 8), first, second, added).sum().backward()
    assert added == [False]
