"""Linear layers that are no nn.Linear: with a forward of their own, and with the weight transposed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import deepwell
from test_recognize import OwnLinear, Transposed
from torch_models import assert_equal, gradients


def twins(inputs: int = 64, outputs: int = 96) -> tuple[nn.Module, nn.Module]:
    """A layer with its weight transposed and an nn.Linear that computes the same."""
    layer, usual = Transposed(inputs, outputs), nn.Linear(inputs, outputs)
    with torch.no_grad():
        usual.weight.copy_(layer.weight.t())
        usual.bias.copy_(layer.bias)
    return layer, usual


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("arguments", [{}, {"target": "hopper"}, {"block_size": 32}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transposed_layers_compute_what_the_usual_ones_do(arguments: dict, dtype: torch.dtype) -> None:
    layer, usual = (deepwell.optimize(module.to(dtype), **arguments) for module in twins())
    x = torch.randn(2, 20, 64).to(dtype)
    for a, b in zip(run(layer, x), run(usual, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(layer.weight.grad, usual.weight.grad.t(), rtol=0, atol=0)
    torch.testing.assert_close(layer.bias.grad, usual.bias.grad, rtol=0, atol=0)
    assert layer.weight.grad.is_contiguous()
    (measured,), (expected,) = deepwell.health(layer), deepwell.health(usual)
    assert measured == expected


def test_own_forwards_are_replaced_whatever_they_call_their_input() -> None:
    own, usual = OwnLinear(64, 64), nn.Linear(64, 64)
    usual.load_state_dict(own.state_dict())
    deepwell.optimize(own)
    deepwell.optimize(usual)
    x = torch.randn(40, 64)
    for y in (own(x), own(hidden_states=x)):
        torch.testing.assert_close(y, usual(x), rtol=0, atol=0)
    assert isinstance(own, OwnLinear)
    assert "mxfp8" in repr(own)


@pytest.mark.parametrize("make", [lambda: Transposed(64, 64), lambda: OwnLinear(64, 64)])
def test_they_are_restored_copied_compiled_and_pickled_like_others(make) -> None:
    torch.manual_seed(0)
    model = make()
    original, state = type(model), {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(40, 64)
    before = model(x)
    deepwell.optimize(model)
    y, _ = run(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.zero_grad()
        torch.testing.assert_close(run(other, x)[0], y, rtol=0, atol=0)
        assert_equal(gradients(other), gradients(model))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), y, rtol=0, atol=0)
    assert_equal(dict(model.state_dict()), state)
    deepwell.restore(model)
    assert type(model) is original
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_on_hopper_the_transposed_weight_is_left_alone() -> None:
    facts = deepwell.ModelOptimizer().analyze_model(Transposed(4096, 4096))
    (layer,) = facts.layers
    assert layer.transposed
    on_gpu = deepwell.ModelFacts(facts.class_name, (layer,), facts.module_names, facts.parameters, "hopper")
    with pytest.raises(deepwell.InvalidArgumentError, match="take the transpose"):
        deepwell.QuantizationPlanner().plan(on_gpu)


@pytest.mark.parametrize("shape", [(64,), (1, 2, 3, 4, 64)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 64), lambda: Transposed(64, 64), lambda: OwnLinear(64, 64)])
def test_vectors_and_tensors_of_five_dimensions_are_not_quantized(make, shape: tuple[int, ...]) -> None:
    plain = make()
    layer = deepwell.optimize(copy.deepcopy(plain))
    x = torch.randn(shape)
    if len(shape) == 1 and isinstance(plain, Transposed):
        x = x[None, None, None, None]
    for a, b in zip(run(layer, x), run(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_a_layer_returns_can_be_added_to_in_place() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    x = torch.randn(3, 5, 64)
    y = layer(x)
    expected = y.detach() + 1
    y += 1
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    assert layer.weight.grad is not None
