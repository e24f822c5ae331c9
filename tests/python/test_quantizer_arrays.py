"""Shapes, orientations, layouts, dtypes and errors of MXFPQuantizer, on NumPy arrays and PyTorch tensors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_oracle as oracle
from deepwell import (
    DeepwellError,
    InvalidArgumentError,
    MXFPQuantizer,
    QuantizedTensor,
    UnsupportedError,
    _core,
    kernels,
)
from random_arrays import DTYPES, EDGES, adversarial

BLOCKS = ("1x32", "1x128", "128x128")


def layouts(block: str) -> tuple[str, ...]:
    return ("row", "mn_major", "tcgen05") if block == "1x32" else ("row", "mn_major")


def check(x: np.ndarray, q: QuantizedTensor, element: str, block: str, rounding: str, layout: str) -> None:
    data, codes = oracle.quantize(x, element, block, rounding)
    np.testing.assert_array_equal(q.data, data)
    np.testing.assert_array_equal(q.scale, oracle.lay_out(codes, layout))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
@pytest.mark.parametrize("rounding", ["rceil", "floor"])
def test_orientations_and_layouts_against_the_formulas(
    block: str, dtype: str, element: str, rounding: str, rng: np.random.Generator
) -> None:
    shapes = [tuple(rng.choice(EDGES, 2)) for _ in range(5)] + [(257, 129), (1, 1)]
    for rows, cols in shapes:
        x = adversarial(rng, rows, cols, DTYPES[dtype])
        for layout in layouts(block):
            quantizer = MXFPQuantizer(element, block, rounding, layout)
            row, transposed = quantizer.quantize_tensor(x, "both")
            check(x, row, element, block, rounding, layout)
            check(x.T, transposed, element, block, rounding, layout)
            for alone, orientation in ((row, "row"), (transposed, "transposed")):
                single = quantizer.quantize_tensor(x, orientation)
                np.testing.assert_array_equal(single.data, alone.data)
                np.testing.assert_array_equal(single.scale, alone.scale)
                assert single.transposed == (orientation == "transposed")
            decoded = quantizer.dequantize(row, np.float32)
            exact = oracle.decode(*oracle.quantize(x, element, block, rounding), element, block)
            np.testing.assert_array_equal(decoded, exact.astype(np.float32))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 140),
    cols=st.integers(0, 140),
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from(BLOCKS),
    element=st.sampled_from(["e4m3", "e5m2"]),
    rounding=st.sampled_from(["rceil", "floor"]),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_random_blocks(rows: int, cols: int, seed: int, block: str, element: str, rounding: str, dtype: str) -> None:
    x = adversarial(np.random.default_rng(seed), rows, cols, DTYPES[dtype])
    row, transposed = MXFPQuantizer(element, block, rounding).quantize_tensor(x, "both")
    check(x, row, element, block, rounding, "row")
    check(x.T, transposed, element, block, rounding, "row")


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=96), element=st.sampled_from(["e4m3", "e5m2"]))
def test_arbitrary_float32_values(values: list[float], element: str) -> None:
    x = np.array([values], dtype=np.float32)
    check(x, MXFPQuantizer(element).quantize_tensor(x), element, "1x32", "rceil", "row")


@pytest.mark.parametrize("block", BLOCKS)
def test_every_output_byte_is_written_and_nothing_else(block: str, rng: np.random.Generator) -> None:
    """Into poisoned memory with wide rows and fences: written exactly where it should be, whatever was there."""
    rows, cols, ld = 131, 77, 83
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    shape = _core.scale_shape("e4m3", block, "mn_major", rows, cols)
    results = []
    for poison in (0x00, 0xA5):
        data = np.full(rows * ld + 64, poison, dtype=np.uint8)
        scale = np.full(shape[0] * shape[1] + 64, poison, dtype=np.uint8)
        _core.quantize(
            x.ctypes.data, "f32", rows, cols, cols, "e4m3", block, "rceil", "mn_major",
            (data.ctypes.data + 32, ld, scale.ctypes.data + 32), None,
        )  # fmt: skip
        body = data[32 : 32 + rows * ld].reshape(rows, ld)
        assert (data[:32] == poison).all()
        assert (data[32 + rows * ld :] == poison).all()
        assert (body[:, cols:] == poison).all()
        assert (scale[:32] == poison).all()
        assert (scale[-32:] == poison).all()
        results.append((body[:, :cols].copy(), scale[32:-32].copy()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    expected, codes = oracle.quantize(x, "e4m3", block, "rceil")
    np.testing.assert_array_equal(results[0][0], expected)
    np.testing.assert_array_equal(results[0][1].reshape(shape), oracle.lay_out(codes, "mn_major"))


def test_leading_dimensions_are_flattened(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 5, 7, 70)).astype(np.float32)
    row, transposed = MXFPQuantizer().quantize_tensor(x, "both")
    flat = MXFPQuantizer().quantize_tensor(x.reshape(-1, 70), "both")
    assert row.shape == x.shape
    assert transposed.shape == (70, 105)
    np.testing.assert_array_equal(row.data.reshape(-1, 70), flat[0].data)
    np.testing.assert_array_equal(row.scale, flat[0].scale)
    np.testing.assert_array_equal(transposed.data, flat[1].data)
    assert MXFPQuantizer().dequantize(row).shape == x.shape
    vector = MXFPQuantizer().quantize_tensor(x[0, 0, 0])
    np.testing.assert_array_equal(vector.data, row.data[0, 0, 0])


@pytest.mark.parametrize(
    "make", [lambda x: x[::2], lambda x: x[:, ::3], lambda x: x.T, lambda x: x[::-1], lambda x: x[5:, 3:90]]
)
def test_strided_views_are_read_as_they_look(make, rng: np.random.Generator) -> None:
    view = make(rng.standard_normal((130, 140)).astype(np.float32))
    got = MXFPQuantizer().quantize_tensor(view)
    np.testing.assert_array_equal(got.data, oracle.quantize(view, "e4m3", "1x32", "rceil")[0])


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (0,), (2, 0, 33)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    row, transposed = MXFPQuantizer(layout="mn_major").quantize_tensor(np.empty(shape, np.float32), "both")
    assert row.shape == shape
    assert transposed.data.size == 0
    assert not row.scale.any()
    assert not transposed.scale.any()
    assert MXFPQuantizer().dequantize(row).shape == shape


def test_uint16_carries_bfloat16_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 50)).astype(ml_dtypes.bfloat16)
    a = MXFPQuantizer().quantize_tensor(x)
    b = MXFPQuantizer().quantize_tensor(x.view(np.uint16), bf16=True)
    np.testing.assert_array_equal(a.data, b.data)
    assert b.source_dtype == "bfloat16"
    bits = MXFPQuantizer().dequantize(a, np.uint16)
    np.testing.assert_array_equal(bits, MXFPQuantizer().dequantize(a, "bfloat16").view(np.uint16))


def test_typed_views_share_memory(rng: np.random.Generator) -> None:
    q = MXFPQuantizer().quantize_tensor(rng.standard_normal((4, 64)).astype(np.float32))
    assert q.typed_data.dtype == ml_dtypes.float8_e4m3fn
    assert q.typed_scale.dtype == ml_dtypes.float8_e8m0fnu
    assert np.shares_memory(q.typed_data, q.data)
    assert q.nbytes == 4 * 64 + 4 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
def test_tensors_give_the_same_bytes(dtype: torch.dtype, element: str, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((3, 50, 70)).astype(np.float32)).to(dtype)
    array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else x.numpy()
    quantizer = MXFPQuantizer(element)
    for tensor, expected in zip(
        quantizer.quantize_tensor(x, "both"), quantizer.quantize_tensor(array, "both"), strict=True
    ):
        assert tensor.data.dtype == (torch.float8_e4m3fn if element == "e4m3" else torch.float8_e5m2)
        assert tensor.scale.dtype == torch.float8_e8m0fnu
        np.testing.assert_array_equal(tensor.data.view(torch.uint8).numpy(), expected.data)
        np.testing.assert_array_equal(tensor.scale.view(torch.uint8).numpy(), expected.scale)
        back = quantizer.dequantize(tensor, torch.float32)
        np.testing.assert_array_equal(back.numpy(), quantizer.dequantize(expected, np.float32))
        assert quantizer.dequantize(tensor).dtype == dtype


def test_tensor_decodes_as_pytorch_says(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((8, 64)).astype(np.float32))
    q = MXFPQuantizer().quantize_tensor(x)
    scale = q.scale.to(torch.float32).repeat_interleave(32, dim=1)
    torch.testing.assert_close(MXFPQuantizer().dequantize(q), q.data.to(torch.float32) * scale, rtol=0, atol=0)


def test_strided_and_grad_tensors(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((96, 70)).astype(np.float32)).requires_grad_()
    for view in (x.T, x[::2], x[:, 3:], x.expand(2, 96, 70)):
        q = MXFPQuantizer().quantize_tensor(view)
        flat = view.detach().numpy().reshape(-1, view.shape[-1])
        expected = oracle.quantize(flat, "e4m3", "1x32", "rceil")[0]
        np.testing.assert_array_equal(q.data.view(torch.uint8).numpy().reshape(flat.shape), expected)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"element": "e3m4"}, "e3m4"),
        ({"block": "1x16"}, "1x16"),
        ({"rounding": "nearest"}, "nearest"),
        ({"layout": "col"}, "col"),
        ({"layout": "tcgen05", "block": "1x128"}, "tcgen05"),
        ({"kernel": "no_such_kernel"}, "no_such_kernel"),
        ({"element": 4}, "element=4"),
    ],
)
def test_unknown_formats_are_named(kwargs: dict, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        MXFPQuantizer(**kwargs)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.zeros((4, 4), np.uint16), "bf16=True"),
        (np.zeros((), np.float32), "0-d"),
        (np.zeros((4, 4), ">f4"), "byte order"),
        ([[1.0, 2.0]], "list"),
        (torch.zeros(4, 4, dtype=torch.float64), "float64"),
        (torch.zeros(()), "0-d"),
        (torch.zeros(4, 4).to_sparse(), "to_dense"),
    ],
)
def test_bad_sources_are_refused(x: object, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named) as error:
        MXFPQuantizer().quantize_tensor(x)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_other_errors() -> None:
    x = np.zeros((4, 64), np.float32)
    with pytest.raises(InvalidArgumentError, match="orientation"):
        MXFPQuantizer().quantize_tensor(x, "col")
    with pytest.raises(UnsupportedError, match="meta") as error:
        MXFPQuantizer().quantize_tensor(torch.zeros(4, 4, device="meta"))
    assert isinstance(error.value, NotImplementedError)
    q = MXFPQuantizer().quantize_tensor(x)
    with pytest.raises(InvalidArgumentError, match="float64"):
        MXFPQuantizer().dequantize(q, np.float64)
    with pytest.raises(InvalidArgumentError, match="QuantizedTensor"):
        MXFPQuantizer().dequantize(x)
    wrong = QuantizedTensor(q.data, q.scale[:2], "e4m3", "1x32", "rceil", "row", False, "float32")
    with pytest.raises(InvalidArgumentError, match=r"\(4, 2\)"):
        MXFPQuantizer().dequantize(wrong)
    with pytest.raises(DeepwellError):
        _core.quantize(
            x.ctypes.data, "f32", 4, 64, 2, "e4m3", "1x32", "rceil", "row", (x.ctypes.data, 64, x.ctypes.data), None
        )


def test_forced_kernel_must_serve_the_request() -> None:
    name = next(k.name for k in kernels() if k.operation == "dequantize")
    with pytest.raises(DeepwellError):
        MXFPQuantizer(kernel=name).quantize_tensor(np.zeros((4, 64), np.float32))
