"""Draws docs/plan-accuracy.svg and writes the table in docs/plan.md: what the planner predicts against measurements.

    python -m bench.plan_accuracy            write both
    python -m bench.plan_accuracy --check    exit code 1 when they are not what results and planner say

The measured figures come from bench/results/h100; the predicted ones from the planner as it is built. The single layers
are also the planner's own evidence (src/plan/evidence.inc), the training step is not.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import common, plan
from deepwell.plan import Cost, LayerFacts, ModelFacts, make_plan, parse_options

PICTURE = common.ROOT / "docs" / "plan-accuracy.svg"
PAGE = common.ROOT / "docs" / "plan.md"
BLOCK = re.compile(r"(<!-- accuracy -->\n)(.*?)(<!-- /accuracy -->)", re.DOTALL)
SHAPE = re.compile(r"(\d+) x (\d+) x (\d+)")
STEP = "Llama 8B width, 8 layers, batch 2 x 4096"


@dataclass(frozen=True)
class Point:
    case: str
    what: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def points() -> list[Point]:
    """Every measured figure that the planner predicts."""
    found = []
    for row in common.load(common.RESULTS / "h100" / "linear.json")["rows"]:
        match = SHAPE.fullmatch(row["case"])
        if match and row["unit"] == "TFLOP/s":
            tokens, outputs, inputs = map(int, match.groups())
            full, converted = _layer(tokens, outputs, inputs)
            flops = 6 * tokens * outputs * inputs
            found.append(Point(row["case"], "BF16", "ms", flops / row["peers"]["eager"] / 1e9, full))
            found.append(Point(row["case"], "MXFP8", "ms", flops / row["deepwell"] / 1e9, converted))
        if row["case"].endswith(", quantization"):
            tokens, outputs, inputs = map(int, SHAPE.match(row["case"]).groups())  # type: ignore[union-attr]
            quantization = _decide(tokens, outputs, inputs)[1].quantize_ms
            found.append(Point(row["case"], "MXFP8", "ms", row["deepwell"], quantization))
    predicted = _step()
    for row in common.load(common.RESULTS / "h100" / "step_dense.json")["rows"]:
        if row["case"] == STEP and row["metric"] == "step":
            found.append(Point(f"training step, {STEP}", "BF16", "ms", row["peers"]["eager"], predicted["full_ms"]))
            found.append(Point(f"training step, {STEP}", "MXFP8", "ms", row["deepwell"], predicted["planned_ms"]))
        if row["case"] == STEP and row["metric"] == "peak memory":
            sizes = (predicted["full_bytes"] / 2**20, predicted["planned_bytes"] / 2**20)
            found.append(Point(f"peak memory, {STEP}", "BF16", "MiB", row["peers"]["eager"], sizes[0]))
            found.append(Point(f"peak memory, {STEP}", "MXFP8", "MiB", row["deepwell"], sizes[1]))
    return found


def _layer(tokens: int, outputs: int, inputs: int) -> tuple[float, float]:
    """Milliseconds of the layer alone, as it is and converted."""
    full, candidate = _decide(tokens, outputs, inputs)
    return full.alone_ms, candidate.alone_ms


def _decide(tokens: int, outputs: int, inputs: int) -> tuple[Cost, Cost]:
    layer = LayerFacts("a", "nn.Linear", "Linear", inputs, outputs, inputs * outputs, "bfloat16", "hopper")
    facts = ModelFacts("Layer", (layer,), ("a",), inputs * outputs, "hopper")
    options = parse_options(
        *("mxfp8", "hopper", "auto", False, None, None, None, "hopper"), tokens=tokens, sequence=min(tokens, 2048)
    )
    decision = make_plan(facts, options, gpu="h100", expect=False).decisions[0]
    assert decision.full is not None
    assert decision.candidate is not None
    return decision.full, decision.candidate


def _step() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = plan.write_checkpoint(Path(folder), blocks=8, vocabulary=32000)
        command = [str(Path(sys.executable).parent / "deepwell"), "plan", str(checkpoint), "--json"]
        command += ["--target", "h100", "--batch", "2", "--seq-len", "4096"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["predicted"]


def table(found: list[Point]) -> str:
    lines = ["| | | measured | predicted | off by |", "|---|---|---|---|---|"]
    for p in found:
        numbers = [
            f"{value:.4g} {p.unit}" if value < 1e4 else f"{value:,.0f} {p.unit}" for value in (p.measured, p.predicted)
        ]
        lines.append(f"| {p.case} | {p.what} | {numbers[0]} | {numbers[1]} | {round(100 * p.error):d}% |")
    return "\n" + "\n".join(lines) + "\n\n"


def draw(found: list[Point]) -> str:
    """Predicted over measured, a point for each time; the diagonal is where both agree."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "deepwell", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    times = [p for p in found if p.unit == "ms"]
    ends = (min(p.measured for p in times) / 1.5, max(p.measured for p in times) * 1.5)
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.fill_between(ends, [e * 0.9 for e in ends], [e * 1.1 for e in ends], color="0.9", label="within 10%")
    for marker, single in (("o", True), ("s", False)):
        for colour, what in (("tab:blue", "MXFP8"), ("tab:orange", "BF16")):
            some = [p for p in times if p.what == what and p.case.startswith("training") != single]
            label = f"{what}, {'a layer alone' if single else 'a training step'}"
            xs, ys = [p.measured for p in some], [p.predicted for p in some]
            axis.scatter(xs, ys, color=colour, marker=marker, s=22, label=label, zorder=3)
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axis.set_xlabel("measured on an H100, ms, forward and backward")
    axis.set_ylabel("predicted, ms")
    axis.legend(fontsize=7)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE).rstrip("\n") + "\n"


def main() -> int:
    found = points()
    page = PAGE.read_text()
    fresh = BLOCK.sub(lambda m: m.group(1) + table(found) + m.group(3), page)
    if "--check" in sys.argv[1:]:
        # The picture is drawn from the table's figures, so the table tells for both.
        if page != fresh or not PICTURE.exists():
            print("docs/plan.md does not say what the planner predicts; run: make plots", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(fresh)
    PICTURE.write_text(draw(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
