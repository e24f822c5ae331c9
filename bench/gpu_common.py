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
LEAD_CYCLES = 200_000  # about 0.1 ms
MOST_LEAD_CYCLES = 500_000_000  # about 0.3 s


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
    contenders: dict[str, Callable[[int], Any]],
    rounds: int,
    warm: int = 3,
    launches: int = 1,
    calls: int = 1,
    hide_host: bool = False,
) -> dict[str, float]:
    """Median milliseconds of each contender's call on the device. All run in every round, in an order drawn anew;
    each is told a number that rises with every call, to choose its buffers by, so that nothing it reads is still in the
    L2 cache.

    With `launches` a time is that of a CUDA graph of so many calls one after another, divided: nobody's host code
    counts, and the chip's clock is that of a loaded chip. With `calls` it is that of so many calls made one after
    another, divided: where the host is slower than the device, that counts. With `hide_host` the device is kept busy
    until the host has made all calls of the window, so that it does not."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    if launches > 1:
        order = [(name, graph(call, launches)) for name, call in order]
    for _, call in order if hide_host else ():
        call(0)  # whatever only a first call does would look like slow host code
    leads = dict.fromkeys(contenders, LEAD_CYCLES)
    for turn in range(warm + rounds):
        random.Random(turn).shuffle(order)
        for name, call in order:
            time, hidden = _window(call, turn * calls, calls, leads[name])
            while hide_host and not hidden:
                leads[name] *= 2
                if leads[name] > MOST_LEAD_CYCLES:
                    raise common.BenchError(f"{name}: the host waits for the device, so its time cannot be hidden")
                time, hidden = _window(call, turn * calls, calls, leads[name])
            if turn >= warm:
                times[name].append(time / (launches * calls))
    return {name: statistics.median(values) for name, values in times.items()}


def _window(call: Callable[[int], Any], first: int, calls: int, lead: int) -> tuple[float, bool]:
    """Milliseconds of so many calls on the device, and whether the host had made them all before it began."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    # A kernel ahead of the first event keeps the device busy while the host gets ahead of it.
    torch.cuda._sleep(lead)
    start.record()
    for turn in range(first, first + calls):
        call(turn)
    end.record()
    hidden = not start.query()
    torch.cuda.synchronize()
    return start.elapsed_time(end), hidden


def graph(call: Callable[[int], Any], launches: int) -> Callable[[int], Any]:
    """A call that does so many on the device, without the host."""
    for i in range(2):
        call(i)  # loads code, compiles where a peer compiles
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for i in range(launches):
            call(i)
    return lambda turn: recorded.replay()


def rotation(total_bytes: int) -> int:
    """How many sets of buffers of this size push each other out of a 60 MB L2 cache."""
    return max(2, -(-240_000_000 // max(total_bytes, 1)))
