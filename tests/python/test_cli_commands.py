"""deepwell's other commands, and what it says to wrong calls."""

from __future__ import annotations

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from command import assert_refused, command_path, reference_quantize, run, to_float32

COMMANDS = ["info", "quantize", "dequantize", "inspect", "selftest", "bench", "tune"]


def test_version_and_help():
    version = run("--version").stdout
    assert version.startswith("deepwell ")
    assert version.split()[1].count(".") == 2
    general = run("--help").stdout
    for command in COMMANDS:
        assert f"  {command}" in general
        text = run(command, "--help").stdout
        assert text.startswith(f"Usage: deepwell {command}")
        assert "--help" in text
        assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "expected a command"),
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["info", "x"], '"x"'),
        (["info", "--frobnicate"], "--frobnicate"),
        (["quantize"], "IN"),
        (["quantize", "a"], "-o OUT"),
        (["quantize", "a", "-o"], "-o"),
        (["quantize", "a", "b", "-o", "c"], '"b"'),
        (["quantize", "a", "-o", "b", "--block", "64"], '"64"'),
        (["quantize", "a", "-o", "b", "--rounding", "up"], '"up"'),
        (["quantize", "a", "-o", "b", "--format", "int4"], '"int4"'),
        (["quantize", "a", "-o", "b", "--threads", "0"], '"0"'),
        (["quantize", "a", "-o", "b", "--threads", "2x"], '"2x"'),
        (["quantize", "a", "-o", "b", "--threads", "99999999999999999999"], "--threads"),
        (["quantize", "a", "-o", "b", "--skip"], "--skip"),
        (["dequantize", "a", "-o", "b", "--dtype", "f64"], '"f64"'),
        (["inspect"], "FILE"),
        (["inspect", "a", "--block", "x"], '"x"'),
        (["selftest", "a", "b"], '"b"'),
        (["selftest", "--seed", "-1"], '"-1"'),
        (["bench", "--size", "0"], '"0"'),
        (["tune", "8192", "4096"], "TOKENS OUT IN"),
        (["tune", "8192", "4096", "none"], '"none"'),
        (["tune", "8192", "4096", "4096", "--only", "bias"], '"bias"'),
        (["tune", "8192", "4096", "4096", "--result", "f16"], '"f16"'),
    ],
)
def test_wrong_calls(arguments, part):
    assert_refused(run(*arguments, check=False), 2, part, "--help")


def test_wrong_environment():
    assert_refused(run("info", check=False, env={"DEEPWELL_ISA": "sse9"}), 1, "sse9")
    assert_refused(run("selftest", check=False, env={"DEEPWELL_THREADS": "many"}), 1, "many")


def test_closed_standard_streams(tmp_path):
    """Without its streams the command must not print into the file it writes."""
    save_file({"w": torch.ones(4, 32)}, tmp_path / "in.safetensors")
    script = f'exec "{command_path()}" quantize in.safetensors -o out.safetensors <&- >&- 2>&-'
    subprocess.run(["sh", "-c", script], cwd=tmp_path, timeout=60, check=True)
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_info():
    info = json.loads(run("info", "--json").stdout)
    assert info["cpu"]["logical_processors"] >= 1
    assert info["cpu"]["isa"] in ("ref", "avx2", "avx512")
    assert info["gpus"] or info["gpu_note"]
    names = [kernel["name"] for kernel in info["kernels"]]
    assert len(names) == len(set(names))
    for kernel in info["kernels"]:
        assert kernel["available"] or kernel["reason"]
        assert kernel["available"] == (not kernel["reason"])
    text = run("info").stdout
    for name in names:
        assert name in text
    narrow = json.loads(run("info", "--json", env={"DEEPWELL_ISA": "ref", "DEEPWELL_THREADS": "3"}).stdout)
    assert (narrow["cpu"]["isa"], narrow["cpu"]["threads"]) == ("ref", 3)


@pytest.mark.parametrize("block", ["32", "128", "128x128"])
def test_inspect_measures(tmp_path, rng, block):
    values = rng.standard_normal((300, 500)) * np.exp2(rng.integers(-20, 4, (300, 500)))
    source = {
        "w": torch.from_numpy(values).float(),
        "lm_head.weight": torch.from_numpy(values[:7]).bfloat16(),
        "exact": torch.ones(3, 32, dtype=torch.float16),
        "zeros": torch.zeros(3, 32),
        "empty": torch.zeros(0, 32),
        "vector": torch.ones(9),
    }
    save_file(source, tmp_path / "in.safetensors")
    report = json.loads(run("inspect", tmp_path / "in.safetensors", "--json", "--block", block).stdout)
    lines = {line["name"]: line for line in report["tensors"]}
    assert lines.keys() == source.keys()
    for name in ("w", "lm_head.weight"):
        x = to_float32(source[name]).astype(np.float64)
        decoded = reference_quantize(to_float32(source[name]), block)[2]
        sqnr = 10 * math.log10((x**2).sum() / ((x - decoded) ** 2).sum())
        underflow = 100 * ((x != 0) & (decoded == 0)).sum() / (x != 0).sum()
        # Sums of doubles in another order.
        assert lines[name]["cost"]["sqnr_db"] == pytest.approx(sqnr, abs=1e-8)
        assert lines[name]["cost"]["underflow_percent"] == pytest.approx(underflow, abs=1e-12)
        assert lines[name]["cost"]["amax"] == np.abs(x).max()
    for name in ("exact", "zeros", "empty"):
        assert lines[name]["cost"]["sqnr_db"] is None
    assert lines["lm_head.weight"]["kept_by_default"] == "output head"
    assert lines["w"]["kept_by_default"] is None
    assert "cost" not in lines["vector"]
    assert report["bytes"] == sum(tensor.nbytes for tensor in source.values())
    one = run("inspect", tmp_path / "in.safetensors", "--json", "--block", block, "--threads", 1).stdout
    four = run("inspect", tmp_path / "in.safetensors", "--json", "--block", block, "--threads", 4).stdout
    assert one == four
    text = run("inspect", tmp_path / "in.safetensors", "--block", block).stdout
    assert f"{lines['w']['cost']['sqnr_db']:.2f}" in text
    assert "SQNR" not in run("inspect", tmp_path / "in.safetensors", "--list").stdout


def test_inspect_of_a_quantized_file(tmp_path, rng):
    save_file({"w": torch.from_numpy(rng.standard_normal((64, 64))).bfloat16()}, tmp_path / "in.safetensors")
    run(
        "quantize",
        tmp_path / "in.safetensors",
        "-o",
        tmp_path / "q.safetensors",
        "--block",
        "128",
        "--rounding",
        "floor",
    )
    report = json.loads(run("inspect", tmp_path / "q.safetensors", "--json").stdout)
    assert report["record"] | {"version": ""} == {
        "version": "",
        "format": "mxfp8",
        "block": "1x128",
        "rounding": "floor",
    }
    lines = {line["name"]: line for line in report["tensors"]}
    assert lines["w"]["quantized"] == {"block": "1x128", "source_dtype": "BF16"}
    assert lines["w_scale"]["scale"] is True
    assert "quantized, block 1x128, was BF16" in run("inspect", tmp_path / "q.safetensors").stdout


def test_names_cannot_steer_the_terminal(tmp_path):
    save_file({"a\x1b[2J\nb\x9b": torch.ones(2, 32)}, tmp_path / "in.safetensors")
    shown = run("inspect", tmp_path / "in.safetensors").stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert len(shown.splitlines()) == 3


def test_selftest():
    done = run("selftest", "quantize_row_*__ref", "--seed", 7)
    assert "seed 7" in done.stdout
    assert done.stdout.count("  ok\n") == 3
    assert "3 passed, 0 failed" in done.stdout
    done = run("selftest", "no_such_kernel", check=False)
    assert done.returncode == 1
    assert "no_such_kernel" in done.stderr


def test_bench():
    info = json.loads(run("info", "--json").stdout)
    isa = info["cpu"]["isa"]
    report = json.loads(run("bench", f"quantize_*_1x32__{isa}", "--size", 1, "--json", "--threads", 1).stdout)
    assert report["threads"] == 1
    assert len(report["rows"]) == 9  # three orientations of three sources
    for row in report["rows"]:
        width = 4 if row["high"] == "f32" else 2
        elements = row["rows"] * row["cols"]
        results = 2 if row["orientation"] == "both" else 1
        assert row["bytes"] == elements * width + results * (elements + elements // 32)
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["milliseconds"] / 1e6)
        assert row["fraction_of_memcpy"] == pytest.approx(row["gb_per_s"] / row["memcpy_gb_per_s"])
    assert "of memcpy" in run("bench", f"dequantize__{isa}", "--size", 1).stdout
    assert "no_such" in run("bench", "no_such", check=False).stderr
