"""The package as such: what importing costs, what works without PyTorch, what is public."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import deepwell

# A None in sys.modules makes `import torch` fail as if it were not installed.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_does_not_import_torch() -> None:
    run("import sys, deepwell; deepwell.kernels(); assert 'torch' not in sys.modules")


def test_arrays_work_without_torch() -> None:
    run(
        WITHOUT_TORCH + "import numpy as np, deepwell\n"
        "x = np.linspace(-3, 3, 640, dtype=np.float32).reshape(10, 64)\n"
        "quantizer = deepwell.MXFPQuantizer()\n"
        "for q in quantizer.quantize_tensor(x, 'both'):\n"
        "    back = quantizer.dequantize(q)\n"
        "    back = back.T if q.transposed else back\n"
        "    assert abs(back - x).max() <= 3 / 16\n"
        "deepwell.DeepwellDispatcher().dispatch(rows=3, cols=3)\n"
    )


@pytest.mark.parametrize(
    "name", ["optimize", "restore", "explain", "health", "ModelOptimizer", "QuantizationPlanner", "register_kernel"]
)
def test_the_rest_says_that_it_needs_torch(name: str) -> None:
    use = f"deepwell.{name}('nn.Linear')" if name == "register_kernel" else f"deepwell.{name}"
    out = run(
        WITHOUT_TORCH
        + f"import deepwell\ntry:\n    {use}\nexcept deepwell.UnsupportedError as error:\n    print(error)\n"
    )
    assert "pip install torch" in out


def test_without_ml_dtypes_bfloat16_comes_as_bits() -> None:
    run(
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy as np, deepwell\n"
        "q = deepwell.MXFPQuantizer().quantize_tensor(np.full((1, 32), 1.5, np.float32))\n"
        "assert deepwell.MXFPQuantizer().dequantize(q, 'bfloat16').tolist() == [[0x3FC0] * 32]\n"
        "try:\n    q.typed_data\n"
        "except deepwell.UnsupportedError as error:\n    assert 'pip install ml_dtypes' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )


def test_public_names_exist_and_nothing_else_does() -> None:
    for name in deepwell.__all__:
        assert getattr(deepwell, name) is not None
    assert set(deepwell.__all__) <= set(dir(deepwell))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = deepwell.no_such_name


def test_versions_agree() -> None:
    assert deepwell.__version__ == importlib.metadata.version("deepwell")


def test_errors_are_what_other_code_would_catch() -> None:
    kinds = {
        deepwell.InvalidArgumentError: ValueError,
        deepwell.UnsupportedError: NotImplementedError,
        deepwell.OutOfMemoryError: MemoryError,
        deepwell.SelftestError: RuntimeError,
        deepwell.DeviceError: RuntimeError,
    }
    for kind, builtin in kinds.items():
        assert issubclass(kind, builtin)
        assert issubclass(kind, deepwell.DeepwellError)


def test_the_extension_is_one_for_all_interpreters() -> None:
    folder = Path(deepwell.__file__).parent
    assert [p.name for p in folder.glob("_core*.so")] == ["_core.abi3.so"]
    assert (folder / "py.typed").exists()
