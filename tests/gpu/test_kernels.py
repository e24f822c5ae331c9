"""Every row of the kernel table that this GPU has, against the scalar reference."""

from __future__ import annotations

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
    assert result["cases"] > 100
    assert result["mismatches"] == 0, result["first_mismatch"]
