"""Tuning on the GPU: what is found is no slower than the prediction, is remembered, and multiplies rightly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_gemm import BF16, E4M3, F32, OWN, SCALING, check, gemm, random_operand, stream

import conftest
from deepwell import _core


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(512, 512, 1024), (304, 520, 400), (16, 4096, 4096), (8192, 4096, 2048)])
def test_a_tuned_product(
    m: int, n: int, k: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(m, k, "1x128", generator), random_operand(n, k, "128x128", generator)
    out = torch.empty(m, n, device="cuda", dtype=dtype)
    flush = torch.empty(2 * _core.cuda_device_info(0)["l2_bytes"], dtype=torch.uint8, device="cuda")
    tuned = _core.cuda_gemm_tune(
        *(a.bytes.data_ptr(), E4M3, k, SCALING[a.block], a.scale(False)),
        *(b.bytes.data_ptr(), E4M3, k, SCALING[b.block], b.scale(False)),
        *(out.data_ptr(), F32 if dtype == torch.float32 else BF16, n, m, n, k, 0, 0, 0),
        *(flush.data_ptr(), flush.numel(), 0, stream(), 0, OWN),
    )
    print(tuned)
    assert 0 < tuned["seconds"] <= tuned["predicted_seconds"]
    assert tuned["remembered"]
    (file,) = (tmp_path / "deepwell").glob("gemm-*")
    assert f"\n{m} {n} {k} 1 {tuned['kernel']} {tuned['band']}: " in file.read_text()
    out.fill_(float("nan"))
    gemm(a, b, out, codes=False)
    check(out, a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())
