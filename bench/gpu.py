"""Benchmarks of this machine's GPU: `python -m bench.gpu [NAME...]`, all without a name.

Runs with whatever Python has PyTorch and deepwell; peers that are not installed are listed as absent."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from bench import common, gpu_gemm, gpu_grouped, gpu_limit, gpu_linear, gpu_quantize, gpu_step, gpu_step_peers

BENCHMARKS = {
    "quantize": gpu_quantize.run_quantize,
    "fused": gpu_quantize.run_fused,
    "gemm": gpu_gemm.run_gemm,
    "gemm_limit": gpu_limit.run,
    "gemm_wgrad": gpu_gemm.run_wgrad,
    "grouped": gpu_grouped.run_grouped,
    "grouped_wgrad": gpu_grouped.run_wgrad,
    "grouped_bf16": gpu_grouped.run_bf16,
    "linear": gpu_linear.run,
    "step_dense": gpu_step.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="timed repetitions; the median counts (default 15)")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="where <gpu>/<benchmark>.json goes")
    parser.add_argument(
        "--peers",
        metavar="NAME,...",
        help=f"step_dense measures these only, or none: {', '.join(gpu_step_peers.PEERS)} (default: all)",
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is named {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    benchmarks = dict(BENCHMARKS)
    if options.peers is not None:
        peers = [name for name in options.peers.split(",") if name != "none"]
        unknown = [name for name in peers if name not in gpu_step_peers.PEERS]
        if unknown:
            parser.error(f"no peer is named {unknown[0]!r}; there are none, {', '.join(gpu_step_peers.PEERS)}")
        benchmarks["step_dense"] = functools.partial(gpu_step.run, peers=peers)
    failed = 0
    for name in options.names or BENCHMARKS:
        try:
            print(benchmarks[name](options.results, options.rounds), flush=True)
        except common.BenchError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
