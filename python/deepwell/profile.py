"""profile=True: each distinct size of layer is run on this device, as it is and converted, and the times replace the
planner's predictions. They are remembered in a file for each device and driver, so that the next call measures nothing.
On a GPU whose matrix kernels are the library's own the fastest for each size is found first (tuning.py).

A layer runs alone, forward and backward, its weight quantized anew, as once in a training step. The two forms take
turns, so that what else the machine does hits both; the median counts."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _core, convert, cuda_linear, tuning
from .plan import LayerFacts, Measurement, ModelFacts, Options, Plan, Recipe

FORMAT = 1  # of the file; one of another version is foreign
GPU_TOKENS, CPU_TOKENS = 8192, 512
WARM_UP, REPETITIONS = 2, 5
SECONDS = 20.0  # for all sizes together
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Profile:
    """Measurements for a plan, and sentences about what was remembered, measured and left out."""

    measurements: tuple[Measurement, ...]
    remarks: tuple[str, ...]


def profile_tokens(options: Options) -> int:
    """The tokens of a pass that are measured."""
    return options.tokens or (CPU_TOKENS if options.device == "cpu" else GPU_TOKENS)


def measure(plan: Plan, device: torch.device, seconds: float = SECONDS) -> Profile:
    """Times of every layer size in `plan` (made for profile_tokens) that time may decide about, from the file where
    they are known. Raises nothing: what cannot be measured keeps its prediction, and a remark says so."""
    tokens = profile_tokens(plan.options)
    identity = _identity(device)
    known, remarks = _read(identity)
    deadline = time.monotonic() + seconds
    used: dict[str, Measurement] = {}
    measured: dict[str, Measurement] = {}
    failed: list[str] = []
    for layer in _distinct(plan):
        frozen = ", frozen" if layer.frozen else ""
        key = f"{tokens} x {layer.out_features} x {layer.in_features}, {layer.dtype}{frozen}, {plan.recipe}"
        if key in known:
            used[key] = known[key]
            continue
        if time.monotonic() > deadline:
            failed.append(f"{layer.in_features} -> {layer.out_features} (no time left)")
            continue
        try:
            measured[key] = _measure(layer, plan.recipe, tokens, device, deadline)
        except RuntimeError as error:  # no memory, or a device that fails: the layer keeps its prediction
            failed.append(f"{layer.in_features} -> {layer.out_features} ({str(error).splitlines()[0][:80]})")
    if measured:
        remarks += _write(identity, {**known, **measured})
        remarks.append(f"Measured {len(measured)} layer sizes at {tokens:,} tokens on {identity['device']}.")
    if failed:
        remarks.append(f"Not measured, but predicted: {', '.join(failed)}.")
    return Profile(tuple({**used, **measured}.values()), tuple(remarks))


def _distinct(plan: Plan) -> list[LayerFacts]:
    """One layer of each size that is converted, or kept only because of its time."""
    facts: ModelFacts | None = plan.facts
    found: dict[tuple, LayerFacts] = {}
    for layer, decision in zip(facts.layers if facts else (), plan.decisions, strict=True):
        own = layer.role == "linear" and layer.kernel == "deepwell" and not layer.transposed
        if own and (decision.converted or decision.by_time) and layer.dtype in _DTYPES:
            found.setdefault((layer.in_features, layer.out_features), layer)
    return list(found.values())


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measure(layer: LayerFacts, recipe: Recipe, tokens: int, device: torch.device, deadline: float) -> Measurement:
    generator = torch.Generator(device=device).manual_seed(20)
    dtype = _DTYPES[layer.dtype]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    inputs, outputs = layer.in_features, layer.out_features
    modules: list[nn.Module] = []
    for _ in range(2):
        module = torch.nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, device=device, dtype=dtype)
        with torch.no_grad():
            module.weight.copy_(random(outputs, inputs) * inputs**-0.5)
        module.weight.requires_grad_(not layer.frozen)
        modules.append(module)
    convert.convert_linear(modules[1], recipe)
    if device.type == "cuda":
        tuning.tune_layer(tokens, outputs, inputs, dtype, device)
    x = random(tokens, inputs)
    # Mixed precision is how FP32 models are trained on a GPU.
    mixed = device.type == "cuda" and dtype == torch.float32
    dy = random(tokens, outputs)
    dy = dy.to(torch.bfloat16) if mixed else dy
    run = _time_on_gpu if device.type == "cuda" else _time_on_cpu
    times: list[list[float]] = [[], []]
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        for turn in range(WARM_UP + REPETITIONS):
            for module, own in zip(modules, times, strict=True):
                own.append(run(lambda module=module: _step(module, x, dy)))
            if turn >= 1 and time.monotonic() > deadline:
                break
    counted = [own[min(WARM_UP, len(own) - 1) :] for own in times]
    return Measurement(tokens, inputs, outputs, *(statistics.median(own) for own in counted))


def _step(module: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Forward and backward. New tensor objects each time: FP8 forms are remembered on them."""
    module.zero_grad(set_to_none=True)
    cuda_linear.forget_weights()
    module(x.detach().requires_grad_()).backward(dy.detach())


def _time_on_cpu(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _time_on_gpu(step: Callable[[], None]) -> float:
    """Between two events, so the host's time counts where the device waits for it."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


# ---- the file --------------------------------------------------------------------------------------------------------


def _kernel_module() -> str:
    """The GPU driver's own version, where the system tells."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return f", {found[0]}" if found else ""


def _identity(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for: another device, driver, library or PyTorch makes it foreign."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver = f"CUDA {_core.cuda_device_info(device.index or 0)['driver_version']}{_kernel_module()}"
    else:
        info = _core.cpu_info()
        name = f"{info['model']}, {torch.get_num_threads()} threads"
        driver = f"{platform.system()} {platform.release()}, {_core.context_info()['isa']}"
    return {
        "format": FORMAT,
        "device": name,
        "driver": driver,
        "library": _core.version(),
        "torch": torch.__version__,
    }


def cache_path(identity: dict[str, Any]) -> Path:
    """XDG_CACHE_HOME/deepwell/profile-DEVICE-DRIVER.json; ~/.cache where the variable is not set to a full path."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    name = re.sub(r"[^a-z0-9.]+", "-", f"{identity['device']}-{identity['driver']}".lower()).strip("-.")
    return folder / "deepwell" / f"profile-{name[:160]}.json"


def _read(identity: dict[str, Any]) -> tuple[dict[str, Measurement], list[str]]:
    path = cache_path(identity)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("no object")
        differing = [key for key, value in identity.items() if document.get(key) != value]
        if differing:
            return {}, [f"Ignored {path}: its {differing[0]} is {document.get(differing[0])!r}; measured anew."]
        return {key: _parse(values) for key, values in document["layers"].items()}, []
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"Ignored {path}: it cannot be read ({type(error).__name__}); measured anew."]


def _parse(values: Any) -> Measurement:
    tokens, inputs, outputs, full, candidate = values
    sizes, times = (tokens, inputs, outputs), (full, candidate)
    if not all(type(size) is int and 0 < size < 1 << 40 for size in sizes):
        raise ValueError("a size")
    if not all(type(ms) in (int, float) and 0 < ms < 1e9 for ms in times):
        raise ValueError("a time")
    return Measurement(tokens, inputs, outputs, float(full), float(candidate))


def _write(identity: dict[str, Any], layers: dict[str, Measurement]) -> list[str]:
    """Replaces the file in one step; a remark when it cannot be written."""
    path = cache_path(identity)
    document = {**identity, "layers": {key: list(_values(m)) for key, m in layers.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    except OSError as error:
        return [f"The measurements are not remembered: {error.strerror or error} ({path})."]
    return []


def _values(m: Measurement) -> tuple:
    return m.tokens, m.in_features, m.out_features, m.full_ms, m.candidate_ms


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Any]:
    """A file beside `path` that takes its place when all went well."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".profile-", suffix=".tmp", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            yield file
        except BaseException:
            temporary.unlink()
            raise
    temporary.replace(path)
