"""The command and the package on a machine whose driver is the C tests' stand-in: GPUs whose kernels do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import run

STAND_IN = Path(__file__).resolve().parent.parent.parent / "build" / "release" / "tests" / "c" / "fake_cuda.so"

pytestmark = pytest.mark.skipif(not STAND_IN.exists(), reason="built without the C tests")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    environment = {**os.environ, "DEEPWELL_LIBCUDA": str(STAND_IN), "XDG_CACHE_HOME": str(tmp_path)}
    info = json.loads(run("info", "--json", env=environment).stdout)
    if not info["gpus"][0]["has_device_code"]:
        pytest.skip("built without device code")
    return environment


def test_selftest_runs_the_rows_of_the_gpu(machine: dict[str, str]) -> None:
    done = run("selftest", "quantize_row_1x32__*", "--seed", 3, check=False, env=machine)
    assert done.returncode == 1
    for target in ("sm90", "sm100"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"quantize_row_1x32__{target} ")]
        assert "FAILED" in line
    assert "quantize_row_1x32__ref" in done.stdout
    done = run("selftest", "quantize_row_1x32__sm*", "--gpu", 1, check=False, env=machine)
    assert "0 passed, 1 failed, 1 not available" in done.stdout
    assert "another kind" in done.stdout
    done = run("selftest", "--gpu", 7, check=False, env=machine)
    assert done.returncode == 1
    assert "device 7 is not there" in done.stderr


def test_tune_measures_no_kernel_that_fails_its_selftest(machine: dict[str, str], tmp_path: Path) -> None:
    done = run("tune", 512, 1024, 256, check=False, env=machine)
    assert done.returncode == 1
    assert "kernel gemm_nt_e4m3_f32_1x128_128x128_bf16__sm90_" in done.stderr
    assert "failed its self-test" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "deepwell").glob("gemm-*"))
    done = run("tune", 512, 1024, 256, check=False, env={**machine, "DEEPWELL_TUNING": "off"})
    assert done.returncode == 1
    assert "DEEPWELL_TUNING is off" in done.stderr
    done = run("tune", 512, 1024, 256, "--gpu", 1, check=False, env=machine)
    assert done.returncode == 1
    assert "no GPU here" in done.stderr


def test_bench_measures_the_rows_of_the_gpu(machine: dict[str, str]) -> None:
    report = json.loads(run("bench", "quantize_*_1x128__sm90", "--size", 1, "--json", env=machine).stdout)
    assert len(report["rows"]) == 9  # three orientations of three sources
    for row in report["rows"]:
        # The stand-in's clock: a millisecond from one event to the next, and ten launches between.
        assert row["milliseconds"] == pytest.approx(0.1)
        assert row["copy_gb_per_s"] == pytest.approx(2 * 2**20 / 1e-4 / 1e9)
        elements = row["rows"] * row["cols"]
        results = 2 if row["orientation"] == "both" else 1
        scales = (row["orientation"] != "transposed") * row["rows"] * -(-row["cols"] // 128)
        scales += (row["orientation"] != "row") * row["cols"] * -(-row["rows"] // 128)
        assert row["bytes"] == elements * (4 if row["high"] == "f32" else 2) + results * elements + scales
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["milliseconds"] / 1e6)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])
    text = run("bench", "quantize_row_1x128__sm100", "--size", 1, env=machine).stdout
    assert text.count("of copy") == 3


def test_matrix_kernels_are_listed_tested_and_measured(machine: dict[str, str]) -> None:
    known = json.loads(run("info", "--json", env=machine).stdout)["kernels"]
    known = {row["name"]: row for row in known if row["operation"] == "gemm"}
    assert len(known) >= 20
    assert all(row["available"] for row in known.values())
    for name, row in known.items():
        tile = name.split("__sm90_")[1].split("_")[0]
        assert row["form"].startswith("1x128 by " if row["elements"] == ["e4m3"] else "unscaled, ")
        assert row["form"].endswith(f"tile {tile}")
    kinds = {row["elements"][0]: name for name, row in known.items()}
    assert set(kinds) == {"e4m3", "bf16"}
    for name in kinds.values():
        done = run("selftest", name, check=False, env=machine)  # a kernel that does nothing
        assert done.returncode == 1
        assert "elements differ" in done.stdout
    environment = {**machine, "DEEPWELL_LIBCUBLASLT": str(STAND_IN.parent / "none.so")}
    report = json.loads(run("bench", "gemm_*__sm90_*", "--size", 1, "--json", env=environment).stdout)
    assert [row["kernel"] for row in report["rows"]] == list(known)
    for row in report["rows"]:
        assert row["milliseconds"] == pytest.approx(0.1)  # the stand-in's clock
        assert row["groups"] == (8 if "grouped" in row["kernel"] else 1)
        assert row["tflop_per_s"] == pytest.approx(2 * row["m"] * row["n"] * row["k"] / 1e-4 / 1e12)
        assert row["fraction_of_peak"] == pytest.approx(row["tflop_per_s"] / row["peak_tflop_per_s"])
        assert "cublaslt_tflop_per_s" not in row
    peaks = {kind: {row["peak_tflop_per_s"] for row in report["rows"] if known[row["kernel"]]["elements"] == [kind]}
             for kind in kinds}  # fmt: skip
    assert [len(peak) for peak in peaks.values()] == [1, 1]
    assert peaks["e4m3"].pop() == pytest.approx(2 * peaks["bf16"].pop())
    text = run("bench", "gemm_nt_e4m3_f32_1x128_128x128_f32*", "--size", 1, env=machine).stdout
    assert text.count("of peak") == sum(name.startswith("gemm_nt_e4m3_f32_1x128_128x128_f32") for name in known)


def test_a_kernel_that_fails_its_selftest_is_a_warning(machine: dict[str, str]) -> None:
    script = """
import warnings, torch
from deepwell import _core
from deepwell.cuda_linear import BLOCK_1X128, DTYPE, E4M3, RCEIL
from deepwell.errors import UnsupportedError

x, q, s = torch.randn(128, 128).bfloat16(), torch.empty(128, 128, dtype=torch.uint8), torch.empty(128)
def quantize():
    _core.cuda_quantize(x.data_ptr(), DTYPE[x.dtype], 128, 128, 128, 0, E4M3, BLOCK_1X128, RCEIL,
                        q.data_ptr(), 128, s.data_ptr(), 0, 0, 0, 0, 0)

for round in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            quantize()
            raise SystemExit("a kernel that does nothing was used")
        except UnsupportedError as error:
            assert "no CUDA kernel" in str(error)
    assert len(caught) == (round == 0)
    if caught:
        assert caught[0].category is RuntimeWarning
        assert "quantize_row_1x128__sm90 (bf16 to e4m3) failed its self-test on GPU 0" in str(caught[0].message)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=machine, timeout=300)
