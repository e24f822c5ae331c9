"""The benchmark of what power allows: the kernels without scales that it compiles, its samples, its rows."""

from __future__ import annotations

import ctypes as c
import datetime
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import common, gpu_common, gpu_limit, gpu_sampler, matrix_kernels, unscaled

SOURCES = common.ROOT / "build/release/device/sm90"

# ---- the kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", unscaled.VARIANTS)
@pytest.mark.skipif(not SOURCES.exists(), reason="built without device code")
def test_a_variant_is_the_librarys_kernel_but_for_what_it_names(variant: str) -> None:

    def defined(text: str) -> dict[str, str]:
        return dict(re.findall(r"^#define (\w+) (\w+)$", text, re.MULTILINE))

    expected = defined((SOURCES / f"{unscaled.VARIANTS[variant]}.cu").read_text())
    expected |= {"KERNEL": f"unscaled_{variant}", "ADD_UP": "0"}
    assert defined(unscaled.source(variant)) == expected


def test_the_variants_compile_and_match_what_the_host_takes_for_granted() -> None:
    try:
        made = unscaled.compile_variants()
    except matrix_kernels.Unavailable as error:
        pytest.skip(str(error))
    for variant, code in made.items():
        assert f"unscaled_{variant}".encode() in code


def test_a_wrong_assumption_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        matrix_kernels.find_nvcc()
    except matrix_kernels.Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr(unscaled, "VARIANTS", {"128x256": unscaled.VARIANTS["128x256"]})
    monkeypatch.setattr(matrix_kernels, "shared_bytes", lambda row: 4096)
    with pytest.raises(common.BenchError, match=r"does not compile 128x256: .*matrix_kernels\.py: SHARED_BYTES"):
        unscaled.compile_variants()


def test_an_absent_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "nvcc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    old.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nothing"))
    monkeypatch.setattr(common, "ROOT", tmp_path / "nothing")
    monkeypatch.setattr(matrix_kernels.shutil, "which", lambda name, path=None: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(matrix_kernels.Unavailable, match=rf"no CUDA 13 compiler.*{old}: release 12\.8"):
        matrix_kernels.find_nvcc()
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    assert matrix_kernels.find_nvcc() == str(old)


class _Driver:
    """Stands in for libcuda: keeps what it is asked."""

    def __init__(self) -> None:
        self.maps: list[tuple[Any, ...]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.shared = 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        return 0 if code == b"code" else 200

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        return 0 if name.startswith(b"unscaled_") else 500

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: Any) -> int:
        assert attribute.value == 8
        self.shared = value.value
        return 0

    def cuTensorMapEncodeTiled(self, to: Any, kind: Any, rank: Any, address: Any, *rest: Any) -> int:
        extents, strides, box, steps, interleave, swizzle, promotion, fill = rest
        assert c.addressof(to._obj) % 64 == 0, "the driver wants maps aligned"
        assert (rank.value, tuple(steps), interleave.value, fill.value) == (2, (1, 1), 0, 0)
        how = (swizzle.value, promotion.value)
        self.maps.append((kind.value, address.value, tuple(extents), strides[0], tuple(box), how))
        return 0

    def cuLaunchKernelEx(self, config: Any, function: Any, arguments: Any, extra: Any) -> int:
        config, params = config._obj, matrix_kernels.Params.from_address(arguments[0])
        kept = (matrix_kernels.LaunchAttribute * config.attribute_count).from_address(config.attributes)
        attributes = {attribute.id: tuple(attribute.value[:3]) for attribute in kept}
        self.launches.append((tuple(config.grid), tuple(config.block), config.shared_bytes, config.stream, attributes))
        self.params = {name: getattr(params, name) for name, _ in matrix_kernels.Params._fields_[5:-1]}
        return 0


@pytest.mark.parametrize(
    ("variant", "boxes", "grid", "threads", "band", "cluster"),
    [
        ("192x128_pair_split", (96, 128), 20, 512, 16, 2),  # 3 x 4 tiles of 192 x 256 on 10 pairs of blocks
        ("128x256", (128, 256), 16, 384, 16, 1),  # 4 x 4 tiles of 128 x 256
        ("128x256_pair_split", (128, 128), 16, 384, 16, 2),  # 2 x 4 tiles of 256 x 256
        ("128x128", (128, 128), 20, 384, 16, 1),  # 4 x 8 tiles of 128 x 128 for 20 multiprocessors
    ],
)
def test_a_launch_is_the_librarys(
    variant: str, boxes: tuple[int, int], grid: int, threads: int, band: int, cluster: int
) -> None:
    m, n, k, driver, scale_rows = 400, 1000, 400, _Driver(), int(variant.split("x")[0])
    kernel = unscaled.load(variant, b"code", driver)
    a, b = torch.zeros(m, k, dtype=torch.float8_e4m3fn), torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    a_scales, b_scales = torch.ones(4, m), torch.ones(8, 4)
    out = torch.zeros(m, n, dtype=torch.bfloat16)
    call = kernel.product(a, a_scales, b, b_scales, out, 20 + (cluster > 1), lambda: 77)
    call()
    assert driver.maps == [
        (0, a.data_ptr(), (k, m), k, (128, boxes[0]), (3, 3)),
        (0, b.data_ptr(), (k, n), k, (128, boxes[1]), (3, 3)),
        (9, out.data_ptr(), (n, m), 2 * n, (64, 64), (3, 2)),
        (7, a_scales.data_ptr(), (m, 4), 4 * m, (scale_rows, 8), (0, 2)),
    ]
    attributes = {6: (1, 0, 0)} | ({4: (2, 1, 1)} if cluster > 1 else {})
    assert driver.launches == [((grid, 1, 1), (threads, 1, 1), driver.shared, 77, attributes)]
    ticket = driver.params.pop("ticket")
    splits = variant.endswith("_split")
    assert (ticket != 0) == splits
    assert (kernel.workspace is not None) == splits
    workspace = None if kernel.workspace is None else kernel.workspace.data_ptr()
    assert driver.params == {
        **{"b_scale": b_scales.data_ptr(), "b_scale_row_step": 4, "b_scale_k_step": 1},
        **{"out": out.data_ptr(), "out_ld": n, "bias": None, "ends": None, "workspace": workspace},
        **{"groups": 1, "m": m, "n": n, "k": k, "band": band, "accumulate": 0},
    }
    kernel.product(a, a_scales, b, b_scales, out, 20, lambda: 77)()
    assert (driver.params["ticket"] != ticket) == splits


@pytest.mark.parametrize(
    ("variant", "boxes", "scale_rows", "threads", "band", "cluster"),
    [("grouped_128x256", (128, 256), 132, 384, 16, 1), ("grouped_256x128_pair_split", (128, 128), 132, 384, 8, 2)],
)
def test_a_launch_of_groups_is_the_librarys(
    variant: str, boxes: tuple[int, int], scale_rows: int, threads: int, band: int, cluster: int
) -> None:
    """Tiles may begin in any row, so boxes of scales are longer, and the number of tiles is the device's to find."""
    m, n, k, driver = 100, 256, 400, _Driver()
    kernel = unscaled.load(variant, b"code", driver)
    a, b = torch.zeros(m, k, dtype=torch.float8_e4m3fn), torch.zeros(3 * n, k, dtype=torch.float8_e4m3fn)
    a_scales, b_scales = torch.ones(4, m), torch.ones(6, 4)
    out, ends = torch.zeros(m, n, dtype=torch.bfloat16), torch.tensor([10, 10, 100], dtype=torch.int32)
    kernel.product(a, a_scales, b, b_scales, out, 20 + (cluster > 1), lambda: 77, ends)()
    assert driver.maps == [
        (0, a.data_ptr(), (k, m), k, (128, boxes[0]), (3, 3)),
        (0, b.data_ptr(), (k, 3 * n), k, (128, boxes[1]), (3, 3)),
        (9, out.data_ptr(), (n, m), 2 * n, (64, 64), (3, 2)),
        (7, a_scales.data_ptr(), (m, 4), 4 * m, (scale_rows, 8), (0, 2)),
    ]
    (grid, block, *_), params = driver.launches[0], driver.params
    assert (grid, block) == ((20, 1, 1), (threads, 1, 1))
    assert (params["groups"], params["m"], params["n"], params["k"]) == (3, m, n, k)
    assert (params["ends"], params["band"]) == (ends.data_ptr(), band)


def test_the_drivers_refusal_is_told() -> None:
    with pytest.raises(common.BenchError, match="cuModuleLoadData answers 200"):
        unscaled.load("128x256", b"other", _Driver())


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_check_wants_a_product(monkeypatch: pytest.MonkeyPatch, wrong: bool, groups: bool) -> None:
    monkeypatch.setattr(gpu_limit, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_limit, "CHECKED", (68, 72, 272))

    def multiply(kernel: Any, a: Any, a_scales: Any, b: Any, b_scales: Any, out: Any, *, ends: Any) -> Any:
        assert a_scales.shape == (3, 68)
        assert b_scales.shape == (4 if groups else 1, 4)
        assert (None if ends is None else ends.tolist()) == ([22, 22, 34, 68] if groups else None)

        def call() -> None:
            begin = 0
            for group, end in enumerate(ends.tolist() if groups else [68]):
                out[begin:end] = a[begin:end].float() @ b[72 * group : 72 * (group + 1)].float().t()
                begin = end
            if wrong:
                out[-1, -1] = float("nan")

        return call

    monkeypatch.setattr(gpu_limit, "launch", multiply)
    if wrong:
        with pytest.raises(common.BenchError, match="unscaled it: 1 of 68 x 72"):
            gpu_limit.check("it", None, groups)
    else:
        gpu_limit.check("it", None, groups)


def test_sums_of_the_check_are_exact() -> None:
    assert gpu_limit.LARGEST**2 * gpu_limit.CHECKED[2] < 2**13


def test_contenders_have_the_same_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    class Operand:
        def __init__(self, rows: int, cols: int, block: int) -> None:
            self.bytes = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
            self.scales = torch.ones(4, rows)

    seen: list[tuple[str, Any, Any, Any]] = []

    def noting(name: str) -> Any:
        return lambda a, b, out=None, backend=None: lambda: seen.append((name, a, b, out))

    monkeypatch.setattr(gpu_limit, "Operand", Operand)
    monkeypatch.setattr(gpu_limit, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_limit, "multiprocessors", lambda: 132)
    monkeypatch.setattr(gpu_limit.cl, "place_of", lambda device: (0, 5))
    monkeypatch.setattr(gpu_limit, "product", noting("deepwell"))
    monkeypatch.setattr(gpu_limit, "row_wise", noting("cublaslt_row"))
    monkeypatch.setattr(gpu_limit, "deep_gemm_nt", lambda library, a, b, out: noting("deepgemm")(a, b, out))
    driver = _Driver()
    made = gpu_limit.contenders_of(64, 72, 400, 2, object(), {"128x256": unscaled.load("128x256", b"code", driver)})
    assert list(made) == ["deepwell", "cublaslt_row", "deepgemm", "128x256"]
    for call in made.values():
        call(1)
    assert [name for name, *_ in seen] == ["deepwell", "cublaslt_row", "deepgemm"]
    (_, a, b, out), row, deep = seen
    assert row[1:3] == deep[1:3] == (a, b)
    assert deep[3] is out
    expected = [a.bytes.data_ptr(), b.bytes.data_ptr(), out.data_ptr(), a.scales.data_ptr(), b.scales.data_ptr()]
    assert [address for _, address, *_ in driver.maps[4:]] == expected[:4], "the second set of buffers"
    assert [driver.params[name] for name in ("out", "b_scale")] == [expected[2], expected[4]]
    assert driver.launches[0][3] == 5


def test_the_window_comes_after_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None:
            replays.append("event")

        def synchronize(self) -> None: ...

        def elapsed_time(self, other: Event) -> float:
            return 660.0

    def graph(call: Any, launches: int) -> Any:
        assert launches == 24  # the multiple of 3 sets of buffers nearest to 25 ms
        return lambda turn: replays.append("graph")

    monkeypatch.setattr(gpu_common, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    took, began, ended = gpu_limit.sustain(lambda turn: None, 1.0, 3, lambda since: True)
    assert replays == ["graph"] * 11 + ["event"] + ["graph"] * 21 + ["event"]
    assert took == pytest.approx(660 / (21 * 24))
    assert began <= ended
    replays.clear()
    asked: list[datetime.datetime] = []

    def enough(since: datetime.datetime) -> bool:
        asked.append(since)
        return len(asked) == 3

    took, began, ended = gpu_limit.sustain(lambda turn: None, 1.0, 3, enough)
    assert replays == ["graph"] * 11 + ["event"] + (["graph"] * 21 + ["event"]) * 3, "windows are added"
    assert took == pytest.approx(660 / (3 * 21 * 24))
    assert asked == [began] * 3
    replays.clear()
    gpu_limit.sustain(lambda turn: None, 1.0, 3, lambda since: False)
    assert replays.count("event") == 1 + gpu_limit.MOST_WINDOWS


# ---- samples ---------------------------------------------------------------------------------------------------------


class _Nvml(types.ModuleType):
    """Stands in for NVML: an idle device, and under `load` one that answers in turn."""

    NVML_CLOCK_SM, NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 1, 186, 0
    load: tuple[tuple[int, float], ...] = ()
    status = 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.turn = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        assert index == 0
        return "gpu"

    def nvmlDeviceGetClockInfo(self, gpu: str, clock: int) -> int:
        assert (gpu, clock) == ("gpu", 1)
        self.turn += 1
        return self._now()[0]

    def nvmlDeviceGetFieldValues(self, gpu: str, fields: list[int]) -> list[Any]:
        assert (gpu, fields) == ("gpu", [186])
        value = types.SimpleNamespace(uiVal=round(1e3 * self._now()[1]))
        return [types.SimpleNamespace(nvmlReturn=self.status, value=value)]

    def _now(self) -> tuple[int, float]:
        return self.load[self.turn % len(self.load)] if self.load else (345, 80.0)

    def nvmlDeviceGetMaxClockInfo(self, gpu: str, clock: int) -> int:
        assert (gpu, clock) == ("gpu", 1)
        return 1980

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: str) -> int:
        return 700_000


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> _Nvml:
    made = _Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_medians_are_of_the_window(nvml: _Nvml) -> None:
    with gpu_sampler.Sampler() as sampler:
        time.sleep(0.1)  # the idle device's samples lie before the window
        nvml.load = ((1000, 700.5), (1400, 600.5), (1200, 650.5))
        time.sleep(0.05)
        begin = datetime.datetime.now()
        assert not sampler.enough(begin)
        time.sleep(0.5)
        assert sampler.enough(begin)
        clock, power = sampler.medians(begin, datetime.datetime.now())
        assert clock in (1000, 1200, 1400)
        assert power in (600.5, 650.5, 700.5)
        past = begin - datetime.timedelta(hours=1)
        with pytest.raises(common.BenchError, match="0 samples"):
            sampler.medians(past, past + datetime.timedelta(seconds=1))
    at = datetime.datetime.now()
    hour = datetime.timedelta(hours=1)
    sampler._samples = [gpu_sampler.Sample(at, f, w) for f, w in ((1, 50), (5, 10), (3, 30), (2, 40), (4, 20))]
    sampler._samples.append(gpu_sampler.Sample(at + hour, 99, 99))
    assert sampler.medians(at, at) == (3, 30)


def test_a_device_that_does_not_tell_its_power(nvml: _Nvml) -> None:
    nvml.status = 3
    with pytest.raises(common.BenchError, match="status 3"), gpu_sampler.Sampler():
        pass
    nvml.status = 0
    with gpu_sampler.Sampler() as sampler:
        nvml.status = 3
        time.sleep(0.1)
        with pytest.raises(common.BenchError, match="status 3"):
            sampler.medians(datetime.datetime.min, datetime.datetime.max)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(common.BenchError, match="pip install nvidia-ml-py"):
        gpu_sampler.ceilings()


def test_ceilings(nvml: _Nvml) -> None:
    assert gpu_sampler.ceilings() == (1980, 700)


# ---- rows ------------------------------------------------------------------------------------------------------------


class _Sampler:
    """Each contender has a clock and a power of its own."""

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *_: object) -> None: ...

    def enough(self, begin: str) -> bool:
        return True

    def medians(self, begin: str, end: str) -> tuple[float, float]:
        return {"deepwell": (1300.0, 690.0), "deepgemm": (1400.0, 695.0)}.get(begin, (1350.0, 698.0))


def stand_in(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    monkeypatch.setenv("DEEPWELL_COMMIT", "0123456789ab")
    monkeypatch.setattr(
        gpu_common, "new_result", lambda name: common.Result(name, "h100", "NVIDIA H100", "580", "2.11.0")
    )
    properties = types.SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(gpu_limit, "SHAPES", ((1000, 1000, 1000),))
    monkeypatch.setattr(gpu_limit, "FEW_ROWS", ())
    monkeypatch.setattr(gpu_limit, "GROUPED_SHAPES", ())
    monkeypatch.setattr(gpu_limit, "deep_gemm", lambda: (object(), ""))
    monkeypatch.setattr(gpu_limit, "Sampler", _Sampler)
    monkeypatch.setattr(gpu_limit, "ceilings", lambda: (1980.0, 700.0))
    monkeypatch.setattr(unscaled, "load", lambda name, code: name)
    monkeypatch.setattr(gpu_limit, "check", lambda name, kernel, groups: None)
    monkeypatch.setattr(gpu_limit, "contenders_of", lambda *shape: {name: (lambda name=name: name) for name in times})
    monkeypatch.setattr(gpu_common, "interleaved", lambda contenders, rounds, launches: dict(times))
    monkeypatch.setattr(gpu_limit, "sustain", lambda call, took, count, enough: (2 * took, call(), call()))
    gpu_limit.multiprocessors.cache_clear()


def test_rows_hold_the_best_kernel_without_scales(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = {"deepwell": 0.002, "cublaslt_row": 0.001, "deepgemm": 0.0016, "one": 0.0012, "other": 0.00125}
    stand_in(monkeypatch, times)
    monkeypatch.setattr(unscaled, "compile_variants", lambda: {"other": b"", "one": b""})
    document = common.load(gpu_limit.run(tmp_path, 1))
    assert {row["case"] for row in document["rows"]} == {"1000 x 1000 x 1000, one without scales"}
    product, sustained, clock, power, share = document["rows"]
    assert product["deepwell"] == 1000
    assert product["peers"] == {"cublaslt_row": 2000, "deepgemm": 1250, "unscaled": 1666.7}
    assert sustained["deepwell"] == 500
    assert sustained["peers"] == {"cublaslt_row": 1000, "deepgemm": 625, "unscaled": 833.33}
    assert (clock["deepwell"], clock["limit"], clock["peers"]["deepgemm"]) == (1300, 1980, 1400)
    assert (power["deepwell"], power["limit"], power["peers"]["unscaled"]) == (690, 700, 698)
    assert share["deepwell"] == common.rounded(100 * 500e12 / (132 * 8192 * 1300e6))
    assert document["peers_absent"] == {}


def test_groups_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """4 tokens, 2 experts, N 1000, K 125000: 10^9 operations."""
    times = {"deepwell": 0.002, "torch": 0.001, "deepgemm": 0.0016, "grouped_128x256": 0.00125}
    stand_in(monkeypatch, times)
    monkeypatch.setattr(gpu_limit, "SHAPES", ())
    monkeypatch.setattr(gpu_limit, "GROUPED_SHAPES", ((4, 2, 1000, 125000),))
    monkeypatch.setattr(unscaled, "compile_variants", lambda: {"128x256": b"", "grouped_128x256": b""})
    asked: list[Any] = []

    def contenders(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments[5])
        return {name: (lambda name=name: name) for name in times}

    monkeypatch.setattr(gpu_limit, "grouped_contenders_of", contenders)
    document = common.load(gpu_limit.run(tmp_path, 1))
    assert asked == [{"grouped_128x256": "grouped_128x256"}]
    row = document["rows"][0]
    assert row["case"] == "4 tokens, 2 experts, 1000 x 125000, 128x256 without scales"
    assert (row["deepwell"], row["peers"]) == (500, {"torch": 1000, "deepgemm": 625, "unscaled": 800})


def test_without_a_compiler_the_others_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, {"deepwell": 0.002, "cublaslt_row": 0.001, "deepgemm": 0.0016})

    def compile_variants() -> dict[str, bytes]:
        raise matrix_kernels.Unavailable("no CUDA 13 compiler")

    monkeypatch.setattr(unscaled, "compile_variants", compile_variants)
    document = common.load(gpu_limit.run(tmp_path, 1))
    assert document["peers_absent"] == {"unscaled": "no CUDA 13 compiler"}
    assert document["rows"][0]["case"] == "1000 x 1000 x 1000"
    assert set(document["rows"][-1]["peers"]) == {"cublaslt_row", "deepgemm"}
