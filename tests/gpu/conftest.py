"""GPU tests: they need a Hopper GPU and fail, rather than skip, without one."""

from __future__ import annotations

import os
import random

import pytest
import torch

SEED = int(os.environ.get("DEEPWELL_TEST_SEED", random.SystemRandom().randrange(2**31)))


def pytest_report_header() -> str:
    return f"DEEPWELL_TEST_SEED={SEED}"


def pytest_sessionstart() -> None:
    from deepwell import _core

    if not torch.cuda.is_available():
        pytest.exit("no GPU: these tests need a Hopper GPU and a PyTorch built for CUDA", returncode=1)
    facts = _core.cuda_device_info(0)
    if facts["target"] != "sm90" or not facts["has_device_code"]:
        pytest.exit(f"{facts['name']}: these tests need a Hopper GPU and a build with device code", returncode=1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(SEED)
