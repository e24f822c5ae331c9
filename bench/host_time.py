"""Host time of one linear layer, forward and backward, on a GPU: python -m bench.host_time

The layer is so small that the device always waits for the host, so the time from one pass to the next is the host's.
Printed, not kept: it is a tool for whoever changes that path."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from deepwell import cuda_eager
from deepwell import cuda_linear as cl

PASSES, ROUNDS = 200, 15
TOKENS, WIDTH = 16, 256


def microseconds(call: Callable[[], None]) -> float:
    """The median of ROUNDS, of one pass."""
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(PASSES):
            call()
        times.append(1e6 * (time.perf_counter() - started) / PASSES)
        torch.cuda.synchronize()
    return statistics.median(times)


def main() -> None:
    device = torch.device("cuda", 0)
    layer = nn.Linear(WIDTH, WIDTH, bias=False, device=device, dtype=torch.bfloat16)
    weight = layer.weight
    x = torch.randn(TOKENS, WIDTH, device=device, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(TOKENS, WIDTH, device=device, dtype=torch.bfloat16)

    def clear(keep_gradient: bool = False) -> None:
        x.grad = None
        x.__dict__.clear()
        dy.__dict__.clear()
        if not keep_gradient:
            weight.grad = None

    def plain() -> None:
        clear()
        layer(x).backward(dy)

    def deepwell() -> None:
        clear()
        cuda_eager.linear(x, weight, None, torch.bfloat16).backward(dy)

    def new_weights() -> None:
        cl.forget_weights()
        deepwell()

    def accumulating() -> None:
        clear(keep_gradient=True)
        cuda_eager.linear(x, weight, None, torch.bfloat16).backward(dy)

    contenders = {
        "nn.Linear": plain,
        "deepwell": deepwell,
        "deepwell, weight quantized each time": new_weights,
        "deepwell, adding to a gradient": accumulating,
    }
    for _ in range(2):  # the first round warms up
        times = {name: microseconds(call) for name, call in contenders.items()}
    for name, value in times.items():
        print(f"{name:40} {value:8.1f} us")
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(microseconds, deepwell)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
