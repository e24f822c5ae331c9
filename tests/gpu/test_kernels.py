"""Every row of the kernel table that this GPU has, against the scalar reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch

import conftest
from deepwell import _core
from deepwell import cuda_linear as cl

ROWS = [(index, row["name"]) for index, row in enumerate(_core.kernels()) if row["target"].startswith("sm")]


def test_rows_of_this_gpu_are_available() -> None:
    rows = [row for row in _core.kernels() if row["target"] == "sm90"]
    assert len(rows) >= 9
    assert all(row["available"] for row in rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 1), (16, 130), (127, 129), (128, 128), (129, 640), (272, 144), (700, 1100)]
)
def test_square_transposed_form(dtype: torch.dtype, rows: int, cols: int) -> None:
    """FP32 scales, which the rows' self-test does not cover: each form is what its own block alone gives."""
    x = torch.randn(rows, cols, device="cuda").to(dtype)
    x[rows // 2, cols // 2] = 300.0
    if rows > 256:
        x[200, 5], x[5, cols - 9] = float("nan"), float("inf")
        x[384:512, 512:640] = 0.0
    made, row, square = cl.Quantized(), cl.Quantized(), cl.Quantized()
    cl.quantize_into(made, x, rows, cols, cl.ACTIVATION, True, True)
    cl.quantize_into(row, x, rows, cols, cl.GRADIENT, True, False)
    cl.quantize_into(square, x, rows, cols, cl.WEIGHT, False, True)
    for got, wanted in ((made.row, row.row), (made.transposed, square.transposed)):
        size = rows * cols
        scales = cl.scale_offset(rows, cols)
        assert torch.equal(got.buffer[:size], wanted.buffer[:size])
        assert torch.equal(got.buffer[scales:], wanted.buffer[scales:])
    if rows <= 256:
        data = made.transposed.buffer[: rows * cols].view(torch.float8_e4m3fn).view(cols, rows).double()
        scale = made.transposed.buffer[cl.scale_offset(rows, cols) :].view(torch.float32).double()
        scale = scale.view((cols + 127) // 128, -1).repeat_interleave(128, 0).repeat_interleave(128, 1)
        assert torch.equal(data * scale[:cols, :rows], oracle.decoded_128x128(x).t())


@pytest.mark.parametrize(("index", "name"), ROWS, ids=[name for _, name in ROWS])
def test_row_against_the_reference(index: int, name: str) -> None:
    if not _core.kernels()[index]["available"]:
        assert not name.endswith("__sm90")
        pytest.skip(_core.kernels()[index]["reason"])
    size = _core.cuda_selftest_workspace()
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    result = _core.cuda_selftest(index, conftest.SEED, 0, workspace.data_ptr(), size, stream)
    assert result["cases"] > (10 if name.startswith("gemm") else 100)
    assert result["mismatches"] == 0, result["first_mismatch"]


def test_the_command_proves_the_matrix_kernels() -> None:
    beside = Path(_core.__file__).resolve().parents[1] / "bin" / "deepwell"  # where `pip install --target` puts it
    command = os.environ.get("DEEPWELL_COMMAND") or shutil.which("deepwell") or str(beside)
    if not Path(command).exists():
        pytest.skip("the command is not installed; set DEEPWELL_COMMAND")
    arguments = [command, "selftest", "*gemm*", "--seed", str(conftest.SEED)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in _core.kernels() if row["operation"] == "gemm"]
    assert f"{len(rows)} passed, 0 failed, 0 not available" in done.stdout


FIRST_USE_IN_A_GRAPH = """
import warnings, torch, test_gemm as t
warnings.simplefilter("error")
generator = torch.Generator("cuda").manual_seed(1)
a, b = t.random_operand(304, 528, "1x128", generator), t.random_operand(264, 528, "128x128", generator)
out = torch.full((304, 264), t.POISON, device="cuda", dtype=torch.bfloat16)
before, workspace = out.clone(), torch.empty(32 << 20, dtype=torch.uint8, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    t._core.cuda_gemm(
        a.bytes.data_ptr(), t.E4M3, 528, 2, a.scale(True), b.bytes.data_ptr(), t.E4M3, 528, 3, b.scale(True),
        out.data_ptr(), t.BF16, 264, 304, 264, 528, 0, t.BF16, 0, workspace.data_ptr(), workspace.numel(), 0,
        t.stream(), 1, t.OWN)
torch.cuda.synchronize()
assert torch.equal(out, before)  # nothing has run but the self-test, which is no part of the graph
for _ in range(2):
    graph.replay()
torch.cuda.synchronize()
t.check(out, a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())
"""


def test_first_use_of_a_matrix_kernel_while_a_graph_is_captured(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(here), environment.get("PYTHONPATH"))))
    command = [sys.executable, "-c", FIRST_USE_IN_A_GRAPH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (known,) = tmp_path.glob("deepwell/selftest-*.txt")
    assert "\ngemm_nt_e4m3_e8m0_1x128_128x128_bf16__sm90_" in known.read_text()
