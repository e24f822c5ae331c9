"""A training step of a Llama-8B-width model of 8 layers: transformers as it comes, compiled, and through Deepwell."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deepwell
from bench import common, gpu_common
from bench.gpu_common import DEVICE

BATCH, LENGTH = 2, 4096
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def run(results: Path, rounds: int, peers: Collection[str] | None = None) -> Path:
    """step_dense.json: milliseconds of a step (forward, backward, fused AdamW on BF16 parameters), tokens per second
    and peak memory. Models do not fit the device side by side, so each runs alone, the eager ones twice; the peers that
    are installed each in a process of their own, of them only those in `peers` where it is given."""
    from bench import gpu_step_peers

    result = gpu_common.new_result("step_dense")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise common.BenchError(f"transformers is needed: {error}") from None
    turns: dict[str, list[tuple[float, float]]] = {"eager": [], "deepwell": [], "compile": [], "deepwell_compile": []}
    for name in ("eager", "deepwell", "compile", "deepwell_compile", "deepwell", "eager"):
        turns[name].append(_step(name.startswith("deepwell"), name.endswith("compile"), rounds))
        _clear()
    times = {name: statistics.mean(time for time, _ in values) for name, values in turns.items()}
    peaks = {name: max(peak for _, peak in values) for name, values in turns.items()}
    others, absent = gpu_step_peers.measure_all(rounds, gpu_step_peers.PEERS if peers is None else peers)
    for name, (time, peak) in others.items():
        times[name], peaks[name] = time, peak
    ran = ("eager", "compile", *others)
    case = f"Llama 8B width, {SIZES['num_hidden_layers']} layers, batch {BATCH} x {LENGTH}"
    for label, mine in ((case, "deepwell"), (f"{case}, compiled", "deepwell_compile")):
        result.row(label, "step", "ms", times[mine], **{p: times[p] for p in ran})
        tokens = {name: BATCH * LENGTH / times[name] * 1e3 for name in (mine, *ran)}
        result.row(label, "throughput", "tokens/s", tokens[mine], **{p: tokens[p] for p in ran})
        result.row(label, "peak memory", "MiB", peaks[mine], **{p: peaks[p] for p in ran})
    for peer, reason in absent.items():
        result.absent(peer, reason)
    return result.write(results)


@contextlib.contextmanager
def created_in_bf16() -> Iterator[None]:
    """Modules made inside lie on the GPU in BF16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with DEVICE:
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def llama() -> Any:
    """The model of this benchmark, as transformers makes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with created_in_bf16():
        return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="sdpa")).train()


def causal_loss(run: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """The loss of a model of transformers, or of what was compiled from one."""
    return lambda tokens: run(input_ids=tokens, labels=tokens).loss


def measure(model: nn.Module, loss: Callable[[Tensor], Tensor], rounds: int) -> tuple[float, float]:
    """Median milliseconds of a step and the peak of allocated memory in MiB."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH), device=DEVICE)
    torch.cuda.reset_peak_memory_stats()

    def step(turn: int) -> None:
        loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    time = gpu_common.interleaved({"step": step}, min(rounds, 8))["step"]
    return time, torch.cuda.max_memory_allocated() / 2**20


def _step(optimized: bool, compiled: bool, rounds: int) -> tuple[float, float]:
    model = llama()
    if optimized:
        deepwell.optimize(model)
    return measure(model, causal_loss(torch.compile(model) if compiled else model), rounds)


def _clear() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
