"""A training step of a Llama-8B-width model of 8 layers: transformers as it comes, compiled, and through Deepwell."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import deepwell
from bench import common, gpu_common
from bench.gpu_common import DEVICE

BATCH, LENGTH, LAYERS, VOCABULARY = 2, 4096, 8, 32000


def run(results: Path, rounds: int) -> Path:
    """step_dense.json: milliseconds of a step (forward, backward, fused AdamW on BF16 parameters), tokens per second
    and peak memory. Models do not fit the device side by side, so each runs alone, the eager ones twice."""
    result = gpu_common.new_result("step_dense")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise common.BenchError(f"transformers is needed: {error}") from None
    turns: dict[str, list[tuple[float, float]]] = {"eager": [], "deepwell": [], "compile": [], "deepwell_compile": []}
    for name in ("eager", "deepwell", "compile", "deepwell_compile", "deepwell", "eager"):
        optimize = deepwell.optimize if name.startswith("deepwell") else (lambda model: model)
        turns[name].append(_step(optimize, name.endswith("compile"), rounds))
        _clear()
    times = {name: statistics.mean(time for time, _ in values) for name, values in turns.items()}
    peaks = {name: max(peak for _, peak in values) for name, values in turns.items()}
    peers = ("eager", "compile")
    case = f"Llama 8B width, {LAYERS} layers, batch {BATCH} x {LENGTH}"
    for label, mine in ((case, "deepwell"), (f"{case}, compiled", "deepwell_compile")):
        result.row(label, "step", "ms", times[mine], **{p: times[p] for p in peers})
        tokens = {name: BATCH * LENGTH / times[name] * 1e3 for name in (mine, *peers)}
        result.row(label, "throughput", "tokens/s", tokens[mine], **{p: tokens[p] for p in peers})
        result.row(label, "peak memory", "MiB", peaks[mine], **{p: peaks[p] for p in peers})
    for peer in ("te_best", "te_block", "torchao", "liger"):
        result.absent(peer, "not installed on the machine of this run")
    return result.write(results)


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with DEVICE:
            return LlamaForCausalLM(config).train()
    finally:
        torch.set_default_dtype(torch.float32)


def _step(optimize: Callable[[Any], Any], compiled: bool, rounds: int) -> tuple[float, float]:
    """Median milliseconds of a step and the peak of allocated memory in MiB."""
    model = optimize(_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH), device=DEVICE)
    forward = torch.compile(model) if compiled else model
    torch.cuda.reset_peak_memory_stats()

    def step(turn: int) -> None:
        forward(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    time = gpu_common.interleaved({"step": step}, min(rounds, 8))["step"]
    return time, torch.cuda.max_memory_allocated() / 2**20


def _clear() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
