"""The GPU's clock and power while something runs, read by nvidia-smi; nothing is set."""

from __future__ import annotations

import datetime
import statistics
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from bench import common

# The instant power: power.draw itself is the mean of a whole second.
QUERY = "timestamp,clocks.sm,power.draw.instant"
INTERVAL_MS = 20
PATIENCE = 10.0  # seconds without a sample
LEAST_SAMPLES = 5


@dataclass
class Sample:
    at: datetime.datetime  # local time, as datetime.now() tells it
    megahertz: float
    watts: float


def parse(line: str) -> Sample:
    """One line of nvidia-smi's answer to QUERY."""
    try:
        at, megahertz, watts = (part.strip() for part in line.split(","))
        return Sample(datetime.datetime.strptime(at, "%Y/%m/%d %H:%M:%S.%f"), float(megahertz), float(watts))
    except ValueError:
        raise common.BenchError(f"nvidia-smi answers {line.strip()!r} where {QUERY} was asked for") from None


def ceilings(command: Sequence[str] = ("nvidia-smi",)) -> tuple[float, float]:
    """The highest SM clock in MHz and the power limit in watts of GPU 0."""
    query = [*command, "--query-gpu=clocks.max.sm,enforced.power.limit", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    try:
        megahertz, watts = (float(part) for part in answer.split(","))
    except ValueError:
        raise common.BenchError(
            f"nvidia-smi answers {answer.strip()!r} where clock and power limit were asked for"
        ) from None
    return megahertz, watts


class Sampler:
    """Samples GPU 0 while it is entered. Samples bear their own times, so it does not matter when they arrive."""

    def __init__(self, command: Sequence[str] = ("nvidia-smi",)) -> None:
        self._command = [*command, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "--id=0"]
        self._command += ["-lms", str(INTERVAL_MS)]
        self._samples: list[Sample] = []
        self._failure: common.BenchError | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Sampler:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait_beyond(datetime.datetime.min)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        try:
            for line in self._process.stdout:
                sample = parse(line)
                with self._changed:
                    self._samples.append(sample)
                    self._changed.notify_all()
            raise common.BenchError("nvidia-smi ended")
        except common.BenchError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_beyond(self, moment: datetime.datetime) -> None:
        def arrived() -> bool:
            return self._failure is not None or (len(self._samples) > 0 and self._samples[-1].at > moment)

        with self._changed:
            if not self._changed.wait_for(arrived, PATIENCE):
                raise common.BenchError(f"no sample from nvidia-smi in {PATIENCE:.0f} s")
            if self._failure is not None:
                raise self._failure

    def medians(self, begin: datetime.datetime, end: datetime.datetime) -> tuple[float, float]:
        """Clock in MHz and power in watts between the two moments."""
        self._wait_beyond(end)
        inside = [sample for sample in self._samples if begin <= sample.at <= end]
        if len(inside) < LEAST_SAMPLES:
            raise common.BenchError(f"{len(inside)} samples of nvidia-smi in the window; {LEAST_SAMPLES} are wanted")
        return statistics.median(s.megahertz for s in inside), statistics.median(s.watts for s in inside)
