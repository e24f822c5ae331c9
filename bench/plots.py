"""Draws bench/results/<gpu>/<benchmark>.json as .svg beside it and writes the marked blocks of README.md and docs/.

    python -m bench.plots            rewrite what the data says
    python -m bench.plots --check    exit code 1 and a line for each plot or block that is not fresh

A block lies between `<!-- bench:NAME -->` and `<!-- /bench -->`. NAME is `headlines` (one line for each row that
HEADLINES names), `all` (every result file with its plot and table) or `<gpu>/<benchmark>` (one of them). A block whose
data is not there stays empty. A plot carries the hash of its data, so freshness needs no drawing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

from bench import common

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("benchmarks", "index", "architecture", "command", "python")))
BLOCK = re.compile(r"(<!-- bench:([\w/]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
PEER_NAMES = {
    "copy": "copy",
    "memcpy": "memcpy",
    "traffic": "traffic alone",
    "torch": "PyTorch",
    "cublaslt_row": "cuBLASLt FP8 row-wise",
    "cublaslt_tensor": "cuBLASLt FP8 tensor-wise",
    "cublaslt_block": "cuBLASLt FP8 block",
    "deepgemm": "DeepGEMM",
    "unscaled": "without scales",
    "te_best": "Transformer Engine, best",
    "te_block": "Transformer Engine, block",
    "torchao": "torchao",
    "liger": "Liger",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "grouped_mm": "grouped_mm",
    "grouped_mm_compile": "grouped_mm, compiled",
}
MACHINES = {"cpu": "processor", "h100": "H100", "h200": "H200"}
# (gpu, benchmark, pattern of the case): what the README's short table shows.
HEADLINES = (
    ("cpu", "cpu_quantize", r"quantize row 1x32, 1 thread"),
    ("cpu", "cpu_quantize", r"quantize both 1x32, 1 thread"),
    ("cpu", "convert", r".*"),
    ("h200", "step_dense", r"Llama 8B width, .*"),
    ("h200", "linear", r"8192 x \d+ x \d+"),
    ("h200", "gemm", r"8192 x \d+ x \d+"),
    ("h200", "gemm_wgrad", r"8192 x \d+ x \d+"),
    ("h200", "grouped", r".*8 experts.*"),
    ("h200", "quantize", r"BF16 to E4M3 (row|both) 1x128, 16384x4096"),
    ("h200", "fused", r".*16384x14336"),
)


def results(folder: Path) -> list[Path]:
    """All result files, the processor's first, in the order of common.BENCHMARKS."""
    paths = folder.glob("*/*.json")
    return sorted(paths, key=lambda p: (common.GPUS.index(p.parent.name), common.BENCHMARKS.index(p.stem)))


# ---- text ----------------------------------------------------------------------------------------------------------


def number(value: float, unit: str) -> str:
    """A figure with its unit as people read it."""
    if unit == "TB/s" and value < 1:
        value, unit = value * 1e3, "GB/s"
    if unit == "ms" and value >= 10000:
        value, unit = value / 1e3, "s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def comparison(row: dict[str, Any], other: float) -> str:
    """Deepwell against another figure: how many times as fast (or as small)."""
    ratio = row["deepwell"] / other if common.UNITS[row["unit"]] else other / row["deepwell"]
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def provenance(document: dict[str, Any]) -> str:
    return (
        f"Measured on {document['device']} ({document['driver']}) with PyTorch {document['torch']}, "
        f"{document['date'][:10]}, commit {document['commit']}."
    )


def table(document: dict[str, Any]) -> list[str]:
    """Every row: Deepwell's figure, the limit, and each peer with the ratio of speeds in brackets (above 1, Deepwell is
    faster)."""
    rows = document["rows"]
    peers = [name for name in common.PEERS if any(name in row["peers"] for row in rows)]
    limited = any(row["limit"] is not None for row in rows)
    heads = ["case", "metric", "Deepwell", *(["limit"] if limited else []), *(PEER_NAMES[name] for name in peers)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        others = ([row["limit"]] if limited else []) + [row["peers"].get(name) for name in peers]
        cells = [f"{number(o, row['unit'])} ({comparison(row, o)})" if o is not None else "" for o in others]
        lines.append(
            "| " + " | ".join([row["case"], row["metric"], number(row["deepwell"], row["unit"]), *cells]) + " |"
        )
    return lines


def section(path: Path, document: dict[str, Any], depth: str) -> list[str]:
    link = depth + path.with_suffix(".svg").relative_to(common.ROOT).as_posix()
    lines = [f"![{document['benchmark']} on {document['device']}]({link})", "", *table(document), ""]
    lines += [provenance(document) + " A ratio above 1 means that Deepwell is faster or smaller.", ""]
    lines += [f"`{PEER_NAMES[name]}` did not run: {reason}" for name, reason in document["peers_absent"].items()]
    return lines + ([""] if document["peers_absent"] else [])


def headlines(documents: dict[Path, dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    sources: list[str] = []
    for gpu, benchmark, pattern in HEADLINES:
        document = documents.get(common.RESULTS / gpu / f"{benchmark}.json")
        for row in document["rows"] if document else []:
            if not re.fullmatch(pattern, row["case"]):
                continue
            against = (
                [("limit", row["limit"])] if row["limit"] is not None and row["peers"].get("memcpy") is None else []
            )
            against += [(PEER_NAMES[name], row["peers"][name]) for name in common.PEERS if name in row["peers"]]
            compared = ", ".join(f"{comparison(row, other)} {name}" for name, other in against)
            figure = number(row["deepwell"], row["unit"])
            lines.append(f"| {MACHINES[gpu]} | {row['case']} | {row['metric']} | {figure} | {compared} |")
            if (text := provenance(document)) not in sources:
                sources.append(text)
    if not lines:
        return []
    return ["| on | case | metric | Deepwell | speed relative to |", "|---|---|---|---|---|", *lines, "", *sources, ""]


def block(name: str, page: Path, documents: dict[Path, dict[str, Any]]) -> str:
    """What stands in the block `name` on `page`."""
    depth = "../" * (len(page.relative_to(common.ROOT).parts) - 1)
    if name == "headlines":
        lines = headlines(documents)
    elif name == "all":
        lines = []
        for path, document in documents.items():
            lines += [f"## {document['benchmark']} ({path.parent.name})", "", *section(path, document, depth)]
    else:
        path = common.RESULTS / f"{name}.json"
        gpu, _, benchmark = name.partition("/")
        if gpu not in common.GPUS or benchmark not in common.BENCHMARKS:
            raise common.BenchError(f"{page}: block bench:{name} is neither headlines, all nor <gpu>/<benchmark>")
        lines = section(path, documents[path], depth) if path in documents else []
    return "\n" + "\n".join(lines).rstrip("\n") + "\n\n" if lines else ""


def rewritten(page: Path, documents: dict[Path, dict[str, Any]]) -> str:
    """The page with its blocks made from the data."""
    text = page.read_text()
    if text.count("<!-- bench:") != len(BLOCK.findall(text)) or text.count("<!-- /bench -->") != len(
        BLOCK.findall(text)
    ):
        raise common.BenchError(f"{page}: a bench block is not closed, or its name is malformed")
    return BLOCK.sub(lambda found: found[1] + block(found[2], page, documents) + found[4], text)


# ---- pictures ------------------------------------------------------------------------------------------------------


def stamp(path: Path) -> str:
    """Names the data that a plot was drawn from."""
    return f"<!-- data sha256 {hashlib.sha256(path.read_bytes()).hexdigest()} -->\n"


def draw(path: Path, document: dict[str, Any]) -> str:
    """The plot: one panel for each metric, one group of bars for each case, the limit as a line across the group.
    Clocks, watts and shares, of which neither more nor less is better, stay in the tables."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "deepwell", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if row["unit"] not in ("MHz", "W", "%"):
            panels.setdefault((row["metric"], row["unit"]), []).append(row)
    peers = [name for name in common.PEERS if any(name in row["peers"] for row in document["rows"])]
    series = ["deepwell", *peers]
    heights = [len(rows) * (len(series) + 1) * 0.16 + 0.8 for rows in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, sum(heights) + 0.6), height_ratios=heights, squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab10").colors
    for axis, ((metric, unit), rows) in zip(axes[:, 0], panels.items(), strict=True):
        small = unit == "TB/s" and max([row["deepwell"] for row in rows]) < 1
        factor, shown = (1e3, "GB/s") if small else (1, unit)
        for place, row in enumerate(rows):
            values = {"deepwell": row["deepwell"], **row["peers"]}
            for offset, name in enumerate(series):
                if name not in values:
                    continue
                y = place * (len(series) + 1) + offset
                label = "Deepwell" if name == "deepwell" else PEER_NAMES[name]
                bar = axis.barh(y, values[name] * factor, height=0.9, color=colours[offset], label=label)
                axis.bar_label(bar, fmt="%.3g", padding=2, fontsize=7)
            if row["limit"] is not None:
                bottom = place * (len(series) + 1) - 0.6
                axis.vlines(row["limit"] * factor, bottom, bottom + len(series) + 0.2, color="black", label="limit")
        middles = [place * (len(series) + 1) + (len(series) - 1) / 2 for place in range(len(rows))]
        axis.set_yticks(middles, [row["case"] for row in rows])
        axis.invert_yaxis()
        axis.set_xlabel(f"{metric}, {shown} ({'more' if common.UNITS[unit] else 'less'} is better)")
        axis.margins(x=0.08)
        axis.spines[["top", "right"]].set_visible(False)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        if len(handles) > 1:
            axis.legend(handles.values(), handles.keys(), fontsize=7, loc="best")
    figure.suptitle(f"{document['benchmark']}: {document['device']}", fontsize=9)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)
    return text.rstrip("\n") + "\n" + stamp(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description="plots and tables from bench/results")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when something is not fresh")
    options = parser.parse_args()
    stale: list[str] = []
    try:
        documents = {path: common.load(path) for path in results(common.RESULTS)}
        for path, document in documents.items():
            picture = path.with_suffix(".svg")
            if picture.exists() and picture.read_text().endswith(stamp(path)):
                continue
            stale.append(str(picture.relative_to(common.ROOT)))
            if not options.check:
                picture.write_text(draw(path, document))
        for page in [common.ROOT / name for name in PAGES if (common.ROOT / name).exists()]:
            text = rewritten(page, documents)
            if text != page.read_text():
                stale.append(str(page.relative_to(common.ROOT)))
                if not options.check:
                    page.write_text(text)
    except common.BenchError as error:
        print(f"bench.plots: {error}", file=sys.stderr)
        return 1
    for name in stale:
        print(f"{name}: {'not fresh; run `make plots`' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
