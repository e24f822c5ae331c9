"""The rows of the Hopper matrix kernels say what their sources set: the host lays out launches by the rows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src/cuda/device/sm90"
COLUMNS = (
    *("TILE_M", "TILE_N", "MATH_WARPGROUPS", "K_SPLIT", "STAGES", "MULTICAST", "SCALE_F32", "B_VECTOR", "OUT_F32"),
    *("STORE_BUFFERS", "GROUPED"),
)


def rows() -> dict[str, list[str]]:
    text = (ROOT / "src/cuda/host/gemm_sm90.inc").read_text()
    found = re.findall(r"^GEMM_SM90\(([^)]*)\)", text, re.MULTILINE)
    return {name: values for name, *values in ([v.strip() for v in row.split(",")] for row in found)}


def defines(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^#define (\w+) (\w+)$", path.read_text(), re.MULTILINE))


def test_rows_and_sources_agree() -> None:
    table = rows()
    assert len(table) >= 20
    assert set(table) == {path.stem for path in SOURCES.glob("gemm_*.cu")}
    for name, values in table.items():
        set_there = defines(SOURCES / f"{name}.cu")
        assert set_there["KERNEL"] == name
        for column, value in zip(COLUMNS, values, strict=True):
            expected = set_there[column].removeprefix("MULTICAST_").removeprefix("GROUPED_")
            if column == "GROUPED":
                expected = "NONE" if expected == "0" else expected
            if column == "STORE_BUFFERS" and set_there["OUT_F32"] == "1":
                expected = "0"
            assert value == expected, f"{name}: {column} is {expected} in the source and {value} in the row"


def test_names_tell_the_formats_and_the_tile() -> None:
    for name, values in rows().items():
        row = dict(zip(COLUMNS, values, strict=True))
        b_block = "1x128" if row["B_VECTOR"] == "1" else "128x128"
        scale = "f32" if row["SCALE_F32"] == "1" else "e8m0"
        out = "f32" if row["OUT_F32"] == "1" else "bf16"
        form = {"NONE": "nt", "M": "grouped_m", "K": "grouped_k"}[row["GROUPED"]]
        tile = f"{row['TILE_M']}x{row['TILE_N']}" + ("_pair" if row["MULTICAST"] != "0" else "")
        assert name == f"gemm_{form}_e4m3_{scale}_1x128_{b_block}_{out}__sm90_{tile}"
