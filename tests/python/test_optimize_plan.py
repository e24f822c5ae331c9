"""What optimize decides, what it refuses, and how it tells: arguments, roles, obstacles, explain, health."""

from __future__ import annotations

import copy
import json
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import deepwell
from deepwell import (
    InvalidArgumentError,
    LayerFacts,
    ModelFacts,
    ModelOptimizer,
    QuantizationPlanner,
    UnsupportedError,
)
from numpy_oracle import fake_quantize
from torch_models import TinyLM, mlp


def decisions(model: nn.Module, **arguments) -> dict[str, deepwell.Decision]:
    deepwell.optimize(model, **arguments)
    return {d.name: d for d in deepwell.explain(model).plan.decisions}


def reasons(model: nn.Module, **arguments) -> dict[str, str]:
    return {name: d.reason for name, d in decisions(model, **arguments).items() if not d.converted}


def assert_untouched(model: nn.Module, classes: list[type]) -> None:
    assert [type(m) for m in model.modules()] == classes
    assert not any(key.startswith("_deepwell") for m in model.modules() for key in m.__dict__)


# ---- what is converted and what is not ----------------------------------------------------------------------------


def test_blocks_are_converted_and_the_head_is_kept() -> None:
    model = TinyLM()
    made = decisions(model)
    assert [name for name, d in made.items() if d.converted] == [
        "blocks.0.up",
        "blocks.0.down",
        "blocks.1.up",
        "blocks.1.down",
    ]
    assert "as wide as the vocabulary" in made["out"].reason
    assert all(isinstance(m, nn.Linear) for n, m in model.named_modules() if n in made)
    up = made["blocks.0.up"]
    assert (up.kind, up.precision, up.block, up.weight_block) == ("nn.Linear", "mxfp8", "1x32", "128x128")
    assert (up.in_features, up.out_features, up.parameters) == (64, 128, 64 * 128 + 128)
    total = 4 * 64 * 128 + 64 * 96
    assert up.flops_share == pytest.approx(64 * 128 / total)


def test_tied_head_is_kept_wherever_it_stands() -> None:
    model = TinyLM(tied=True)
    model.after = nn.Linear(64, 64)
    kept = reasons(model)
    assert "embedding" in kept["out"]
    assert "after" not in kept
    assert model.out.weight is model.embed.weight


def test_heads_by_declaration_and_by_name() -> None:
    class Declares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.proj = nn.Linear(64, 640)
            self.last = nn.Linear(64, 64)

        def get_output_embeddings(self) -> nn.Module:
            return self.proj

    assert "get_output_embeddings" in reasons(Declares())["proj"]
    named = nn.ModuleDict({"body": nn.Linear(64, 64), "lm_head": nn.Linear(64, 64), "classifier": nn.Linear(64, 64)})
    kept = reasons(named)
    assert "lm_head" in kept["lm_head"]
    assert "classifier" in kept["classifier"]
    first = nn.ModuleDict({"classifier": nn.Linear(64, 64), "body": nn.Linear(64, 64)})
    assert reasons(first) == {}  # only the last layer of that name is a head


def test_routers_are_kept() -> None:
    class MoE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 64)
            self.experts = nn.ModuleList(mlp() for _ in range(2))

    model = nn.ModuleDict({"moe": MoE(), "router": nn.Linear(64, 64), "gate": nn.Linear(64, 64)})
    kept = reasons(model)
    assert set(kept) == {"moe.gate", "router"}
    assert "experts" in kept["moe.gate"]


@pytest.mark.parametrize("shape", [(64, 1), (64, 31), (31, 64)])
def test_small_layers_are_kept(shape: tuple[int, int]) -> None:
    kept = reasons(nn.Sequential(nn.Linear(32, 32), nn.Linear(*shape)))
    assert f"a dimension of {min(shape)}" in kept["1"]


class OwnForward(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class Inherits(nn.Linear):
    """Brings a method, not a forward."""

    def double(self):
        return self.weight * 2


def test_subclasses() -> None:
    model = nn.Sequential(OwnForward(64, 64), Inherits(64, 64))
    made = decisions(model)
    assert "OwnForward overrides" in made["0"].reason
    assert made["1"].converted
    assert isinstance(model[1], Inherits)
    torch.testing.assert_close(model[1].double(), model[1].weight * 2)


def test_attention_projection_is_kept_and_runs() -> None:
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
    made = decisions(model)
    assert "without calling it" in made["self_attn.out_proj"].reason
    assert made["linear1"].converted
    assert made["linear2"].converted
    model(torch.randn(2, 8, 64)).sum().backward()
    assert model.linear1.weight.grad is not None


def test_computed_weights_are_kept() -> None:
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("plain", "param", "old", "pruned", "norm", "hand")})
    nn.utils.parametrizations.weight_norm(model["param"])
    torch.nn.utils.spectral_norm(model["old"])
    prune.l1_unstructured(model["pruned"], "weight", amount=0.3)
    parametrize.register_parametrization(model["norm"], "bias", nn.Identity())
    model["hand"].forward = lambda x: x
    made = decisions(model)
    assert [n for n, d in made.items() if d.converted] == ["plain"]
    assert "parametrized" in made["param"].reason
    assert "parametrized" in made["norm"].reason
    assert "not a parameter" in made["old"].reason
    assert "not a parameter" in made["pruned"].reason
    assert "on the instance" in made["hand"].reason


def test_dtypes() -> None:
    model = nn.Sequential(
        nn.Linear(64, 64).double(), nn.Linear(64, 64).half(), nn.Linear(64, 64).bfloat16(), nn.Linear(64, 64)
    )
    kept = reasons(model)
    assert set(kept) == {"0"}
    assert "float64" in kept["0"]


def test_converting_a_part_and_then_the_whole() -> None:
    model = nn.Sequential(mlp(), mlp())
    deepwell.optimize(model[0])
    made = decisions(model)
    assert "converted already" in made["0.0"].reason
    assert made["1.0"].converted
    deepwell.restore(model)
    assert_untouched(model, [type(m) for m in nn.Sequential(mlp(), mlp()).modules()])


# ---- patterns and strategies --------------------------------------------------------------------------------------


def test_skip_only_and_mappings() -> None:
    assert set(reasons(TinyLM(), skip="blocks.0")) == {"blocks.0.up", "blocks.0.down", "out"}
    assert set(reasons(TinyLM(), skip=["*.down", "blocks.1.*"])) == {
        "blocks.0.down",
        "blocks.1.up",
        "blocks.1.down",
        "out",
    }
    made = decisions(TinyLM(), only=["*.up"])
    assert [n for n, d in made.items() if d.converted] == ["blocks.0.up", "blocks.1.up"]
    assert made["blocks.0.down"].reason == "not named in only"
    made = decisions(TinyLM(), strategy={"blocks.0.up": "mxfp8", "blocks.0": "keep", "out": "mxfp8"})
    assert [n for n, d in made.items() if d.converted] == ["blocks.0.up", "blocks.1.up", "blocks.1.down", "out"]
    assert made["blocks.0.down"].reason == "the strategy says keep"
    assert decisions(nn.Linear(64, 64))[""].converted


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"precision": "int8"}, "precision='int8'"),
        ({"target": "volta"}, "target='volta'"),
        ({"strategy": "fast"}, "strategy='fast'"),
        ({"strategy": {}}, "empty mapping"),
        ({"strategy": {"blocks": "fp4"}}, "'fp4'"),
        ({"strategy": {3: "keep"}}, "key 3"),
        ({"strategy": None}, "strategy=None"),
        ({"profile": 1}, "profile=1"),
        ({"block_size": 64}, "block_size=64"),
        ({"block_size": True}, "block_size=True"),
        ({"block_size": 128, "target": "blackwell"}, "blackwell"),
        ({"skip": 3}, "skip=3"),
        ({"skip": []}, "skip is empty"),
        ({"only": [""]}, "only="),
        ({"skip": "layers.*"}, "matches no module"),
        ({"skip": "block.0"}, "did you mean 'blocks.0'"),
        ({"only": "embed"}, "none that could be converted"),
        ({"strategy": {"nowhere": "keep"}}, "'nowhere'"),
        ({"skip": "blocks.0", "only": "*.up"}, "contradict"),
        ({"skip": "blocks.0", "strategy": {"blocks.0.up": "mxfp8"}}, "contradict"),
        ({"only": "blocks.0", "strategy": {"blocks.0.up": "keep"}}, "contradict"),
        ({"skip": "*"}, "nothing to convert"),
        ({"only": "out"}, "nothing to convert"),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(arguments: dict, named: str) -> None:
    model = TinyLM()
    classes = [type(m) for m in model.modules()]
    with pytest.raises(InvalidArgumentError) as error:
        deepwell.optimize(model, **arguments)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert_untouched(model, classes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "fp8"},
        {"precision": "bf16"},
        {"strategy": "mxfp8_moe"},
        {"strategy": "bf16_fused"},
    ],
)
def test_what_is_not_there_says_so(arguments: dict) -> None:
    model = TinyLM()
    classes = [type(m) for m in model.modules()]
    with pytest.raises(UnsupportedError, match="not available in this version"):
        deepwell.optimize(model, **arguments)
    assert_untouched(model, classes)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: "model", "is a str"),
        (lambda: TinyLM, "is the class TinyLM"),
        (lambda: nn.Sequential(nn.ReLU()), "no parameters"),
        (lambda: nn.Linear(64, 64, device="meta"), "meta device"),
        (lambda: nn.Sequential(nn.LazyLinear(64)), "'0.weight'"),
        (lambda: nn.Conv2d(3, 3, 3), "has no nn.Linear"),
        (lambda: nn.Linear(64, 8), "too small"),
        (lambda: nn.Linear(64, 64).double(), "float64"),
    ],
)
def test_wrong_models_are_named(make, named: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        deepwell.optimize(make())
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_optimizing_twice() -> None:
    model = TinyLM()
    deepwell.optimize(model, skip="blocks.0")
    classes = [type(m) for m in model.modules()]
    plan = deepwell.explain(model).plan
    assert deepwell.optimize(model, skip=["blocks.0"]) is model
    assert [type(m) for m in model.modules()] == classes
    assert deepwell.explain(model).plan is plan
    with pytest.raises(InvalidArgumentError, match="restore"):
        deepwell.optimize(model)
    assert [type(m) for m in model.modules()] == classes


def test_restore() -> None:
    model = TinyLM()
    classes = [type(m) for m in model.modules()]
    keys = [set(m.__dict__) for m in model.modules()]
    x = torch.randint(0, 96, (2, 9))
    before = model(x)
    deepwell.optimize(model)
    assert (model(x) != before).any()
    assert deepwell.restore(model) is model
    assert_untouched(model, classes)
    assert [set(m.__dict__) for m in model.modules()] == keys
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    for again in (model, TinyLM()):
        with pytest.raises(InvalidArgumentError, match="not optimized"):
            deepwell.restore(again)
        with pytest.raises(InvalidArgumentError, match="not optimized"):
            deepwell.explain(again)
    with pytest.raises(InvalidArgumentError):
        deepwell.restore(3)


def test_restore_refuses_a_class_changed_since_and_changes_nothing() -> None:
    model = mlp()
    deepwell.optimize(model)
    parametrize.register_parametrization(model[2], "weight", nn.Identity())
    classes = [type(m) for m in model.modules()]
    with pytest.raises(InvalidArgumentError, match="parametrization"):
        deepwell.restore(model)
    assert [type(m) for m in model.modules()] == classes
    model(torch.randn(4, 64)).sum().backward()  # and it still runs, computed weight and all


def test_a_deep_model_is_optimized_in_no_time() -> None:
    model = nn.Sequential(*(nn.Sequential(*(nn.Linear(64, 64) for _ in range(7))) for _ in range(32)))
    deepwell.optimize(nn.Linear(64, 64))  # what happens once in a process
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        deepwell.optimize(model)
        seconds.append(time.perf_counter() - start)
        deepwell.restore(model)
    assert min(seconds) < 0.5


# ---- telling ------------------------------------------------------------------------------------------------------


def test_verbose_prints_every_decision_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    model = deepwell.optimize(TinyLM(), verbose=True)
    printed = capsys.readouterr().out
    for decision in deepwell.explain(model).plan.decisions:
        lines = [line for line in printed.splitlines() if line.startswith(decision.name + " ")]
        assert len(lines) == 1
        assert decision.action in lines[0]
        assert decision.reason in lines[0]
    assert "4 of 5 layers converted" in printed
    assert "1 left alone" in printed
    assert f"{100 * 4 * 8192 / (4 * 8192 + 6144):.1f}% of the linear layers' FLOPs" in printed
    assert "not a speed-up" in printed
    table = [line for line in printed.splitlines() if "nn.Linear" in line]
    assert len({line.index("nn.Linear") for line in table}) == 1
    deepwell.optimize(mlp())
    assert capsys.readouterr().out == ""


def test_explain_json_and_html() -> None:
    model = TinyLM()
    model.register_module("a<b>&c", nn.Linear(64, 64))
    deepwell.optimize(model, target="hopper", block_size=32)
    explanation = deepwell.explain(model)
    document = json.loads(explanation.to_json())
    assert document["target"] == "hopper"
    assert document["recipe"]["weight_block"] == "1x32"
    assert document["converted"] == sum(d["action"] == "convert" for d in document["decisions"])
    assert document["flops_share"] == pytest.approx(explanation.plan.flops_share)
    assert any("numerics studies" in note for note in document["notes"])

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells: list[str] = []
            self.links: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open.append(tag)
            self.links += [value for name, value in attrs if name in ("src", "href")]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            if self.open and self.open[-1] == "td":
                self.cells.append(data)

    page = Page()
    page.feed(explanation.to_html())
    assert page.open == []
    assert page.links == []
    assert {d.name for d in explanation.plan.decisions} <= set(page.cells)


def test_explain_looks_inside_wrappers() -> None:
    model = TinyLM()
    deepwell.optimize(model)
    wrapper = nn.ModuleDict({"module": model})
    assert deepwell.explain(wrapper).plan is deepwell.explain(model).plan
    assert deepwell.health(wrapper)[0].name == "module.blocks.0.up"
    deepwell.restore(wrapper)


def test_health_against_numpy() -> None:
    model = mlp(160)
    with torch.no_grad():
        model[0].weight[:, :5] *= 2.0**-20
        model[2].weight.zero_()
    layers = {layer.name: layer for layer in deepwell.health(model)}  # of what would be converted
    deepwell.optimize(model)
    assert list(deepwell.health(model)) == list(layers.values())
    weight = model[0].weight.detach().double().numpy()
    decoded = fake_quantize(model[0].weight.detach().numpy(), "128x128")
    expected = 10 * np.log10((weight**2).sum() / ((weight - decoded) ** 2).sum())
    assert layers["0"].sqnr_db == pytest.approx(expected, abs=1e-9)
    assert layers["0"].underflow == ((weight != 0) & (decoded == 0)).sum() / np.count_nonzero(weight)
    assert layers["0"].underflow > 0
    assert layers["2"].sqnr_db == np.inf
    assert "160" not in str(deepwell.health(model)).splitlines()[0]
    assert len(str(deepwell.health(model)).splitlines()) == 3
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    faulty = deepwell.health(model)[1]
    assert faulty.nonfinite == faulty.elements
    assert np.isnan(faulty.sqnr_db)


# ---- the planner without a model ----------------------------------------------------------------------------------


def test_planner_works_on_descriptions_alone() -> None:
    layer = LayerFacts("a", "nn.Linear", "Linear", 4096, 4096, 4096 * 4096, "bfloat16", "cpu")
    facts = ModelFacts("Described", (layer,), ("", "a"), 4096 * 4096, "cpu")
    plan = QuantizationPlanner().plan(facts, target="blackwell")
    assert plan.converted[0].weight_block == "1x32"
    on_gpu = ModelFacts("Described", (layer,), ("", "a"), 4096 * 4096, "cuda")
    with pytest.raises(UnsupportedError, match="cuda"):
        QuantizationPlanner().plan(on_gpu)


def test_analysis_changes_nothing_and_agrees_with_optimize() -> None:
    model = TinyLM()
    classes = [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    facts = ModelOptimizer().analyze_model(model)
    assert_untouched(model, classes)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert {layer.name: layer.role for layer in facts.layers}["out"] == "output_head"
    plan = QuantizationPlanner().plan(facts, skip="blocks.0")
    assert plan == deepwell.explain(deepwell.optimize(model, skip="blocks.0")).plan
