"""The Hopper matrix kernels against FP64: every form, edge sizes, groups of every size, accumulation, bias.

Operands are quantized here by an independent statement of NUMERICS.md. Tolerances: in each of the four steps of a block
the tensor core aligns 32 products and the sum so far to the largest and keeps about 14 bits, rounding toward zero, so
each of 33 addends loses less than 2^-13 of the largest: 4 * 33 * 2^-13 < 2^-5.9 of the terms' magnitudes at the very
worst for one element, and 2^-11 in norm over many (see test_linear.py). FP32 sums and the result's own rounding (2^-8
of a BF16 value at most; in norm, what rounding the exact results costs) come on top. A wrong scale is wrong by a factor
of two or more, and sums of small integers must be exact."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

import conftest
from deepwell import _core

E4M3, E8M0 = 3, 5
F32, BF16 = 0, 2
SCALING = {"1x128": 2, "128x128": 3}
AUTO, OWN, CUBLASLT = 0, 1, 2
GROUP_M, GROUP_K = 0, 1
DTYPES = {F32: torch.float32, BF16: torch.bfloat16}
WORST, IN_NORM = 2.0**-5.9, 2.0**-11
POISON = 7777.0


class Operand:
    """A quantized matrix [rows, cols]: bytes, both forms of its scales, and what it stands for in FP64."""

    def __init__(self, values: torch.Tensor, block: str) -> None:
        rows, cols = values.shape
        across, height = -(-cols // 128), 128 if block == "128x128" else 1
        down = -(-rows // height)
        padded = torch.zeros(down * height, across * 128, dtype=torch.float64, device=values.device)
        padded[:rows, :cols] = values.double()
        blocks = padded.view(down, height, across, 128)
        amax = blocks.abs().amax((1, 3))
        mantissa, exponent = torch.frexp(torch.where(amax == 0, torch.ones_like(amax), amax))
        code = exponent.long() - 1 - 8 + (mantissa * 2 > 1.75).long() + 127
        code = torch.where(amax == 0, torch.zeros_like(code), code.clamp(0, 254))
        scale = torch.ldexp(torch.ones_like(amax), code - 127)
        scaled = (blocks / scale[:, None, :, None]).view(down * height, -1)[:rows, :cols]
        self.rows, self.cols, self.block = rows, cols, block
        self.bytes = scaled.float().to(torch.float8_e4m3fn)
        wide = scale.repeat_interleave(height, 0).repeat_interleave(128, 1)[:rows, :cols]
        self.values = self.bytes.double() * wide
        self.codes = torch.zeros(across, -(-down // 16) * 16, dtype=torch.uint8, device=values.device)
        self.codes[:, :down] = code.t().to(torch.uint8)
        if block == "1x128":
            self.factors = scale.t().float().contiguous()  # [across, rows], rows contiguous
        else:
            self.factors = torch.zeros(down, -(-across // 4) * 4, device=values.device)
            self.factors[:, :across] = scale

    def scale(self, codes: bool) -> int:
        return (self.codes if codes else self.factors).data_ptr()


def random_operand(rows: int, cols: int, block: str, generator: torch.Generator) -> Operand:
    """Normal values whose rows and columns differ in size, so that a scale in the wrong place shows."""
    values = torch.randn(rows, cols, device="cuda", generator=generator, dtype=torch.float64)
    values *= torch.exp2(torch.randint(-6, 7, (rows, 1), device="cuda", generator=generator).double())
    values *= torch.exp2(torch.randint(-3, 4, (1, cols), device="cuda", generator=generator).double())
    return Operand(values, block)


def check(out: torch.Tensor, expected: torch.Tensor, size: torch.Tensor, first: torch.Tensor | None = None) -> None:
    """size: the sum of the terms' magnitudes. first: what went through the result's type before something was added
    to it and it went through once more."""
    if out.numel() == 0:
        return
    rounding = 2.0**-8 if out.dtype == torch.bfloat16 else 2.0**-22
    error = (out.double() - expected).abs()
    wrong = ~(error <= size * (WORST + 2 * rounding) + 1e-30)
    assert not wrong.any(), (
        f"{int(wrong.sum())} elements, first at {wrong.nonzero()[0].tolist()}: "
        f"{out[wrong][0].item()} should be {expected[wrong][0].item()}"
    )
    # How far a number is from the nearest one of the result's type changes by no more than the number does, so sums
    # that are off by `off` end up within what rounding the exact ones costs and twice `off`; and where they go through
    # the type once more after something was added, that, in turn, is what they are then off by.
    off = IN_NORM * torch.maximum(expected.norm(), size.norm() / 8)
    if first is not None:
        off = nearest(first, out.dtype).norm() + 2 * off
    assert error.norm() <= nearest(expected, out.dtype).norm() + 2 * off


def nearest(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far each is from what it becomes in that type; FP32 sums are rounded more than once: a few times as far."""
    return (values.to(dtype).double() - values) * (1 if dtype == torch.bfloat16 else 4)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def gemm(a: Operand, b: Operand, out: torch.Tensor, *, codes: bool, bias: torch.Tensor | None = None,
         accumulate: bool = False, backend: int = OWN, wait: bool = True,
         workspace: torch.Tensor | None = None) -> None:  # fmt: skip
    if workspace is None:
        workspace = torch.empty(32 << 20, dtype=torch.uint8, device="cuda")
    _core.cuda_gemm(
        a.bytes.data_ptr(), E4M3, a.cols, SCALING[a.block], a.scale(codes),
        b.bytes.data_ptr(), E4M3, b.cols, SCALING[b.block], b.scale(codes),
        out.data_ptr(), F32 if out.dtype == torch.float32 else BF16, out.stride(0), a.rows, b.rows, a.cols,
        0 if bias is None else bias.data_ptr(), BF16, int(accumulate), workspace.data_ptr(), workspace.numel(), 0,
        stream(), int(codes), backend,
    )  # fmt: skip
    if wait:
        torch.cuda.synchronize()


SHAPES = (
    (128, 256, 128),
    (512, 512, 1024),
    (304, 520, 400),
    (16, 8, 16),
    (4, 8, 144),
    (1000, 1032, 2064),
    (2048, 2304, 1536),
    (8192, 264, 272),
    (12, 4096, 1024),
    (64, 16384, 512),
    (128, 4096, 640),
    (256, 4104, 528),
    (8192, 4096, 384),
)


# M, N, K as in small models and few rows: kernels follow each other closely, and copies come late from memory.
IN_A_ROW = (
    (512, 1024, 1024),
    (512, 256, 1024),
    (512, 4096, 1024),
    (16, 14336, 4096),
    (256, 14336, 2048),
    (2048, 4096, 1024),
    (4096, 7168, 1024),
)


@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("shape", IN_A_ROW, ids=lambda s: "x".join(map(str, s)))
def test_launches_in_a_row(shape: tuple[int, int, int], codes: bool) -> None:
    """A launch may begin before the one before it has ended: nothing of that may show in the results."""
    m, n, k = shape
    generator = torch.Generator("cuda").manual_seed(conftest.SEED + m + n + k)
    sets = [(random_operand(m, k, "1x128", generator), random_operand(n, k, "128x128", generator)) for _ in range(3)]
    alone = []
    for a, b in sets:
        out = torch.full((m, n), POISON, device="cuda", dtype=torch.bfloat16)
        gemm(a, b, out, codes=codes)
        check(out, a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())
        alone.append(out)
    outs = [torch.full((m, n), -POISON, device="cuda", dtype=torch.bfloat16) for _ in range(30)]
    torch.cuda.synchronize()
    for i, out in enumerate(outs):
        gemm(*sets[i % 3], out, codes=codes, wait=False)
    torch.cuda.synchronize()
    for i, out in enumerate(outs):
        wrong = int((out.view(torch.int16) != alone[i % 3].view(torch.int16)).sum())
        assert not wrong, f"launch {i} differs from one alone in {wrong} elements"


@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("b_block", ["128x128", "1x128"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "out_f32"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_product(shape: tuple[int, int, int], dtype: int, b_block: str, codes: bool) -> None:
    m, n, k = shape
    generator = torch.Generator("cuda").manual_seed(conftest.SEED + m + n + k)
    a, b = random_operand(m, k, "1x128", generator), random_operand(n, k, b_block, generator)
    expected, size = a.values @ b.values.t(), a.values.abs() @ b.values.abs().t()
    out = torch.full((m, n), POISON, device="cuda", dtype=DTYPES[dtype])
    gemm(a, b, out, codes=codes)
    check(out, expected, size)
    again = torch.full_like(out, -POISON)
    gemm(a, b, again, codes=codes)
    assert torch.equal(out.view(torch.uint8), again.view(torch.uint8)), "two runs differ"

    bias = torch.randn(n, device="cuda", generator=generator).bfloat16()
    gemm(a, b, out, codes=codes, bias=bias)
    check(out, expected + bias.double(), size + bias.double().abs())
    old = (torch.randn(m, n, device="cuda", generator=generator) * size.mean().sqrt()).to(out.dtype)
    out.copy_(old)
    gemm(a, b, out, codes=codes, accumulate=True)
    check(out, expected + old.double(), size + old.double().abs(), expected)


@pytest.mark.parametrize("b_block", ["128x128", "1x128"])
def test_small_integers_are_exact(b_block: str) -> None:
    """Operands in -3..3 with scales of 1: every sum is an integer below 2^13, so nothing may be lost."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    m, n, k = 640, 768, 896
    a, b = (
        Operand(torch.randint(-3, 4, (r, k), device="cuda", generator=generator).double(), block)
        for r, block in ((m, "1x128"), (n, b_block))
    )
    out = torch.full((m, n), POISON, device="cuda")
    gemm(a, b, out, codes=False)
    assert torch.equal(out.double(), a.values @ b.values.t())


def test_rows_of_a_wider_result_are_left_alone() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(300, 256, "1x128", generator), random_operand(264, 256, "128x128", generator)
    for dtype in (torch.bfloat16, torch.float32):
        wide = torch.full((304, 400), POISON, device="cuda", dtype=dtype)
        gemm(a, b, wide[:300, 64:328], codes=False)
        check(wide[:300, 64:328], a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())
        wide[:300, 64:328] = POISON
        assert torch.equal(wide, torch.full_like(wide, POISON))


def test_nan_stays_visible() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(256, 512, "1x128", generator), random_operand(256, 512, "128x128", generator)
    a.bytes.view(torch.uint8)[17, 128:256] = 0x7F
    a.codes[1, 17] = 255
    a.factors[1, 17] = float("nan")
    for codes in (False, True):
        out = torch.zeros(256, 256, device="cuda", dtype=torch.bfloat16)
        gemm(a, b, out, codes=codes)
        assert out[17].isnan().all()
        assert out.isfinite().sum() == 255 * 256


def test_what_the_kernels_cannot_do_says_so() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(6, 256, "1x128", generator), random_operand(256, 256, "128x128", generator)
    out = torch.zeros(6, 256, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(Exception, match="multiples of 4"):
        gemm(a, b, out, codes=False)
    gemm(a, b, out, codes=True)  # codes have no such rule
    check(out, a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())


# ---- grouped -----------------------------------------------------------------------------------------------------


def cuts(total: int, groups: int, kind: str, multiple: int, rng: random.Random) -> list[int]:
    if kind == "one":
        ends = [0] * (groups // 2) + [total] * (groups - groups // 2)
    else:
        ends = [*sorted(rng.randrange(0, total + 1) // multiple * multiple for _ in range(groups - 1)), total]
    if kind == "short":  # the last rows belong to nobody
        ends[-1] = max(ends[-2] if groups > 1 else 0, total // 2 // multiple * multiple)
    return ends


def grouped(axis: int, ends: torch.Tensor, a: Operand, b: Operand, b_rows: int, out: torch.Tensor, codes: bool,
            accumulate: bool = False, workspace: torch.Tensor | None = None,
            wait: bool = True) -> None:  # fmt: skip
    m, n, k = (a.rows, b_rows, a.cols)
    place = (0, 0) if workspace is None else (workspace.data_ptr(), workspace.numel())
    _core.cuda_grouped_gemm(
        axis, ends.numel(), ends.data_ptr(), a.bytes.data_ptr(), a.cols, a.scale(codes), b.bytes.data_ptr(), b.cols,
        SCALING[b.block], b.scale(codes), out.data_ptr(), F32 if out.dtype == torch.float32 else BF16, n, m, n, k,
        int(accumulate), *place, 0, stream(), int(codes),
    )  # fmt: skip
    if wait:
        torch.cuda.synchronize()


def stacked(parts: list[Operand]) -> Operand:
    """B's of all groups, one below the other, in square blocks of their own."""
    whole = Operand.__new__(Operand)
    whole.rows, whole.cols, whole.block = sum(p.rows for p in parts), parts[0].cols, "128x128"
    whole.bytes = torch.cat([p.bytes.view(torch.uint8) for p in parts]).view(torch.float8_e4m3fn)
    whole.factors = torch.cat([p.factors for p in parts])
    down = -(-parts[0].rows // 128)
    codes = torch.cat([p.codes[:, :down] for p in parts], 1)
    whole.codes = torch.zeros(codes.shape[0], -(-codes.shape[1] // 16) * 16, dtype=torch.uint8, device="cuda")
    whole.codes[:, : codes.shape[1]] = codes
    return whole


@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("kind", ["random", "one", "short"])
@pytest.mark.parametrize(
    ("total", "groups", "n", "k"), [(2048, 8, 512, 1024), (776, 3, 136, 400), (100, 16, 264, 128), (12288, 2, 384, 256)]
)
def test_groups_of_rows(total: int, groups: int, n: int, k: int, kind: str, codes: bool) -> None:
    rng = random.Random(conftest.SEED)
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a = random_operand(total, k, "1x128", generator)
    parts = [random_operand(n, k, "128x128", generator) for _ in range(groups)]
    ends = cuts(total, groups, kind, 1, rng)
    out = torch.full((total, n), POISON, device="cuda", dtype=torch.bfloat16)
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    grouped(GROUP_M, where, a, stacked(parts), n, out, codes)
    begin = 0
    for part, end in zip(parts, ends, strict=True):
        rows = a.values[begin:end]
        check(out[begin:end], rows @ part.values.t(), rows.abs() @ part.values.abs().t())
        begin = end
    assert (out[begin:] == POISON).all(), "rows of no group were written"


# ---- tiles that fill no wave, split along the reduction ----------------------------------------------------------

# For 132 multiprocessors. With the short reduction all tiles are shared out, with the long one what is left over alone.
IN_PARTS = ((2304, 2056, 3600), (3456, 2304, 5136))


def workspace_of(fill: int) -> torch.Tensor:
    return torch.full((32 << 20,), fill, dtype=torch.uint8, device="cuda")


ON_132 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).multi_processor_count != 132,
    reason="the shapes are for 132 multiprocessors",
)


@ON_132
@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("shape", IN_PARTS, ids=lambda s: "x".join(map(str, s)))
def test_product_in_parts(shape: tuple[int, int, int], codes: bool) -> None:
    """Whatever lies in the workspace, twice the same bits; and with none the product is still right."""
    m, n, k = shape
    generator = torch.Generator("cuda").manual_seed(conftest.SEED + m)
    a, b = random_operand(m, k, "1x128", generator), random_operand(n, k, "128x128", generator)
    expected, size = a.values @ b.values.t(), a.values.abs() @ b.values.abs().t()
    outs = []
    for fill in (0, 255, 0x5A):
        workspace = workspace_of(fill)
        out = torch.full((m, n), POISON, device="cuda", dtype=torch.bfloat16)
        gemm(a, b, out, codes=codes, workspace=workspace)
        check(out, expected, size)
        assert (workspace != fill).any(), "no tile was split"
        outs.append(out.view(torch.int16))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    out = torch.full((m, n), POISON, device="cuda", dtype=torch.bfloat16)
    gemm(a, b, out, codes=codes, workspace=torch.empty(0, dtype=torch.uint8, device="cuda"))
    check(out, expected, size)

    bias = torch.randn(n, device="cuda", generator=generator).bfloat16()
    gemm(a, b, out, codes=codes, bias=bias, workspace=workspace)
    check(out, expected + bias.double(), size + bias.double().abs())
    old = (torch.randn(m, n, device="cuda", generator=generator) * size.mean().sqrt()).to(out.dtype)
    out.copy_(old)
    gemm(a, b, out, codes=codes, accumulate=True, workspace=workspace)
    check(out, expected + old.double(), size + old.double().abs(), expected)


@ON_132
def test_integers_in_parts_are_exact() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    m, n, k = IN_PARTS[0]
    a, b = (
        Operand(torch.randint(-3, 4, (r, k), device="cuda", generator=generator).double(), block)
        for r, block in ((m, "1x128"), (n, "128x128"))
    )
    exact = (a.values @ b.values.t()).to(torch.bfloat16)
    for fill in range(5):
        out, workspace = torch.full((m, n), POISON, device="cuda", dtype=torch.bfloat16), workspace_of(fill)
        gemm(a, b, out, codes=False, workspace=workspace)
        assert torch.equal(out, exact)
        assert (workspace != fill).any(), "no tile was split"


@ON_132
def test_parts_in_graphs_and_on_two_streams() -> None:
    """A replayed launch has the same ticket every time; launches at the same time have workspaces of their own."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    sets = []
    for m, n, k in (IN_PARTS[0], IN_PARTS[1]):
        a, b = random_operand(m, k, "1x128", generator), random_operand(n, k, "128x128", generator)
        alone = torch.full((m, n), POISON, device="cuda", dtype=torch.bfloat16)
        gemm(a, b, alone, codes=False)
        check(alone, a.values @ b.values.t(), a.values.abs() @ b.values.abs().t())
        sets.append((a, b, alone, torch.empty_like(alone), workspace_of(7)))
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for a, b, _, out, _ in sets:  # one workspace for both: they follow each other
            gemm(a, b, out, codes=False, wait=False, workspace=sets[0][4])
    for _ in range(4):
        for _, _, _, out, _ in sets:
            out.fill_(POISON)
        recorded.replay()
        torch.cuda.synchronize()
        for _, _, alone, out, _ in sets:
            assert torch.equal(out.view(torch.int16), alone.view(torch.int16))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(10):
        for _, _, _, out, _ in sets:
            out.fill_(POISON)
        torch.cuda.synchronize()
        for queue, (a, b, _, out, workspace) in zip(streams, sets, strict=True):
            with torch.cuda.stream(queue):
                for _ in range(3):
                    gemm(a, b, out, codes=False, wait=False, workspace=workspace)
        torch.cuda.synchronize()
        for _, _, alone, out, _ in sets:
            assert torch.equal(out.view(torch.int16), alone.view(torch.int16))


@ON_132
@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("kind", ["random", "one", "short"])
@pytest.mark.parametrize(
    ("total", "groups", "n", "k"), [(2048, 5, 2304, 3600), (3000, 3, 2304, 5136), (3000, 3, 1536, 2576)]
)
def test_groups_in_parts(total: int, groups: int, n: int, k: int, kind: str, codes: bool) -> None:
    rng = random.Random(conftest.SEED + total)
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a = random_operand(total, k, "1x128", generator)
    parts = [random_operand(n, k, "128x128", generator) for _ in range(groups)]
    b = stacked(parts)
    ends = cuts(total, groups, kind, 1, rng)
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    outs = []
    for fill in (3, 255):
        out, workspace = torch.full((total, n), POISON, device="cuda", dtype=torch.bfloat16), workspace_of(fill)
        grouped(GROUP_M, where, a, b, n, out, codes, workspace=workspace)
        if kind == "one":
            assert (workspace != fill).any(), "no tile was split"
        begin = 0
        for end, part in zip(ends, parts, strict=True):
            x = a.values[begin:end]
            check(out[begin:end], x @ part.values.t(), x.abs() @ part.values.abs().t())
            begin = end
        assert (out[ends[-1] :] == POISON).all()
        outs.append(out.view(torch.int16))
    assert torch.equal(*outs)


@ON_132
def test_every_group_size_in_parts() -> None:
    """Groups whose tiles leave each number over, one after another: all shares, those of nothing too."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    n, k, groups, total = 1024, 2048, 4, 8192
    a = random_operand(total, k, "1x128", generator)
    parts = [random_operand(n, k, "128x128", generator) for _ in range(groups)]
    b = stacked(parts)
    expected = [a.values @ part.values.t() for part in parts]
    size = [a.values.abs() @ part.values.abs().t() for part in parts]
    workspace, split = workspace_of(9), 0
    for rows in range(4224, total + 1, 128):
        ends = [0, rows // 2, rows // 2 + 77, rows]
        out = torch.full((total, n), POISON, device="cuda", dtype=torch.bfloat16)
        workspace.fill_(9)
        grouped(GROUP_M, torch.tensor(ends, dtype=torch.int32, device="cuda"), a, b, n, out, False, workspace=workspace)
        split += int((workspace != 9).any())
        begin = 0
        for group, end in enumerate(ends):
            check(out[begin:end], expected[group][begin:end], size[group][begin:end])
            begin = end
        assert (out[rows:] == POISON).all()
    assert split > 10, "hardly any was split"


def test_a_workspace_is_checked() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(256, 256, "1x128", generator), random_operand(256, 256, "128x128", generator)
    out = torch.zeros(256, 256, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(Exception, match="256 bytes"):
        gemm(a, b, out, codes=False, workspace=workspace_of(0)[16:])
    ends = torch.tensor([256], dtype=torch.int32, device="cuda")
    with pytest.raises(Exception, match="256 bytes"):
        grouped(GROUP_M, ends, a, b, 256, out, False, workspace=workspace_of(0)[16:])


@pytest.mark.parametrize("codes", [False, True], ids=["f32", "e8m0"])
@pytest.mark.parametrize("b_block", ["128x128", "1x128"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "out_f32"])
@pytest.mark.parametrize("kind", ["random", "one"])
@pytest.mark.parametrize(("total", "groups", "m", "n"), [(2048, 8, 512, 384), (640, 3, 136, 520), (128, 5, 8, 264)])
def test_groups_of_the_reduction(total: int, groups: int, m: int, n: int, kind: str, dtype: int, b_block: str,
                                 codes: bool) -> None:  # fmt: skip
    rng = random.Random(conftest.SEED)
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(m, total, "1x128", generator), random_operand(n, total, b_block, generator)
    ends = cuts(total, groups, kind, 128, rng)
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    out = torch.full((groups, m, n), POISON, device="cuda", dtype=DTYPES[dtype])
    grouped(GROUP_K, where, a, b, n, out, codes)
    old = torch.randn(groups, m, n, device="cuda", generator=generator).to(DTYPES[dtype])
    added = old.clone()
    grouped(GROUP_K, where, a, b, n, added, codes, accumulate=True)
    begin = 0
    for g, end in enumerate(ends):
        left, right = a.values[:, begin:end], b.values[:, begin:end]
        expected, size = left @ right.t(), left.abs() @ right.abs().t()
        check(out[g], expected, size)
        if begin == end:
            assert (out[g] == 0).all()
            assert torch.equal(added[g], old[g])
        check(added[g], expected + old[g].double(), size + old[g].double().abs(), expected)
        begin = end


# ---- tiles of groups of the reduction, dealt to blocks as they come -------------------------------------------------

# What a block gets is dealt from 16 bytes of the workspace: the launch's ticket, how many tiles were drawn, nothing.
# With 128x128 blocks and a BF16 result they come behind the parts of tiles that are split.
DEAL_BYTES = 16
PART_BYTES = 128 * 256 * 4 + 8
# Groups, M, N, with more tiles than blocks; of up to 512 groups long ones come first, and empty ones have no tiles.
DEALT = ((1, 2176, 4104), (33, 520, 776), (512, 136, 264), (513, 136, 264))
ORDERED_GROUPS = 512


def single(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def parts_of(ends: list[int], tiles_of_group: int) -> int:
    """In how many parts are the tiles of groups that take more than half of a block's share; gemm_deal.cuh."""
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    whole = single(blocks) / (single(ends[-1]) * single(tiles_of_group))
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    long = [length for length in lengths if single(length) * whole >= 0.5]
    tiles = len(long) * tiles_of_group
    if not long or min(long) < 4096 or tiles > blocks // 2 or len(ends) > ORDERED_GROUPS:
        return 1
    return min(max(int(single(2) * single(max(long)) * whole), 2), 8, blocks // tiles)


def tiles_drawn(ends: list[int], tiles_of_group: int, parts: int) -> int:
    """Each block draws until it gets none: as many numbers as there are tiles, if these are more than blocks."""
    with_tiles = sum(begin < end for begin, end in zip([0, *ends], ends, strict=False))
    tiles = (with_tiles if len(ends) <= ORDERED_GROUPS else len(ends)) * tiles_of_group
    assert tiles > 2 * torch.cuda.get_device_properties(0).multi_processor_count
    return tiles + (parts - 1) * tiles_of_group  # uneven_ends has one long group


def uneven_ends(groups: int, rng: random.Random) -> list[int]:
    """One group has half of everything, every fifth has nothing, others a few blocks."""
    blocks = [0 if g % 5 == 4 else rng.randrange(6 if groups < 100 else 2) for g in range(groups)]
    blocks[groups // 3] = sum(blocks) + 3
    return [128 * sum(blocks[: g + 1]) for g in range(groups)]


def each_group(a: Operand, b: Operand, ends: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each group's product is, and the terms' magnitudes."""
    parts = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    return [(a.values[:, p] @ b.values[:, p].t(), a.values[:, p].abs() @ b.values[:, p].abs().t()) for p in parts]


@pytest.mark.parametrize("b_block", ["128x128", "1x128"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "out_f32"])
@pytest.mark.parametrize(("groups", "m", "n"), DEALT)
def test_tiles_are_dealt(groups: int, m: int, n: int, dtype: int, b_block: str) -> None:
    """Whatever lies in the workspace, each tile once, and the same bits: those without one where no tile is split."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED + groups)
    ends = uneven_ends(groups, random.Random(conftest.SEED + groups))
    a, b = random_operand(m, ends[-1], "1x128", generator), random_operand(n, ends[-1], b_block, generator)
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    exact = each_group(a, b, ends)
    tile_m, tile_n = (128, 256) if b_block == "128x128" else (192, 128)
    of_group = -(-m // tile_m) * -(-n // tile_n)
    splits = b_block == "128x128" and dtype == BF16
    parts = parts_of(ends, of_group) if splits else 1
    assert not splits or (parts > 1) == (groups in (33, 512))
    at = torch.cuda.get_device_properties(0).multi_processor_count * PART_BYTES if splits else 0
    old = torch.randn(groups, m, n, device="cuda", generator=generator).to(DTYPES[dtype])
    for accumulate in (False, True):
        outs = []
        for fill, codes in itertools.product((None, 0, 255, 0x5A), (False, True)):
            workspace = torch.empty(0, dtype=torch.uint8, device="cuda") if fill is None else workspace_of(fill)
            out = old.clone() if accumulate else torch.full_like(old, POISON)
            grouped(GROUP_K, where, a, b, n, out, codes, accumulate=accumulate, workspace=workspace)
            if fill in (None, 0) and not codes:
                for g, (expected, size) in enumerate(exact):
                    before = old[g].double() if accumulate else torch.zeros_like(expected)
                    check(out[g], expected + before, size + before.abs(), expected if accumulate else None)
            if fill is not None or parts == 1:
                outs.append(out)
            if fill is None:
                continue
            said = workspace[at : at + DEAL_BYTES].view(torch.int32).tolist()
            assert said[:2] == [0, 0], "the ticket was not taken back"
            assert said[2] == tiles_drawn(ends, of_group, parts), "not each tile was drawn once"
            assert (workspace[at + 12 :] == fill).all(), "more was written than tiles are dealt from"
            assert parts > 1 or (workspace[:at] == fill).all(), "a part was left"
        assert all(torch.equal(out, outs[0]) for out in outs[1:])


def test_integers_in_parts_of_groups_are_exact() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    groups, m, n = DEALT[1]
    ends = uneven_ends(groups, random.Random(conftest.SEED))
    assert parts_of(ends, -(-m // 128) * -(-n // 256)) > 2
    a, b = (
        Operand(torch.randint(-3, 4, (r, ends[-1]), device="cuda", generator=generator).double(), block)
        for r, block in ((m, "1x128"), (n, "128x128"))
    )
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    for codes in (False, True):
        out = torch.full((groups, m, n), POISON, device="cuda", dtype=torch.bfloat16)
        grouped(GROUP_K, where, a, b, n, out, codes, workspace=workspace_of(77))
        for product, (expected, _) in zip(out, each_group(a, b, ends), strict=True):
            assert torch.equal(product, expected.to(torch.bfloat16))


def test_empty_groups_are_dealt() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = random_operand(520, 128, "1x128", generator), random_operand(776, 128, "128x128", generator)
    for ends in ([0] * 40, [0] * 39 + [128], [128] * 40):
        out = torch.full((40, 520, 776), POISON, device="cuda", dtype=torch.bfloat16)
        where = torch.tensor(ends, dtype=torch.int32, device="cuda")
        grouped(GROUP_K, where, a, b, 776, out, False, workspace=workspace_of(1))
        for (expected, size), product in zip(each_group(a, b, ends), out, strict=True):
            check(product, expected, size)
            assert expected.any() or (product == 0).all()


def test_tiles_are_dealt_again_in_graphs_and_on_two_streams() -> None:
    """A replayed launch has the same ticket every time; one workspace serves launches that follow each other, and of
    products that split tiles."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    sets = []
    for groups, m, n in DEALT[1:3]:
        ends = uneven_ends(groups, random.Random(conftest.SEED))
        a, b = random_operand(m, ends[-1], "1x128", generator), random_operand(n, ends[-1], "128x128", generator)
        where = torch.tensor(ends, dtype=torch.int32, device="cuda")
        alone = torch.full((groups, m, n), POISON, device="cuda", dtype=torch.bfloat16)
        grouped(GROUP_K, where, a, b, n, alone, False, workspace=workspace_of(3))
        for product, (expected, size) in zip(alone, each_group(a, b, ends), strict=True):
            check(product, expected, size)
        sets.append((where, a, b, n, alone, torch.empty_like(alone)))
    m, n, k = IN_PARTS[0]
    split_a, split_b = random_operand(m, k, "1x128", generator), random_operand(n, k, "128x128", generator)
    split, split_alone = (torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    workspaces = [workspace_of(7), workspace_of(8)]
    gemm(split_a, split_b, split_alone, codes=False, workspace=workspaces[0])

    def run(which: tuple[Any, ...], workspace: torch.Tensor) -> None:
        where, a, b, n, _, out = which
        grouped(GROUP_K, where, a, b, n, out, False, workspace=workspace, wait=False)

    def poison() -> None:
        for out in (split, *(s[5] for s in sets)):
            out.fill_(POISON)
        torch.cuda.synchronize()

    def check_all() -> None:
        torch.cuda.synchronize()
        for *_, alone, out in sets:
            assert torch.equal(out, alone)

    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for which in sets:
            run(which, workspaces[0])
            gemm(split_a, split_b, split, codes=False, wait=False, workspace=workspaces[0])
    for _ in range(4):
        poison()
        recorded.replay()
        check_all()
        assert torch.equal(split, split_alone)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(10):
        poison()
        for queue, which, workspace in zip(streams, sets, workspaces, strict=True):
            with torch.cuda.stream(queue):
                for _ in range(3):
                    run(which, workspace)
        check_all()
