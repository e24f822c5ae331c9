"""What power and the tensor cores leave to a block-scaled FP8 product: the library's beside kernels that do less."""

from __future__ import annotations

import datetime
import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import common, gpu_common, gpu_grouped, matrix_kernels, unscaled
from bench.gpu_common import DEVICE
from bench.gpu_gemm import SHAPES, deep_gemm_nt, row_wise
from bench.gpu_operands import GROUP_M, LAUNCHES, Operand, deep_gemm, grouped, product, turns
from bench.gpu_sampler import Sampler, ceilings
from deepwell import cuda_linear as cl

# Of the products of few rows, those in which cuBLASLt row-wise is ahead.
FEW_ROWS = ((512, 4096, 4096), (256, 14336, 4096), (512, 14336, 4096))
GROUPED_SHAPES = gpu_grouped.SHAPES
FLOP_PER_CYCLE = 8192  # of a multiprocessor's four tensor cores in FP8, dense
SETTLE_S = 0.25  # under load before the window: power has found its clock
WINDOW_S = 0.5
MOST_WINDOWS = 10  # until NVML has answered often enough
GRAPH_MS = 25.0  # of a graph under load, so that what lies between two of them does not count
# The tensor core's sums hold integers up to 2^13 whatever it drops, so these are exact. Some tiles are split.
CHECKED = (4000, 2056, 1552)
LARGEST = 2


def run(results: Path, rounds: int) -> Path:
    """gemm_limit.json: products of 1x128 by 128x128 blocks into BF16, dense and in groups along M, with TFLOP/s in
    windows and under sustained load, and the clock, the power and the share of the tensor cores' peak at that clock
    which go with the latter."""
    result = gpu_common.new_result("gemm_limit")
    library, reason = deep_gemm()
    if library is None:
        result.absent("deepgemm", reason)
    try:
        kernels = {name: unscaled.load(name, code) for name, code in unscaled.compile_variants().items()}
    except matrix_kernels.Unavailable as error:
        result.absent("unscaled", str(error))
        kernels = {}
    for name, kernel in kernels.items():
        check(name, kernel, groups=name in unscaled.GROUPED)
    dense = {name: kernel for name, kernel in kernels.items() if name not in unscaled.GROUPED}
    of_groups = {name: kernel for name, kernel in kernels.items() if name in unscaled.GROUPED}
    for m, n, k in (*SHAPES, *FEW_ROWS):
        count = gpu_common.rotation(m * k + n * k + 2 * m * n)
        contenders = contenders_of(m, n, k, count, library, dense)
        _measure(result, f"{m} x {n} x {k}", 2 * m * n * k, contenders, dense, count, rounds)
    for tokens, experts, n, k in GROUPED_SHAPES:
        contenders = grouped_contenders_of(tokens, experts, n, k, library, of_groups)
        case = f"{tokens} tokens, {experts} experts, {n} x {k}"
        _measure(result, case, 2 * tokens * n * k, contenders, of_groups, 1, rounds)
        del contenders
        torch.cuda.empty_cache()
    return result.write(results)


def _measure(
    result: common.Result,
    case: str,
    operations: int,
    contenders: dict[str, Callable[[int], Any]],
    kernels: dict[str, matrix_kernels.Kernel],
    count: int,
    rounds: int,
) -> None:
    """A case's rows. Of `kernels`, which are among the contenders, the fastest stays, as "unscaled"; `count` sets of
    buffers take turns."""
    clock_limit, power_limit = ceilings()
    times = gpu_common.interleaved(contenders, rounds, launches=max(LAUNCHES, count))
    best = min(kernels, key=times.__getitem__, default=None)
    if best is not None:  # which of them it is stands in the case
        contenders["unscaled"], times["unscaled"] = contenders[best], times[best]
        case += f", {best.removeprefix('grouped_')} without scales"
    for name in kernels:
        del contenders[name], times[name]
    loaded: dict[str, dict[str, float]] = {}
    with Sampler() as sampler:
        order = list(contenders.items())
        random.Random(case).shuffle(order)
        for name, call in order:
            took, begin, end = sustain(call, times[name], count, sampler.enough)
            clock, power = sampler.medians(begin, end)
            rate = operations / took / 1e9
            loaded[name] = {"rate": rate, "clock": clock, "power": power, "share": 100 * share(rate, clock)}
    rates = {name: operations / time / 1e9 for name, time in times.items()}
    result.row(case, "product", "TFLOP/s", rates.pop("deepwell"), **rates)
    for figure, metric, unit, limit in (
        ("rate", "product, sustained load", "TFLOP/s", None),
        ("clock", "clock, sustained load", "MHz", clock_limit),
        ("power", "power, sustained load", "W", power_limit),
        ("share", "share of the tensor cores at that clock", "%", None),
    ):
        figures = {name: loaded[name][figure] for name in contenders}
        result.row(case, metric, unit, figures.pop("deepwell"), limit, **figures)


def contenders_of(
    m: int, n: int, k: int, count: int, library: Any, kernels: dict[str, matrix_kernels.Kernel]
) -> dict[str, Callable[[int], Any]]:
    """All of them on the same operands, each variant of `kernels` under its name."""
    operands = [(Operand(m, k, cl.BLOCK_1X128), Operand(n, k, cl.BLOCK_128X128)) for _ in range(count)]
    outs = [torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    triples = [(a, b, out) for (a, b), out in zip(operands, outs, strict=True)]
    contenders: dict[str, Callable[[int], Any]] = {
        "deepwell": turns([product(a, b, out, cl.BACKEND_AUTO) for a, b, out in triples]),
        "cublaslt_row": turns([row_wise(a, b) for a, b in operands]),
    }
    if library is not None:
        contenders["deepgemm"] = turns([deep_gemm_nt(library, a, b, out) for a, b, out in triples])
    for name, kernel in kernels.items():
        contenders[name] = turns([launch(kernel, a.bytes, a.scales, b.bytes, b.scales, out) for a, b, out in triples])
    return contenders


def grouped_contenders_of(
    tokens: int, experts: int, n: int, k: int, library: Any, kernels: dict[str, matrix_kernels.Kernel]
) -> dict[str, Callable[[int], Any]]:
    """The same of groups of equal size."""
    a, b = Operand(tokens, k, cl.BLOCK_1X128), Operand(experts * n, k, cl.BLOCK_128X128, groups=experts)
    out = torch.empty(tokens, n, device=DEVICE, dtype=torch.bfloat16)
    ends = gpu_grouped.on_device(gpu_grouped.ends_of(tokens, experts, "equal"))
    calls = {"deepwell": grouped(GROUP_M, ends, a, b, out), "torch": gpu_grouped.row_wise(a, b, experts, n, ends)}
    if library is not None:
        calls["deepgemm"] = gpu_grouped.deep_gemm_grouped(library, a, b, experts, n, out)
    for name, kernel in kernels.items():
        calls[name] = launch(kernel, a.bytes, a.scales, b.bytes, b.scales, out, ends=ends)
    return {name: turns([call]) for name, call in calls.items()}


def launch(
    kernel: matrix_kernels.Kernel, *tensors: torch.Tensor, ends: torch.Tensor | None = None
) -> Callable[[], None]:
    return kernel.product(*tensors, multiprocessors(), lambda: cl.place_of(DEVICE)[1], ends)


@functools.cache
def multiprocessors() -> int:
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def share(rate: float, clock: float) -> float:
    """Of the tensor cores' dense FP8 peak at that clock: TFLOP/s and MHz."""
    return rate * 1e12 / (multiprocessors() * FLOP_PER_CYCLE * clock * 1e6)


def check(name: str, kernel: matrix_kernels.Kernel, groups: bool = False) -> None:
    """Raises BenchError unless the kernel multiplies: small integers, whose sums are exact, with all scales 1; rows in
    four groups, one of them empty, if it is for groups."""
    m, n, k = CHECKED
    seed = torch.seed()
    row_ends = [m // 3, m // 3, m // 2, m] if groups else [m]
    a, b = (
        torch.randint(-LARGEST, LARGEST + 1, (rows, k), device=DEVICE).to(torch.float32).to(torch.float8_e4m3fn)
        for rows in (m, n * len(row_ends))
    )
    blocks = -(-k // 128)
    ones = (
        torch.ones(blocks, m, device=DEVICE),
        torch.ones(-(-n // 128) * len(row_ends), -(-blocks // 4) * 4, device=DEVICE),
    )
    out = torch.full((m, n), math.nan, device=DEVICE, dtype=torch.bfloat16)
    ends = torch.tensor(row_ends, dtype=torch.int32, device=DEVICE) if groups else None
    launch(kernel, a, ones[0], b, ones[1], out, ends=ends)()
    expected = torch.cat(
        [
            rows.double() @ weights.double().t()
            for rows, weights in zip(a.tensor_split(row_ends[:-1]), b.split(n), strict=True)
        ]
    )
    wrong = int((out != expected.to(torch.bfloat16)).sum())
    if wrong:
        raise common.BenchError(f"unscaled {name}: {wrong} of {m} x {n} elements are wrong (K {k}, seed {seed})")


def sustain(
    call: Callable[[int], Any], milliseconds: float, count: int, enough: Callable[[datetime.datetime], bool]
) -> tuple[float, datetime.datetime, datetime.datetime]:
    """Milliseconds of one call in a window of about WINDOW_S, or more of them until `enough` says so of their
    beginning, under load that has lasted SETTLE_S, and when the window began and ended. `count` sets of buffers take
    turns; `milliseconds` is about what a call takes."""
    launches = count * max(1, round(GRAPH_MS / (milliseconds * count)))
    replay = gpu_common.graph(call, launches)
    seconds = launches * milliseconds / 1e3
    settling, timed = math.ceil(SETTLE_S / seconds), math.ceil(WINDOW_S / seconds)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    for turn in range(settling):
        replay(turn)
    start.record()
    began, windows = None, 0
    while began is None or (windows < MOST_WINDOWS and not enough(began)):
        for turn in range(timed):
            replay(turn)
        end.record()
        if began is None:
            start.synchronize()
            began = datetime.datetime.now()
        end.synchronize()
        windows += 1
    return start.elapsed_time(end) / (windows * timed * launches), began, datetime.datetime.now()
