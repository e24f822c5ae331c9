"""Attention of transformers' decoders on the GPU: no wait for the device, and the backend that is fastest there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import deepwell

DEVICE = "cuda:0"
FORCE = {"*.mlp.*": "mxfp8"}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).to(DEVICE, torch.bfloat16)
    return deepwell.optimize(model, strategy=FORCE)


def kernels_of(run: Any, ids: torch.Tensor) -> set[str]:
    """Names of the kernels of a forward and backward pass, after two to warm up."""
    for _ in range(2):
        run(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages()}


def test_nothing_waits_for_the_device() -> None:
    model = llama()
    ids = torch.randint(0, 512, (2, 256), device=DEVICE)
    for guarded in (False, True):  # the first pass loads code
        torch.cuda.set_sync_debug_mode("error" if guarded else "default")
        try:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
def test_causal_attention_runs_on_cudnn(compiled: bool) -> None:
    model = llama()
    run = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    names = kernels_of(run, torch.randint(0, 512, (2, 1024), device=DEVICE))
    assert any("cudnn" in name and "fprop" in name for name in names), sorted(names)
    assert any("cudnn" in name and "bprop" in name for name in names), sorted(names)


def test_padded_and_packed_batches_agree_with_the_plain_attention() -> None:
    model = llama().eval()
    tokens = 256
    ids = torch.randint(0, 512, (2, tokens), device=DEVICE)
    positions = torch.arange(tokens, device=DEVICE)
    padded = {"attention_mask": (positions < torch.tensor([[tokens], [tokens - 90]], device=DEVICE)).long()}
    packed = {"position_ids": (positions % 100).expand(2, -1)}
    for extra in ({}, padded, packed):
        with torch.no_grad():
            ours = model(input_ids=ids, use_cache=False, **extra).logits
            model.set_attn_implementation("sdpa")
            plain = model(input_ids=ids, use_cache=False, **extra).logits
            model.config._attn_implementation_internal = "deepwell"
        # The same calls reach the same kernels.
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)
