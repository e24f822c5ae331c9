"""Committed result files keep their schema, and the plots and tables made from them are fresh."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench import common, plots

GOOD = {
    "benchmark": "cpu_quantize",
    "device": "a processor",
    "driver": "Linux",
    "commit": "0123456789ab",
    "date": "2026-01-31T12:00:00Z",
    "torch": "2.13.0",
    "rows": [
        {
            "case": "row",
            "metric": "speed",
            "unit": "TB/s",
            "deepwell": 0.02,
            "limit": 0.025,
            "peers": {"memcpy": 0.025, "torch": 0.001},
        }
    ],
    "peers_absent": {"compile": "no compiler"},
}
PATH = common.RESULTS / "cpu" / "cpu_quantize.json"


@pytest.mark.parametrize("path", plots.results(common.RESULTS), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_results_keep_the_schema(path: Path) -> None:
    document = common.load(path)
    assert "+changes" not in document["commit"], "measured with changes that no commit holds; measure again"


def test_every_file_below_results_is_a_result_or_its_plot() -> None:
    for path in common.RESULTS.glob("**/*.*"):
        assert path.suffix in (".json", ".svg"), path
        assert path.with_suffix(".json").exists(), f"{path} has no data"


def test_plots_and_tables_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.plots", "--check"], cwd=common.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_planners_accuracy_is_told_as_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan_accuracy", "--check"], cwd=common.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_good_document_is_accepted() -> None:
    common.validate(GOOD, PATH)


def broken_documents() -> list[tuple[str, dict]]:
    """Each with one thing wrong."""

    def changed(what: str, **changes: object) -> tuple[str, dict]:
        return what, {**copy.deepcopy(GOOD), **changes}

    def row(what: str, **changes: object) -> tuple[str, dict]:
        return changed(what, rows=[{**copy.deepcopy(GOOD["rows"][0]), **changes}])

    missing = copy.deepcopy(GOOD)
    del missing["commit"]
    return [
        ("missing key", missing),
        changed("unknown key", extra=1),
        changed("other benchmark than the file's name", benchmark="convert"),
        changed("unknown benchmark", benchmark="speed"),
        changed("empty device", device=""),
        changed("date without time", date="2026-01-31"),
        changed("no rows", rows=[]),
        changed("row twice", rows=GOOD["rows"] * 2),
        changed("absent peer unknown", peers_absent={"somebody": "gone"}),
        changed("absent peer without reason", peers_absent={"torch": ""}),
        row("unknown unit", unit="furlongs"),
        row("unknown peer", peers={"somebody": 1.0}),
        row("negative", deepwell=-1.0),
        row("not finite", deepwell=float("nan")),
        row("zero peer", peers={"torch": 0.0}),
        row("text for a number", deepwell="1.0"),
        row("truth for a number", deepwell=True),
    ]


@pytest.mark.parametrize(("what", "document"), broken_documents(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_broken_document_is_refused(what: str, document: dict) -> None:
    with pytest.raises(common.BenchError):
        common.validate(document, PATH)


def test_writing_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_COMMIT", "0123456789ab")
    result = common.Result("cpu_quantize", "cpu", "a processor", "Linux", "2.13.0")
    with pytest.raises(common.BenchError):
        result.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    result.row("row", "speed", "TB/s", 0.0123456789, limit=0.02, memcpy=0.02)
    path = result.write(tmp_path)
    assert path == tmp_path / "cpu" / "cpu_quantize.json"
    assert [p.name for p in path.parent.iterdir()] == ["cpu_quantize.json"]
    document = common.load(path)
    assert document["rows"][0]["deepwell"] == 0.012346
    picture = plots.draw(path, document)
    assert picture == plots.draw(path, document), "drawing is not deterministic"
    assert picture.endswith(plots.stamp(path))
    path.write_text(json.dumps(document))
    assert not picture.endswith(plots.stamp(path))


def test_tables_tell_the_ratio_of_speeds() -> None:
    slower = {"unit": "ms", "deepwell": 20.0}
    assert plots.comparison(slower, 10.0) == "0.50x"
    faster = {"unit": "TB/s", "deepwell": 0.02}
    assert plots.comparison(faster, 0.001) == "20.0x"
    assert plots.number(0.02, "TB/s") == "20.0 GB/s"


def test_interleaved_takes_turns_and_leaves_out_the_first_round() -> None:
    order: list[str] = []
    seconds = common.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}
