"""Benchmarks: what is measured, how, and where the figures go. Run as `python -m bench.cpu`; see docs/benchmarks.md."""
