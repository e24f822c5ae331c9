"""The GPU's clock and power while something runs, read through NVML (package nvidia-ml-py); nothing is set."""

from __future__ import annotations

import datetime
import importlib
import statistics
import threading
from dataclasses import dataclass
from typing import Any

from bench import common

INTERVAL_S = 0.01
LEAST_SAMPLES = 3


@dataclass
class Sample:
    at: datetime.datetime  # local time, as datetime.now() tells it
    megahertz: float
    watts: float


def library() -> Any:
    """NVML, ready for use. Raises BenchError without its Python package."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise common.BenchError("clock and power are read through NVML; run: pip install nvidia-ml-py") from None
    nvml.nvmlInit()
    return nvml


def ceilings() -> tuple[float, float]:
    """The highest SM clock in MHz and the power limit in watts of GPU 0."""
    nvml = library()
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    clock = nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)
    return float(clock), nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3


class Sampler:
    """Samples GPU 0 while it is entered, in a thread of its own."""

    def __enter__(self) -> Sampler:
        self._nvml = library()
        self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(0)
        self._samples: list[Sample] = [self._sample()]
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> Sample:
        nvml = self._nvml
        clock = nvml.nvmlDeviceGetClockInfo(self._gpu, nvml.NVML_CLOCK_SM)
        # The power of the instant: what nvmlDeviceGetPowerUsage answers is the mean of a whole second.
        (power,) = nvml.nvmlDeviceGetFieldValues(self._gpu, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if power.nvmlReturn != nvml.NVML_SUCCESS:
            raise common.BenchError(f"NVML does not tell the power of the instant here (status {power.nvmlReturn})")
        return Sample(datetime.datetime.now(), float(clock), power.value.uiVal / 1e3)

    def _run(self) -> None:
        try:
            while not self._ended.wait(INTERVAL_S):
                self._samples.append(self._sample())
        except Exception as error:  # told by whoever asks for the samples
            self._failure = error

    def enough(self, begin: datetime.datetime) -> bool:
        """Whether there are samples enough since then, or will never be: NVML takes from 1 ms to 0.4 s to answer."""
        return self._failure is not None or len(self._inside(begin, datetime.datetime.max)) >= LEAST_SAMPLES

    def _inside(self, begin: datetime.datetime, end: datetime.datetime) -> list[Sample]:
        return [sample for sample in list(self._samples) if begin <= sample.at <= end]

    def medians(self, begin: datetime.datetime, end: datetime.datetime) -> tuple[float, float]:
        """Clock in MHz and power in watts between the two moments, which have passed."""
        if self._failure is not None:
            raise self._failure
        inside = self._inside(begin, end)
        if len(inside) < LEAST_SAMPLES:
            raise common.BenchError(f"{len(inside)} samples of NVML in the window; {LEAST_SAMPLES} are wanted")
        return statistics.median(s.megahertz for s in inside), statistics.median(s.watts for s in inside)
