"""What every benchmark shares: the result file, interleaved timing, facts about the machine."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# For each unit, whether more is better.
UNITS = {"ms": False, "MiB": False, "TFLOP/s": True, "TB/s": True, "tokens/s": True, "MHz": True, "W": False, "%": True}
GPUS = ("cpu", "h100", "h200")
BENCHMARKS = (
    *("cpu_quantize", "convert", "quantize", "fused", "linear", "gemm", "gemm_limit", "gemm_wgrad"),
    *("grouped", "grouped_wgrad", "grouped_bf16", "moe_layer", "step_dense", "step_moe", "plan"),
)
PEERS = (
    *(
        "copy",
        "memcpy",
        "traffic",
        "torch",
        "cublaslt_row",
        "cublaslt_tensor",
        "cublaslt_block",
        "deepgemm",
        "unscaled",
        "te_best",
        "te_block",
    ),
    *("torchao", "liger", "eager", "compile", "grouped_mm", "grouped_mm_compile"),
)


class BenchError(Exception):
    """A benchmark cannot run or a result file is wrong; the text says why and what to do."""


@dataclass
class Result:
    """One benchmark's result, written to <results>/<gpu>/<benchmark>.json in one step when it is complete.

    Every row goes in, whoever wins; a peer that could not run goes to `absent` with the reason.
    """

    benchmark: str
    gpu: str
    device: str
    driver: str
    torch: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    peers_absent: dict[str, str] = field(default_factory=dict)

    def row(
        self, case: str, metric: str, unit: str, deepwell: float, limit: float | None = None, **peers: float
    ) -> None:
        """Adds a row. `limit` is the ceiling measured in the same run, None where none applies."""
        self.rows.append(
            {
                "case": case,
                "metric": metric,
                "unit": unit,
                "deepwell": rounded(deepwell),
                "limit": None if limit is None else rounded(limit),
                "peers": {name: rounded(value) for name, value in peers.items()},
            }
        )

    def absent(self, peer: str, reason: str) -> None:
        """Says that `peer` could not run."""
        self.peers_absent[peer] = " ".join(reason.split())[:300]

    def write(self, results: Path = RESULTS) -> Path:
        """Validates and writes the file under its name; the old one stays until the new one is whole."""
        document = {
            "benchmark": self.benchmark,
            "device": self.device,
            "driver": self.driver,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "torch": self.torch,
            "rows": self.rows,
            "peers_absent": self.peers_absent,
        }
        path = results / self.gpu / f"{self.benchmark}.json"
        validate(document, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            try:
                json.dump(document, file, indent=1)
                file.write("\n")
            except BaseException:
                temporary.unlink()
                raise
        temporary.chmod(0o644)
        temporary.replace(path)
        return path


def validate(document: Any, path: Path) -> None:
    """Raises BenchError when `document`, read from or meant for `path`, breaks the schema."""

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise BenchError(f"{path}: {what}")

    keys = ["benchmark", "device", "driver", "commit", "date", "torch", "rows", "peers_absent"]
    check(isinstance(document, dict) and list(document) == keys, f"expected the keys {', '.join(keys)}, in order")
    check(document["benchmark"] in BENCHMARKS, f"benchmark {document['benchmark']!r} is not one of {BENCHMARKS}")
    check(document["benchmark"] == path.stem, f"holds benchmark {document['benchmark']!r}")
    check(path.parent.name in GPUS, f"folder {path.parent.name!r} is not one of {GPUS}")
    for key in ("device", "driver", "commit", "torch"):
        check(isinstance(document[key], str) and document[key] != "", f"{key} must be a text that is not empty")
    try:
        datetime.datetime.strptime(document["date"], "%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError):
        check(False, f"date {document['date']!r} is not like 2026-01-31T12:00:00Z")
    check(isinstance(document["rows"], list) and len(document["rows"]) > 0, "rows must be a list that is not empty")
    seen = set()
    for row in document["rows"]:
        label = f"row {row.get('case')!r} {row.get('metric')!r}" if isinstance(row, dict) else f"row {row!r}"
        row_keys = ["case", "metric", "unit", "deepwell", "limit", "peers"]
        check(isinstance(row, dict) and list(row) == row_keys, f"{label}: expected the keys {', '.join(row_keys)}")
        check(row["unit"] in UNITS, f"{label}: unit {row['unit']!r} is not one of {', '.join(UNITS)}")
        check((row["case"], row["metric"]) not in seen, f"{label} is there twice")
        seen.add((row["case"], row["metric"]))
        check(isinstance(row["peers"], dict), f"{label}: peers must be an object")
        check(set(row["peers"]) <= set(PEERS), f"{label}: unknown peer in {sorted(row['peers'])}")
        numbers = [row["deepwell"], *row["peers"].values(), *([] if row["limit"] is None else [row["limit"]])]
        for number in numbers:
            check(type(number) in (int, float) and math.isfinite(number) and number > 0, f"{label}: {number!r}")
    absent = document["peers_absent"]
    check(isinstance(absent, dict) and set(absent) <= set(PEERS), f"peers_absent names an unknown peer: {absent}")
    check(all(isinstance(reason, str) and reason for reason in absent.values()), "peers_absent: a reason is empty")


def load(path: Path) -> dict[str, Any]:
    """Reads and validates a result file."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise BenchError(f"{path}: not JSON: {error}") from None
    validate(document, path)
    return document


def rounded(value: float) -> float:
    """Five significant digits: more than any of these measurements holds."""
    return float(f"{value:.5g}")


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender. All run once in every round, so that what the machine does meanwhile hits all
    of them; the first round warms caches and pages and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if turn > 0:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def commit() -> str:
    """The commit that was measured: DEEPWELL_COMMIT where there is no repository, else git's word, "+changes" when
    sources differ from it."""
    if os.environ.get("DEEPWELL_COMMIT"):
        return os.environ["DEEPWELL_COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "include", "src", "cli", "python", "bench/*.py", "CMakeLists.txt")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        raise BenchError("which commit is this? Not a git repository: set DEEPWELL_COMMIT to the commit") from None


def cpu_device(info: dict[str, Any]) -> str:
    """How result files name a processor: model, processors in use, widest instruction set it offers."""
    isa = "AVX-512" if info["has_avx512"] else "AVX2" if info["has_avx2"] else "no AVX2"
    return f"{info['model']}, {info['logical_processors']} logical processors, {isa}"


def cpu_driver() -> str:
    """What stands between a CPU benchmark and the machine."""
    return f"{platform.system()} {platform.release().split('-')[0]}, {' '.join(platform.libc_ver()) or 'libc'}"
