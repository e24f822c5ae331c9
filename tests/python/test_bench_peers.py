"""Which peers the GPU's benchmarks report, and why not the others; what their windows hold."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bench import common, gpu, gpu_common, gpu_engine, gpu_linear, gpu_step, gpu_step_peers
from torch import nn


def test_the_fastest_variant_counts_and_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {
        "torchao_rowwise": (190.0, 20000.0),
        "torchao_tensorwise": (170.0, 21000.0),
        "te_block": "RuntimeError: no kernel",
        "te_current": (130.0, 25000.0),
        "te_delayed": "ImportError: half of it is missing",
    }
    asked = []

    def measure(variant: str, rounds: int) -> tuple[float, float] | str:
        asked.append((variant, rounds))
        return outcomes[variant]

    monkeypatch.setattr(gpu_step_peers, "_measure", measure)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else object())
    ran, absent = gpu_step_peers.measure_all(4)
    assert ran == {"torchao": (170.0, 21000.0), "te_best": (130.0, 25000.0)}
    assert absent == {
        "liger": "liger_kernel is not installed on the machine of this run",
        "te_block": "te_block: RuntimeError: no kernel",
    }
    assert asked == [(variant, 4) for variant in outcomes]


def test_a_variant_that_fails_says_its_last_line() -> None:
    assert gpu_step_peers._measure("nothing", 1) == "KeyError: 'nothing'"


def test_peers_that_are_not_chosen_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu_step_peers, "_measure", lambda variant, rounds: asked.append(variant) or (1.0, 2.0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    ran, absent = gpu_step_peers.measure_all(4, ["te_block"])
    assert (list(ran), asked) == (["te_block"], ["te_block"])
    assert absent == dict.fromkeys(("liger", "torchao", "te_best"), "not chosen for this run")


@pytest.mark.parametrize(
    ("given", "peers"), [("none", []), ("liger,te_best", ["liger", "te_best"]), ("liger,none", ["liger"])]
)
def test_the_command_passes_the_chosen_peers_on(monkeypatch: pytest.MonkeyPatch, given: str, peers: list[str]) -> None:
    calls = []
    monkeypatch.setattr(gpu_step, "run", lambda results, rounds, peers: calls.append(peers))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "step_dense", "--peers", given])
    assert gpu.main() == 0
    assert calls == [peers]


def test_the_command_refuses_an_unknown_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "step_dense", "--peers", "liger,apex"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no peer is named 'apex'" in capsys.readouterr().err


class _Engine(types.ModuleType):
    """Stands in for transformer_engine.pytorch: a linear layer that notes the recipe it runs under."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("engine")
        self.active: list[Any] = []
        self.seen: list[Any] = []
        engine = self

        class Linear(nn.Linear):
            def __init__(self, inputs: int, outputs: int, bias: bool, params_dtype: torch.dtype, device: Any) -> None:
                super().__init__(inputs, outputs, bias, device, params_dtype)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if engine.active[-1] == broken:
                    raise RuntimeError("no kernel")
                engine.seen.append(engine.active[-1])
                return super().forward(x)

        self.Linear = Linear

    @contextlib.contextmanager
    def autocast(self, enabled: bool, recipe: Any) -> Iterator[None]:
        assert enabled
        self.active.append(recipe)
        try:
            yield
        finally:
            self.active.pop()


def test_the_engines_layer_has_the_weight_and_each_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    te, layer = _Engine(broken="te_delayed"), nn.Linear(8, 4, bias=False)
    monkeypatch.setattr(gpu_engine, "recipe", lambda name: name)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    x, dy = torch.randn(3, 8, requires_grad=True), torch.randn(3, 4)
    gpu_engine.linear(te, "te_block", layer)(x, dy)
    torch.testing.assert_close(x.grad, dy @ layer.weight.detach())
    failures: dict[str, str] = {}
    made = gpu_linear._engine_layers(te, layer, lambda turn: (x, dy), failures)
    assert list(made) == ["te_current", "te_block"]
    assert failures == {"te_delayed": "RuntimeError: no kernel"}
    te.seen.clear()
    for call in made.values():
        call(0)
    assert te.seen == ["te_current", "te_block"]


def test_the_best_recipe_counts_where_all_ran() -> None:
    times = {"eager": 1.0, "te_current": 3.0, "te_delayed": 2.0, "te_block": 4.0}
    assert gpu_engine.peers(times) == {"te_best": 2.0, "te_block": 4.0}
    del times["te_current"]
    assert gpu_engine.peers(times) == {"te_block": 4.0}
    assert gpu_engine.peers({"eager": 1.0}) == {}


def test_a_hidden_host_gets_the_lead_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    leads: dict[str, list[int]] = {"quick": [], "slow": []}
    needs = {"quick": 0, "slow": 5 * gpu_common.LEAD_CYCLES}

    def window(call: Any, first: int, calls: int, lead: int) -> tuple[float, bool]:
        name = call(first)
        leads[name].append(lead)
        hidden = lead >= needs[name]
        return (8.0 if hidden else 80.0), hidden

    monkeypatch.setattr(gpu_common, "_window", window)
    contenders = {name: lambda turn, name=name: name for name in leads}
    times = gpu_common.interleaved(contenders, 4, warm=1, calls=4, hide_host=True)
    assert times == {"quick": 2.0, "slow": 2.0}
    assert leads["quick"] == [gpu_common.LEAD_CYCLES] * 5
    assert leads["slow"] == [gpu_common.LEAD_CYCLES * f for f in (1, 2, 4, 8, 8, 8, 8, 8)]
    assert gpu_common.interleaved(contenders, 4, warm=1, calls=4) == {"quick": 2.0, "slow": 20.0}
    needs["slow"] = 2 * gpu_common.MOST_LEAD_CYCLES
    with pytest.raises(common.BenchError, match="slow: the host waits for the device"):
        gpu_common.interleaved(contenders, 1, calls=4, hide_host=True)
