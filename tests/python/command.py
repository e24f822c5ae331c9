"""How the tests run the `deepwell` command, and a second statement of what it writes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors import safe_open

BLOCKS = {"32": (1, 32), "128": (1, 128), "128x128": (128, 128)}


def command_path() -> str:
    return os.environ.get("DEEPWELL_COMMAND") or str(Path(sys.executable).parent / "deepwell")


def run(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [command_path(), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """One line on standard error that starts with the program's name and holds all parts."""
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("deepwell"), done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr, (part, done.stderr)


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_raw(path: Path) -> tuple[dict, dict[str, tuple[str, list[int], bytes]]]:
    """Metadata and (dtype, shape, bytes) of every tensor, read without any library."""
    content = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        tensors[name] = (info["dtype"], info["shape"], data[begin:end])
    return metadata, tensors


def peer_facts(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Names, dtypes and shapes as the safetensors package reads them."""
    with safe_open(path, "np") as file:
        return {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def reference_quantize(values: np.ndarray, block: str, rounding: str = "rceil") -> tuple[bytes, bytes, np.ndarray]:
    """Elements, scale codes and decoded FP32 values by the definition, with ml_dtypes' cast to E4M3."""
    x = values.astype(np.float32)
    rows, cols = x.shape
    # A block larger than the matrix is as large as the matrix.
    high, wide = min(BLOCKS[block][0], max(rows, 1)), min(BLOCKS[block][1], max(cols, 1))
    grid = -(-rows // high), -(-cols // wide)
    padded = np.zeros((grid[0] * high, grid[1] * wide), np.float32)
    padded[:rows, :cols] = x
    blocks = padded.reshape(grid[0], high, grid[1], wide)
    amax = np.abs(blocks).max(axis=(1, 3)) if x.size else np.zeros(grid, np.float32)
    mantissa, exponent = np.frexp(amax.astype(np.float64))
    power = exponent - 1 - 8 + ((mantissa * 2 > 1.75) if rounding == "rceil" else 0)
    code = np.where(amax == 0, 0, np.clip(power + 127, 0, 254))
    bad = ~np.isfinite(amax)
    scale = np.exp2(np.clip(code.astype(np.float64) - 127, -127, 127))[:, None, :, None]
    scaled = np.clip(blocks.astype(np.float64) / scale, -448, 448)
    elements = np.where(bad[:, None, :, None], np.nan, scaled).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    decoded = (elements.astype(np.float64) * scale).reshape(padded.shape)[:rows, :cols]
    data = elements.reshape(padded.shape)[:rows, :cols].view(np.uint8)
    data = np.where(np.repeat(np.repeat(bad, high, 0), wide, 1)[:rows, :cols], 0x7F, data).astype(np.uint8)
    code = np.where(bad, 255, code).astype(np.uint8)
    return data.tobytes(), code.tobytes(), decoded


def to_float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float32).numpy()


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a command should have removed."""
    return [str(path) for path in Path(folder).rglob(".deepwell-partial-*")]
