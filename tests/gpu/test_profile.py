"""profile=True on the GPU: layers are measured between CUDA events, remembered, and the faster form is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import deepwell
from deepwell import profile

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deepwell"


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    sizes = ((4096, 14336), (14336, 4096), (4096, 512))
    return nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_faster_form_is_taken(dtype: torch.dtype) -> None:
    plan = deepwell.explain(deepwell.optimize(model(dtype), profile=True)).plan
    assert all(d.measured for d in plan.decisions)
    for decision in plan.decisions:
        assert decision.converted == (decision.candidate.alone_ms < decision.full.alone_ms)
        assert f"measured to {'win' if decision.converted else 'lose'}" in decision.reason
    large = plan.decisions[0]
    assert large.converted
    # Between a tenth and the whole of the data sheet's rate.
    flops = 6 * profile.GPU_TOKENS * 4096 * 14336
    assert 0.1 < flops / (large.candidate.alone_ms * 1e-3) / 1979e12 < 1
    assert 0.1 < flops / (large.full.alone_ms * 1e-3) / 989e12 < 1


def test_measurements_are_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = deepwell.explain(deepwell.optimize(model(), profile=True)).plan
    assert len(list(cache.glob("profile-*"))) == 1
    monkeypatch.setattr(profile, "_measure", lambda *arguments: pytest.fail("measured again"))
    again = deepwell.explain(deepwell.optimize(model(), profile=True)).plan
    assert [d.candidate for d in again.decisions] == [d.candidate for d in first.decisions]


def test_the_matrix_kernels_are_tuned(cache: Path) -> None:
    deepwell.optimize(model(), profile=True)
    (file,) = cache.glob("gemm-*")
    lines = file.read_text().splitlines()[4:-1]
    sizes = {tuple(map(int, line.split()[:3])) for line in lines}
    tokens = profile.GPU_TOKENS
    assert {(tokens, 14336, 4096), (tokens, 4096, 14336), (14336, 4096, tokens)} <= sizes
    for line in lines:
        fastest, predicted = (float(part.split()[-2]) for part in line.split(","))
        assert 0 < fastest <= predicted


def test_memory_is_given_back() -> None:
    layers = model()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    deepwell.optimize(layers, profile=True)
    assert torch.cuda.memory_allocated() <= before + (64 << 20)  # the product's workspace stays
    assert all(p.grad is None for p in layers.parameters())
