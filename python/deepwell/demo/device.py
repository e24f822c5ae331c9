"""Where the demo runs, and what that machine is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from torch import nn

import deepwell

SMALLEST_CAPABILITY = (9, 0)  # Hopper


class DeviceUnavailableError(Exception):
    """The device asked for cannot run the demo; the message says why."""


def choose_device(wish: str) -> tuple[torch.device, str]:
    """The device for "auto", "cpu" or "cuda", and a sentence about the choice ("" when there was none to make).

    Raises DeviceUnavailableError for a device that was asked for by name and cannot be used."""
    if wish == "cpu":
        return torch.device("cpu"), ""
    obstacle = gpu_obstacle()
    if not obstacle:
        return torch.device("cuda"), ""
    if wish == "cuda":
        raise DeviceUnavailableError(f"{obstacle}; run with --device cpu")
    return torch.device("cpu"), f"Running on the CPU: {obstacle}."


def gpu_obstacle() -> str:
    """Why the GPU cannot be used for this, or "" when it can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability < SMALLEST_CAPABILITY:
        return f"{name} has compute capability {capability[0]}.{capability[1]}, Deepwell's kernels need 9.0 (Hopper)"
    probe = nn.Sequential(nn.Linear(4096, 4096, bias=False)).to("cuda")  # large enough to be worth converting
    try:
        deepwell.optimize(probe, precision="mxfp8")
    except deepwell.UnsupportedError as error:
        return f"deepwell.optimize does not serve {name} ({error})"
    return ""


def processor_name() -> str:
    """The processor's model as the operating system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, str | int]:
    """The environment for the report."""
    facts: dict[str, str | int] = {
        "device": device.type,
        "processor": processor_name(),
        "processors_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepwell": deepwell.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
