"""What the GPU benchmarks share: the result's head, timing with events over rotating buffers."""

from __future__ import annotations

import random
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from bench import common

DEVICE = torch.device("cuda", 0)


def new_result(benchmark: str) -> common.Result:
    """An empty result for GPU 0. Raises BenchError without one that results are kept for."""
    if not torch.cuda.is_available():
        raise common.BenchError("no GPU that PyTorch can use")
    name = torch.cuda.get_device_name(DEVICE)
    gpu = next((known for known in ("h100", "h200") if known in name.lower()), None)
    if gpu is None:
        raise common.BenchError(f"results are kept for H100 and H200; this is {name}")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    return common.Result(benchmark, gpu, name, driver, torch.__version__)


def interleaved(
    contenders: dict[str, Callable[[int], Any]], rounds: int, warm: int = 3, launches: int = 1
) -> dict[str, float]:
    """Median milliseconds of each contender's call on the device. All run in every round, in an order drawn anew;
    each is told a number that rises with every call, to choose its buffers by, so that nothing it reads is still in the
    L2 cache. With `launches` a time is that of a CUDA graph of so many calls one after another, divided: nobody's host
    code counts, and the chip's clock is that of a loaded chip."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    if launches > 1:
        order = [(name, _graph(call, launches)) for name, call in order]
    for turn in range(warm + rounds):
        random.Random(turn).shuffle(order)
        for name, call in order:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            # A kernel ahead of the first event keeps the device busy while the host gets ahead of it.
            torch.cuda._sleep(200_000)
            start.record()
            call(turn)
            end.record()
            torch.cuda.synchronize()
            if turn >= warm:
                times[name].append(start.elapsed_time(end) / launches)
    return {name: statistics.median(values) for name, values in times.items()}


def _graph(call: Callable[[int], Any], launches: int) -> Callable[[int], Any]:
    for i in range(2):
        call(i)  # loads code, compiles where a peer compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            call(i)
    return lambda turn: graph.replay()


def rotation(total_bytes: int) -> int:
    """How many sets of buffers of this size push each other out of a 60 MB L2 cache."""
    return max(2, -(-240_000_000 // max(total_bytes, 1)))
