"""Every row of the kernel table that this GPU has, against the scalar reference."""

from __future__ import annotations

import pytest
import torch

import conftest
from deepwell import _core

ROWS = [(index, row["name"]) for index, row in enumerate(_core.kernels()) if row["target"].startswith("sm")]


def test_rows_of_this_gpu_are_available() -> None:
    rows = [row for row in _core.kernels() if row["target"] == "sm90"]
    assert len(rows) >= 9
    assert all(row["available"] for row in rows)


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
