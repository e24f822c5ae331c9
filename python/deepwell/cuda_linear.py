"""Linear layers on Hopper GPUs: quantize, multiply through libdeepwell, remember what can be used again.

    forward   y  = xq · wq^T              xq [M, K] and xqT [K, M] from one read of x, wq and wqT from a cache
    backward  dx = dyq · wqT^T            dyq [M, N] and dyqT [N, M] from one read of dy
              dw = dyqT · xqT^T           FP32 sums, rounded once to the weight's dtype

Activations and gradients have blocks of 1x128 along the reduction, weights 128x128, so that a weight's transpose is the
same bytes. xqT has blocks of 128x128 too: one operand of a product can, and its scale is then a single number for each
tile and step, which makes the product faster; docs/numerics.md says what it costs in accuracy. xqT is kept for backward
in place of x. Everything is enqueued on PyTorch's current stream and allocated by PyTorch; nothing
waits for the device.

Kept for later use: the FP8 copies of a parameter, until its version or its memory changes or an optimizer steps; and
the FP8 form of an activation, on the tensor itself, so that layers with one input (query, key and value; gate and up)
quantize it once, and a norm or activation that quantized its own output is used directly."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _core

# Values of the C enumerations (deepwell/types.h, deepwell/cuda.h).
DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
E4M3, E5M2 = 3, 4
BLOCK_1X128, BLOCK_128X128 = 1, 2
SCALING = {BLOCK_1X128: 2, BLOCK_128X128: 3}
RCEIL = 0
BACKEND_AUTO, BACKEND_OWN, BACKEND_CUBLASLT = 0, 1, 2

# Blocks of the row-wise and of the transposed form.
ACTIVATION = (BLOCK_1X128, BLOCK_128X128)
GRADIENT = (BLOCK_1X128, BLOCK_1X128)
WEIGHT = (BLOCK_128X128, BLOCK_128X128)

WORKSPACE_BYTES = 32 << 20  # DW_GEMM_WORKSPACE_MAX
ROW_MULTIPLE = 16  # tokens are a reduction in the weight gradient, which FP8 needs in whole 16 bytes

_QUANTIZED = "_deepwell_quantized"


class Form:
    """One orientation of a quantized matrix: FP8 bytes [rows, cols], `ld` apart, and the FP32 scales of its blocks, in
    one buffer."""

    __slots__ = ("address", "block", "buffer", "cols", "ld", "rows", "scale_address")

    def __init__(self, buffer: Tensor, rows: int, cols: int, block: int, offset: int = 0) -> None:
        self.buffer, self.rows, self.cols, self.ld, self.block = buffer, rows, cols, cols, block
        self.address = buffer.data_ptr() + offset
        self.scale_address = self.address + scale_offset(rows, cols)

    def columns(self, first: int, count: int) -> Form:
        """A part of a matrix in blocks of 1x128, as a view; first is a multiple of 128. Square blocks have none:
        a product takes the distance between their rows of scales from the number of columns."""
        if self.block != BLOCK_1X128:
            raise RuntimeError("columns of a form in square blocks are asked for: a defect of deepwell")
        part = Form.__new__(Form)
        part.buffer, part.rows, part.cols, part.ld, part.block = self.buffer, self.rows, count, self.ld, self.block
        part.address = self.address + first
        part.scale_address = self.scale_address + 4 * (first // 128) * self.rows
        return part


class Quantized:
    """FP8 forms of one matrix, row-wise and transposed; what was not asked for is None. version is that of the tensor
    it was made from, -1 when it is for one use."""

    __slots__ = ("row", "transposed", "version")

    def __init__(self, version: int = -1) -> None:
        self.version = version
        self.row: Form | None = None
        self.transposed: Form | None = None


def place_of(device: torch.device) -> tuple[int, int]:
    """The index of a GPU, and PyTorch's current stream there."""
    index = device.index
    return index, torch._C._cuda_getCurrentRawStream(index)


def scale_offset(rows: int, cols: int) -> int:
    """Where in a form's buffer the scales begin, in bytes."""
    return (rows * cols + 255) // 256 * 256


@functools.lru_cache(maxsize=4096)
def form_bytes(rows: int, cols: int, block: int) -> int:
    """Size of a form's buffer; the scales lie as dw_gemm reads them."""
    across = (cols + 127) // 128
    scales = rows * across if block == BLOCK_1X128 else (rows + 127) // 128 * ((across + 3) // 4 * 4)
    return scale_offset(rows, cols) + 4 * scales


def new_form(rows: int, cols: int, block: int, device: torch.device) -> Form:
    return Form(torch.empty(form_bytes(rows, cols, block), dtype=torch.uint8, device=device), rows, cols, block)


def quantize_into(
    target: Quantized, matrix: Tensor, rows: int, cols: int, blocks: tuple[int, int], row: bool, transposed: bool
) -> None:
    """Quantizes `matrix`, dense in memory as [rows, cols], into the orientations asked for, in one pass."""
    device = matrix.device
    index, stream = place_of(device)
    row_form = transposed_form = None
    if row:
        target.row = row_form = new_form(rows, cols, blocks[0], device)
    if transposed:
        target.transposed = transposed_form = new_form(cols, rows, blocks[1], device)
    if rows == 0 or cols == 0:
        return
    _core.cuda_quantize(
        matrix.data_ptr(),
        DTYPE[matrix.dtype],
        rows,
        cols,
        cols,
        index,
        E4M3,
        blocks[0],
        RCEIL,
        row_form.address if row_form else 0,
        cols,
        row_form.scale_address if row_form else 0,
        transposed_form.address if transposed_form else 0,
        rows,
        transposed_form.scale_address if transposed_form else 0,
        int(blocks[1] != blocks[0]),
        stream,
    )


def padded_rows(x: Tensor) -> tuple[int, int]:
    """Rows of `x` [..., cols] as a matrix, and the multiple of ROW_MULTIPLE they are filled up to."""
    cols = x.shape[-1]
    rows = x.numel() // cols
    return rows, (rows + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE


def as_dense(x: Tensor) -> tuple[Tensor, int]:
    """A tensor that is dense in memory as [rows, cols], rows a multiple of ROW_MULTIPLE with zeros added where rows are
    missing, and that number of rows. `x` itself where possible."""
    rows, padded = padded_rows(x)
    if rows == padded and x.is_contiguous() and x.data_ptr() % 16 == 0:
        return x, rows
    matrix = x.detach().reshape(rows, x.shape[-1])
    if rows != padded:
        return F.pad(matrix, (0, 0, 0, padded - rows)), padded
    return matrix.clone(memory_format=torch.contiguous_format), rows


def known_forms(x: Tensor) -> Quantized:
    """Where the FP8 forms of `x` as it is now are kept, those made already among them."""
    version = -1 if x.is_inference() else x._version
    known: Quantized | None = x.__dict__.get(_QUANTIZED) if version >= 0 else None
    if known is None or known.version != version:
        known = Quantized(version)
        if version >= 0:
            x.__dict__[_QUANTIZED] = known
    return known


def quantized_activation(x: Tensor, row: bool, transposed: bool, blocks: tuple[int, int] = ACTIVATION) -> Quantized:
    """The FP8 forms of `x`, from an earlier call on the same tensor where it has not changed since."""
    known = known_forms(x)
    row = row and known.row is None
    transposed = transposed and (known.transposed is None or known.transposed.block != blocks[1])
    if row or transposed:
        dense, rows = as_dense(x)
        quantize_into(known, dense, rows, x.shape[-1], blocks, row, transposed)
    return known


def quantized_gradient(dy: Tensor, row: bool, transposed: bool) -> Quantized:
    """The same for a gradient."""
    return quantized_activation(dy, row, transposed, GRADIENT)


def attach_quantized(x: Tensor, quantized: Quantized) -> None:
    """Says that `quantized` is the FP8 form of `x` as it is now; its kernel wrote both."""
    quantized.version = x._version
    x.__dict__[_QUANTIZED] = quantized


# A norm learns from its first outputs whether converted layers read them: 0 none, 1 row-wise, 2 transposed as well.
FEEDS = "_deepwell_feeds"
_PRODUCER = "_deepwell_producer"


def tag_producer(y: Tensor, module: Any) -> None:
    """Says which module made `y`."""
    y.__dict__[_PRODUCER] = weakref.ref(module)


def note_consumer(x: Tensor, needs_transposed: bool) -> None:
    """Tells the norm that made `x`, if one did, that a converted layer reads it."""
    producer = x.__dict__.get(_PRODUCER)
    module = producer() if producer is not None else None
    if module is not None:
        module.__dict__[FEEDS] = max(module.__dict__.get(FEEDS, 0), 2 if needs_transposed else 1)


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
        quantize_into(fresh, _dense_weight(weight), *weight.shape, WEIGHT, row, transposed)
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
        quantize_into(known, _dense_weight(weight), *weight.shape, WEIGHT, row, transposed)
    return known


def _dense_weight(weight: Tensor) -> Tensor:
    if weight.is_contiguous() and weight.data_ptr() % 16 == 0:
        return weight
    return weight.detach().clone(memory_format=torch.contiguous_format)


def forget_weights() -> None:
    """Drops every FP8 copy. For changes of a parameter that PyTorch cannot see, such as `weight.data.copy_(...)`."""
    _weights.clear()


# ---- products ----------------------------------------------------------------------------------------------------


_workspaces: dict[tuple[int, int], Tensor] = {}


def workspace_of(device: torch.device, stream: int) -> Tensor:
    """This stream's workspace: calls on one stream follow each other, so one serves them all. A CUDA graph gets memory
    of its own for each call, since it may be replayed beside other work."""
    if torch._C._cuda_isCurrentStreamCapturing():
        return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    known = _workspaces.get((device.index, stream))
    if known is None:
        known = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        _workspaces[(device.index, stream)] = known
    return known


def gemm(a: Form, b: Form, out: Tensor, bias: Tensor | None = None, accumulate: bool = False) -> None:
    """out = a [M, K] · b [N, K]^T (+ bias) (+ out), at most one of them in square blocks. out has inner stride 1 and
    either two dimensions or is dense as [M, N]."""
    device = out.device
    index, stream = place_of(device)
    workspace = workspace_of(device, stream)
    _core.cuda_gemm(
        a.address,
        E4M3,
        a.ld,
        SCALING[a.block],
        a.scale_address,
        b.address,
        E4M3,
        b.ld,
        SCALING[b.block],
        b.scale_address,
        out.data_ptr(),
        DTYPE[out.dtype],
        out.stride(0) if out.dim() == 2 else b.rows,
        a.rows,
        b.rows,
        a.cols,
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPE[bias.dtype],
        int(accumulate),
        workspace.data_ptr(),
        WORKSPACE_BYTES,
        index,
        stream,
        0,  # FP32 scales
        BACKEND_AUTO,
    )


def product(xq: Form, wq: Form, bias: Tensor | None, like: Tensor, out_dtype: torch.dtype) -> Tensor:
    """y [..., N] = x · w^T + bias, for x of `like`'s shape [..., K]."""
    shape = (*like.shape[:-1], wq.rows)
    rows = like.numel() // like.shape[-1]
    whole = rows == xq.rows
    y = torch.empty(shape if whole else (xq.rows, wq.rows), dtype=out_dtype, device=like.device)
    if rows == 0:
        return y
    # The multiplication adds a BF16 bias (an F16 one to an F16 result) itself; others are added at their own precision.
    inside = bias is not None and bias.dtype == (torch.float16 if out_dtype == torch.float16 else torch.bfloat16)
    gemm(xq, wq, y, bias if inside else None)
    if bias is not None and not inside:
        y += bias.detach()
    return y if whole else y.resize_(shape)  # a view could not be added to in place


def weight_gradient(dyq: Form, xq: Form, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
    """dw [N, K] = dy^T · x, from dy transposed [N, M] and x transposed [K, M]; added to `into` if that is given. No
    tokens: zeros."""
    if into is not None:
        if xq.cols:
            gemm(dyq, xq, into, accumulate=True)
        return into
    shape = (dyq.rows, xq.rows)
    if xq.cols == 0:
        return torch.zeros(shape, dtype=dtype, device=xq.buffer.device)
    dw = torch.empty(shape, dtype=dtype, device=xq.buffer.device)
    gemm(dyq, xq, dw)
    return dw


def made(form: Form | None) -> Form:
    if form is None:
        raise RuntimeError("an FP8 form is used that was not made: a defect of deepwell")
    return form


def bias_gradient(dy: Tensor, dtype: torch.dtype) -> Tensor:
    if dy.dim() == 1:
        return dy.to(dtype)
    return dy.sum(tuple(range(dy.dim() - 1)), dtype=torch.float32).to(dtype)


# ---- deepwell::mx_linear for PyTorch's dispatcher (compiled graphs) ------------------------------------------------


def linear_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: str, out_dtype: torch.dtype, save_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward; the transposed form of x comes back as one buffer and an empty tensor. Nothing is kept on
    x: a compiled graph may write other values to the same tensor."""
    dense, rows = as_dense(x)
    xq = Quantized()
    quantize_into(xq, dense, rows, x.shape[-1], ACTIVATION, True, save_x)
    y = product(made(xq.row), made(quantized_weight(weight, True, save_x).row), bias, x, out_dtype)
    nothing = x.new_empty((0,), dtype=torch.uint8)
    return y, made(xq.transposed).buffer if save_x else nothing, x.new_empty((0,), dtype=torch.uint8)


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
    """The operator's backward."""
    dense, rows = as_dense(dy)
    dyq = Quantized()
    quantize_into(dyq, dense, rows, dy.shape[-1], GRADIENT, need_dx, need_dw)
    dx = dw = None
    if need_dx:
        dx = product(made(dyq.row), made(quantized_weight(weight, False, True).transposed), None, dy, x_dtype)
    if need_dw:
        dw = weight_gradient(made(dyq.transposed), Form(x_t, weight.shape[1], rows, ACTIVATION[1]), weight.dtype)
    return (
        dx if dx is not None else dy.new_empty((0,), dtype=x_dtype),
        dw if dw is not None else dy.new_empty((0,), dtype=weight.dtype),
    )


def saved_bytes(x: Tensor) -> int:
    """Size of the buffer that linear_op saves, for tracing."""
    return form_bytes.__wrapped__(x.shape[-1], padded_rows(x)[1], ACTIVATION[1])
