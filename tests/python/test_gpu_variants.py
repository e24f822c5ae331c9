"""The tool that compares variants of the matrix kernels: what its command line means, and what it says of results."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import common, gpu_limit, matrix_kernels, unscaled, variants


def test_a_text_names_row_macros_band_and_folder(tmp_path: Path) -> None:
    (tmp_path / "sm90").mkdir()
    (tmp_path / "sm90/gemm_block_scaled.cuh").touch()
    table = unscaled.row_of("128x256")
    made = variants.parse(f"128x256+STAGES=2+SPLITS+LEAD=3+QUIET/8@{tmp_path}")
    assert made.row == table | {"STAGES": "2", "SPLITS": "1"}
    assert made.macros == {"LEAD": "3", "QUIET": "1"}
    assert (made.band, made.folder, made.groups) == (8, tmp_path, False)
    defined = dict(re.findall(r"^#define (\w+) (\w+)$", made.source, re.MULTILINE))
    assert {"KERNEL": "variant", "STAGES": "2", "SPLITS": "1", "LEAD": "3", "QUIET": "1"}.items() <= defined.items()
    assert "ADD_UP" not in defined
    plain = variants.parse("grouped_128x192")
    assert plain.row == unscaled.row_of("grouped_128x192")
    assert (plain.macros, plain.band, plain.folder, plain.groups) == ({}, None, matrix_kernels.DEVICE_SOURCES, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("128x257", "no row gemm_nt_e4m3_f32_1x128_128x128_bf16__sm90_128x257"),
        ("grouped_192x128", "no row gemm_grouped_m_"),
        ("128x256/0", "is no variant"),
        ("128x256+", "is no variant"),
        ("128x256+A=", "is no variant"),
        ("128x256+OUT_F32", "OUT_F32 is not for variants to change"),
        ("128x256@/nowhere", "no sm90/gemm_block_scaled.cuh in /nowhere"),
    ],
)
def test_what_names_no_variant_is_told(text: str, said: str) -> None:
    with pytest.raises(common.BenchError, match=re.escape(said)):
        variants.parse(text)


def test_a_variant_compiles_from_its_folder(tmp_path: Path) -> None:
    try:
        matrix_kernels.find_nvcc()
    except matrix_kernels.Unavailable as error:
        pytest.skip(str(error))
    (tmp_path / "sm90").mkdir()
    body = tmp_path / "sm90/gemm_block_scaled.cuh"
    body.write_text('extern "C" __global__ void KERNEL(int *to) { *to = THERE; }\n')
    made = variants.parse(f"128x128+THERE=7@{tmp_path}")
    source = made.source.partition("static_assert")[0]  # what follows is about the library's body
    assert b"variant" in matrix_kernels.compile_sources({"it": (source, made.folder)})["it"]


def test_small_tiles_compile_and_match_what_the_host_takes_for_granted() -> None:
    """Warpgroups that share a reduction, and a tile written from registers; test_gpu_limit has the large ones."""
    made = [variants.parse(text) for text in ("64x128", "64x64", "64x32")]
    try:
        codes = matrix_kernels.compile_sources({v.text: (v.source, v.folder) for v in made})
    except matrix_kernels.Unavailable as error:
        pytest.skip(str(error))
    assert all(b"variant" in code for code in codes.values())


class _Driver:
    """Stands in for libcuda as far as loading a kernel goes."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        self.asked.append(name)
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: Any) -> int:
        self.shared = value.value
        return 0


def test_a_kernel_has_its_variants_row_name_and_band(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, driver = matrix_kernels.Kernel, _Driver()
    monkeypatch.setattr(matrix_kernels, "compile_sources", lambda sources: {name: name.encode() for name in sources})
    monkeypatch.setattr(matrix_kernels, "Kernel", lambda row, name, code, band: whole(row, name, code, driver, band))
    made = variants.load([variants.parse("128x256+STAGES=2/5"), variants.parse("192x128_split+SPLITS=0")])
    assert list(made) == ["128x256+STAGES=2/5", "192x128_split+SPLITS=0"]
    first, second = made.values()
    assert driver.asked == [b"variant", b"variant"]
    assert (first.row["STAGES"], first.band) == (2, 5)
    assert first.shared_bytes == matrix_kernels.shared_bytes(unscaled.row_of("128x256") | {"STAGES": "2"})
    assert driver.shared == second.shared_bytes
    assert (second.row["SPLITS"], second.band) == (0, 4)


def test_shapes_are_a_set_or_sizes() -> None:
    assert variants.shapes_of("groups") == variants.SHAPE_SETS["groups"]
    assert variants.shapes_of("8x16x32,8x2x16x32") == ((8, 16, 32), (8, 2, 16, 32))
    for text in ("", "8x16", "8x16x0", "8x16x32,", "many"):
        with pytest.raises(common.BenchError, match="no shapes"):
            variants.shapes_of(text)


@pytest.mark.parametrize("groups", [False, True])
def test_wrong_results_are_told(monkeypatch: pytest.MonkeyPatch, groups: bool) -> None:
    """A kernel whose result is 1.5% off, and one that leaves an element as it was."""
    out = torch.empty(16, 16, dtype=torch.bfloat16)

    def fill(to: torch.Tensor, value: float) -> Callable[[], Any]:
        return lambda: to.fill_(value)

    def run(kernel: float | None, *tensors: Any, ends: Any) -> Callable[[], Any]:
        return fill(out[1:] if kernel is None else out, kernel or 1.0)

    operand = types.SimpleNamespace(bytes=None, scales=None)

    monkeypatch.setattr(
        variants, "_operands_to_check", lambda case, groups: (operand, operand, True if groups else None, out)
    )
    monkeypatch.setattr(variants, "product", lambda a, b, to, backend: fill(to, 1.0))
    monkeypatch.setattr(variants, "grouped", lambda axis, ends, a, b, to: fill(to, 1.0))
    monkeypatch.setattr(gpu_limit, "launch", run)
    kernels: dict[str, Any] = {"right": 1.0, "near": 1.0 + 2**-8, "off": 1.015625, "partial": None}
    said = variants.differences(kernels, groups)
    cases = variants.CHECKED_GROUPS_NK if groups else variants.CHECKED
    assert [text.split()[0] for text in said] == ["off", "partial"] * len(cases)
    assert "relative error 0.016" in said[0]
    assert "relative error nan" in said[1]


def test_lines_rank_and_compare() -> None:
    times = {"deepwell": 1.0, "deepgemm": 1.1, "mine": 0.5}
    assert (
        variants.line((1, 2, 3), times) == "1x2x3 mine:500.00us/2.200 deepwell:1000.00us/1.100 deepgemm:1100.00us/1.000"
    )
    seen = [times, {"deepwell": 1.0, "deepgemm": 1.0}, {"deepwell": 2.0}]
    assert variants.means(seen) == "mean mine:2.2000 deepwell:1.0323 deepgemm:1.0000"


def test_groups_and_dense_products_do_not_mix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["128x256", "grouped_128x256"],
        ["128x256", "--shapes", "groups"],
        ["grouped_128x256", "--shapes=few"],
    ):
        monkeypatch.setattr(sys, "argv", ["variants", "windows", *arguments])
        assert variants.main() == 1
        assert "either all of groups, or none is" in capsys.readouterr().err
