"""Writes the rows of src/plan/evidence.inc that come from bench/results; `--check` tells whether they are fresh."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "src" / "plan" / "evidence.inc"
BEGIN = "/* begin: written by tools/plan_evidence.py from bench/results */\n"
END = "/* end */\n"
SHAPE = re.compile(r"(\d+) x (\d+) x (\d+)")
# The case of a result file for each rate, and which of its figures: Deepwell's or the limit.
GPU_RATES = (
    ("COPY", "quantize", "BF16 to E4M3 both 1x128, 16384x4096", "limit"),
    ("QUANTIZE_ONE", "quantize", "BF16 to E4M3 row 1x128, 16384x4096", "deepwell"),
    ("QUANTIZE_BOTH", "quantize", "BF16 to E4M3 both 1x128, 16384x4096", "deepwell"),
    ("NORM", "fused", "RMSNorm to BF16 and E4M3 both, 16384x4096", "deepwell"),
    ("NORM_BACKWARD", "fused", "RMSNorm backward, 16384x4096", "deepwell"),
    ("GATED", "fused", "SwiGLU to E4M3 both, 16384x14336", "deepwell"),
    ("GATED_BACKWARD", "fused", "SwiGLU backward to E4M3 both, 16384x14336", "deepwell"),
    ("LOSS", "fused", "cross-entropy forward, 8192x32000", "deepwell"),
    ("LOSS_BACKWARD", "fused", "cross-entropy backward, 8192x32000", "deepwell"),
)
CPU_RATES = (
    ("COPY", "cpu_quantize", "quantize both 1x32, 2 threads", "limit"),
    ("QUANTIZE_ONE", "cpu_quantize", "quantize row 1x32, 2 threads", "deepwell"),
    ("QUANTIZE_BOTH", "cpu_quantize", "quantize both 1x32, 2 threads", "deepwell"),
    ("DECODE", "cpu_quantize", "dequantize 1x32, 2 threads", "deepwell"),
)
HOST_BOUND = "2048 x 2048 x 2048"  # so small that the GPU waits for the host, in both precisions
HOST_BOUND_FP8 = ("8192 x 1024 x 4096", HOST_BOUND)  # in FP8 this one, too: the shorter time is the bound


def load(gpu: str, benchmark: str) -> tuple[dict[str, dict[str, Any]], str]:
    path = ROOT / "bench" / "results" / gpu / f"{benchmark}.json"
    document = json.loads(path.read_text())
    rows: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        rows.setdefault(row["case"], row)  # a case's first metric is its main one
    return rows, f"{path.relative_to(ROOT)}, {document['date'][:10]}"


def line(device: str, kind: str, fmt: str, rate: str, shape: tuple[int, int, int], value: float, source: str) -> str:
    m, n, k = shape
    return f'EVIDENCE("{device}", {kind}, {fmt}, {rate}, {m}, {n}, {k}, {value:.5g}, "{source}")\n'


def milliseconds(shape: tuple[int, ...], rate: float) -> float:
    """Of a layer's three products, at so many TFLOP/s."""
    m, n, k = shape
    return 6 * m * n * k / rate / 1e9


def layer_rows(device: str, benchmark: str, host: dict[str, float]) -> list[str]:
    """Whole layers, forward and backward, as calls come: a loaded chip's clock is lower than that of one that has
    waited for the host. Only where a call takes less than twice the `host`'s milliseconds, by the device's time."""
    rows, source = load(device, benchmark)
    lines = []
    for case, row in rows.items():
        match = SHAPE.fullmatch(case)
        if not match or row["unit"] != "TFLOP/s":
            continue
        shape = tuple(map(int, match.groups()))
        alone = rows.get(f"{case}, device's time")
        for fmt in ("FULL", "QUANTIZED"):
            rate = _layer_rate(row, fmt)
            if host and milliseconds(shape, rate) < 2 * host[fmt]:
                if not alone:
                    continue
                rate = _layer_rate(alone, fmt)
            lines.append(line(device, "LAYER", fmt, "NONE", shape, rate, source))
    return lines


def _layer_rate(row: dict[str, Any], fmt: str) -> float:
    return row["peers"]["eager"] if fmt == "FULL" else row["deepwell"]


def host_times(device: str) -> tuple[dict[str, float], str]:
    """Milliseconds of a layer's forward and backward that the host decides: of the shorter of those it holds back."""
    rows, source = load(device, "linear")

    def shortest(fmt: str, cases: tuple[str, ...]) -> float:
        shapes = [tuple(map(int, SHAPE.fullmatch(case).groups())) for case in cases]  # type: ignore[union-attr]
        rates = [_layer_rate(rows[case], fmt) for case in cases]
        return min(milliseconds(shape, rate) for shape, rate in zip(shapes, rates, strict=True))

    return {"FULL": shortest("FULL", (HOST_BOUND,)), "QUANTIZED": shortest("QUANTIZED", HOST_BOUND_FP8)}, source


def host_rows(device: str) -> list[str]:
    times, source = host_times(device)
    return [line(device, "HOST", fmt, "NONE", (0, 0, 0), time, source) for fmt, time in times.items()]


def rate_rows(device: str, wanted: tuple[tuple[str, str, str, str], ...]) -> list[str]:
    lines = []
    for rate, benchmark, case, figure in wanted:
        rows, source = load(device, benchmark)
        fmt = "FULL" if rate == "COPY" else "QUANTIZED"
        lines.append(line(device, "RATE", fmt, rate, (0, 0, 0), rows[case][figure], source))
    return lines


def table(text: str) -> str:
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    rows = [
        *layer_rows("h100", "linear", host_times("h100")[0]),
        *host_rows("h100"),
        *rate_rows("h100", GPU_RATES),
        *layer_rows("cpu", "plan", {}),
        *rate_rows("cpu", CPU_RATES),
    ]
    return head + BEGIN + "".join(rows) + END + tail


def main() -> int:
    old = TABLE.read_text()
    new = table(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print(f"{TABLE.relative_to(ROOT)} does not fit bench/results; run: make plots", file=sys.stderr)
        return int(old != new)
    if old != new:
        TABLE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
