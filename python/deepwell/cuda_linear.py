"""Linear layers on Hopper GPUs: quantize, multiply through libdeepwell, remember what can be used again.

    forward   y  = xq · wq^T              xq [M, K] and xqT [K, M] from one read of x, wq and wqT from a cache
    backward  dx = dyq · wqT^T            dyq [M, N] and dyqT [N, M] from one read of dy
              dw = dyqT · xqT^T           FP32 sums, rounded once to the weight's dtype

Activations and gradients have blocks of 1x128, weights 128x128, so that a weight's transpose is the same bytes. xqT is
kept for backward in place of x. Everything is enqueued on PyTorch's current stream and allocated by PyTorch; nothing
waits for the device.

Kept for later use: the FP8 copies of a parameter, until its version or its memory changes or an optimizer steps; and
the FP8 form of an activation, on the tensor itself, so that layers with one input (query, key and value; gate and up)
quantize it once, and a norm or activation that quantized its own output is used directly."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _core
from .errors import InvalidArgumentError

# Values of the C enumerations (deepwell/types.h, deepwell/cuda.h).
DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
E4M3, E5M2 = 3, 4
BLOCK_1X128, BLOCK_128X128 = 1, 2
SCALING_1X128, SCALING_128X128 = 2, 3
RCEIL = 0

WORKSPACE_BYTES = 32 << 20  # DW_GEMM_WORKSPACE_MAX
ROW_MULTIPLE = 16  # tokens are a reduction in the weight gradient, which FP8 needs in whole 16 bytes

_QUANTIZED = "_deepwell_quantized"

# FP8 bytes [rows, cols] and their FP32 scales.
Form = tuple[Tensor, Tensor]


class Quantized:
    """FP8 forms of one matrix, row-wise and transposed; what was not asked for is None. version is that of the tensor
    it was made from, -1 when it is for one use."""

    __slots__ = ("row", "transposed", "version")

    def __init__(self, version: int = -1) -> None:
        self.version = version
        self.row: Form | None = None
        self.transposed: Form | None = None


def stream_of(device: torch.device) -> int:
    return torch._C._cuda_getCurrentRawStream(device.index)


def _empty_scale(like: Tensor, rows: int, cols: int, block: int) -> Tensor:
    """Memory for the scales of a [rows, cols] matrix in the layout dw_gemm reads."""
    across = (cols + 127) // 128
    shape = (across, rows) if block == BLOCK_1X128 else ((rows + 127) // 128, (across + 3) // 4 * 4)
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _new_form(like: Tensor, rows: int, cols: int, block: int) -> tuple[Form, tuple[int, int]]:
    """Memory for one orientation, and its addresses."""
    data = torch.empty((rows, cols), dtype=torch.uint8, device=like.device)
    scale = _empty_scale(like, rows, cols, block)
    return (data, scale), (data.data_ptr(), scale.data_ptr())


def quantize_into(target: Quantized, matrix: Tensor, block: int, row: bool, transposed: bool) -> None:
    """Quantizes `matrix` [rows, cols], inner stride 1, into the orientations asked for, in one pass."""
    rows, cols = matrix.shape
    row_addresses = transposed_addresses = (0, 0)
    if row:
        target.row, row_addresses = _new_form(matrix, rows, cols, block)
    if transposed:
        target.transposed, transposed_addresses = _new_form(matrix, cols, rows, block)
    if rows == 0 or cols == 0:
        return
    _core.cuda_quantize(
        matrix.data_ptr(),
        DTYPE[matrix.dtype],
        rows,
        cols,
        matrix.stride(0),
        matrix.device.index,
        E4M3,
        block,
        RCEIL,
        row_addresses[0],
        cols,
        row_addresses[1],
        transposed_addresses[0],
        rows,
        transposed_addresses[1],
        stream_of(matrix.device),
    )


def as_matrix(x: Tensor) -> Tensor:
    """`x` [..., cols] as [rows, cols] with inner stride 1 and rows a multiple of ROW_MULTIPLE, zeros added below where
    they are missing. A view where possible."""
    matrix = x.detach().reshape(-1, x.shape[-1])
    if matrix.stride(1) != 1 or matrix.stride(0) < matrix.shape[1] or matrix.data_ptr() % 16:
        matrix = matrix.contiguous()
    missing = -matrix.shape[0] % ROW_MULTIPLE
    return F.pad(matrix, (0, 0, 0, missing)) if missing else matrix


def quantized_activation(x: Tensor, row: bool, transposed: bool) -> Quantized:
    """The FP8 forms of `x`, from an earlier call on the same tensor where it has not changed since."""
    version = -1 if x.is_inference() else x._version
    known: Quantized | None = x.__dict__.get(_QUANTIZED) if version >= 0 else None
    if known is None or known.version != version:
        known = Quantized(version)
        if version >= 0:
            x.__dict__[_QUANTIZED] = known
    row = row and known.row is None
    transposed = transposed and known.transposed is None
    if row or transposed:
        quantize_into(known, as_matrix(x), BLOCK_1X128, row, transposed)
    return known


def attach_quantized(x: Tensor, quantized: Quantized) -> None:
    """Says that `quantized` is the FP8 form of `x` as it is now; its kernel wrote both."""
    quantized.version = x._version
    x.__dict__[_QUANTIZED] = quantized


# ---- weights ---------------------------------------------------------------------------------------------------------


class _Entry:
    __slots__ = ("address", "epoch", "quantized", "reference", "version")


_weights: dict[int, _Entry] = {}
_epoch = 0


def _optimizer_stepped(*_: Any) -> None:
    # Optimizers that write through raw pointers do not raise the version.
    global _epoch
    _epoch += 1


_hook: Any = None


def _watch_optimizers() -> None:
    global _hook
    if _hook is None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        _hook = register_optimizer_step_post_hook(_optimizer_stepped)


def quantized_weight(weight: Tensor, row: bool, transposed: bool) -> Quantized:
    """The FP8 copies of a weight [N, K], made anew when it has changed."""
    if not isinstance(weight, torch.nn.Parameter) or weight.is_inference():
        fresh = Quantized()
        quantize_into(fresh, _weight_matrix(weight), BLOCK_128X128, row, transposed)
        return fresh
    _watch_optimizers()
    key = id(weight)
    entry = _weights.get(key)
    if (
        entry is None
        or entry.reference() is not weight
        or entry.version != weight._version
        or entry.address != weight.data_ptr()
        or (entry.epoch != _epoch and weight.requires_grad)
    ):
        entry = _Entry()
        entry.reference = weakref.ref(weight, lambda _, key=key: _weights.pop(key, None))
        entry.version, entry.address, entry.epoch = weight._version, weight.data_ptr(), _epoch
        entry.quantized = Quantized(weight._version)
        _weights[key] = entry
    known = entry.quantized
    row = row and known.row is None
    transposed = transposed and known.transposed is None
    if row or transposed:
        quantize_into(known, _weight_matrix(weight), BLOCK_128X128, row, transposed)
    return known


def _weight_matrix(weight: Tensor) -> Tensor:
    matrix = weight.detach()
    return matrix if matrix.stride(1) == 1 and matrix.data_ptr() % 16 == 0 else matrix.contiguous()


def forget_weights() -> None:
    """Drops every FP8 copy. For changes of a parameter that PyTorch cannot see, such as `weight.data.copy_(...)`."""
    _weights.clear()


# ---- products ----------------------------------------------------------------------------------------------------


def gemm(a: Form, b: Form, b_scaling: int, out: Tensor, bias: Tensor | None = None) -> None:
    """out [M, N] = a [M, K] · b [N, K]^T (+ bias); a in blocks of 1x128."""
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=out.device)
    m, k = a[0].shape
    _core.cuda_gemm(
        a[0].data_ptr(),
        E4M3,
        k,
        SCALING_1X128,
        a[1].data_ptr(),
        b[0].data_ptr(),
        E4M3,
        k,
        b_scaling,
        b[1].data_ptr(),
        out.data_ptr(),
        DTYPE[out.dtype],
        out.stride(0),
        m,
        b[0].shape[0],
        k,
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPE[bias.dtype],
        0,
        workspace.data_ptr(),
        WORKSPACE_BYTES,
        out.device.index,
        stream_of(out.device),
    )


def product(xq: Quantized, wq: Quantized, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """y [rows, N] = x · w^T + bias."""
    x, w = _made(xq.row), _made(wq.row)
    y = torch.empty((x[0].shape[0], w[0].shape[0]), dtype=out_dtype, device=x[0].device)
    if y.numel() == 0:
        return y
    # The multiplication adds a BF16 bias (an F16 one to an F16 result) itself; others are added at their own precision.
    inside = bias is not None and bias.dtype == (torch.float16 if out_dtype == torch.float16 else torch.bfloat16)
    gemm(x, w, SCALING_128X128, y, bias.detach() if inside else None)
    if bias is not None and not inside:
        y += bias.detach()
    return y


def data_gradient(dyq: Quantized, wq: Quantized, dtype: torch.dtype) -> Tensor:
    """dx [rows, K] = dy · w."""
    dy, w = _made(dyq.row), _made(wq.transposed)
    dx = torch.empty((dy[0].shape[0], w[0].shape[0]), dtype=dtype, device=dy[0].device)
    if dx.numel():
        gemm(dy, w, SCALING_128X128, dx)
    return dx


def weight_gradient(dyq: Quantized, x: Form, dtype: torch.dtype) -> Tensor:
    """dw [N, K] = dy^T · x, x transposed [K, M]. No tokens: zeros."""
    dy = _made(dyq.transposed)
    shape = (dy[0].shape[0], x[0].shape[0])
    if x[0].shape[1] == 0:
        return torch.zeros(shape, dtype=dtype, device=x[0].device)
    dw = torch.empty(shape, dtype=dtype, device=x[0].device)
    gemm(dy, x, SCALING_1X128, dw)
    return dw


def _made(form: Form | None) -> Form:
    if form is None:
        raise RuntimeError("an FP8 form is used that was not made: a defect of deepwell")
    return form


def bias_gradient(dy: Tensor, dtype: torch.dtype) -> Tensor:
    if dy.dim() == 1:
        return dy.to(dtype)
    return dy.sum(tuple(range(dy.dim() - 1)), dtype=torch.float32).to(dtype)


class Linear(torch.autograd.Function):
    """y = x · w^T + bias in eager mode. The FP8 forms come in as arguments, so the caller decides what is shared."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        xq: Quantized,
        wq: Quantized,
        out_dtype: torch.dtype,
        save_x: bool,
    ) -> Tensor:
        if save_x:
            ctx.save_for_backward(*_made(xq.transposed))
        ctx.wq, ctx.shape, ctx.saved_x = wq, x.shape, save_x
        ctx.x_dtype, ctx.weight_dtype, ctx.bias_dtype = x.dtype, weight.dtype, None if bias is None else bias.dtype
        rows = x.numel() // x.shape[-1]
        y = product(xq, wq, bias, out_dtype)
        return y[:rows].view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
        if need_dw and not ctx.saved_x:
            raise InvalidArgumentError(
                "a weight gradient is asked for, but the weight did not require one when the layer ran forward; set "
                "requires_grad before the forward pass"
            )
        dx = dw = db = None
        if need_dx or need_dw:
            dyq = quantized_activation(dy, need_dx, need_dw)
            if need_dx:
                rows = dy.numel() // dy.shape[-1]
                dx = data_gradient(dyq, ctx.wq, ctx.x_dtype)[:rows].view(ctx.shape)
            if need_dw:
                dw = weight_gradient(dyq, ctx.saved_tensors, ctx.weight_dtype)
        if need_db:
            db = bias_gradient(dy, ctx.bias_dtype)
        return dx, dw, db, None, None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """y [..., N] = x [..., K] · weight [N, K]^T + bias, of out_dtype, with FP8 operands. float32, float16 or bfloat16
    operands on one Hopper GPU; K and N multiples of 16."""
    grad = torch.is_grad_enabled()
    save_x = grad and weight.requires_grad
    xq = quantized_activation(x, True, save_x)
    wq = quantized_weight(weight, True, grad and x.requires_grad)
    return Linear.apply(x, weight, bias, xq, wq, out_dtype, save_x)


# ---- deepwell::mx_linear for PyTorch's dispatcher (compiled graphs) ------------------------------------------------


def linear_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: str, out_dtype: torch.dtype, save_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward. Nothing is kept on x: a compiled graph may write other values to the same tensor."""
    matrix = as_matrix(x)
    xq = Quantized()
    quantize_into(xq, matrix, BLOCK_1X128, True, save_x)
    y = product(xq, quantized_weight(weight, True, save_x), bias, out_dtype)
    rows = x.numel() // x.shape[-1]
    y = y[:rows].view(*x.shape[:-1], weight.shape[0])
    if not save_x:
        return y, x.new_empty((0,), dtype=torch.uint8), x.new_empty((0,), dtype=torch.float32)
    return y, *_made(xq.transposed)


def linear_backward_op(
    dy: Tensor,
    weight: Tensor,
    x_t: Tensor,
    x_t_scale: Tensor,
    recipe: str,
    x_dtype: torch.dtype,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor]:
    matrix = as_matrix(dy)
    dyq = Quantized()
    quantize_into(dyq, matrix, BLOCK_1X128, need_dx, need_dw)
    rows = dy.numel() // dy.shape[-1]
    if need_dx:
        dx = data_gradient(dyq, quantized_weight(weight, False, True), x_dtype)[:rows]
        dx = dx.view(*dy.shape[:-1], weight.shape[1])
    else:
        dx = dy.new_empty((0,), dtype=x_dtype)
    dw = weight_gradient(dyq, (x_t, x_t_scale), weight.dtype) if need_dw else dy.new_empty((0,), dtype=weight.dtype)
    return dx, dw


def saved_shapes(tokens: Any, features: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Shapes of the transposed FP8 of an activation and of its scales, for tracing."""
    padded = (tokens + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
    return (features, padded), ((padded + 127) // 128, features)
