"""Planning: how long it takes, and the emulated layers that the CPU's predictions rest on."""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import deepwell
from bench import common
from bench.common import Result
from deepwell import _core
from deepwell.plan import LayerFacts, ModelFacts, _model_tuple, _options_tuple, parse_options

# tokens, out_features, in_features of the layers that are run; FP32, forward and backward
SHAPES = ((512, 1024, 1024), (512, 2816, 1024), (2048, 512, 512))
# Llama 8B: name, out_features, in_features
BLOCK = (
    ("self_attn.q_proj", 4096, 4096),
    ("self_attn.k_proj", 1024, 4096),
    ("self_attn.v_proj", 1024, 4096),
    ("self_attn.o_proj", 4096, 4096),
    ("mlp.gate_proj", 14336, 4096),
    ("mlp.up_proj", 14336, 4096),
    ("mlp.down_proj", 4096, 14336),
)
BLOCKS, HIDDEN, VOCABULARY = 32, 4096, 128256


def run(results: Path, rounds: int) -> Path:
    """plan.json: milliseconds of planning the 225 linear layers of a Llama 8B in C and through Python, of the command
    on its checkpoint's header, and of optimize() on the model; and TFLOP/s of a linear layer on this CPU, plain (eager)
    and emulated."""
    result = Result("plan", "cpu", common.cpu_device(_core.cpu_info()), common.cpu_driver(), torch.__version__)
    facts = _llama()
    options = parse_options("mxfp8", "hopper", "auto", False, None, None, None, "cpu")
    prepared = _model_tuple(facts), _options_tuple(options)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), BLOCKS, VOCABULARY)
        command = [str(Path(sys.executable).parent / "deepwell"), "plan", str(checkpoint), "--json"]
        contenders = {
            "C": lambda: _core.plan(*prepared),
            "Python": lambda: deepwell.QuantizationPlanner().plan(facts, target="hopper"),
            "command": lambda: subprocess.run(command, check=True, capture_output=True),
        }
        times = common.interleaved(contenders, max(rounds, 7))
    layers = len(facts.layers)
    result.row(f"{layers} linear layers of a Llama 8B", "planned in C", "ms", 1e3 * times["C"])
    result.row(f"{layers} linear layers of a Llama 8B", "planned from Python", "ms", 1e3 * times["Python"])
    result.row("header of a Llama 8B checkpoint", "command, from start to end", "ms", 1e3 * times["command"])
    optimizing = 1e3 * _optimize(max(rounds, 7))
    result.row(f"Llama 8B of transformers, {BLOCKS} layers", "optimize(), from call to return", "ms", optimizing)
    for tokens, outputs, inputs in SHAPES:
        seconds = _layer(tokens, outputs, inputs, rounds)
        flops = 6 * tokens * outputs * inputs
        rates = {name: flops / value / 1e12 for name, value in seconds.items()}
        case = f"{tokens} x {outputs} x {inputs}"
        result.row(case, "forward + backward", "TFLOP/s", rates["deepwell"], eager=rates["eager"])
    return result.write(results)


def _llama() -> ModelFacts:
    layers = [
        LayerFacts(
            f"model.layers.{i}.{name}", "nn.Linear", "Linear", inputs, outputs, inputs * outputs, "bfloat16", "cpu"
        )
        for i in range(BLOCKS)
        for name, outputs, inputs in BLOCK
    ]
    head = ("lm_head", "nn.Linear", "Linear", HIDDEN, VOCABULARY, HIDDEN * VOCABULARY, "bfloat16", "cpu", "output_head")
    layers.append(LayerFacts(*head, "named lm_head"))
    names = tuple(layer.name for layer in layers)
    return ModelFacts("Llama", tuple(layers), names, sum(layer.parameters for layer in layers), "cpu")


def write_checkpoint(folder: Path, blocks: int, vocabulary: int) -> Path:
    """A checkpoint of Llama 8B's width: its header over a hole, and its config.json."""
    shapes = {"model.embed_tokens.weight": [vocabulary, HIDDEN], "lm_head.weight": [vocabulary, HIDDEN]}
    shapes["model.norm.weight"] = [HIDDEN]
    for i in range(blocks):
        for name, outputs, inputs in BLOCK:
            shapes[f"model.layers.{i}.{name}.weight"] = [outputs, inputs]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = [HIDDEN]
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocabulary}))
    return path


def _optimize(rounds: int) -> float:
    """Median seconds of optimize() on the model itself, whose weights nobody has written."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=14336,
        num_hidden_layers=BLOCKS,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    deepwell.optimize(nn.Linear(64, 64))  # what happens once in a process
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        deepwell.optimize(model)
        seconds.append(time.perf_counter() - start)
        if sum(d.action == "convert" for d in deepwell.explain(model).plan.decisions) != 7 * BLOCKS:
            raise common.BenchError("optimize() did not convert the linear layers of all blocks")
        deepwell.restore(model)
    return statistics.median(seconds)


def _layer(tokens: int, outputs: int, inputs: int, rounds: int) -> dict[str, float]:
    """Median seconds of forward and backward, plain and converted, taking turns."""
    plain = nn.Linear(inputs, outputs, bias=False)
    converted = deepwell.optimize(nn.Linear(inputs, outputs, bias=False))
    dy = torch.randn(tokens, outputs)

    def step(layer: nn.Module) -> float:
        x = torch.randn(tokens, inputs, requires_grad=True)
        for parameter in layer.parameters():
            parameter.grad = None
        start = time.perf_counter()
        layer(x).backward(dy)
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {"eager": [], "deepwell": []}
    for turn in range(max(rounds, 7) + 1):
        for name, layer in (("eager", plain), ("deepwell", converted)):
            elapsed = step(layer)
            if turn:
                seconds[name].append(elapsed)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
