"""torch.compile(fullgraph=True): no graph break, the same numbers, training included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import deepwell
from torch_models import TinyLM, assert_equal, gradients, mlp

BACKENDS = ("eager", "aot_eager", "inductor")


@pytest.fixture(autouse=True)
def _fresh(seed: int) -> None:
    torch.manual_seed(seed)
    torch._dynamo.reset()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch).flatten(0, 1), (7 * batch.flatten() + 3) % 96)


def step(model: nn.Module, run, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.square().mean().backward()
    return {**gradients(model), "x": x.grad, "y": y.detach()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_converted_layers_are_one_graph_with_the_same_bytes(backend: str) -> None:
    layer = deepwell.optimize(nn.Linear(64, 96))
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for shape in ((5, 64), (2, 33, 64)):
        x = torch.randn(shape)
        eager, traced = step(layer, layer, x), step(layer, compiled, x)
        torch.testing.assert_close(traced.pop("bias"), eager.pop("bias"))  # a sum, in the backend's order
        assert_equal(traced, eager)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_compiled(backend: str) -> None:
    model = deepwell.optimize(TinyLM(depth=1, tied=True))
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, other)]
    batch = torch.randint(0, 96, (3, 11))
    for _ in range(5):
        losses = []
        for run, optimizer in ((model, optimizers[0]), (compiled, optimizers[1])):
            optimizer.zero_grad()
            value = loss(run, batch)
            value.backward()
            optimizer.step()
            losses.append(value.item())
    # Other kernels round elsewhere and a value may cross a rounding boundary of FP8, so close, not equal.
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert type(other.blocks[0].up) is type(model.blocks[0].up)


def test_graph_holds_the_operators_and_nothing_of_the_original() -> None:
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    model = deepwell.optimize(mlp())
    torch.compile(model, fullgraph=True, backend=backend)(torch.randn(5, 64))
    assert len(seen) == 1
    targets = [node.target for node in seen[0].graph.nodes if node.op == "call_function"]
    called = [t for t in targets if "deepwell" in str(t)]
    assert len(called) == 2
    assert torch.nn.functional.linear not in targets


def test_autocast_no_grad_and_restore_are_seen_by_compiled_code() -> None:
    model = deepwell.optimize(mlp())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(7, 64)
    assert compiled(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
        torch.testing.assert_close(compiled(x), model(x))
    with torch.no_grad():
        assert not compiled(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
    quantized = compiled(x).detach()
    deepwell.restore(model)
    plain = compiled(x).detach()
    torch.testing.assert_close(plain, model(x).detach())
    assert (plain != quantized).any()


def test_frozen_weights_compiled() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 64)
    for frozen in (True, False):
        layer.weight.requires_grad_(not frozen)
        eager, traced = step(layer, layer, x), step(layer, compiled, x)
        assert ("weight" in eager) == (not frozen)
        assert_equal(traced, eager)


def test_changing_batch_sizes_do_not_recompile_for_each() -> None:
    model = deepwell.optimize(mlp())
    count = 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        nonlocal count
        count += 1
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (2, 33, 64, 129, 200):
        x = torch.randn(tokens, 64)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    assert count == 1


def test_compiled_before_optimize() -> None:
    model = mlp()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(7, 64)
    plain = compiled(x).detach()
    deepwell.optimize(compiled)
    torch.testing.assert_close(compiled(x).detach(), model(x).detach(), rtol=0, atol=0)
    assert (compiled(x) != plain).any()
    assert all(d.name.startswith("_orig_mod.") for d in deepwell.explain(compiled).plan.decisions)


def test_torch_func_inside_compiled_code_leaves_the_graph() -> None:
    model = deepwell.optimize(mlp())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(40, 64)

    def energy(p: dict) -> torch.Tensor:
        return functional_call(model, p, (x,)).square().mean()

    eager = grad(energy)(parameters)
    assert_equal(torch.compile(lambda p: grad(energy)(p), backend="eager")(parameters), eager)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"not available inside torch\.compile"):
        torch.compile(lambda p: grad(energy)(p), fullgraph=True, backend="eager")(parameters)


def test_export() -> None:
    model = deepwell.optimize(mlp()).eval()
    x = torch.randn(5, 64)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)
