"""The GPU path of linear layers against the CPU's emulation, on a machine whose GPU is a stand-in (stand_in.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import run

SCRIPT = Path(__file__).parent / "stand_in.py"
FAKES = SCRIPT.parent.parent.parent / "build" / "release" / "tests" / "c"


@pytest.mark.skipif(not (FAKES / "fake_cuda.so").exists(), reason="built without the C tests")
@pytest.mark.parametrize(
    "case", ["gated_mlp", "values_and_gradients", "what_is_not_needed_is_not_made", "accumulation", "tuned_layer"]
)
def test_linear(case: str, seed: int, tmp_path: Path) -> None:
    environment = {**os.environ, "DEEPWELL_LIBCUDA": str(FAKES / "fake_cuda.so"), "XDG_CACHE_HOME": str(tmp_path)}
    if not json.loads(run("info", "--json", env=environment).stdout)["gpus"][0]["has_device_code"]:
        pytest.skip("built without device code")
    command = [sys.executable, str(SCRIPT), case, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
