"""Forward, data gradient and weight gradient against the specified data flow stated in NumPy and FP64.

The only differences allowed are those of FP32 accumulation and one rounding to the result's dtype, so the tolerance is
a bound, element by element: a sum of K products, in any order, errs by at most K·u/(1 - K·u) of the sum of magnitudes
with u = 2^-24, and the last rounding by half a unit of the result's dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepwell
from numpy_oracle import fake_quantize

HALF_UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
RECIPES = {  # arguments of optimize: (activation block, weight block)
    ("cpu", None): ("1x32", "128x128"),
    ("cpu", 32): ("1x32", "1x32"),
    ("cpu", 128): ("1x128", "128x128"),
    ("hopper", None): ("1x128", "128x128"),
    ("hopper", 32): ("1x32", "1x32"),
    ("blackwell", None): ("1x32", "1x32"),
}


def wide(t: Tensor) -> np.ndarray:
    return t.detach().to(torch.float64).numpy()


def scaled(rng: np.random.Generator, shape: tuple[int, int], exponent: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ldexp(rng.standard_normal(shape), exponent))


def within(got: Tensor, a: np.ndarray, b: np.ndarray, extra: np.ndarray | float = 0.0) -> None:
    """`got` is a @ b (+ extra), accumulated in FP32 and rounded once."""
    expected = a @ b + extra
    terms = a.shape[1] + 1
    unit = 2.0**-24
    accumulation = terms * unit / (1 - terms * unit) * (np.abs(a) @ np.abs(b) + np.abs(extra))
    bound = accumulation * (1 + 2.0**-8) + HALF_UNIT[got.dtype] * np.abs(expected) + SMALLEST[got.dtype]
    error = np.abs(wide(got) - expected)
    assert (error <= bound).all(), f"worst error {np.max(error / bound)} of the bound"


def quantized_products(x, weight, dy, activation: str, weights: str) -> tuple:
    """Operands of the three products after quantization, each along its own reduction."""
    xq, xq_t = fake_quantize(x, activation), fake_quantize(x.T, activation)
    dyq, dyq_t = fake_quantize(dy, activation), fake_quantize(dy.T, activation)
    wq, wq_t = fake_quantize(weight, weights), fake_quantize(weight.T, weights)
    return xq, wq, dyq, wq_t, dyq_t, xq_t


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r[0]}-{r[1]}")
def test_three_products(recipe: tuple, dtype: torch.dtype, bias: bool, rng: np.random.Generator) -> None:
    target, block_size = recipe
    for tokens, inputs, outputs in ((1, 32, 32), (33, 64, 129), (127, 200, 96), (130, 129, 257)):
        layer = nn.Linear(inputs, outputs, bias=bias).to(dtype)
        layer.weight.data = scaled(rng, (outputs, inputs), rng.integers(-6, 2, (outputs, 1))).to(dtype)
        deepwell.optimize(layer, target=target, block_size=block_size)
        x = scaled(rng, (tokens, inputs), rng.integers(-9, 3, (tokens, 1))).to(dtype)
        dy = scaled(rng, (tokens, outputs), rng.integers(-12, 1, (1, outputs))).to(dtype)
        x.requires_grad_()
        y = layer(x)
        y.backward(dy)
        assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == dtype
        xq, wq, dyq, wq_t, dyq_t, xq_t = quantized_products(wide(x), wide(layer.weight), wide(dy), *RECIPES[recipe])
        within(y, xq, wq.T, wide(layer.bias)[None, :] if bias else 0.0)
        within(x.grad, dyq, wq_t.T)
        within(layer.weight.grad, dyq_t, xq_t.T)
        if bias:
            within(layer.bias.grad[None, :], np.ones((1, tokens)), wide(dy))


def test_weights_of_128_squares_share_one_quantization(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((200, 300)).astype(np.float32)
    np.testing.assert_array_equal(fake_quantize(weight, "128x128").T, fake_quantize(weight.T, "128x128"))


def test_autocast_quantizes_from_the_source_and_rounds_once(rng: np.random.Generator) -> None:
    """Under BF16 autocast an FP32 layer gives BF16 activations and FP32 gradients, as nn.Linear does."""
    layer = nn.Linear(96, 64)
    plain = nn.Linear(96, 64)
    deepwell.optimize(layer)
    x = torch.from_numpy(rng.standard_normal((40, 96)).astype(np.float32)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, reference = layer(x), plain(x)
    assert y.dtype == reference.dtype == torch.bfloat16
    dy = torch.from_numpy(rng.standard_normal((40, 64)).astype(np.float32)).to(torch.bfloat16)
    y.backward(dy)
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    xq, wq, dyq, wq_t, dyq_t, xq_t = quantized_products(wide(x), wide(layer.weight), wide(dy), "1x32", "128x128")
    within(y, xq, wq.T, wide(layer.bias)[None, :])
    within(x.grad, dyq, wq_t.T)
    within(layer.weight.grad, dyq_t, xq_t.T)


def test_autocast_around_backward_does_not_reach_the_products(rng: np.random.Generator) -> None:
    layer = nn.Linear(64, 64)
    deepwell.optimize(layer)
    x = torch.from_numpy(rng.standard_normal((40, 64)).astype(np.float32))
    layer(x).square().sum().backward()
    outside = layer.weight.grad.clone()
    layer.weight.grad = None
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, outside, rtol=0, atol=0)


def test_leading_dimensions_and_strides_change_nothing(rng: np.random.Generator) -> None:
    layer = nn.Linear(64, 48)
    deepwell.optimize(layer)
    x = torch.from_numpy(rng.standard_normal((6, 10, 64)).astype(np.float32))
    expected = layer(x.reshape(60, 64))
    torch.testing.assert_close(layer(x).reshape(60, 48), expected, rtol=0, atol=0)
    # One token alone, and what has more than four dimensions, is not quantized.
    for other in (x[1, 2], x.reshape(1, 2, 3, 10, 64)):
        torch.testing.assert_close(layer(other), F.linear(other, layer.weight, layer.bias), rtol=0, atol=0)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not turned.is_contiguous()
    y = layer(turned)
    torch.testing.assert_close(y.reshape(60, 48), expected, rtol=0, atol=0)
    # A gradient that is an expanded scalar: strides of zero.
    y.sum().backward()
    straight = x.clone().requires_grad_()
    layer(straight).backward(torch.ones(6, 10, 48))
    torch.testing.assert_close(turned.grad, straight.grad, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (0, 5, 64)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(64, 48)
    deepwell.optimize(layer)
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 48)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_reach_the_loss_and_the_gradients(fault: float) -> None:
    layer = nn.Linear(64, 64)
    deepwell.optimize(layer)
    x = torch.randn(40, 64)
    x[7, 9] = fault
    y = layer(x)
    assert y[7].isnan().all()
    assert y[:7].isfinite().all()
    assert y[8:].isfinite().all()
    y.sum().backward()
    assert layer.weight.grad[:, 9].isnan().all()
    layer.weight.grad = None
    dy = torch.randn(40, 64)
    dy[3, 5] = fault
    layer(torch.randn(40, 64)).backward(dy)
    assert layer.weight.grad[5].isnan().all()
    with torch.no_grad():
        layer.weight[0, 0] = fault
    assert layer(torch.randn(4, 64)).isnan().any()


def test_values_beyond_float16_do_not_overflow_inside() -> None:
    """65504 quantizes to 256·2^8, which float16 cannot hold; the product is formed in FP32 all the same."""
    layer = nn.Linear(32, 32, bias=False).half()
    with torch.no_grad():
        layer.weight.fill_(2.0**-10)
    deepwell.optimize(layer)
    y = layer(torch.full((1, 32), 65504.0, dtype=torch.float16))
    assert y.tolist() == [[2048.0] * 32]
