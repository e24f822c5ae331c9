"""The GPU path of linear layers on the CPU: run by test_gpu_linear_stand_in.py as a process of its own, with the name
of a case. The stand-in driver calls back for each launch, and what a quantization kernel would do is done here by the
CPU's kernels; the stand-in cuBLASLt multiplies. All that lies between a layer's forward and those two is the real
thing."""

from __future__ import annotations

import ctypes as c
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

FAKES = Path(__file__).resolve().parent.parent.parent / "build" / "release" / "tests" / "c"
os.environ["DEEPWELL_LIBCUDA"] = str(FAKES / "fake_cuda.so")
os.environ["DEEPWELL_LIBCUBLASLT"] = str(FAKES / "fake_cublaslt.so")
os.environ["DEEPWELL_GEMM"] = "cublaslt"  # which is what there is a stand-in for

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from deepwell import MXFPQuantizer, _core, accumulate, cuda_eager, cuda_fused, ops, tuning  # noqa: E402
from deepwell import cuda_linear as cl  # noqa: E402

RECIPE = "e4m3/rceil/1x128/128x128"


# ---- the device ------------------------------------------------------------------------------------------------------


class Scale(c.Structure):  # dw_cuda_scale and the structs below: src/cuda/device/common/quantize_params.h
    _fields_ = (
        *((name, c.c_void_p) for name in ("codes", "factors")),
        *((name, c.c_int64) for name in ("row_stride", "col_stride", "factor_row_stride", "factor_col_stride")),
        *((n, c.c_int32) for n in ("atoms_per_row", "padded_rows", "padded_cols", "factor_rows", "factor_cols")),
    )


class Form(c.Structure):
    _fields_ = (("data", c.c_void_p), ("ld", c.c_int64), ("vector", c.c_int32), ("square", c.c_int32), ("scale", Scale))


class Params(c.Structure):
    _fields_ = (
        ("source", c.c_void_p),
        ("source_ld", c.c_int64),
        *((name, c.c_int32) for name in ("rows", "cols", "source_vector")),
        ("round_add", c.c_uint32),
        ("row", Form),
        ("transposed", Form),
    )


launched: list[str] = []


def strided(address: int, dtype: type, rows: int, cols: int, row_stride: int, col_stride: int) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    extent = (rows - 1) * row_stride + (cols - 1) * col_stride + 1
    flat = np.frombuffer((c.c_char * (extent * size)).from_address(address), dtype=dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, cols), (row_stride * size, col_stride * size))


def store(form: Form, data: np.ndarray, codes: np.ndarray) -> None:
    rows, cols = data.shape
    strided(form.data, np.uint8, rows, cols, form.ld, 1)[:] = data
    s = form.scale
    if s.factors:
        bits = np.where(codes == 255, 0x7FC00000, np.where(codes == 0, 0x00400000, codes.astype(np.uint32) << 23))
        values = np.zeros((s.factor_rows, s.factor_cols), np.float32)
        values[: codes.shape[0], : codes.shape[1]] = bits.astype(np.uint32).view(np.float32)
        target = strided(s.factors, np.float32, *values.shape, s.factor_row_stride, s.factor_col_stride)
        target[:] = values
    else:
        target = strided(s.codes, np.uint8, s.padded_rows, s.padded_cols, s.row_stride, s.col_stride)
        target[:] = 0
        target[: codes.shape[0], : codes.shape[1]] = codes


LaunchCallback = c.CFUNCTYPE(None, c.c_char_p, c.c_void_p, c.POINTER(c.c_void_p))


@LaunchCallback
def on_launch(symbol: bytes, _config: int, arguments: c.Array) -> None:
    name = symbol.decode()
    launched.append(name)
    _, orientation, source, element, block = name.split("__")[0].split("_")
    params = Params.from_address(arguments[0])
    rows, cols = params.rows, params.cols
    rounding = "rceil" if params.round_add else "floor"
    for form, m, n, place in (
        (params.row, rows, cols, 0 if orientation != "transposed" else None),
        (params.transposed, cols, rows, 1 if orientation != "row" else None),
    ):
        if place is None:
            continue
        own = "128x128" if form.square else block
        data = np.empty((m, n), np.uint8)
        codes = np.empty(_core.scale_shape(element, own, "row", m, n), np.uint8)
        outputs: list[tuple | None] = [None, None]
        outputs[place] = (data.ctypes.data, n, codes.ctypes.data)
        _core.quantize(params.source, source, rows, cols, params.source_ld, element, own, rounding, "row", *outputs)
        store(form, data, codes)


def start() -> None:
    """Installs the callback, and lets the CPU's tensors pass for a GPU's."""
    driver = c.CDLL(os.environ["DEEPWELL_LIBCUDA"])
    driver.fake_on_launch(on_launch)
    memory = torch.empty(cl.WORKSPACE_BYTES + 256, dtype=torch.uint8)
    aligned = memory[-memory.data_ptr() % 256 :][: cl.WORKSPACE_BYTES]
    cl.place_of = lambda device: (0, 0)
    cl.workspace_of = lambda device, stream: aligned


# ---- cases -----------------------------------------------------------------------------------------------------------


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def layer(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def run(linear: nn.Linear, x: Tensor) -> Tensor:
    return cuda_eager.linear(x, linear.weight, linear.bias, x.dtype)


def decoded(x: Tensor, block: str) -> Tensor:
    """x^T through FP8, quantized on its own in blocks of that shape."""
    quantizer = MXFPQuantizer(block=block)
    return quantizer.dequantize(quantizer.quantize_tensor(x.t().contiguous())).double()


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """What the emulation, with vectors throughout, does otherwise: x transposed is in square blocks here."""
    x, dy = x.detach().flatten(0, -2), dy.flatten(0, -2)
    return decoded(dy, "1x128") @ decoded(x, "128x128").t()


def values_and_gradients() -> None:
    """What the emulation gives from the same operands, but for the order of FP32 sums and one rounding."""
    for dtype, tolerance in ((torch.bfloat16, 2.0**-8), (torch.float32, 2.0**-18)):
        for shape, outputs, bias in (((48, 160), 144, True), ((2, 24, 32), 48, False), ((17, 48), 32, True)):
            linear = layer(shape[-1], outputs, dtype, bias)
            x = torch.randn(shape, dtype=dtype)
            dy = torch.randn(*shape[:-1], outputs, dtype=dtype)
            results = []
            for call in (
                lambda x, linear=linear: run(linear, x),
                lambda x, linear=linear: ops.mx_linear(x, linear.weight, linear.bias, RECIPE, x.dtype, True),
            ):
                given = x.clone().requires_grad_()
                linear.zero_grad()
                y = call(given)
                y.backward(dy)
                results.append([y.detach(), given.grad, *(p.grad for p in linear.parameters())])
            results[1][2] = weight_gradient(x, dy).to(dtype)
            for ours, theirs in zip(*results, strict=True):
                assert ours.dtype == theirs.dtype
                assert ours.shape == theirs.shape
                assert relative(ours, theirs) < tolerance, (dtype, shape, relative(ours, theirs))


def launches_of(call: Callable[[], object]) -> list[str]:
    """What `call` launches the second time; the first time the kernels' self-tests are among it."""
    call()
    launched.clear()
    call()
    return [name.split("__")[0].removeprefix("quantize_") for name in launched]


def what_is_not_needed_is_not_made() -> None:
    linear, second = layer(64, 96, torch.bfloat16), layer(64, 96, torch.bfloat16)

    def fresh() -> Tensor:
        return torch.randn(32, 64).bfloat16().requires_grad_()

    def inference() -> None:
        with torch.no_grad():
            run(linear, fresh())

    def training() -> None:
        x = fresh()
        (run(linear, x) + run(second, x)).backward(torch.ones(32, 96).bfloat16())

    assert launches_of(inference) == ["row_bf16_e4m3_1x128"]
    # x once for both layers, and dy once.
    assert launches_of(training) == ["both_bf16_e4m3_1x128"] * 2
    cl.forget_weights()
    assert launches_of(lambda: (cl.forget_weights(), inference())) == ["row_bf16_e4m3_128x128", "row_bf16_e4m3_1x128"]
    linear.weight.requires_grad_(False)
    second.weight.requires_grad_(False)
    assert launches_of(training) == ["row_bf16_e4m3_1x128"] * 2


def accumulation() -> None:
    linear = layer(64, 96, torch.bfloat16)
    weight = linear.weight
    batches = [(torch.randn(32, 64).bfloat16(), torch.randn(32, 96).bfloat16()) for _ in range(3)]

    def backward(i: int, **options: object) -> None:
        run(linear, batches[i][0]).backward(batches[i][1], **options)

    def usual(count: int) -> Tensor:
        """The sum of gradients that autograd adds up itself."""
        own = accumulate.target
        accumulate.target = lambda *_: None
        weight.grad = None
        for i in range(count):
            backward(i)
        accumulate.target = own
        return weight.grad

    expected = usual(3)
    weight.grad = None
    backward(0)
    first, version = weight.grad, weight.grad._version
    added = []
    own = accumulate.added
    accumulate.added = lambda *grads: (added.append(len(grads)), own(*grads))
    for i in (1, 2):
        backward(i)
    assert added == [1, 1]
    assert weight.grad is first
    assert weight.grad._version > version
    # Two roundings less; each is at most 2^-9 of a value.
    assert relative(weight.grad, expected) < 2.0**-7
    assert relative(weight.grad, expected) > 0 or torch.equal(weight.grad, expected)

    # Asked for as a result: nothing is added, the gradient comes back.
    before = weight.grad.clone()
    (wanted,) = torch.autograd.grad(run(linear, batches[0][0]), [weight], batches[0][1])
    x = batches[0][0].clone().requires_grad_()
    torch.autograd.grad(run(linear, x), [x], batches[0][1])
    run(linear, x).backward(batches[0][1], inputs=[x])
    assert torch.equal(weight.grad, before)
    assert relative(wanted, usual(1)) == 0
    weight.grad = before
    assert len(added) == 2

    # Where somebody would notice, autograd adds.
    calls = []
    hooks = (
        lambda: weight.register_hook(lambda g: calls.append("hook")),
        lambda: weight.register_post_accumulate_grad_hook(lambda p: calls.append("post")),
    )
    for register in hooks:
        handle = register()
        backward(0)
        handle.remove()
        assert len(added) == 2
    assert calls == ["hook", "post"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backward(0, create_graph=True)
    assert len(added) == 2
    weight.grad = before.t().contiguous().t()  # not in rows, of which PyTorch warns too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backward(0)
    assert len(added) == 2
    torch.distributed.is_initialized, is_initialized = (lambda: True), torch.distributed.is_initialized
    weight.grad = before.clone()
    backward(0)
    torch.distributed.is_initialized = is_initialized
    assert len(added) == 2
    backward(0)
    assert len(added) == 3


def gated_mlp() -> None:
    """A gated MLP forward and backward, its two activation kernels done by PyTorch, against full precision: what is
    looked for is a form in the wrong place or of the wrong kind."""

    def forms(values: Tensor, blocks: tuple[int, int], transposed: bool) -> cl.Quantized:
        made = cl.Quantized()
        cl.quantize_into(made, values.contiguous(), *values.shape, blocks, True, transposed)
        return made

    def forward(gate_up: Tensor, inner: int, transposed: bool, _: object = None) -> tuple:
        gate, up = gate_up.float().split(inner, 1)
        made = forms((nn.functional.silu(gate) * up).bfloat16(), cl.ACTIVATION, transposed)
        return made.row, made.transposed

    def backward(da: Tensor, gate_up: Tensor, inner: int, _: object = None) -> tuple:
        given = gate_up.float().requires_grad_()
        with torch.enable_grad():
            gate, up = given.split(inner, 1)
            (nn.functional.silu(gate) * up).backward(da.float())
        made = forms(given.grad.bfloat16(), cl.GRADIENT, True)
        return made.row, made.transposed

    cuda_fused.swiglu_forward, cuda_fused.swiglu_backward = forward, backward
    rows, hidden, inner = 64, 96, 128
    weights = [
        nn.Parameter(torch.randn(shape).bfloat16() / 10) for shape in ((inner, hidden),) * 2 + ((hidden, inner),)
    ]
    x, dy = torch.randn(rows, hidden).bfloat16().requires_grad_(), torch.randn(rows, hidden).bfloat16()
    for micro_batch in (1, 2):
        cuda_fused.gated_mlp(x, *weights).backward(dy)
        plain = [t.detach().double().requires_grad_() for t in (x, *weights)]
        gate, up, down = plain[1:]
        y = (nn.functional.silu(plain[0] @ gate.t()) * (plain[0] @ up.t())) @ down.t()
        (micro_batch * y).backward(dy.double())
        for ours, theirs in zip((x, *weights), plain, strict=True):
            # Three products deep, each operand off by 2^-4 / sqrt(3) in norm at most: E4M3 has 3 bits.
            assert relative(ours.grad, theirs.grad) < (2 * 3 * 2) ** 0.5 * 2.0**-4 / 3**0.5


# ---- tuning ----------------------------------------------------------------------------------------------------------


def tuned_layer() -> None:
    """The three products of a layer, each with every kernel that can, and what is remembered of them."""
    symbols: list[str] = []
    note = LaunchCallback(lambda symbol, _config, _arguments: symbols.append(symbol.decode()))
    driver = c.CDLL(os.environ["DEEPWELL_LIBCUDA"])
    driver.fake_on_launch(note)
    # What cannot be tested runs with a warning; what is tested computes nothing here, and would fail.
    no_memory = c.c_char_p(b"cuMemAlloc")
    driver.fake_fail(no_memory)
    warnings.simplefilter("ignore", RuntimeWarning)
    cpu = torch.device("cpu")
    allocate = torch.empty

    def as_on_a_gpu(*size: int, **options: Any) -> torch.Tensor:
        """Bytes aligned as those of a GPU are."""
        if options.get("dtype") != torch.uint8:
            return allocate(*size, **options)
        memory = allocate(size[0] + 256, **options)
        return memory[-memory.data_ptr() % 256 :][: size[0]]

    with mock.patch.object(torch, "empty", as_on_a_gpu):
        assert tuning.tune_layer(500, 256, 384, torch.bfloat16, cpu) == 3
    kernels = {name for name in symbols if "gemm_nt_e4m3_f32_1x128_128x128_bf16" in name}
    assert len(kernels) > 2
    assert set(symbols) == kernels
    (file,) = (Path(os.environ["XDG_CACHE_HOME"]) / "deepwell").glob("gemm-*")
    sizes = [line.split()[:4] for line in file.read_text().splitlines()[4:-1]]
    assert sizes == [["512", "256", "384", "1"], ["512", "384", "256", "1"], ["256", "384", "512", "1"]]
    symbols.clear()
    assert tuning.tune_layer(500, 256, 384, torch.float16, cpu) == 0
    os.environ["DEEPWELL_TUNING"] = "off"
    assert tuning.tune_layer(500, 256, 384, torch.bfloat16, cpu) == 0
    assert not symbols


CASES = {
    f.__name__: f for f in (gated_mlp, values_and_gradients, what_is_not_needed_is_not_made, accumulation, tuned_layer)
}

if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[2]))
    warnings.simplefilter("error", RuntimeWarning)  # a kernel that fails its self-test is one
    start()
    CASES[sys.argv[1]]()
