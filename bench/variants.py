"""Compares variants of the block-scaled matrix kernels that are not in the library, on a Hopper GPU.

    python -m bench.variants windows 192x128_split 128x256+CHUNK_N=64+STORE_BUFFERS=2 128x256/8 128x256@/some/device

A variant is the end of a kernel's name in the table (of those with FP32 scales, square blocks in B and a BF16 result),
for groups along M with "grouped_" before it; then other values of the columns, or any macro that the source knows; a
slash and the rows of tiles walked together; an @ and a folder that stands for src/cuda/device. Each is compiled here,
compared with the library's product, and measured beside it (deepwell), DeepGEMM and cuBLASLt row-wise (of groups
PyTorch's). Lines name the fastest first, with microseconds and speed relative to DeepGEMM, or to the library without
it. Nothing is written to bench/results: what comes of it belongs in docs/measured-facts.md."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import common, gpu_common, gpu_gemm, gpu_grouped, gpu_limit, matrix_kernels
from bench.gpu_common import DEVICE
from bench.gpu_operands import GROUP_M, LAUNCHES, Operand, deep_gemm, grouped, product
from deepwell import cuda_linear as cl

SHAPE_SETS = {"dense": gpu_gemm.SHAPES, "few": gpu_limit.FEW_ROWS, "groups": gpu_grouped.SHAPES}
# Ragged tiles, reductions shorter than a batch of scales, a part of one more, tiles that are split.
CHECKED = ((776, 1920, 896), (2504, 2048, 1024), (8192, 4096, 2176))
CHECKED_GROUPS = (300, 0, 4, 776, 128, 1500)
CHECKED_GROUPS_NK = ((768, 768), (768, 2176))
LARGEST_ERROR = 2**-8  # of ||difference|| / ||result||: two roundings to BF16 of sums added up in other orders
KERNEL = "variant"
FORMATS = ("K_SPLIT", "SCALE_F32", "B_VECTOR", "OUT_F32", "GROUPED")  # what operands and result are made for


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the command line."""

    text: str
    row: dict[str, str]
    macros: dict[str, str]
    folder: Path
    band: int | None

    @property
    def groups(self) -> bool:
        return self.row["GROUPED"] == "M"

    @property
    def source(self) -> str:
        return matrix_kernels.source(self.row, KERNEL, self.macros)


def parse(text: str) -> Variant:
    """The variant that a text names. Raises BenchError where there is none."""
    found = re.fullmatch(r"(grouped_)?(\w+)((?:\+\w+(?:=\w+)?)*)(?:/([1-9]\d*))?(?:@(.+))?", text)
    if found is None:
        raise common.BenchError(f"{text!r} is no variant: TILE[+MACRO[=VALUE]...][/ROWS][@FOLDER]")
    kind, tile, changes, band, folder = found.groups()
    row, macros = dict(matrix_kernels.row_named(matrix_kernels.ROWS.format("grouped_m" if kind else "nt", tile))), {}
    for change in changes.split("+")[1:]:
        name, _, value = change.partition("=")
        if name in FORMATS:
            raise common.BenchError(f"{text!r}: {name} is not for variants to change")
        (row if name in row else macros)[name] = value or "1"
    sources = Path(folder) if folder else matrix_kernels.DEVICE_SOURCES
    if not (sources / "sm90" / "gemm_block_scaled.cuh").is_file():
        raise common.BenchError(f"{text!r}: no sm90/gemm_block_scaled.cuh in {sources}")
    return Variant(text, row, macros, sources, int(band) if band else None)


def load(variants: list[Variant]) -> dict[str, matrix_kernels.Kernel]:
    """Their kernels, by their texts. Raises BenchError where one does not compile, Unavailable without a compiler."""
    codes = matrix_kernels.compile_sources({v.text: (v.source, v.folder) for v in variants})
    return {v.text: matrix_kernels.Kernel(v.row, KERNEL, codes[v.text], band=v.band) for v in variants}


# ---- right or wrong --------------------------------------------------------------------------------------------------


def differences(kernels: dict[str, matrix_kernels.Kernel], groups: bool) -> list[str]:
    """A line for each kernel whose result is not the library's, to rounding."""
    said = []
    for case in CHECKED_GROUPS_NK if groups else CHECKED:
        a, b, ends, out = _operands_to_check(case, groups)
        expected = torch.full_like(out, math.nan)
        (product(a, b, expected, cl.BACKEND_AUTO) if ends is None else grouped(GROUP_M, ends, a, b, expected))()
        for name, kernel in kernels.items():
            out.fill_(math.nan)
            gpu_limit.launch(kernel, a.bytes, a.scales, b.bytes, b.scales, out, ends=ends)()
            error = float((out.double() - expected.double()).norm() / expected.double().norm())
            if not error <= LARGEST_ERROR:
                said.append(f"{name} is wrong at {' x '.join(map(str, case))}: relative error {error:.2g}")
    return said


def _operands_to_check(
    case: tuple[int, ...], groups: bool
) -> tuple[Operand, Operand, torch.Tensor | None, torch.Tensor]:
    n, k = case[-2:]
    if not groups:
        m = case[0]
        a, b, ends = Operand(m, k, cl.BLOCK_1X128), Operand(n, k, cl.BLOCK_128X128), None
    else:
        m, count = sum(CHECKED_GROUPS), len(CHECKED_GROUPS)
        a, b = Operand(m, k, cl.BLOCK_1X128), Operand(count * n, k, cl.BLOCK_128X128, groups=count)
        ends = torch.tensor(CHECKED_GROUPS, device=DEVICE).cumsum(0).to(torch.int32)
    return a, b, ends, torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)


# ---- measuring -------------------------------------------------------------------------------------------------------


def contenders(
    shape: tuple[int, ...], kernels: dict[str, matrix_kernels.Kernel], library: Any
) -> tuple[dict[str, Callable[[int], Any]], int]:
    """All that multiply a shape, M x N x K or tokens, experts, N, K, and how many sets of buffers take turns."""
    if len(shape) == 4:
        return gpu_limit.grouped_contenders_of(*shape, library, kernels), 1
    m, n, k = shape
    count = gpu_common.rotation(m * k + n * k + 2 * m * n)
    return gpu_limit.contenders_of(m, n, k, count, library, kernels), count


def under_load(calls: dict[str, Callable[[int], Any]], count: int) -> dict[str, float]:
    """Milliseconds of each contender's call, each alone for half a second after a quarter of one."""
    about = gpu_common.interleaved(calls, 1, launches=max(LAUNCHES, count))
    return {name: gpu_limit.sustain(call, about[name], count, lambda _: True)[0] for name, call in calls.items()}


def line(shape: tuple[int, ...], times: dict[str, float]) -> str:
    base = times.get("deepgemm", times["deepwell"])
    ranked = sorted(times.items(), key=lambda item: item[1])
    return f"{'x'.join(map(str, shape))} " + " ".join(f"{name}:{t * 1e3:.2f}us/{base / t:.3f}" for name, t in ranked)


def means(seen: list[dict[str, float]]) -> str:
    """Geometric means over the shapes that a contender took part in."""
    ratios: dict[str, list[float]] = {}
    for times in seen:
        base = times.get("deepgemm", times["deepwell"])
        for name, t in times.items():
            ratios.setdefault(name, []).append(base / t)
    found = {name: statistics.geometric_mean(values) for name, values in ratios.items()}
    return "mean " + " ".join(f"{name}:{v:.4f}" for name, v in sorted(found.items(), key=lambda item: -item[1]))


def shapes_of(text: str) -> tuple[tuple[int, ...], ...]:
    """A set of shapes by its name, or MxNxK or TOKENSxEXPERTSxNxK and more of them after commas."""
    if text in SHAPE_SETS:
        return SHAPE_SETS[text]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,3}(,[1-9]\d*(x[1-9]\d*){2,3})*", text):
        raise common.BenchError(f"{text!r} are no shapes: {', '.join(SHAPE_SETS)}, or MxNxK or TOKENSxEXPERTSxNxK, ...")
    return tuple(tuple(map(int, shape.split("x"))) for shape in text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=("windows", "load"), help="windows of calls as in gemm.json, or sustained load")
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--shapes", help="dense, few, groups, or MxNxK,... (default: dense, of groups groups)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="windows of each contender; the median counts (default 9)"
    )
    options = parser.parse_args()
    try:
        variants = [parse(text) for text in options.variants]
        groups = variants[0].groups
        shapes = shapes_of(options.shapes or ("groups" if groups else "dense"))
        if any(v.groups != groups for v in variants) or any((len(shape) == 4) != groups for shape in shapes):
            raise common.BenchError("variants and shapes are either all of groups, or none is")
        if not torch.cuda.is_available():
            raise common.BenchError("no GPU that PyTorch can use")
        kernels = load(variants)
    except common.BenchError as error:
        print(f"bench: variants: {error}", file=sys.stderr)
        return 1
    library, reason = deep_gemm()
    if library is None:
        print(f"DeepGEMM is {reason}")
    for said in differences(kernels, groups):
        print(said, flush=True)
    seen = []
    for shape in shapes:
        calls, count = contenders(shape, kernels, library)
        if options.how == "load":
            seen.append(under_load(calls, count))
        else:
            seen.append(gpu_common.interleaved(calls, options.rounds, launches=max(LAUNCHES, count)))
        print(line(shape, seen[-1]), flush=True)
        del calls
        torch.cuda.empty_cache()
    print(means(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
