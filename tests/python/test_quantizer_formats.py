"""Elements, scales and decoding against ml_dtypes, gfloat and PyTorch's float8 casts, exhaustively."""

from __future__ import annotations

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.formats import format_info_ocp_e4m3, format_info_ocp_e5m2, format_info_ocp_e8m0

from deepwell import MXFPQuantizer, QuantizedTensor
from numpy_oracle import BLOCK_SHAPES, ELEMENT_TYPES, LARGEST, LARGEST_EXPONENT, quantize

ELEMENTS = ("e4m3", "e5m2")
ROUNDINGS = ("rceil", "floor")
GFLOAT = {"e4m3": format_info_ocp_e4m3, "e5m2": format_info_ocp_e5m2}


def all_bfloat16() -> np.ndarray:
    return np.arange(65536, dtype=np.uint32).astype(np.uint16).view(ml_dtypes.bfloat16)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_every_bfloat16_alone_in_its_block(element: str, rounding: str) -> None:
    x = all_bfloat16().reshape(-1, 1)
    q = MXFPQuantizer(element, "1x32", rounding).quantize_tensor(x)
    data, codes = quantize(x, element, "1x32", rounding)
    np.testing.assert_array_equal(q.scale, codes)
    np.testing.assert_array_equal(q.data, data)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("exponent", [-120, -9, 0, 3, 100])
def test_every_bfloat16_beside_the_largest_value(element: str, rounding: str, exponent: int) -> None:
    """The companion fixes the scale for all smaller inputs, so each element rounding, subnormals included, is met."""
    values = all_bfloat16()
    companion = np.full_like(values, np.ldexp(LARGEST[element], exponent))
    x = np.stack([values, companion], axis=1)
    q = MXFPQuantizer(element, "1x32", rounding).quantize_tensor(x)
    data, codes = quantize(x, element, "1x32", rounding)
    np.testing.assert_array_equal(q.scale, codes)
    np.testing.assert_array_equal(q.data, data)
    # PyTorch's cast of the scaled values agrees wherever the companion set the scale.
    with np.errstate(invalid="ignore"):  # NaNs of a signalling pattern
        small = np.abs(values.astype(np.float64)) <= float(companion[0])
    assert np.unique(q.scale[small]).tolist() == [exponent + 127]
    scaled = np.ldexp(values[small].astype(np.float64), -exponent).astype(np.float32)
    dtype = torch.float8_e4m3fn if element == "e4m3" else torch.float8_e5m2
    expected = torch.from_numpy(scaled).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(q.data[small, 0], expected)


@pytest.mark.parametrize("element", ELEMENTS)
def test_rceil_never_saturates_and_is_the_smallest(element: str) -> None:
    values = all_bfloat16()
    bits = values.view(np.uint16) & 0x7FFF
    values = values[(bits > 0) & (bits < 0x7F80)].reshape(-1, 1)  # finite and not zero
    q = MXFPQuantizer(element).quantize_tensor(values)
    magnitude = np.abs(values.astype(np.float64))
    exponent = q.scale.astype(np.int64) - 127
    assert (magnitude <= np.ldexp(LARGEST[element], exponent)).all()
    free = q.scale > 0
    assert (magnitude[free] > np.ldexp(LARGEST[element], exponent[free] - 1)).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_floor_matches_gfloat(element: str, rng: np.random.Generator) -> None:
    """gfloat states OCP MX by itself: its scale, its elements, saturating, ties to even."""
    info = GFLOAT[element]
    rows = [np.float32(np.ldexp(rng.standard_normal(32), int(rng.integers(-100, 100)))) for _ in range(40)]
    rows += [
        np.float32(np.ldexp(top, k)) * np.ones(32, np.float32) for top in (448, 449, 479, 511) for k in (-30, 0, 7)
    ]
    x = np.stack(rows).astype(np.float32)
    q = MXFPQuantizer(element, "1x32", "floor").quantize_tensor(x)
    for row in range(len(x)):
        scale = gfloat.compute_scale_amax(LARGEST_EXPONENT[element], x[row].astype(np.float64))
        assert gfloat.encode_float(format_info_ocp_e8m0, scale) == q.scale[row, 0]
        scaled = x[row].astype(np.float64) / scale
        expected = [
            gfloat.encode_float(info, gfloat.round_float(info, v, gfloat.RoundMode.TiesToEven, sat=True))
            for v in scaled
        ]
        assert q.data[row].tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_decode_of_every_encoding_and_every_scale(element: str, dtype: str) -> None:
    data = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    # One code for each row: 256 columns are 8 blocks of 32.
    scale = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    q = QuantizedTensor(data, scale, element, "1x32", "rceil", "row", False, "float32")
    got = MXFPQuantizer().dequantize(q, dtype)
    exact = np.ldexp(data.view(ELEMENT_TYPES[element]).astype(np.float64), (scale.astype(np.int64) - 127)[:, :1])
    exact[255] = np.nan
    with np.errstate(over="ignore"):
        expected = exact.astype(got.dtype)
    assert got.dtype.name == dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    finite = ~np.isnan(expected)
    bits = np.uint32 if dtype == "float32" else np.uint16
    np.testing.assert_array_equal(got.view(bits)[finite], expected.view(bits)[finite])


def test_decode_matches_gfloat() -> None:
    for element, info in GFLOAT.items():
        codes = np.arange(256, dtype=np.uint8)
        q = QuantizedTensor(
            codes[None, :], np.full((1, 8), 130, np.uint8), element, "1x32", "rceil", "row", False, "float32"
        )
        got = MXFPQuantizer().dequantize(q)[0]
        expected = np.array([gfloat.decode_float(info, int(c)).fval * 8.0 for c in codes], dtype=np.float32)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("block", sorted(BLOCK_SHAPES))
@pytest.mark.parametrize("element", ELEMENTS)
def test_zero_blocks_and_signs_of_zero(element: str, block: str) -> None:
    x = np.zeros((130, 130), dtype=np.float32)
    x[::2] = -0.0
    q = MXFPQuantizer(element, block).quantize_tensor(x)
    assert not q.scale.any()
    np.testing.assert_array_equal(q.data, np.where(np.signbit(x), 0x80, 0))


@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", sorted(BLOCK_SHAPES))
def test_non_finite_blocks_stay_visible(block: str, fault: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 300)).astype(np.float32)
    x[129, 257] = fault
    q = MXFPQuantizer(block=block).quantize_tensor(x)
    data, codes = quantize(x, "e4m3", block, "rceil")
    assert (codes == 255).sum() == 1
    np.testing.assert_array_equal(q.scale, codes)
    np.testing.assert_array_equal(q.data, data)
    assert np.isnan(MXFPQuantizer().dequantize(q)[129, 257])
