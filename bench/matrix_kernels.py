"""The library's block-scaled matrix kernels, compiled when asked for from rows of the table of kernels, with other
values of its columns or other macros, and launched without the library."""

from __future__ import annotations

import ctypes as c
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import common

COLUMNS = (
    *("TILE_M", "TILE_N", "CHUNK_N", "MATH_WARPGROUPS", "K_SPLIT", "STAGES", "MULTICAST", "SCALE_F32", "B_VECTOR"),
    *("OUT_F32", "STORE_BUFFERS", "GROUPED", "SPLITS"),
)
# Kernels of these names are meant, with FP32 scales of 1x128 and 128x128 blocks and a BF16 result: nt or grouped_m,
# and the tile.
ROWS = "gemm_{}_e4m3_f32_1x128_128x128_bf16__sm90_{}"
RELEASE = "13."  # of the compiler, as for the library itself
BLOCK = 128
SCALE_BATCH = 8  # stages whose scales come at once: DW_GEMM_SCALE_BATCH


class Unavailable(common.BenchError):
    """There is no compiler for the kernels here."""


class Params(c.Structure):
    """dw_gemm_sm90_params of src/cuda/device/sm90/gemm_params.h; the source compiled below compares the two."""

    _fields_ = (
        *((name, c.c_uint64 * 16) for name in ("a", "b", "d", "a_scale_map", "b_scale_map")),
        ("b_scale", c.c_void_p),
        *((name, c.c_int64) for name in ("b_scale_row_step", "b_scale_k_step")),
        ("out", c.c_void_p),
        ("out_ld", c.c_int64),
        *((name, c.c_void_p) for name in ("bias", "ends")),
        *((name, c.c_int32) for name in ("groups", "m", "n", "k", "band", "accumulate")),
        ("workspace", c.c_void_p),
        ("ticket", c.c_uint64),
        ("padding", c.c_uint64 * 4),
    )


class LaunchAttribute(c.Structure):
    """CUlaunchAttribute: its value begins with what is set here."""

    _fields_ = (("id", c.c_int), ("pad", c.c_int), ("value", c.c_uint32 * 16))


class LaunchConfig(c.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, c.c_uint32 * 3) for name in ("grid", "block")),
        ("shared_bytes", c.c_uint32),
        *((name, c.c_void_p) for name in ("stream", "attributes")),
        ("attribute_count", c.c_uint32),
    )


DEVICE_SOURCES = common.ROOT / "src" / "cuda" / "device"
WORKSPACE_BYTES = 32 << 20  # DW_GEMM_WORKSPACE_MAX, more than any of these kernels needs
MAX_DYNAMIC_SHARED = 8  # the driver's numbers, as in src/cuda/host/driver_api.h
CLUSTER_DIMENSION, PROGRAMMATIC_SERIALIZATION = 4, 6
TENSOR_UINT8, TENSOR_FLOAT32, TENSOR_BFLOAT16 = 0, 7, 9
SWIZZLE_NONE, SWIZZLE_128B = 0, 3
PROMOTE_128B, PROMOTE_256B = 2, 3


# ---- sources and their compiler --------------------------------------------------------------------------------------


def row_named(name: str) -> dict[str, str]:
    """The parameters of a kernel's row in that table. Raises BenchError if it has none of that name."""
    table = common.ROOT / "src" / "registry" / "kernels.inc"
    found = re.search(rf"^CUDA_GEMM\({name}, ([^)]*)\)$", table.read_text(), re.MULTILINE)
    if found is None:
        raise common.BenchError(f"{table}: no row {name}")
    return dict(zip(COLUMNS, found[1].split(", "), strict=True))


def scale_boxes(row: dict[str, str]) -> tuple[int, int]:
    """How many boxes of A's scales a tile has, and their rows: 16 bytes more where a tile may begin in any row, and no
    more than a box may have. DW_GEMM_SCALE_PARTS and DW_GEMM_SCALE_ROWS."""
    tile_m, any_row = int(row["TILE_M"]), row["GROUPED"] == "M"
    parts = 2 if any_row and tile_m > 240 else 1
    return parts, tile_m // parts + (4 if any_row else 0)


def shared_bytes(row: dict[str, str]) -> int:
    """Shared memory of a kernel with FP32 scales, square blocks in B and a BF16 result."""
    tile_m, tile_n, stages = (int(row[name]) for name in ("TILE_M", "TILE_N", "STAGES"))
    warpgroups, k_split, buffers = (int(row[name]) for name in ("MATH_WARPGROUPS", "K_SPLIT", "STORE_BUFFERS"))
    parts, scale_rows = scale_boxes(row)
    scales = SCALE_BATCH * 4 * parts * scale_rows + 128 + 16  # of one batch, with its two barriers
    stage = (tile_m + tile_n) * BLOCK + 16 + 16  # with the tile's slot and two barriers
    stores = warpgroups // k_split * buffers * 64 * 128 + warpgroups * 16  # with the slots of the tiles they have left
    return stages * stage + 2 * scales + stores + (k_split - 1) * tile_m * tile_n * 4


def source(row: dict[str, str], kernel: str, macros: dict[str, str]) -> str:
    """What the build makes of a row, for a kernel of that name, and other macros; what this module takes for granted is
    asserted."""
    values = {
        column: "0" if value == "NONE" else f"{column}_{value}" if value.isalpha() else value
        for column, value in row.items()
    }
    lines = [f"#define KERNEL {kernel}", *(f"#define {name} {value}" for name, value in values.items())]
    facts = {
        "SHARED_BYTES": shared_bytes(row),
        "SCALE_BATCH": SCALE_BATCH,
        "sizeof(dw_gemm_sm90_params)": c.sizeof(Params),
        **{
            f"offsetof(dw_gemm_sm90_params, {name})": getattr(Params, name).offset
            for name, _ in Params._fields_
            if name != "padding"
        },
    }
    lines += [f"#define {name} {value}" for name, value in macros.items()]
    lines += ["#include <cstddef>", '#include "sm90/gemm_block_scaled.cuh"']
    lines += [f'static_assert({what} == {value}, "bench/matrix_kernels.py: {what}");' for what, value in facts.items()]
    return "\n".join(lines) + "\n"


def find_nvcc() -> str:
    """A CUDA 13 compiler: of the Python packages, as the build, then CUDA_HOME's, PATH's, the usual one."""
    candidates = [
        str(path)
        for prefix in (Path(sys.prefix), common.ROOT / ".venv")
        for pattern in ("cuda/nvidia/cu13/bin/nvcc", "lib/python3*/site-packages/nvidia/cu13/bin/nvcc")
        for path in sorted(prefix.glob(pattern))
    ]
    home = os.environ.get("CUDA_HOME")
    candidates += [str(Path(home, "bin", "nvcc"))] if home else []
    candidates += [found for found in (shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")) if found]
    seen = []
    for nvcc in dict.fromkeys(candidates):
        try:
            done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        except OSError as error:
            seen.append(f"{nvcc}: {error.strerror}")
            continue
        release = re.search(r"release (\d+\.\d+)", done.stdout)
        if done.returncode == 0 and release and release[1].startswith(RELEASE):
            return nvcc
        seen.append(f"{nvcc}: release {release[1] if release else 'unknown'}")
    raise Unavailable(
        f"no CUDA 13 compiler in the Python packages, CUDA_HOME, PATH or /usr/local/cuda "
        f"({'; '.join(seen) or 'none'}); `pip install nvidia-cuda-nvcc nvidia-cuda-cccl` provides one"
    )


def compile_sources(sources: dict[str, tuple[str, Path]]) -> dict[str, bytes]:
    """The device code of each source, by name; with each the folder that its own includes are in. Raises Unavailable
    without a compiler."""
    nvcc, shared = find_nvcc(), [common.ROOT / name for name in ("src", "include")]
    command = [nvcc, "-cubin", "-O3", "-std=c++17", "-Werror", "all-warnings"]
    command += ["-gencode=arch=compute_90a,code=sm_90a"]
    with tempfile.TemporaryDirectory() as scratch:
        running = {}
        for number, (name, (text, folder)) in enumerate(sources.items()):
            at, code = Path(scratch, f"{number}.cu"), Path(scratch, f"{number}.cubin")
            at.write_text(text)
            arguments = [*command, *(f"-I{include}" for include in (folder, *shared)), "-o", str(code), str(at)]
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running[name] = (process, code)
        said = {name: process.communicate()[0] for name, (process, _) in running.items()}
        for name, (process, _) in running.items():
            if process.returncode != 0:
                raise common.BenchError(f"{nvcc} does not compile {name}: {said[name]}")
        return {name: code.read_bytes() for name, (_, code) in running.items()}


# ---- launching -------------------------------------------------------------------------------------------------------


class Kernel:
    """What `source` made of a row under a name, compiled and loaded on PyTorch's current GPU. band: rows of tiles
    walked together, the library's if not given."""

    def __init__(
        self, row: dict[str, str], name: str, code: bytes, driver: Any = None, band: int | None = None
    ) -> None:
        if driver is None:
            torch.zeros(1, device="cuda")  # only then is there a context to load it in
            driver = c.CDLL("libcuda.so.1")
        self.driver = driver
        self.row = {column: int(value) for column, value in row.items() if value.isdigit()}
        self.shares = row["MULTICAST"]  # 0, A or B
        self.scale_rows = scale_boxes(row)[1]
        self.cluster = 1 if self.shares == "0" else 2
        self.shared_bytes = shared_bytes(row)
        tile_m, high = self.row["TILE_M"], self.row["TILE_M"] == 192  # dw_gemm_sm90_band
        wide = tile_m == 128 or (high and self.cluster > 1)
        self.band = band or (16 if wide else 4 if high and not self.row["SPLITS"] else 8)
        self.module, self.function = c.c_void_p(), c.c_void_p()
        self.workspace: torch.Tensor | None = None
        self._check("cuModuleLoadData", c.byref(self.module), code)
        self._check("cuModuleGetFunction", c.byref(self.function), self.module, name.encode())
        self._check("cuFuncSetAttribute", self.function, c.c_int(MAX_DYNAMIC_SHARED), c.c_int(self.shared_bytes))

    def _check(self, name: str, *arguments: Any) -> None:
        result = getattr(self.driver, name)(*arguments)
        if result != 0:
            raise common.BenchError(f"matrix kernels: {name} answers {result}")

    def _map(
        self,
        target: Any,
        matrix: torch.Tensor,
        box: tuple[int, int],
        kind: int,
        promotion: int,
        swizzle: int = SWIZZLE_128B,
    ) -> None:
        rows, cols = matrix.shape
        stride = matrix.stride(0) * matrix.element_size()
        self._check(
            "cuTensorMapEncodeTiled",
            *(c.byref(target), c.c_int(kind), c.c_uint32(2), c.c_void_p(matrix.data_ptr())),
            *((c.c_uint64 * 2)(cols, rows), (c.c_uint64 * 1)(stride), (c.c_uint32 * 2)(*box), (c.c_uint32 * 2)(1, 1)),
            *(c.c_int(value) for value in (0, swizzle, promotion, 0)),
        )

    def product(
        self,
        a: torch.Tensor,
        a_scales: torch.Tensor,
        b: torch.Tensor,
        b_scales: torch.Tensor,
        out: torch.Tensor,
        multiprocessors: int,
        stream: Callable[[], int],
        ends: torch.Tensor | None = None,
    ) -> Callable[[], None]:
        """out[M, N] = a[M, K] b[N, K]^T, or, for a grouped kernel, its rows in groups that end at `ends` (INT32), each
        with its own N rows of b. The scales are FP32: a_scales [k blocks, M], b_scales [blocks of N, at least k
        blocks]. The call launches on `stream()`."""
        groups = 1 if ends is None else ends.numel()
        (m, k), n = a.shape, b.shape[0] // groups
        tile_m, tile_n = self.row["TILE_M"], self.row["TILE_N"]
        a_rows = tile_m if ends is not None else min(tile_m, m)
        memory = c.create_string_buffer(c.sizeof(Params) + 128)
        p = Params.from_buffer(memory, -c.addressof(memory) % 128)  # the driver writes aligned maps
        self._map(p.a, a, (BLOCK, tile_m // 2 if self.shares == "A" else a_rows), TENSOR_UINT8, PROMOTE_256B)
        self._map(p.b, b, (BLOCK, tile_n // 2 if self.shares == "B" else tile_n), TENSOR_UINT8, PROMOTE_256B)
        self._map(p.d, out, (64, 64), TENSOR_BFLOAT16, PROMOTE_128B)
        self._map(p.a_scale_map, a_scales, (self.scale_rows, SCALE_BATCH), TENSOR_FLOAT32, PROMOTE_128B, SWIZZLE_NONE)
        p.b_scale, p.b_scale_row_step, p.b_scale_k_step = b_scales.data_ptr(), b_scales.stride(0), 1
        p.out, p.out_ld = out.data_ptr(), out.stride(0)
        p.m, p.n, p.k, p.groups = m, n, k, groups
        p.ends = None if ends is None else ends.data_ptr()
        if self.row["SPLITS"]:
            if self.workspace is None:  # of calls that follow each other
                self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=a.device)
            p.workspace, p.ticket = self.workspace.data_ptr(), secrets.randbits(63) << 1 | 1
        p.band = self.band
        down = -(-m // (tile_m * (2 if self.shares == "B" else 1)))
        across = -(-n // (tile_n * (2 if self.shares == "A" else 1)))
        tiles = multiprocessors if ends is not None else down * across  # the device knows the groups' sizes
        attributes = (LaunchAttribute * 2)()
        attributes[0].id, attributes[0].value[0] = PROGRAMMATIC_SERIALIZATION, 1
        attributes[1].id = CLUSTER_DIMENSION
        attributes[1].value[:3] = [self.cluster, 1, 1]
        config = LaunchConfig(shared_bytes=self.shared_bytes, attribute_count=self.cluster)
        config.grid[:] = [min(tiles, multiprocessors // self.cluster) * self.cluster, 1, 1]
        config.block[:] = [BLOCK * (self.row["MATH_WARPGROUPS"] + 1), 1, 1]
        config.attributes = c.addressof(attributes)
        arguments = (c.c_void_p * 1)(c.addressof(p))

        def call(keep: Any = (memory, attributes, a, a_scales, b, b_scales, out, ends)) -> None:
            config.stream = stream()
            self._check("cuLaunchKernelEx", c.byref(config), self.function, arguments, c.c_void_p())

        return call
