"""convert: `deepwell quantize` of a generated BF16 checkpoint, against `cp` of the same file and the pure quantization.

The limit is the sum of the two: a conversion that overlapped nothing and wasted nothing would take that long. File and
copies lie in the page cache, so the command's own work shows, not the disk's.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from bench import common

# A layer of an 8-billion-parameter Llama: query, key, value and output, gate, up and down, two norms.
HIDDEN, KEY_VALUE, INNER = 4096, 1024, 14336
LAYER = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj.weight": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_proj.weight": (INNER, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}

# Starts the command from a small process and prints seconds, peak memory in KiB and the exit code: a child's peak
# counts that of the process it was forked from, and this one holds a checkpoint.
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
child = os.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def run(results: Path, megabytes: int, rounds: int) -> Path:
    """Measures and writes the result file. Needs about 5 times `megabytes` of disk below build/ for its time."""
    import torch

    from deepwell import _core

    command = Path(sysconfig.get_path("scripts")) / "deepwell"
    if not command.exists():
        raise common.BenchError(f"{command} is missing; run `make build`")
    scratch = common.ROOT / "build" / "bench"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        source = folder / "model.safetensors"
        tensors = _write_checkpoint(source, megabytes)
        size = source.stat().st_size
        quantize_seconds = _pure_quantization(tensors, rounds)
        del tensors
        times: dict[str, list[float]] = {"deepwell": [], "cp": []}
        peak = 0
        for turn in range(rounds + 1):
            copied, _ = _launch(["/bin/cp", "--reflink=never", str(source), str(folder / "copy")], folder / "copy")
            arguments = ["quantize", str(source), "-o", str(folder / "out"), "--format", "mxfp8", "--block", "32"]
            converted, memory = _launch([str(command), *arguments], folder / "out")
            if turn > 0:
                times["cp"].append(copied)
                times["deepwell"].append(converted)
                peak = max(peak, memory)
            print(f"convert: {converted:.2f} s, cp {copied:.2f} s, peak {memory / 1024:.0f} MiB", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    info = _core.cpu_info()
    result = common.Result("convert", "cpu", common.cpu_device(info), common.cpu_driver(), torch.__version__)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    case = f"{size / 1e9:.2f} GB BF16 checkpoint to mxfp8, block 32"
    limit = seconds["cp"] + quantize_seconds
    result.row(case, "time", "ms", seconds["deepwell"] * 1e3, limit=limit * 1e3, copy=seconds["cp"] * 1e3)
    result.row(case, "peak memory", "MiB", peak / 1024)
    return result.write(results)


def _write_checkpoint(path: Path, megabytes: int) -> dict[str, object]:
    """Layers of random weights until the file is at least this large; smaller layers for a small file."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shrink = 1
    while megabytes * 1e6 < 3 * sum(2 * _count(shape, shrink) for shape in LAYER.values()) and shrink < 64:
        shrink *= 2
    tensors: dict[str, torch.Tensor] = {}
    layer = total = 0
    while total < megabytes * 1e6:
        for name, shape in LAYER.items():
            tensor = (torch.randn([extent // shrink for extent in shape]) * 0.02).to(torch.bfloat16)
            tensors[f"model.layers.{layer}.{name}"] = tensor
            total += tensor.nbytes
        layer += 1
    save_file(tensors, path)
    return tensors


def _count(shape: tuple[int, ...], shrink: int) -> int:
    count = 1
    for extent in shape:
        count *= extent // shrink
    return count


def _pure_quantization(tensors: dict[str, object], rounds: int) -> float:
    """Median seconds of dw_quantize over the matrices, in memory, into outputs made beforehand."""
    import torch

    from deepwell import _core

    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    largest = max(tensor.numel() for tensor in matrices)
    data, scale = torch.zeros(largest, dtype=torch.uint8), torch.zeros(largest, dtype=torch.uint8)

    def quantize_all() -> None:
        for matrix in matrices:
            rows, cols = matrix.shape
            source = (matrix.data_ptr(), "bf16", rows, cols, cols)
            _core.quantize(*source, "e4m3", "1x32", "rceil", "row", (data.data_ptr(), cols, scale.data_ptr()), None)

    return common.interleaved({"quantize": quantize_all}, rounds)["quantize"]


def _launch(command: list[str], output: Path) -> tuple[float, int]:
    """Runs `command`, removes its output; seconds and peak memory in KiB."""
    time.sleep(0.2)  # lets the removal of the last output finish
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, check=True, stdout=subprocess.PIPE, text=True)
    seconds, memory, code = done.stdout.split("\n")[-2].split()
    if code != "0":
        raise common.BenchError(f"`{' '.join(command)}` ended with exit code {code}")
    output.unlink()
    return float(seconds), int(memory)
