"""What the source of forward says: who reads what, who reads a weight without calling its layer, what chooses experts,
what stands beside what; and what the plan makes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepwell
from deepwell.structure import Structure
from torch_models import mlp


def facts(model: nn.Module) -> dict[str, deepwell.LayerFacts]:
    return {layer.name: layer for layer in deepwell.ModelOptimizer().analyze_model(model).layers}


def reasons(model: nn.Module) -> dict[str, str]:
    deepwell.optimize(model)
    return {d.name: d.reason for d in deepwell.explain(model).plan.decisions if not d.converted}


class Layers(nn.Module):
    """Five layers of one size and a norm, for forwards to use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(64, 64) for _ in range(5))
        self.norm = nn.LayerNorm(64)


# ---- inputs ----------------------------------------------------------------------------------------------------------


class Inner(Layers):
    def forward(self, x: Tensor) -> Tensor:
        same = x
        y = self.a(x) + self.b(same).relu()
        x = x + 1
        return y + self.c(x) + self.d(input=x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.beside = nn.LayerNorm(64), Inner(), nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        normalized = self.norm(tokens)
        return self.helper(normalized) + self.beside(normalized)

    def helper(self, passed: Tensor) -> Tensor:
        return self.inner(x=passed)


def test_inputs_are_followed_through_names_methods_and_modules() -> None:
    found = facts(Outer())
    assert found["inner.b"].shares_input == "inner.a"
    assert found["beside"].shares_input == "inner.a"
    assert found["inner.d"].shares_input == "inner.c"
    assert found["inner.c"].shares_input == ""
    assert found["inner.a"].input_from == found["beside"].input_from == "norm"
    assert found["inner.c"].input_from == ""


class InBranches(Layers):
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        y = self.a(x)
        if other:
            x = self.norm(x)
        return y + self.b(x) + self.c(x)


class InLoops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.ModuleList(Layers() for _ in range(2))
        self.fan = nn.ModuleDict({"x": nn.Linear(64, 64), "y": nn.Linear(64, 64)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.chain:
            x = layer.a(x) + layer.b(x)
        return sum(branch(x) for branch in self.fan.values())


def test_branches_and_loops() -> None:
    branches = facts(InBranches())
    assert branches["b"].shares_input == ""
    assert branches["c"].shares_input == "b"
    loops = facts(InLoops())
    assert loops["chain.0.b"].shares_input == "chain.0.a"
    assert loops["chain.1.a"].shares_input == ""
    assert loops["chain.1.b"].shares_input == "chain.1.a"
    assert loops["fan.y"].shares_input == "fan.x"


def test_without_source_nothing_is_known_and_layers_are_converted() -> None:
    space: dict = {"nn": nn}
    exec(
        "class Typed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    def forward(self, x):\n"
        "        return self.a(x) + self.b(x)\n",
        space,
    )
    found = facts(space["Typed"]())
    assert [(layer.obstacle, layer.shares_input) for layer in found.values()] == [("", ""), ("", "")]


# ---- weights read outside --------------------------------------------------------------------------------------------


class Reads(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.a.weight, self.a.bias)
        x = self.fast(x) if x.shape[0] > 8 else self.b(x)
        if isinstance(self.c.weight, Tensor) and x.dtype != self.c.weight.dtype:
            x = x.to(self.c.weight.dtype)
        return self.d(self.c(x.view(self.d.weight.shape[1], -1).t()))

    def fast(self, x: Tensor) -> Tensor:
        return F.linear(x, self.b.weight)

    def reset(self) -> None:
        self.e.weight.data.zero_()


def test_a_weight_that_is_only_read_is_not_converted() -> None:
    model = Reads()
    assert reasons(model) == {"a": "Reads reads its weight without calling it"}
    made = {d.name: d.reason for d in deepwell.explain(model).plan.decisions}
    assert "Reads may also read its weight without calling it" in made["b"]
    assert all("without" not in made[name] for name in "cde")


class Combined(nn.Module):
    """Reads the weights of its grandchildren, to multiply once."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.ModuleDict({"inner": nn.Linear(64, 64)}) for _ in range(2))
        self.last = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, torch.cat([part.inner.weight for part in self.parts])[:64]))


def test_weights_read_through_lists() -> None:
    assert set(reasons(Combined())) == {"parts.0.inner", "parts.1.inner"}


# ---- routers and experts ---------------------------------------------------------------------------------------------


class SubclassRouter(nn.Linear):
    """Inherits forward, so that only its use shows what it is."""


class Ranks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = SubclassRouter(64, 64)
        self.project = nn.Linear(64, 64)
        self.parts = nn.ModuleList(mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.pick(self.scores(self.project(x)).sigmoid())
        return sum(weights[..., :1] * part(x) for part in self.parts) + chosen.sum()

    def pick(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return torch.topk(scores.softmax(-1), 2)


class Stack(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.up = nn.Parameter(0.1 * torch.randn(count, 64, 128))
        self.down = nn.Parameter(0.1 * torch.randn(count, 128, 64))
        self.down_bias = nn.Parameter(torch.zeros(count, 64))


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.assign, self.other, self.gate = nn.Linear(64, 64), nn.Linear(64, 96), nn.Linear(64, 1)
        self.stack, self.top_k = Stack(64), 4


def test_routers_by_their_use_and_by_what_stands_beside_them() -> None:
    kept = reasons(Ranks())
    assert set(kept) == {"scores"}
    assert "ranked" in kept["scores"]
    kept = reasons(Beside())
    assert set(kept) == {"assign", "gate", "stack"}
    assert "as many outputs as stack has experts" in kept["assign"]
    assert "a dimension of 1" in kept["gate"]
    assert "64 experts' weights in one tensor" in kept["stack"]


def test_experts_are_described_with_their_share_of_the_tokens() -> None:
    model = Beside()
    stack = facts(model)["stack"]
    assert (stack.role, stack.matrices, stack.tokens_share) == ("experts", 64, 4 / 64)
    assert (stack.in_features, stack.out_features) == (64, 256)
    assert stack.work == 4 * (64 * 128 + 128 * 64)
    deepwell.optimize(model)
    share = {d.name: d.flops_share for d in deepwell.explain(model).plan.decisions}
    total = 64 * 64 + 64 * 96 + 64 + stack.work
    assert share["stack"] == pytest.approx(stack.work / total)
    listed = nn.ModuleDict({"router": nn.Linear(64, 4), "experts": nn.ModuleList(mlp() for _ in range(4))})
    listed.top_k = 2
    assert facts(listed)["experts.3.0"].tokens_share == 0.5
    assert facts(listed)["router"].tokens_share == 1.0


def test_what_has_three_dimensions_and_is_no_stack_of_experts() -> None:
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3), "bilinear": nn.Bilinear(8, 8, 8), "a": nn.Linear(64, 64)})
    assert set(facts(model)) == {"a"}


# ---- heads and adapters ----------------------------------------------------------------------------------------------


def test_the_only_layer_as_wide_as_the_vocabulary_is_a_head_wherever_it_stands() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(640, 64), "out": nn.Linear(64, 640), "after": nn.Linear(64, 64)})
    assert set(reasons(model)) == {"out"}
    twice = nn.ModuleDict(
        {"e": nn.Embedding(128, 64), "up1": nn.Linear(64, 128), "up2": nn.Linear(64, 128), "z": nn.Linear(64, 64)}
    )
    assert reasons(twice) == {}


def test_a_head_is_found_inside_wrappers() -> None:
    class Declares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.proj, self.last = nn.Linear(64, 64), nn.Linear(64, 640), nn.Linear(64, 64)

        def get_output_embeddings(self) -> nn.Module:
            return self.proj

    assert "get_output_embeddings" in reasons(nn.ModuleDict({"module": Declares()}))["module.proj"]


class Adapted(nn.Linear):
    """A linear layer that holds its own adapter, of rank 32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 32, bias=False), nn.Linear(32, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


def test_low_rank_adapters_beside_frozen_layers() -> None:
    model = nn.Sequential(Adapted(64, 128), nn.Linear(128, 64))
    model[0].weight.requires_grad_(False)
    kept = reasons(model)
    assert set(kept) == {"0", "0.down", "0.up"}
    assert "overrides" in kept["0"]
    assert "low-rank adapter" in kept["0.down"]
    assert "low-rank adapter" in kept["0.up"]


def test_a_bottleneck_that_is_trained_is_no_adapter() -> None:
    assert reasons(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))) == {}


# ---- other facts -----------------------------------------------------------------------------------------------------


def test_frozen_layers_and_layers_in_several_places() -> None:
    shared = nn.Linear(64, 64)
    found = facts(nn.Sequential(shared, nn.Linear(64, 64).requires_grad_(False), shared))
    assert (found["0"].runs, found["0"].frozen) == (2.0, False)
    assert (found["1"].runs, found["1"].frozen) == (1.0, True)


def test_parts_that_are_no_linear_layers() -> None:
    from architecture_models import PlainDecoder

    found = {
        part.name: (part.kind, part.width) for part in deepwell.ModelOptimizer().analyze_model(PlainDecoder()).parts
    }
    assert found["tok_embeddings"] == ("embedding", 128)
    assert found["layers.0.attention"] == ("attention", 128)
    assert found["layers.0.attention_norm"] == ("norm", 128)
    assert found["layers.1.feed_forward"] == ("gated_mlp", 256)
    assert len(found) == 1 + 2 * 4 + 1


def test_many_layers_are_analyzed_fast_enough_to_be_unnoticed() -> None:
    """Sources are read once for each class, so the time per layer is that of looking it up."""
    import time

    from architecture_models import PlainBlock

    deep = nn.Sequential(*(PlainBlock(False) for _ in range(32)))
    Structure(deep)
    begin = time.process_time()
    deepwell.ModelOptimizer().analyze_model(deep)
    assert time.process_time() - begin < 0.5
