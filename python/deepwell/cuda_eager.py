"""A converted linear layer on a Hopper GPU in eager mode: what runs between a module's forward and its launches.

Host time counts here, so that small layers are not bound by it: one call of the library each way, memory asked for in
as few pieces as lifetimes allow, and no more looks at tensors than the decisions need. Inputs that are not dense rows
in whole groups take the general functions of cuda_linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _core, accumulate
from . import cuda_linear as cl
from .cuda_linear import ACTIVATION, DTYPE, GRADIENT, WORKSPACE_BYTES, Form, Quantized, form_bytes, new_form
from .errors import InvalidArgumentError


def _fits(x: Tensor, rows: int) -> bool:
    """Whether `x` is what the one-call path takes: dense rows in whole groups."""
    return rows % cl.ROW_MULTIPLE == 0 and rows > 0 and x.is_contiguous() and x.data_ptr() % 16 == 0


def _aligned(size: int) -> int:
    return (size + 255) // 256 * 256


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, xq: Quantized, wq: Quantized, out_dtype: torch.dtype, save_x: bool
) -> Tensor:
    """y, and in xq the forms of x that were missing."""
    shape = x.shape
    cols = shape[-1]
    rows = x.numel() // cols
    if not _fits(x, rows):
        cl.quantized_activation(x, True, save_x) if xq.version >= 0 else _quantize_once(x, xq, save_x)
        return cl.product(cl.made(xq.row), cl.made(wq.row), bias, x, out_dtype)
    device = x.device
    outputs = weight.shape[0]
    row, transposed = xq.row, xq.transposed
    make_row = row is None
    make_transposed = save_x and (transposed is None or transposed.block != ACTIVATION[1])
    # The row form is used up here (and by layers that share x), the transposed one lives until backward.
    if make_row:
        row = new_form(rows, cols, ACTIVATION[0], device)
    if make_transposed:
        transposed = new_form(cols, rows, ACTIVATION[1], device)
    y = torch.empty((*shape[:-1], outputs), dtype=out_dtype, device=device)
    inside = bias is not None and bias.dtype == (torch.float16 if out_dtype == torch.float16 else torch.bfloat16)
    index, stream = cl.place_of(device)
    _core.cuda_linear_forward(
        x.data_ptr(),
        DTYPE[x.dtype],
        rows,
        cols,
        make_row,
        row.address,  # type: ignore[union-attr]
        make_transposed,
        transposed.address if make_transposed else 0,  # type: ignore[union-attr]
        wq.row.address,  # type: ignore[union-attr]
        outputs,
        y.data_ptr(),
        DTYPE[out_dtype],
        bias.data_ptr() if inside else 0,  # type: ignore[union-attr]
        DTYPE[bias.dtype] if inside else 0,  # type: ignore[union-attr]
        cl.workspace_of(device, stream).data_ptr(),
        WORKSPACE_BYTES,
        index,
        stream,
    )
    xq.row, xq.transposed = row, transposed
    if bias is not None and not inside:
        y += bias.detach()
    return y


def _quantize_once(x: Tensor, xq: Quantized, save_x: bool) -> None:
    """For inference tensors, whose forms are not kept."""
    fresh = cl.quantized_activation(x, True, save_x)
    xq.row, xq.transposed = fresh.row, fresh.transposed


def _gradients(ctx: Any, dy: Tensor, in_place: bool) -> tuple:
    need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
    wq, weight, shape, rows, x_dtype, bias_dtype, saved_x = ctx.facts
    if need_dw and not saved_x:
        raise InvalidArgumentError(
            "a weight gradient is asked for, but the weight did not require one when the layer ran forward; set "
            "requires_grad before the forward pass"
        )
    dx = dw = None
    if need_dx or need_dw:
        x_buffer = ctx.saved_tensors[0] if need_dw else None
        grad = accumulate.target(ctx, weight, 1) if need_dw and in_place else None
        if _fits(dy, dy.numel() // weight.shape[0]):
            dx, dw = _products(dy, weight, wq, shape, x_dtype, x_buffer, need_dx, grad)
        else:
            dyq = cl.quantized_gradient(dy, need_dx, need_dw)
            if need_dx:
                dx = cl.product(cl.made(dyq.row), cl.made(wq.transposed), None, dy, x_dtype)
            if need_dw:
                xq = Form(x_buffer, shape[-1], rows, ACTIVATION[1])
                dw = cl.weight_gradient(cl.made(dyq.transposed), xq, weight.dtype, grad)
        if grad is not None:
            accumulate.added(grad)
            dw = None
    db = cl.bias_gradient(dy, bias_dtype) if need_db else None
    return dx, dw, db, None


def _products(
    dy: Tensor,
    weight: Tensor,
    wq: Quantized,
    shape: torch.Size,
    x_dtype: torch.dtype,
    x_buffer: Tensor | None,
    need_dx: bool,
    grad: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dw, or `grad` with dw added, in one call. x_buffer: x's transposed form, or None when dw is not needed."""
    device = dy.device
    outputs, inputs = weight.shape
    rows = dy.numel() // outputs
    need_dw = x_buffer is not None
    dyq = cl.known_forms(dy)
    row, transposed = dyq.row, dyq.transposed
    make_row = need_dx and row is None
    make_transposed = need_dw and (transposed is None or transposed.block != GRADIENT[1])
    # Both live as long as dy does, so they share a buffer.
    first = _aligned(form_bytes(rows, outputs, GRADIENT[0])) if make_row else 0
    size = first + (form_bytes(outputs, rows, GRADIENT[1]) if make_transposed else 0)
    if size:
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        if make_row:
            row = Form(buffer, rows, outputs, GRADIENT[0])
        if make_transposed:
            transposed = Form(buffer, outputs, rows, GRADIENT[1], first)
    dx = torch.empty(shape, dtype=x_dtype, device=device) if need_dx else None
    dw = grad
    if need_dw and grad is None:
        dw = torch.empty((outputs, inputs), dtype=weight.dtype, device=device)
    index, stream = cl.place_of(device)
    _core.cuda_linear_backward(
        dy.data_ptr(),
        DTYPE[dy.dtype],
        rows,
        outputs,
        inputs,
        make_row,
        row.address if need_dx else 0,  # type: ignore[union-attr]
        make_transposed,
        transposed.address if need_dw else 0,  # type: ignore[union-attr]
        cl.made(wq.transposed).address if need_dx else 0,
        dx.data_ptr() if dx is not None else 0,
        DTYPE[x_dtype],
        x_buffer.data_ptr() if x_buffer is not None else 0,
        dw.data_ptr() if dw is not None else 0,
        DTYPE[weight.dtype],
        grad is not None,
        cl.workspace_of(device, stream).data_ptr(),
        WORKSPACE_BYTES,
        index,
        stream,
    )
    dyq.row, dyq.transposed = row, transposed
    return dx, dw


class _Linear(torch.autograd.Function):
    """y = x · w^T + bias. What is not a tensor comes as one argument, because each costs: (forms of x, forms of the
    weight, y's dtype, whether x is kept for backward)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: tuple) -> Tensor:
        xq, wq, out_dtype, save_x = call
        y = _forward(x, weight, bias, xq, wq, out_dtype, save_x)
        rows = 0
        if save_x:
            form = cl.made(xq.transposed)
            ctx.save_for_backward(form.buffer)
            rows = form.cols
        ctx.facts = wq, weight, x.shape, rows, x.dtype, None if bias is None else bias.dtype, save_x
        return y

    backward = staticmethod(accumulate.backward(_gradients))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """y [..., N] = x [..., K] · weight [N, K]^T + bias, of out_dtype, with FP8 operands. float32, float16 or bfloat16
    operands on one Hopper GPU; K and N multiples of 16."""
    if x.device != weight.device or x.dim() == 0 or x.shape[-1] != weight.shape[1] or x.dtype not in DTYPE:
        raise InvalidArgumentError(
            f"linear layer with weight {tuple(weight.shape)} on {weight.device} got an input of {x.dtype}, shape "
            f"{tuple(x.shape)}, on {x.device}; expected float32, float16 or bfloat16 with {weight.shape[1]} as the "
            "last dimension, on the same device"
        )
    grad = torch.is_grad_enabled()
    save_x = grad and weight.requires_grad
    cl.note_consumer(x, save_x)
    wq = cl.quantized_weight(weight, True, grad and x.requires_grad)
    return _Linear.apply(x, weight, bias, (cl.known_forms(x), wq, out_dtype, save_x))
