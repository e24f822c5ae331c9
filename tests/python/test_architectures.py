"""Many architectures, small and random: what is converted, fused and kept is what was reviewed, a training step gives
what the plain model's gives within the format's error, and restore undoes it all."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import deepwell
from architecture_models import ARCHITECTURES, Architecture
from architecture_tables import FOLDER, describe, path_of

# E4M3 keeps three bits after the leading one: rounding is off by at most 2^-4 of the leading one's value, evenly
# distributed, so in norm by a factor of sqrt(3) less.
ELEMENT = 2.0**-4 / 3**0.5

# Gradients that nearly cancel (of a bias before a softmax, say) carry the error of what cancelled, so each parameter
# may be off by what a part of this size of the whole gradient may. More where choices of experts change: a router's
# gradient is the difference between experts.
FLOOR, FLOOR_WITH_JUMPS = 1e-3, 1e-2


def product_error(products: int) -> float:
    """Relative error in norm of what has passed through so many products, each adding that of its two operands, which
    are independent."""
    return ELEMENT * (2 * products) ** 0.5


def step(architecture: Architecture, model: nn.Module, inputs: dict[str, Tensor], seed: int):
    """Loss, logits and gradients of one step, with the same dropout and the same noise in routers each time."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss, logits = architecture.run(model, inputs)
    loss.backward()
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), logits.detach().clone(), gradients


def norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(tensor.norm()) ** 2 for tensor in tensors.values()) ** 0.5


def compare(plain, other, converted: int, jumps: bool = False) -> None:
    """Asserts that a step's results are those of the plain model, within the error of as many products as there are
    converted layers (which is more than follow each other anywhere).

    A gradient has passed through the products of forward and backward, and its own. Where choices of experts may
    change (jumps), they do for about as many tokens as the relative error says, and change these altogether."""
    (loss, logits, gradients), (other_loss, other_logits, other_gradients) = plain, other
    forward, backward = product_error(converted), product_error(2 * converted + 1)
    if jumps:
        forward, backward = ((error + error**2) ** 0.5 for error in (forward, backward))
    assert (other_logits - logits).norm() <= forward * logits.norm()
    # The loss changes by (p - onehot) · error for each token, at most sqrt(2) times it and mostly less, and the tokens'
    # errors have no common direction.
    rows = logits.numel() // logits.shape[-1]
    spread = float(logits.norm()) / logits.shape[-1] ** 0.5 / rows**0.5
    assert abs(other_loss - loss) <= 3 * 2**0.5 * forward * spread / rows**0.5 + 1e-6
    assert other_gradients.keys() == gradients.keys()
    difference = {name: other_gradients[name] - gradients[name] for name in gradients}
    whole = norm(gradients)
    assert norm(difference) <= backward * whole
    floor = (FLOOR_WITH_JUMPS if jumps else FLOOR) * whole
    for name, own in gradients.items():
        assert difference[name].norm() <= 2 * backward * (own.norm() + floor), name


@pytest.fixture(params=ARCHITECTURES)
def named(request: pytest.FixtureRequest, seed: int) -> tuple[str, Architecture, nn.Module]:
    torch.manual_seed(seed)
    return request.param, ARCHITECTURES[request.param], ARCHITECTURES[request.param].make()


def test_decisions_are_those_reviewed(named: tuple[str, Architecture, nn.Module]) -> None:
    name, _, model = named
    before = [(type(m), set(m.__dict__), m.training) for m in model.modules()]
    reviewed = json.loads(path_of(name).read_text())
    assert describe(model) == reviewed, (
        "not what was reviewed; if it should be, run .venv/bin/python tests/python/architecture_tables.py "
        f"{name}, and review the difference as tests/python/architectures/README.md says"
    )
    assert [(type(m), set(m.__dict__), m.training) for m in model.modules()] == before


def test_a_training_step_matches_the_plain_model(named: tuple[str, Architecture, nn.Module], seed: int) -> None:
    _, architecture, model = named
    inputs = architecture.inputs()
    classes = [type(m) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plain = step(architecture, model, inputs, seed)
    deepwell.optimize(model)
    converted = len(deepwell.explain(model).plan.converted)
    compare(plain, step(architecture, model, inputs, seed), converted, architecture.jumps)

    assert {name: value.dtype for name, value in model.state_dict().items()} == {n: v.dtype for n, v in state.items()}
    deepwell.restore(model)
    assert [type(m) for m in model.modules()] == classes
    assert not any(key.startswith("_deepwell") for m in model.modules() for key in m.__dict__)
    again = step(architecture, model, inputs, seed)
    assert again[0] == plain[0]
    for name, gradient in plain[2].items():
        torch.testing.assert_close(again[2][name], gradient, rtol=0, atol=0, msg=name)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("fault", ["doubled", "transposed", "stopped"])
def test_the_comparison_can_fail(fault: str, seed: int) -> None:
    architecture = ARCHITECTURES["llama"]
    torch.manual_seed(seed)
    model = architecture.make()
    inputs = architecture.inputs()
    plain = step(architecture, model, inputs, seed)
    wrong = copy.deepcopy(model)
    if fault == "doubled":
        wrong.model.layers[0].self_attn.k_proj.weight.register_hook(lambda gradient: 2 * gradient)
    elif fault == "transposed":
        weight = wrong.model.layers[0].self_attn.o_proj.weight
        weight.data = weight.detach().t().clone()
    else:
        wrong.model.layers[1].mlp.register_forward_hook(lambda module, arguments, result: result.detach())
    with pytest.raises(AssertionError):
        compare(plain, step(architecture, wrong, inputs, seed), converted=14)


def test_every_architecture_has_its_file_and_no_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 40
