"""Which peers the benchmark of a training step reports, and why not the others."""

from __future__ import annotations

import importlib.util

import pytest
from bench import gpu_step_peers


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
