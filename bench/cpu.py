"""Benchmarks of this machine's processor: `python -m bench.cpu [NAME...]`, all without a name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import common, convert, cpu_quantize, plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cpu_quantize, convert or plan (default: all)")
    parser.add_argument("--mebibytes", type=int, default=256, help="size of cpu_quantize's BF16 matrix (default 256)")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of convert's checkpoint (default 2000)")
    parser.add_argument("--rounds", type=int, default=7, help="timed repetitions; the median counts (default 7)")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="where <gpu>/<benchmark>.json goes")
    options = parser.parse_args()
    benchmarks = {
        "cpu_quantize": lambda: cpu_quantize.run(options.results, options.mebibytes, options.rounds),
        "convert": lambda: convert.run(options.results, options.megabytes, options.rounds),
        "plan": lambda: plan.run(options.results, options.rounds),
    }
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"no benchmark is named {unknown[0]!r}; there are {', '.join(benchmarks)}")
    if options.mebibytes < 2 or options.megabytes < 1 or options.rounds < 1:
        parser.error("--mebibytes must be at least 2, --megabytes and --rounds at least 1")
    for name in options.names or benchmarks:
        try:
            print(benchmarks[name]())
        except common.BenchError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
