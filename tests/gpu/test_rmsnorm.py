"""RMSNorm with quantization through the C interface: widths around every choice of kernel, residuals, strides, both
kinds of weights and of blocks, threads and graphs. test_fused.py has what training uses of it."""

from __future__ import annotations

import ctypes as c
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deepwell

BF16 = torch.bfloat16
E4M3, E8M0, RCEIL, MN_MAJOR = 3, 5, 0, 1
BLOCKS = {"1x32": 0, "1x128": 1}
DTYPES = {torch.float32: 0, BF16: 2, torch.uint8: E4M3}
GPU = 2
FENCE = 0xC3


class View(c.Structure):  # dw_tensor and the structs below: include/deepwell
    _fields_ = (
        ("data", c.c_void_p),
        *((name, c.c_int32) for name in ("dtype", "device_type", "device_id", "rank")),
        ("shape", c.c_int64 * 8),
        ("strides", c.c_int64 * 8),
    )


class Spec(c.Structure):
    _fields_ = (*((n, c.c_int32) for n in ("element", "block", "rounding", "layout")), ("transposed_square", c.c_bool))


class Quantized(c.Structure):
    _fields_ = (("data", View), ("scale", View))


class Arguments(c.Structure):
    _fields_ = (
        *((name, View) for name in ("x", "residual", "h", "weight")),
        ("eps", c.c_float),
        ("weight_offset", c.c_float),
        ("spec", Spec),
        ("row", c.POINTER(Quantized)),
        ("transposed", c.POINTER(Quantized)),
        ("y", View),
        ("rstd", View),
    )


library = c.CDLL(str(next(Path(deepwell.__file__).parent.glob("libdeepwell.so*"))))
library.dw_last_error.restype = c.c_char_p
library.dw_context_create.argtypes = (c.c_void_p, c.POINTER(c.c_void_p))
library.dw_scale_shape.argtypes = (c.POINTER(Spec), c.c_int64, c.c_int64, c.c_int64 * 2)
library.dw_rmsnorm_quantize.argtypes = (c.c_void_p, c.POINTER(Arguments), c.c_void_p)
library.dw_quantize.argtypes = (c.c_void_p, c.POINTER(Spec), c.POINTER(View), *3 * (c.c_void_p,))


def check(status: int) -> None:
    assert status == 0, library.dw_last_error().decode()


context = c.c_void_p()
check(library.dw_context_create(None, c.byref(context)))


def view(tensor: Tensor | None, dtype: int | None = None) -> View:
    if tensor is None:
        return View()
    kind = DTYPES[tensor.dtype] if dtype is None else dtype
    made = View(tensor.data_ptr(), kind, GPU, tensor.device.index, tensor.ndim)
    made.shape[: tensor.ndim], made.strides[: tensor.ndim] = tensor.shape, tensor.stride()
    return made


class Form:
    """A quantized [rows, cols] matrix in fenced, poisoned memory."""

    def __init__(self, spec: Spec, rows: int, cols: int, square: bool) -> None:
        own = Spec(spec.element, 2 if square else spec.block, spec.rounding, spec.layout)
        shape = (c.c_int64 * 2)()
        check(library.dw_scale_shape(c.byref(own), rows, cols, shape))
        self.memory = [
            torch.full((n + 64,), FENCE, dtype=torch.uint8, device="cuda") for n in (rows * cols, shape[0] * shape[1])
        ]
        data, scale = self.memory[0][:-64].view(rows, cols), self.memory[1][:-64].view(*shape)
        self.quantized = Quantized(view(data), view(scale, E8M0))

    def same(self, other: Form) -> bool:
        """Fences included."""
        return all(torch.equal(a, b) for a, b in zip(self.memory, other.memory, strict=True))


class Case:
    """One request, its random data and its poisoned results."""

    def __init__(
        self,
        rows: int,
        cols: int,
        *,
        ld: int | None = None,
        block: str = "1x128",
        square: bool = False,
        residual: bool = False,
        weight: torch.dtype = BF16,
        offset: float = 0.0,
    ) -> None:
        self.rows, self.cols, self.square, self.offset = rows, cols, square, offset
        self.spec = Spec(E4M3, BLOCKS[block], RCEIL, MN_MAJOR, square)
        wide = (rows, ld or cols)
        self.x = (torch.randn(wide, device="cuda") * torch.rand(rows, 1, device="cuda") * 9).to(BF16)[:, :cols]
        self.residual = torch.randn(wide, device="cuda").to(BF16)[:, :cols] if residual else None
        self.weight = torch.randn(cols, device="cuda").to(weight)
        self.wide = [torch.full(wide, 7e7, dtype=BF16, device="cuda") for _ in range(2)]
        self.y, self.h = (wide[:, :cols] for wide in self.wide)
        self.rstd = torch.full((rows,), float("nan"), device="cuda")
        self.forms = self.new_forms()

    def new_forms(self) -> tuple[Form, Form]:
        return Form(self.spec, self.rows, self.cols, False), Form(self.spec, self.cols, self.rows, self.square)

    def run(self) -> None:
        arguments = Arguments(
            view(self.x),
            view(self.residual),
            view(self.h if self.residual is not None else None),
            view(self.weight),
            1e-5,
            self.offset,
            self.spec,
            *(c.pointer(form.quantized) for form in self.forms),
            view(self.y),
            view(self.rstd),
        )
        check(library.dw_rmsnorm_quantize(context, c.byref(arguments), torch.cuda.current_stream().cuda_stream))

    def verify(self) -> None:
        h = self.x
        if self.residual is not None:
            h = (self.x.float() + self.residual.float()).to(BF16)
            assert torch.equal(self.h, h)
        mean = h.double().square().mean(-1, keepdim=True) + 1e-5
        # At most some 100 FP32 sums one after another, and half of a sum's error reaches its root: 50 * 2^-24.
        assert ((self.rstd.double() * mean[:, 0].sqrt() - 1).abs() < 2.0**-18).all()
        expected = h.double() * mean.rsqrt() * (self.weight.double() + self.offset)
        # Rounded to BF16 once, by 2^-8 of a value at most; FP32 before that.
        assert ((self.y.double() - expected).abs() <= 1.01 * 2.0**-8 * expected.abs() + 1e-30).all()
        assert all((wide[:, self.cols :] == wide.new_tensor(7e7)).all() for wide in self.wide)
        again = self.new_forms()
        self.quantize(again)
        assert all(form.same(other) for form, other in zip(self.forms, again, strict=True))

    def quantize(self, forms: tuple[Form, Form]) -> None:
        """y alone."""
        source = view(self.y)
        check(
            library.dw_quantize(
                context,
                c.byref(self.spec),
                c.byref(source),
                *(c.addressof(form.quantized) for form in forms),
                torch.cuda.current_stream().cuda_stream,
            )
        )


# One tile, two blocks, clusters of 8 and 9, 16 blocks of two tiles, and just beyond; the ring with slices of 2 to 7
# tiles, all alike or with one more in every second panel; then two kernels.
WIDTHS = (8, 128, 136, 256, 1000, 2048, 2056, 4096, 4104, 4224, 5120, 6144, 7168, 8192, 8200, 12288, 12296)
WIDTHS += (14336, 14344, 14464, 16392)


@pytest.mark.parametrize("block", ["1x32", "1x128"])
@pytest.mark.parametrize("cols", WIDTHS)
def test_widths(cols: int, block: str) -> None:
    for rows in (1, 16, 127, 128, 130, 300, 2700):  # the last one fills the device with clusters and goes on
        case = Case(rows, cols, block=block)
        case.run()
        case.verify()


@pytest.mark.parametrize("weight", [BF16, torch.float32])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("cols", [200, 2048, 3600, 5000, 7168, 9000, 12296, 14336])
def test_residual_stride_weight_and_square_form(cols: int, square: bool, weight: torch.dtype) -> None:
    for ld in (cols, cols + 40, cols + 41):  # the last one is not aligned
        for residual in (False, True):
            case = Case(261, cols, ld=ld, square=square, residual=residual, weight=weight, offset=float(residual))
            case.run()
            case.verify()


@pytest.mark.parametrize("cols", [1001, 4095, 7170, 14330])
def test_columns_that_fill_no_unit(cols: int) -> None:
    for ld in (cols, -(-cols // 8) * 8):
        case = Case(133, cols, ld=ld, square=True)
        case.run()
        case.verify()


@pytest.mark.parametrize("name", ["residual", "x"])
def test_the_sum_may_replace_what_it_is_of(name: str) -> None:
    """With 9 panels clusters that share one would read what another has replaced."""
    for cols in (4096, 7168, 14336):
        for rows in (200, 1100):
            case = Case(rows, cols, residual=True)
            replaced = getattr(case, name)
            before = replaced.clone()
            case.h = replaced
            case.run()
            setattr(case, name, before)
            case.verify()


@pytest.mark.parametrize("cols", [4224, 5120, 7168, 12296, 13312, 13440, 13704, 14336])
def test_panels_that_clusters_share(cols: int) -> None:
    """Fewer panels than clusters, and one to six left over; slices that differ from panel to panel."""
    for rows in (100, 256, 900, 1024, 1050, 1300, 1600, 1790, 2040, 3800):
        for residual in (False, True):
            case = Case(rows, cols, square=True, residual=residual)
            case.run()
            case.verify()


def test_threads_and_streams() -> None:
    """Clusters of several launches at once: nobody waits for a block that cannot start."""
    cases = [Case(2048, cols, square=True) for cols in (2048, 4096, 6144, 7168)]
    torch.cuda.synchronize()

    def work(case: Case) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(30):
                case.run()
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for case in cases:
        case.verify()


def test_two_runs_give_the_same_bits() -> None:
    for cols in (2048, 4096, 7168, 14336):
        case = Case(3000, cols, residual=True)
        case.run()
        forms, rstd = case.forms, case.rstd.clone()
        for _ in range(10):
            case.forms = case.new_forms()
            case.run()
            assert all(form.same(other) for form, other in zip(forms, case.forms, strict=True))
            assert torch.equal(case.rstd, rstd)


@pytest.mark.parametrize("rows", [16, 130, 2000])
@pytest.mark.parametrize("cols", [1000, 2048, 4096, 5120, 7168, 14336, 14464])
def test_launches_in_a_row_wait_for_each_other(cols: int, rows: int) -> None:
    """A norm reads what the one before it wrote and writes where that one read; between them y is quantized alone. What
    must come out is what comes out when nothing is in flight. Launches begin while the one ahead still runs."""
    cases = [
        Case(rows, cols, residual=i % 2 == 1, square=i % 4 == 1, block=("1x128", "1x32")[i % 4 == 2]) for i in range(8)
    ]
    start, matrices = cases[0].x.clone(), (cases[0].x, cases[0].y)

    def run(synchronize: bool) -> list[Tensor]:
        matrices[0].copy_(start)
        apart = [case.new_forms() for case in cases]  # ahead: nothing else is launched between
        for case in cases:
            case.forms = case.new_forms()
            case.rstd = torch.full_like(case.rstd, float("nan"))
        torch.cuda.synchronize()
        for i, (case, forms) in enumerate(zip(cases, apart, strict=True)):
            case.x, case.y = matrices[i % 2], matrices[1 - i % 2]
            case.run()
            if synchronize:
                torch.cuda.synchronize()
            case.quantize(forms)
            if synchronize:
                torch.cuda.synchronize()
        every = [form for case, forms in zip(cases, apart, strict=True) for form in (*case.forms, *forms)]
        return [memory for form in every for memory in form.memory] + [case.rstd for case in cases]

    expected = run(True)
    cases[-1].verify()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(run(False), expected, strict=True))


def test_graph() -> None:
    cases = [Case(256, cols, square=True) for cols in (2048, 4096, 7168)]
    for case in cases:
        case.run()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for case in cases:
            case.run()
    for case in cases:
        case.x.normal_()
    graph.replay()
    for case in cases:
        case.verify()
