"""The rows of the Hopper matrix kernels: their names tell what they are, and the sources are made from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "build/release/device/sm90"
COLUMNS = (
    *("TILE_M", "TILE_N", "CHUNK_N", "MATH_WARPGROUPS", "K_SPLIT", "STAGES", "MULTICAST", "SCALE_F32", "B_VECTOR"),
    *("OUT_F32", "STORE_BUFFERS", "GROUPED"),
)


def rows() -> dict[str, dict[str, str]]:
    text = (ROOT / "src/registry/kernels.inc").read_text()
    found = re.findall(r"^CUDA_GEMM\(([^)]*)\)$", text, re.MULTILINE)
    split = ([v.strip() for v in row.split(",")] for row in found)
    return {name: dict(zip(COLUMNS, values, strict=True)) for name, *values in split}


def test_names_tell_the_formats_and_the_tile() -> None:
    table = rows()
    assert len(table) >= 20
    for name, row in table.items():
        b_block = "1x128" if row["B_VECTOR"] == "1" else "128x128"
        scale = "f32" if row["SCALE_F32"] == "1" else "e8m0"
        out = "f32" if row["OUT_F32"] == "1" else "bf16"
        form = {"NONE": "nt", "M": "grouped_m", "K": "grouped_k"}[row["GROUPED"]]
        tile = f"{row['TILE_M']}x{row['TILE_N']}" + ("_pair" if row["MULTICAST"] != "0" else "")
        assert name == f"gemm_{form}_e4m3_{scale}_1x128_{b_block}_{out}__sm90_{tile}"


@pytest.mark.skipif(not SOURCES.exists(), reason="built without device code")
def test_sources_are_made_from_the_rows() -> None:
    for name, row in rows().items():
        text = (SOURCES / f"{name}.cu").read_text()
        defined = dict(re.findall(r"^#define (\w+) (\w+)$", text, re.MULTILINE))
        assert defined.pop("KERNEL") == name
        words = {"A": "MULTICAST_A", "B": "MULTICAST_B", "NONE": "0", "M": "GROUPED_M", "K": "GROUPED_K"}
        assert defined == {column: words.get(value, value) for column, value in row.items()}
        assert '#include "sm90/gemm_block_scaled.cuh"' in text
