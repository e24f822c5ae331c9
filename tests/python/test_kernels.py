"""The kernel table: every row against the scalar reference, the dispatcher, instruction sets, the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell import (
    DeepwellDispatcher,
    InvalidArgumentError,
    KernelInfo,
    MXFPQuantizer,
    UnsupportedError,
    _core,
    kernels,
)
from random_arrays import DTYPES, EDGES, adversarial

TABLE = _core.kernels()
OVERRIDING = [r for r in TABLE if r["operation"] == "quantize" and r["target"] != "ref" and r["available"]]


def reference_for(orientation: str, block: str) -> str:
    return next(
        r["name"]
        for r in TABLE
        if r["target"] == "ref"
        and r["operation"] == "quantize"
        and orientation in r["orientations"]
        and block in r["blocks"]
    )


def assert_same(a: object, b: object) -> None:
    for left, right in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
        np.testing.assert_array_equal(left.data, right.data)
        np.testing.assert_array_equal(left.scale, right.scale)


@pytest.mark.parametrize("row", OVERRIDING, ids=lambda r: r["name"])
def test_every_row_gives_the_references_bytes(row: dict, rng: np.random.Generator) -> None:
    for _ in range(12):
        rows, cols = (int(v) for v in rng.choice(EDGES, 2))
        for orientation in row["orientations"]:
            for block in row["blocks"]:
                for rounding in row["roundings"]:
                    for element in row["elements"]:
                        layout = str(rng.choice([v for v in row["layouts"] if v != "tcgen05" or block == "1x32"]))
                        dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[
                            str(rng.choice(row["sources"]))
                        ]
                        x = adversarial(rng, rows, cols, DTYPES[dtype])
                        own = MXFPQuantizer(element, block, rounding, layout, kernel=row["name"])
                        ref = MXFPQuantizer(element, block, rounding, layout, kernel=reference_for(orientation, block))
                        assert_same(own.quantize_tensor(x, orientation), ref.quantize_tensor(x, orientation))


@pytest.mark.parametrize("row", [r for r in OVERRIDING if "bf16" in r["sources"]], ids=lambda r: r["name"])
def test_every_row_on_every_bfloat16(row: dict) -> None:
    x = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(ml_dtypes.bfloat16)
    for shape in ((512, 128), (65536, 1), (1, 65536)):
        for orientation in row["orientations"]:
            for block in row["blocks"]:
                for rounding in row["roundings"]:
                    for element in row["elements"]:
                        own = MXFPQuantizer(element, block, rounding, kernel=row["name"])
                        ref = MXFPQuantizer(element, block, rounding, kernel=reference_for(orientation, block))
                        view = x.reshape(shape)
                        assert_same(own.quantize_tensor(view, orientation), ref.quantize_tensor(view, orientation))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=80),
    orientation=st.sampled_from(["row", "transposed", "both"]),
)
def test_chosen_kernels_on_arbitrary_values(values: list[float], orientation: str) -> None:
    x = np.array([values, values[::-1]], dtype=np.float32)
    ref = MXFPQuantizer(kernel=reference_for(orientation, "1x32"))
    assert_same(MXFPQuantizer().quantize_tensor(x, orientation), ref.quantize_tensor(x, orientation))


@pytest.mark.parametrize("index", [i for i, r in enumerate(TABLE) if r["available"]], ids=lambda i: TABLE[i]["name"])
def test_selftest_passes(index: int, seed: int) -> None:
    result = _core.selftest(index, seed)
    assert result["cases"] > 0
    assert result["mismatches"] == 0, result["first_mismatch"]
    assert result["first_mismatch"] == ""


def test_kernels_describes_the_table() -> None:
    rows = kernels()
    assert all(isinstance(row, KernelInfo) for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    assert {"quantize", "dequantize"} <= {row.operation for row in rows}
    for row in rows:
        assert row.available == (row.reason == "")
        assert row.name.partition("__")[2].split("_")[0] == row.target


def test_dispatch_explains_itself() -> None:
    choice = DeepwellDispatcher().dispatch("quantize", rows=128, cols=4096, orientation="both", block="1x128")
    assert "both" in choice.kernel.orientations
    assert choice.kernel.available
    chosen = [line for line in choice.explanation.splitlines() if choice.kernel.name in line]
    assert len(chosen) == 1
    candidates = [r for r in kernels() if r.operation == "quantize"]
    assert len(choice.explanation.splitlines()) == len(candidates)
    best = max(
        (r for r in candidates if r.available and "both" in r.orientations and "1x128" in r.blocks),
        key=lambda r: r.priority,
    )
    assert choice.kernel.priority == best.priority


def test_dispatch_says_why_nothing_serves() -> None:
    with pytest.raises(UnsupportedError) as error:
        DeepwellDispatcher().dispatch("quantize", rows=1, cols=1, block="1x128", layout="tcgen05")
    assert isinstance(error.value.explanation, str)
    with pytest.raises(InvalidArgumentError, match="matmul"):
        DeepwellDispatcher().dispatch("matmul", rows=1, cols=1)
    with pytest.raises(InvalidArgumentError, match="tpu"):
        DeepwellDispatcher().dispatch(rows=1, cols=1, device="tpu")


_DIGEST = """
import hashlib, json, numpy as np, deepwell
x = np.random.default_rng(SEED).standard_normal((300, 515)).astype(np.float32)
x = np.ldexp(x, np.random.default_rng(SEED + 1).integers(-60, 60, x.shape)).astype(np.float32)
digest = hashlib.sha256()
for block in ("1x32", "1x128", "128x128"):
    for rounding in ("rceil", "floor"):
        for element in ("e4m3", "e5m2"):
            for source in (x, x.astype(np.float16)):
                quantizer = deepwell.MXFPQuantizer(element, block, rounding)
                for q in quantizer.quantize_tensor(source, "both"):
                    for part in (q.data, q.scale, quantizer.dequantize(q, np.float16)):
                        digest.update(np.nan_to_num(part, nan=7).tobytes())
print(json.dumps({"digest": digest.hexdigest(), **deepwell._core.context_info()}))
"""


def in_process(isa: str, threads: int, seed: int) -> dict:
    environment = {**os.environ, "DEEPWELL_ISA": isa, "DEEPWELL_THREADS": str(threads)}
    code = _DIGEST.replace("SEED", str(seed))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout)


def test_instruction_sets_and_thread_counts_agree(seed: int) -> None:
    info = _core.cpu_info()
    available = ["ref", *(isa for isa in ("avx2", "avx512") if info[f"has_{isa}"])]
    runs = {(isa, threads): in_process(isa, threads, seed) for isa in available for threads in (1, 3)}
    for (isa, threads), run in runs.items():
        assert run["isa"] == isa
        assert run["threads"] == threads
    assert len({run["digest"] for run in runs.values()}) == 1


@pytest.mark.parametrize(("variable", "value"), [("DEEPWELL_ISA", "sse9"), ("DEEPWELL_THREADS", "many")])
def test_bad_environment_is_named(variable: str, value: str) -> None:
    code = "import deepwell, numpy as np; deepwell.MXFPQuantizer().quantize_tensor(np.zeros((1, 32), np.float32))"
    environment = {**os.environ, variable: value}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "InvalidArgumentError" in result.stderr.splitlines()[-1]
    assert variable in result.stderr.splitlines()[-1]


def test_unavailable_instruction_set_is_refused() -> None:
    if _core.cpu_info()["has_avx512"]:
        pytest.skip("this processor has every instruction set there is")
    with pytest.raises(RuntimeError, match="UnsupportedError"):
        in_process("avx512", 1, 0)


def test_forked_child_goes_on_with_the_context() -> None:
    x = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
    expected = MXFPQuantizer().quantize_tensor(x).data  # starts the threads
    pid = os.fork()
    if pid == 0:
        same = (MXFPQuantizer().quantize_tensor(x).data == expected).all()
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(MXFPQuantizer().quantize_tensor(x).data, expected)


def test_many_threads_at_once(rng: np.random.Generator) -> None:
    from concurrent.futures import ThreadPoolExecutor

    arrays = [rng.standard_normal((200, 300)).astype(np.float32) for _ in range(24)]
    alone = [MXFPQuantizer().quantize_tensor(x, "both") for x in arrays]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda x: MXFPQuantizer().quantize_tensor(x, "both"), arrays))
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)


def test_measure_against_numpy(rng: np.random.Generator) -> None:
    from numpy_oracle import fake_quantize

    x = adversarial(rng, 129, 200, np.float32)
    x[~np.isfinite(x)] = 1.0
    for block in ("1x32", "1x128", "128x128"):
        stats = _core.measure(x.ctypes.data, "f32", 129, 200, 200, "e4m3", block, "rceil")
        decoded = fake_quantize(x, block)
        wide = x.astype(np.float64)
        assert stats["elements"] == x.size
        assert stats["nonzero"] == np.count_nonzero(x)
        assert stats["underflowed"] == np.count_nonzero((x != 0) & (decoded == 0))
        assert stats["saturated"] == stats["nonfinite"] == 0
        assert stats["amax"] == np.abs(wide).max()
        # FP64 sums of n terms in another order differ by at most n units in the last place.
        np.testing.assert_allclose(stats["signal_power"], (wide**2).sum(), rtol=x.size * 2.0**-52)
        np.testing.assert_allclose(stats["noise_power"], ((wide - decoded) ** 2).sum(), rtol=x.size * 2.0**-52)
