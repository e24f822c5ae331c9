"""Fresh random data with the seed in the test's output, and no registrations left behind."""

from __future__ import annotations

import os
import secrets

# Tensors here are tiny; on a busy machine PyTorch's threads would spend their time waiting for each other. Read when
# PyTorch is first imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest


@pytest.fixture
def seed() -> int:
    """A new seed for each test; DEEPWELL_TEST_SEED repeats a failure's."""
    value = int(os.environ.get("DEEPWELL_TEST_SEED", secrets.randbits(32)))
    print(f"seed: DEEPWELL_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
