"""The peers of the training step, each in a process of its own: python -m bench.gpu_step_peers VARIANT ROUNDS

Liger replaces functions of transformers for the whole process, so none of them shares a process with another contender.
Transformer Engine's is the same model rewritten with its layers. A variant prints one line of JSON: {"ms": ...,
"mib": ...}."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import common, gpu_engine, gpu_step
from bench.gpu_common import DEVICE

SECONDS = 240  # for one variant; where it compiles, that takes most of it

# A peer of the result file: the module it needs, and the variants of which the fastest counts.
PEERS = {
    "liger": ("liger_kernel", ("liger",)),
    "torchao": ("torchao", ("torchao_rowwise", "torchao_tensorwise")),
    "te_block": ("transformer_engine", ("te_block",)),
    "te_best": ("transformer_engine", tuple(gpu_engine.RECIPES)),
}


def measure_all(
    rounds: int, chosen: Collection[str] = tuple(PEERS)
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """(milliseconds, MiB at the peak) of each chosen peer that ran, and why the others did not."""
    ran: dict[str, tuple[float, float]] = {}
    absent: dict[str, str] = {}
    outcomes: dict[str, tuple[float, float] | str] = {}
    for peer, (module, variants) in PEERS.items():
        if peer not in chosen:
            absent[peer] = "not chosen for this run"
            continue
        if importlib.util.find_spec(module) is None:
            absent[peer] = f"{module} is not installed on the machine of this run"
            continue
        for variant in variants:
            if variant not in outcomes:
                outcomes[variant] = _measure(variant, rounds)
        good = [outcome for v in variants if not isinstance(outcome := outcomes[v], str)]
        if good:
            ran[peer] = min(good)
        else:
            absent[peer] = "; ".join(f"{v}: {outcomes[v]}" for v in variants)
    return ran, absent


def _measure(variant: str, rounds: int) -> tuple[float, float] | str:
    command = [sys.executable, "-m", "bench.gpu_step_peers", variant, str(rounds)]
    try:
        done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    if done.returncode == 0:
        facts = json.loads(done.stdout.splitlines()[-1])
        return facts["ms"], facts["mib"]
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


# ---- variants ------------------------------------------------------------------------------------------------------


def _liger(rounds: int) -> tuple[float, float]:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    model = gpu_step.llama()
    apply_liger_kernel_to_llama(model=model)
    return gpu_step.measure(model, gpu_step.causal_loss(model), rounds)


def _torchao(recipe: str) -> Callable[[int], tuple[float, float]]:
    def run(rounds: int) -> tuple[float, float]:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        model = gpu_step.llama()
        convert_to_float8_training(
            model,
            config=Float8LinearConfig.from_recipe_name(recipe),
            module_filter_fn=lambda module, name: isinstance(module, nn.Linear) and "lm_head" not in name,
        )
        return gpu_step.measure(model, gpu_step.causal_loss(torch.compile(model)), rounds)

    return run


class _EngineModel(nn.Module):
    """The model of gpu_step, written with Transformer Engine's own layers."""

    def __init__(self, recipe: Any) -> None:
        import transformer_engine.pytorch as te

        super().__init__()
        size = gpu_step.SIZES
        self.recipe, self.engine = recipe, te
        self.embed = nn.Embedding(size["vocab_size"], size["hidden_size"])
        self.layers = nn.ModuleList(
            te.TransformerLayer(
                size["hidden_size"],
                size["intermediate_size"],
                size["num_attention_heads"],
                num_gqa_groups=size["num_key_value_heads"],
                layer_number=number,
                normalization="RMSNorm",
                activation="swiglu",
                bias=False,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                self_attn_mask_type="causal",
                attn_input_format="bshd",
                fuse_qkv_params=True,
                params_dtype=torch.bfloat16,
                device=DEVICE,
            )
            for number in range(1, size["num_hidden_layers"] + 1)
        )
        self.norm = te.RMSNorm(size["hidden_size"], device=DEVICE, dtype=torch.bfloat16)
        self.head = nn.Linear(size["hidden_size"], size["vocab_size"], bias=False)
        head_size = size["hidden_size"] // size["num_attention_heads"]
        self.rotary = te.RotaryPositionEmbedding(head_size)(gpu_step.LENGTH).to(DEVICE)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        with gpu_engine.quantized(self.engine, self.recipe):
            for layer in self.layers:
                hidden = layer(hidden, rotary_pos_emb=self.rotary)
        logits = self.head(self.norm(hidden))[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _engine(name: str) -> Callable[[int], tuple[float, float]]:
    def run(rounds: int) -> tuple[float, float]:
        torch.manual_seed(0)
        with gpu_step.created_in_bf16():
            model = _EngineModel(gpu_engine.recipe(name))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.02)
        return gpu_step.measure(model, model, rounds)

    return run


VARIANTS = {
    "liger": _liger,
    "torchao_rowwise": _torchao("rowwise"),
    "torchao_tensorwise": _torchao("tensorwise"),
    **{name: _engine(name) for name in gpu_engine.RECIPES},
}


if __name__ == "__main__":
    milliseconds, mebibytes = VARIANTS[sys.argv[1]](int(sys.argv[2]))
    print(json.dumps({"ms": milliseconds, "mib": mebibytes}))
