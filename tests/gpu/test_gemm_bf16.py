"""The grouped BF16 kernels against FP64: groups of any size that end anywhere, both ways the weights may lie, edges,
accumulation, what must not be written and what must not spread.

Products of BF16 are exact in FP32, and so are sums of small integers: those must be equal. Otherwise each step of 16
aligns its products and the sum so far to the largest: 17 addends lose less than 2^-23 of it each, so K / 16 steps lose
less than K * 2^-22 of the terms' magnitudes; the result is rounded once more, 2^-8 in BF16 (2^-23 in FP32), and twice
where it is added to BF16."""

from __future__ import annotations

import random

import pytest
import torch

import conftest
from deepwell import _core

F32, BF16 = 0, 2
GROUP_M, GROUP_K = 0, 1
DTYPES = {F32: torch.float32, BF16: torch.bfloat16}
POISON = 7777.0
SHAPES = ((2048, 8, 512, 1024), (777, 3, 136, 400), (100, 16, 264, 128), (12288, 2, 384, 256), (17, 1, 8, 8))


def grouped(axis: int, ends: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, across: bool = False,
            accumulate: bool = False, workspace: torch.Tensor | None = None,
            wait: bool = True) -> None:  # fmt: skip
    """GROUP_M: a [T, K], b [G, N, K] or across [G, K, N], out [T, N]. GROUP_K: a [T, M], b [T, N], out [G, M, N]."""
    n = out.shape[-1]
    m, k = (a.shape[0], a.shape[1]) if axis == GROUP_M else (a.shape[1], a.shape[0])
    _core.cuda_grouped_gemm_bf16(
        axis, ends.numel(), ends.data_ptr(), a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(-2), int(across),
        out.data_ptr(), F32 if out.dtype == torch.float32 else BF16, n, m, n, k, int(accumulate),
        *((0, 0) if workspace is None else (workspace.data_ptr(), workspace.numel())), 0,
        torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip
    if wait:
        torch.cuda.synchronize()


def draw(*shape: int, exact: bool, generator: torch.Generator) -> torch.Tensor:
    if exact:
        return torch.randint(-4, 5, shape, device="cuda", generator=generator).bfloat16()
    return torch.randn(shape, device="cuda", generator=generator).bfloat16()


def cuts(total: int, groups: int, kind: str) -> list[int]:
    rng = random.Random(conftest.SEED)
    if kind == "one":
        return [0] * (groups // 2) + [total] * (groups - groups // 2)
    ends = [*sorted(rng.randrange(0, total + 1) for _ in range(groups - 1)), total]
    if kind == "short":  # the last rows belong to nobody
        ends[-1] = max(ends[-2] if groups > 1 else 0, total // 2)
    return ends


def check(out: torch.Tensor, expected: torch.Tensor, size: torch.Tensor, k: int, exact: bool,
          first: torch.Tensor | None = None) -> None:  # fmt: skip
    """first: the sum before it was added to what was there, when it was rounded to the result's type of its own."""
    if exact and first is None:
        assert torch.equal(out, expected.to(out.dtype))
        return
    rounding = 2.0**-8 if out.dtype == torch.bfloat16 else 2.0**-22
    allowed = size * (k * 2.0**-22) + expected.abs() * rounding
    if first is not None:
        allowed += first.abs() * rounding
    wrong = ~((out.double() - expected).abs() <= allowed)
    assert not wrong.any(), f"{int(wrong.sum())} elements, first at {wrong.nonzero()[0].tolist()}"


@pytest.mark.parametrize("exact", [False, True], ids=["normal", "integers"])
@pytest.mark.parametrize("across", [False, True], ids=["rows", "across"])
@pytest.mark.parametrize("kind", ["random", "one", "short"])
@pytest.mark.parametrize(("total", "groups", "n", "k"), SHAPES)
def test_groups_of_rows(total: int, groups: int, n: int, k: int, kind: str, across: bool, exact: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = (draw(*s, exact=exact, generator=generator) for s in ((total, k), (groups, n, k)))
    ends = cuts(total, groups, kind)
    a[ends[-1] :] = float("nan")
    lying = b.transpose(1, 2).contiguous() if across else b
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    out = torch.full((total, n), POISON, device="cuda", dtype=torch.bfloat16)
    grouped(GROUP_M, where, a, lying, out, across)
    added = torch.full_like(out, 3.0)
    grouped(GROUP_M, where, a, lying, added, across, accumulate=True)
    begin = 0
    for g, end in enumerate(ends):
        left, right = a[begin:end].double(), b[g].double()
        expected, size = left @ right.t(), left.abs() @ right.abs().t()
        check(out[begin:end], expected, size, k, exact)
        check(added[begin:end], expected + 3, size, k, exact, first=expected)
        begin = end
    assert (out[begin:] == POISON).all(), "rows of no group were written"
    assert (added[begin:] == 3).all()


@pytest.mark.parametrize("exact", [False, True], ids=["normal", "integers"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize("kind", ["random", "one", "short"])
@pytest.mark.parametrize(("total", "groups", "m", "n"), SHAPES)
def test_groups_of_the_reduction(total: int, groups: int, m: int, n: int, kind: str, dtype: int, exact: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    a, b = (draw(total, width, exact=exact, generator=generator) for width in (m, n))
    ends = cuts(total, groups, kind)
    a[ends[-1] :], b[ends[-1] :] = float("inf"), float("nan")  # nobody's
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    out = torch.full((groups, m, n), POISON, device="cuda", dtype=DTYPES[dtype])
    grouped(GROUP_K, where, a, b, out)
    old = torch.randn(groups, m, n, device="cuda", generator=generator).to(DTYPES[dtype])
    added = old.clone()
    grouped(GROUP_K, where, a, b, added, accumulate=True)
    begin = 0
    for g, end in enumerate(ends):
        left, right = a[begin:end].double().t(), b[begin:end].double()
        expected, size = left @ right, left.abs() @ right.abs()
        check(out[g], expected, size, total, exact)
        check(added[g], expected + old[g].double(), size, total, exact, first=expected)
        if begin == end:
            assert (out[g] == 0).all()
            assert torch.equal(added[g], old[g])
        begin = end


@pytest.mark.parametrize("axis", [GROUP_M, GROUP_K], ids=["m", "k"])
def test_what_is_not_finite_stays_in_its_group(axis: int) -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    total, groups, m, n = 1000, 7, 264, 136
    ends = cuts(total, groups, "random")
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    for across in (False, True) if axis == GROUP_M else (True,):
        a = draw(total, m, exact=False, generator=generator)
        b = draw(*((groups, m, n) if across else (groups, n, m)) if axis == GROUP_M else (total, n), exact=False,
                 generator=generator)  # fmt: skip
        clean = torch.zeros((total, n) if axis == GROUP_M else (groups, m, n), device="cuda", dtype=torch.bfloat16)
        grouped(axis, where, a, b, clean, across)
        for g, end in enumerate(ends):
            begin = ends[g - 1] if g else 0
            bad_a, bad_b = a.clone(), b.clone()
            if axis == GROUP_M:
                bad_b[g] = float("nan")
                rows = slice(begin, end)
            else:
                bad_a[begin:end], bad_b[begin:end] = float("inf"), float("nan")
                rows = slice(g, g + 1)
            out = torch.full_like(clean, POISON)
            grouped(axis, where, bad_a, bad_b, out, across)
            out[rows] = clean[rows]
            assert torch.equal(out, clean)


def test_the_same_bits_in_every_run_and_in_a_graph() -> None:
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    ends = torch.tensor(cuts(4096, 8, "random"), dtype=torch.int32, device="cuda")
    a, b = (draw(4096, width, exact=False, generator=generator) for width in (1024, 768))
    outs = [torch.full((8, 1024, 768), POISON, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    for out in outs:
        grouped(GROUP_K, ends, a, b, out)
    assert torch.equal(*outs)
    graph = torch.cuda.CUDAGraph()
    replayed = torch.full_like(outs[0], POISON)
    with torch.cuda.graph(graph):
        grouped(GROUP_K, ends, a, b, replayed, wait=False)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(replayed, outs[0])


# ---- tiles of groups of the reduction, dealt to blocks as they come --------------------------------------------------

TILE_M, TILE_N = 128, 256
ORDERED_GROUPS = 512  # up to so many, long ones come first, and empty ones have no tiles


def uneven_ends(groups: int, rng: random.Random) -> list[int]:
    """One group has half of everything, every fifth has nothing, others up to 300 rows."""
    rows = [0 if g % 5 == 4 else rng.randrange(300) for g in range(groups)]
    rows[groups // 3] = sum(rows) + 100
    return [sum(rows[: g + 1]) for g in range(groups)]


@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize(("groups", "m", "n"), [(1, 2176, 4104), (33, 520, 776), (512, 136, 264), (513, 136, 264)])
def test_tiles_are_dealt(groups: int, m: int, n: int, dtype: int) -> None:
    """Whatever lies in the workspace, each tile once: the same bits as with none, whose tiles are not dealt."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED + groups)
    ends = uneven_ends(groups, random.Random(conftest.SEED + groups))
    a, b = (draw(ends[-1], width, exact=False, generator=generator) for width in (m, n))
    where = torch.tensor(ends, dtype=torch.int32, device="cuda")
    alone = torch.full((groups, m, n), POISON, device="cuda", dtype=DTYPES[dtype])
    grouped(GROUP_K, where, a, b, alone)
    begin = 0
    for end, out in zip(ends, alone, strict=True):
        left, right = a[begin:end].double().t(), b[begin:end].double()
        check(out, left @ right, left.abs() @ right.abs(), max(end - begin, 1), exact=False)
        begin = end
    old = torch.randn(alone.shape, device="cuda", generator=generator).to(DTYPES[dtype])
    undealt = old.clone()
    grouped(GROUP_K, where, a, b, undealt, accumulate=True)
    with_tiles = sum(begin < end for begin, end in zip([0, *ends], ends, strict=False))
    tiles = (with_tiles if groups <= ORDERED_GROUPS else groups) * -(-m // TILE_M) * -(-n // TILE_N)
    assert tiles > 2 * torch.cuda.get_device_properties(0).multi_processor_count
    for fill in (0, 255, 0x5A):
        for accumulate, expected in ((False, alone), (True, undealt)):
            workspace = torch.full((1024,), fill, dtype=torch.uint8, device="cuda")
            out = old.clone() if accumulate else torch.full_like(alone, POISON)
            grouped(GROUP_K, where, a, b, out, accumulate=accumulate, workspace=workspace)
            assert torch.equal(out, expected)
            said = workspace[:16].view(torch.int32).tolist()
            assert said[:2] == [0, 0], "the ticket was not taken back"
            assert said[2] == tiles, "not each tile was drawn once"
            assert (workspace[12:] == fill).all(), "more of the workspace was written than tiles are dealt from"


def test_dealt_tiles_in_graphs() -> None:
    """A replayed launch has the same ticket every time; one workspace serves launches that follow each other."""
    generator = torch.Generator("cuda").manual_seed(conftest.SEED)
    sets = []
    for groups, m, n in ((33, 520, 776), (5, 1032, 2056)):
        ends = uneven_ends(groups, random.Random(conftest.SEED))
        a, b = (draw(ends[-1], width, exact=False, generator=generator) for width in (m, n))
        where = torch.tensor(ends, dtype=torch.int32, device="cuda")
        alone = torch.full((groups, m, n), POISON, device="cuda", dtype=torch.bfloat16)
        grouped(GROUP_K, where, a, b, alone)
        sets.append((where, a, b, alone, torch.empty_like(alone)))
    workspace = torch.full((16,), 7, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for where, a, b, _, out in (*sets, *sets):
            grouped(GROUP_K, where, a, b, out, workspace=workspace, wait=False)
    for _ in range(4):
        for *_, out in sets:
            out.fill_(POISON)
        graph.replay()
        torch.cuda.synchronize()
        for *_, alone, out in sets:
            assert torch.equal(out, alone)


def test_a_workspace_is_checked() -> None:
    ends = torch.tensor([64], dtype=torch.int32, device="cuda")
    a, b = (torch.zeros(64, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.full((1, 128, 128), POISON, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(Exception, match="256 bytes"):
        grouped(GROUP_K, ends, a, b, out, workspace=torch.zeros(1024, dtype=torch.uint8, device="cuda")[16:])
    assert (out == POISON).all()
