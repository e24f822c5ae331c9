"""The rows of the Hopper matrix kernels: their names tell what they are, and the sources are made from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepwell import _core

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "build/release/device/sm90"
COLUMNS = {
    "CUDA_GEMM": (
        *("TILE_M", "TILE_N", "CHUNK_N", "MATH_WARPGROUPS", "K_SPLIT", "STAGES", "MULTICAST", "SCALE_F32", "B_VECTOR"),
        *("OUT_F32", "STORE_BUFFERS", "GROUPED", "SPLITS"),
    ),
    "CUDA_GEMM_BF16": ("GROUPED", "B_ACROSS", "MULTICAST", "OUT_F32"),
}
BODIES = {"CUDA_GEMM": "gemm_block_scaled", "CUDA_GEMM_BF16": "gemm_bf16"}


def rows(macro: str) -> dict[str, dict[str, str]]:
    text = (ROOT / "src/registry/kernels.inc").read_text()
    found = re.findall(rf"^{macro}\(([^)]*)\)$", text, re.MULTILINE)
    split = ([v.strip() for v in row.split(",")] for row in found)
    return {name: dict(zip(COLUMNS[macro], values, strict=True)) for name, *values in split}


def test_names_tell_the_formats_and_the_tile() -> None:
    table = rows("CUDA_GEMM")
    assert len(table) >= 20
    for name, row in table.items():
        b_block = "1x128" if row["B_VECTOR"] == "1" else "128x128"
        scale = "f32" if row["SCALE_F32"] == "1" else "e8m0"
        out = "f32" if row["OUT_F32"] == "1" else "bf16"
        form = {"NONE": "nt", "M": "grouped_m", "K": "grouped_k"}[row["GROUPED"]]
        tile = f"{row['TILE_M']}x{row['TILE_N']}" + ("_pair" if row["MULTICAST"] != "0" else "")
        tile += "_split" if row["SPLITS"] == "1" else ""
        large = int(row["TILE_M"]) * int(row["TILE_N"]) == 128 * 256
        tile += "_deep" if large and out == "bf16" and row["STORE_BUFFERS"] == "0" else ""
        assert name == f"gemm_{form}_e4m3_{scale}_1x128_{b_block}_{out}__sm90_{tile}"


def test_names_of_bf16_kernels_tell_the_form() -> None:
    table = rows("CUDA_GEMM_BF16")
    assert len(table) >= 8
    for name, row in table.items():
        out = "f32" if row["OUT_F32"] == "1" else "bf16"
        across = "_across" if row["GROUPED"] == "M" and row["B_ACROSS"] == "1" else ""
        pair = "_pair" if row["MULTICAST"] != "0" else ""
        assert name == f"gemm_grouped_{row['GROUPED'].lower()}{across}_bf16_{out}__sm90_128x256{pair}"


@pytest.mark.parametrize("macro", COLUMNS)
def test_every_row_is_listed(macro: str) -> None:
    listed = {row["name"]: row for row in _core.kernels() if row["operation"] == "gemm"}
    for name, row in rows(macro).items():
        assert listed[name]["target"] == "sm90"
        assert listed[name]["sources"] == (("f32",) if row["OUT_F32"] == "1" else ("bf16",))
        assert listed[name]["elements"] == (("bf16",) if macro == "CUDA_GEMM_BF16" else ("e4m3",))


@pytest.mark.parametrize("macro", COLUMNS)
@pytest.mark.skipif(not SOURCES.exists(), reason="built without device code")
def test_sources_are_made_from_the_rows(macro: str) -> None:
    for name, row in rows(macro).items():
        text = (SOURCES / f"{name}.cu").read_text()
        defined = dict(re.findall(r"^#define (\w+) (\w+)$", text, re.MULTILINE))
        assert defined.pop("KERNEL") == name
        words = {"A": "MULTICAST_A", "B": "MULTICAST_B", "NONE": "0", "M": "GROUPED_M", "K": "GROUPED_K"}
        assert defined == {column: words.get(value, value) for column, value in row.items()}
        assert f'#include "sm90/{BODIES[macro]}.cuh"' in text
