"""profile=True: layers are measured once for each size, remembered, and the file is not trusted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

import deepwell
from deepwell import profile
from torch_models import TinyLM


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deepwell"


@pytest.fixture
def measured_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that are measured from here on."""
    sizes: list[tuple[int, int]] = []
    own = profile._measure

    def noting(layer, *arguments):
        sizes.append((layer.in_features, layer.out_features))
        return own(layer, *arguments)

    monkeypatch.setattr(profile, "_measure", noting)
    return sizes


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_each_size_is_measured_once_and_remembered(cache: Path, measured_sizes: list) -> None:
    model = deepwell.optimize(TinyLM(), profile=True)
    assert sorted(measured_sizes) == [(64, 128), (128, 64)]  # two sizes in four layers; the head is not asked about
    plan = deepwell.explain(model).plan
    assert [d.name for d in plan.decisions if d.measured] == [d.name for d in plan.converted]
    for decision in plan.converted:
        assert 0 < decision.full.alone_ms < 1e3
        assert 0 < decision.candidate.alone_ms < 1e3
        assert decision.candidate.forward_ms + decision.candidate.backward_ms == pytest.approx(
            decision.candidate.alone_ms
        )
    assert any("Measured 2 layer sizes at 512 tokens" in note for note in plan.notes)
    document = json.loads(only_file(cache).read_text())
    assert document["format"] == profile.FORMAT
    assert document["torch"] == torch.__version__
    assert stat.S_ISREG(only_file(cache).stat().st_mode)
    again = deepwell.explain(deepwell.optimize(TinyLM(), profile=True)).plan
    assert len(measured_sizes) == 2
    assert [d.full for d in again.decisions] == [d.full for d in plan.decisions]
    assert "512 tokens" in str(deepwell.explain(model))
    assert json.loads(deepwell.explain(model).to_json())["decisions"][0]["measured"] is True


def test_a_model_is_not_touched_by_measuring(cache: Path) -> None:
    torch.manual_seed(3)
    model = TinyLM()
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    deepwell.optimize(model, profile=True)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in model.named_parameters():
        assert p.grad is None
        assert torch.equal(p, values[name])


def test_optimizing_twice_with_profile_is_a_no_op(cache: Path) -> None:
    model = deepwell.optimize(TinyLM(), profile=True)
    plan = deepwell.explain(model).plan
    assert deepwell.explain(deepwell.optimize(model, profile=True)).plan is plan


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"format": 1}',
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace(torch.__version__, "1.0"),
        lambda text: json.dumps({**json.loads(text), "device": "another"}),
        lambda text: json.dumps({**json.loads(text), "driver": "another"}),
        lambda text: json.dumps({**json.loads(text), "layers": {"a": [1, 2, 3]}}),
        lambda text: json.dumps({**json.loads(text), "layers": {"a": [512, 64, 128, "fast", 1.0]}}),
        lambda text: json.dumps({**json.loads(text), "layers": {"a": [512, 64, 128, -1.0, 1.0]}}),
        lambda text: json.dumps({**json.loads(text), "layers": {"a": [512, 64, 128, float("nan"), 1.0]}}),
        lambda text: json.dumps({**json.loads(text), "layers": [1]}),
        lambda text: json.dumps({**json.loads(text), "layers": {"a": None}}),
    ],
)
def test_a_corrupt_or_foreign_file_is_ignored_with_a_note(damage, cache: Path, measured_sizes: list) -> None:
    deepwell.optimize(TinyLM(), profile=True)
    path = only_file(cache)
    good = path.read_text()
    path.write_text(damage(good))
    measured_sizes.clear()
    plan = deepwell.explain(deepwell.optimize(TinyLM(), profile=True)).plan
    assert len(measured_sizes) == 2
    assert any(note.startswith(f"Ignored {path}") for note in plan.notes)
    assert set(json.loads(only_file(cache).read_text())) == set(json.loads(good))  # and is whole again


def test_a_file_that_is_not_text_is_ignored(cache: Path) -> None:
    deepwell.optimize(TinyLM(), profile=True)
    path = only_file(cache)
    path.write_bytes(b"\xff\xfe\x00" * 50)
    assert any("Ignored" in n for n in deepwell.explain(deepwell.optimize(TinyLM(), profile=True)).plan.notes)


def test_where_nothing_can_be_written_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    plan = deepwell.explain(deepwell.optimize(TinyLM(), profile=True)).plan
    assert any("not remembered" in note for note in plan.notes)
    assert all(d.measured for d in plan.converted)


def test_a_relative_cache_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    identity = {"device": "A/B: C", "driver": "../../x"}
    path = profile.cache_path(identity)
    assert path.parent == tmp_path / ".cache" / "deepwell"
    assert os.sep not in path.name


def test_time_is_bounded(cache: Path) -> None:
    facts = deepwell.ModelOptimizer().analyze_model(nn.Sequential(*(nn.Linear(64, 64 + 32 * i) for i in range(4))))
    plan = deepwell.QuantizationPlanner().plan(facts, tokens=512)
    result = profile.measure(plan, torch.device("cpu"), seconds=0.0)
    # None fits before the deadline, and the rest says so.
    assert len(result.measurements) <= 1
    assert any("no time left" in remark for remark in result.remarks)


def test_what_fails_keeps_its_prediction(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments):
        raise torch.OutOfMemoryError("no memory\nand more")

    monkeypatch.setattr(profile, "_measure", fails)
    plan = deepwell.explain(deepwell.optimize(TinyLM(), profile=True)).plan
    assert not any(d.measured for d in plan.decisions)
    assert any("64 -> 128 (no memory)" in note for note in plan.notes)
    assert not cache.exists()
