"""cpu_quantize: the quantization kernels through dw_quantize, against memcpy and against PyTorch's composition.

`run` starts one process for each number of threads, because the library's thread count is fixed when it is first
used; inside it all contenders of a case are interleaved. A speed counts the bytes that the operation must read and
write once, whoever does it: source, elements and scales. With one thread the peer `traffic` (traffic.c) reads the
source and writes the elements' places without arithmetic: what memory allows.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import common

if TYPE_CHECKING:
    import torch

COLS = 8192
BLOCK_COLS = {"1x32": 32, "1x128": 128, "128x128": 128}
# (orientation, block) of a quantization to E4M3, or "dequantize". Those with True run at every number of threads, the
# others with one thread and with all.
CASES = (
    ("row", "1x32", True),
    ("both", "1x32", True),
    ("transposed", "1x32", False),
    ("row", "1x128", False),
    ("both", "1x128", False),
    ("row", "128x128", False),
    ("both", "128x128", False),
    ("dequantize", "1x32", False),
)


def run(results: Path, mebibytes: int, rounds: int) -> Path:
    """Measures everything and writes the result file."""
    import torch

    from deepwell import _core

    info = _core.cpu_info()
    processors = info["logical_processors"]
    counts = sorted({1, processors, *(2**i for i in range(1, 10) if 2**i < processors)})
    result = common.Result("cpu_quantize", "cpu", common.cpu_device(info), common.cpu_driver(), torch.__version__)
    for threads in counts:
        measured = _worker(threads, mebibytes, rounds, everything=threads in (counts[0], counts[-1]))
        for peer, reason in measured["absent"].items():
            result.absent(peer, reason)
        for case in measured["cases"]:
            rates = {name: case["bytes"][name] / seconds / 1e12 for name, seconds in case["seconds"].items()}
            label = f"{case['label']}, {threads} thread{'s' if threads > 1 else ''}"
            result.row(label, "speed", "TB/s", rates.pop("deepwell"), limit=rates["memcpy"], **rates)
    return result.write(results)


def _worker(threads: int, mebibytes: int, rounds: int, everything: bool) -> dict[str, Any]:
    environment = dict(os.environ, DEEPWELL_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    arguments = ["--threads", str(threads), "--mebibytes", str(mebibytes), "--rounds", str(rounds)]
    arguments += ["--everything"] if everything else []
    print(f"cpu_quantize: {threads} thread(s)", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.cpu_quantize", *arguments],
        cwd=common.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise common.BenchError(f"the measurement with {threads} thread(s) failed with exit code {done.returncode}")
    return json.loads(done.stdout)


def memcpy_call(target: torch.Tensor, source: torch.Tensor, threads: int) -> Callable[[], None]:
    """A call of the C library's memcpy over the whole buffer, split evenly over threads. ctypes releases the GIL."""
    memcpy = ctypes.CDLL(None).memcpy
    memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    memcpy.restype = ctypes.c_void_p
    size = source.nbytes
    if threads == 1:
        return lambda: memcpy(target.data_ptr(), source.data_ptr(), size)
    pool = ThreadPoolExecutor(threads)
    edges = [size * i // threads // 64 * 64 for i in range(threads)] + [size]
    parts = [(target.data_ptr() + a, source.data_ptr() + a, b - a) for a, b in itertools.pairwise(edges)]

    def call() -> None:
        for future in [pool.submit(memcpy, *part) for part in parts]:
            future.result()

    return call


def compile_traffic(folder: Path) -> ctypes.CDLL:
    """traffic.c, compiled by the system's C compiler."""
    library = folder / "traffic.so"
    command = [
        "cc",
        "-O3",
        "-mavx2",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(Path(__file__).with_name("traffic.c")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise common.BenchError("no C compiler named cc") from None
    except subprocess.CalledProcessError as error:
        raise common.BenchError(f"cc does not compile traffic.c: {error.stderr}") from None
    loaded = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.traffic_rows.argtypes = (pointer, size, size, pointer)
    loaded.traffic_both.argtypes = (pointer, size, size, pointer, pointer)
    loaded.traffic_rows.restype = loaded.traffic_both.restype = None
    return loaded


def traffic_call(traffic: ctypes.CDLL, orientation: str, x: torch.Tensor) -> tuple[Callable[[], None], int]:
    """A call that moves the bytes of a quantization of x, and their number. Its outputs are aligned as malloc's large
    blocks are not, so they are cut from longer ones."""
    import torch

    def output() -> torch.Tensor:
        longer = torch.zeros(x.numel() + 64, dtype=torch.uint8)
        start = -longer.data_ptr() % 64
        return longer[start : start + x.numel()]

    rows, cols = x.shape
    outputs = [output() for _ in range(2 if orientation == "both" else 1)]
    function = traffic.traffic_both if orientation == "both" else traffic.traffic_rows

    def call() -> None:
        function(x.data_ptr(), rows, cols, *(made.data_ptr() for made in outputs))

    return call, x.nbytes + sum(made.nbytes for made in outputs)


def torch_quantize(x: torch.Tensor, block: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same bytes from PyTorch's own operations: amax, exponent from the bits, scaling by a power of two (exact in
    BF16, so no FP32 copy is made), cast. No clamp: with rceil nothing exceeds 448. Finite, ordinary magnitudes only."""
    import torch

    rows, cols = x.shape
    size = BLOCK_COLS[block]
    if block == "128x128":
        blocks = x.view(rows // 128, 128, cols // size, size)
        amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    else:
        blocks = x.view(rows, cols // size, size)
        amax = blocks.abs().amax(dim=-1, keepdim=True)
    bits = amax.view(torch.int16)
    # Seven mantissa bits: above 1.75 is above 0x60. BF16 bits are the upper half of FP32's.
    code = ((bits >> 7) - 8 + ((bits & 0x7F) > 0x60)).clamp_(0, 254)
    inverse = ((254 - code) << 7).to(torch.int16).view(torch.bfloat16)
    data = (blocks * inverse).to(torch.float8_e4m3fn).view(rows, cols)
    return data, code.to(torch.uint8).flatten()


def torch_dequantize(data: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Decodes 1x32 blocks to BF16 with PyTorch's own operations."""
    import torch

    rows, cols = data.shape
    scale = (code.to(torch.int16) << 7).view(torch.bfloat16).view(rows, cols // 32, 1)
    return (data.to(torch.bfloat16).view(rows, cols // 32, 32) * scale).view(rows, cols)


def _prepare(orientation: str, block: str, x: torch.Tensor) -> tuple[Callable[[], Any], Callable[..., Any], int]:
    """Deepwell's call on buffers made beforehand, PyTorch's function of the source, and the bytes the operation moves.
    Checks that both agree to the byte."""
    import torch

    from deepwell import _core

    rows, cols = x.shape

    def outputs(r: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale_shape = _core.scale_shape("e4m3", block, "row", r, c)
        return torch.zeros(r, c, dtype=torch.uint8), torch.zeros(scale_shape, dtype=torch.uint8)

    def address(pair: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[int, int, int] | None:
        return None if pair is None else (pair[0].data_ptr(), pair[0].shape[1], pair[1].data_ptr())

    def quantize(row: Any, transposed: Any) -> None:
        source = (x.data_ptr(), "bf16", rows, cols, cols, "e4m3", block, "rceil", "row")
        _core.quantize(*source, address(row), address(transposed))

    if orientation == "dequantize":
        data, scale = outputs(rows, cols)
        quantize((data, scale), None)
        target = torch.zeros_like(x)
        elements = data.view(torch.float8_e4m3fn)

        def call() -> None:
            _core.dequantize(
                *(data.data_ptr(), cols, scale.data_ptr(), rows, cols, "e4m3", block, "row"),
                *(target.data_ptr(), "bf16", cols),
            )

        call()
        if not torch.equal(target, torch_dequantize(elements, scale.flatten())):
            raise common.BenchError("dequantize: PyTorch's composition decodes differently")
        return call, lambda: torch_dequantize(elements, scale.flatten()), target.nbytes + data.nbytes + scale.nbytes

    row = outputs(rows, cols) if orientation != "transposed" else None
    transposed = outputs(cols, rows) if orientation != "row" else None

    def composition() -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = [torch_quantize(x, block)] if row else []
        return made + ([torch_quantize(x.t().contiguous(), block)] if transposed else [])

    quantize(row, transposed)
    for ours, theirs in zip([pair for pair in (row, transposed) if pair], composition(), strict=True):
        if not (torch.equal(ours[0], theirs[0].view(torch.uint8)) and torch.equal(ours[1].flatten(), theirs[1])):
            raise common.BenchError(f"{orientation} {block}: PyTorch's composition gives other bytes")
    written = sum(data.nbytes + scale.nbytes for data, scale in filter(None, (row, transposed)))
    return lambda: quantize(row, transposed), composition, x.nbytes + written


def main() -> None:
    parser = argparse.ArgumentParser(description="one process of cpu_quantize; prints JSON")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--mebibytes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--everything", action="store_true")
    options = parser.parse_args()
    import torch

    from deepwell import _core

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.mebibytes * 2**20 // 2 // COLS, COLS).to(torch.bfloat16)
    copy = torch.zeros_like(x)
    memcpy = memcpy_call(copy, x, options.threads)
    absent: dict[str, str] = {}
    traffic = None
    if options.threads == 1:
        try:
            if not _core.cpu_info()["has_avx2"] or x.shape[0] % 256:
                raise common.BenchError("traffic needs AVX2 and a multiple of 256 rows")
            with tempfile.TemporaryDirectory() as folder:
                traffic = compile_traffic(Path(folder))
        except common.BenchError as error:
            absent["traffic"] = str(error)
    cases = []
    for orientation, block, always in CASES:
        if not (always or options.everything):
            continue
        call, composition, moved = _prepare(orientation, block, x)
        contenders = {"deepwell": call, "memcpy": memcpy, "torch": composition}
        if "compile" not in absent:
            try:
                compiled = torch.compile(composition, dynamic=False)
                compiled()
                contenders["compile"] = compiled
            except Exception as error:  # whatever the compiler raises, the peer is absent and the reason is kept
                absent["compile"] = f"torch.compile: {type(error).__name__}: {error}"
        moves = {"memcpy": 2 * x.nbytes}
        if traffic and orientation in ("row", "both"):
            contenders["traffic"], moves["traffic"] = traffic_call(traffic, orientation, x)
        seconds = common.interleaved(contenders, options.rounds)
        moves = {name: moves.get(name, moved) for name in seconds}
        label = f"dequantize {block}" if orientation == "dequantize" else f"quantize {orientation} {block}"
        cases.append({"label": label, "seconds": seconds, "bytes": moves})
        print(f"  {label}: {moved / seconds['deepwell'] / 1e9:.1f} GB/s", file=sys.stderr, flush=True)
    json.dump({"cases": cases, "absent": absent}, sys.stdout)


if __name__ == "__main__":
    main()
