"""Norms, gated MLPs and the loss on Hopper GPUs, fused with the quantization around them.

RMSNorm writes its output in BF16 and, once a converted linear layer was seen to read it, quantized in both orientations
from the same pass; backward reads the saved input and one number per row.

A gated MLP, down(silu(gate(x)) * up(x)), runs as one function: the gate and up products land side by side in one
matrix, the activation is quantized as it is computed, and its gradient is quantized as it is computed too, so no
high-precision activation or its gradient passes through memory on its own.

Cross-entropy reads the logits in their own type, once forward and once backward.

Everything falls back to the module's own forward where its conditions do not hold (another dtype, a number of tokens
that is not a multiple of 16, a compiled graph, torch.func): the module computes the same thing there, only slower."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _core, accumulate
from . import cuda_linear as cl
from .cuda_linear import ACTIVATION, DTYPE, GRADIENT, Form, Quantized, new_form, place_of
from .errors import InvalidArgumentError


def eager(x: Tensor) -> bool:
    """Whether fused code may run on `x`: dense BF16 on a GPU with tokens in whole groups, outside of tracing."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cuda"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and x.numel() > 0
        and (x.numel() // x.shape[-1]) % cl.ROW_MULTIPLE == 0
        and x.is_contiguous()
        and x.data_ptr() % 16 == 0
    )


# ---- RMSNorm -------------------------------------------------------------------------------------------------------


def norm_forward(
    x: Tensor, weight: Tensor, eps: float, offset: float, transposed: bool
) -> tuple[Tensor, Tensor, Quantized]:
    """y of x's shape, 1/rms of each row, and y's FP8 forms."""
    cols = x.shape[-1]
    rows = x.numel() // cols
    device = x.device
    y = torch.empty_like(x)
    rstd = torch.empty(rows, dtype=torch.float32, device=device)
    quantized = Quantized()
    quantized.row = row = new_form(rows, cols, ACTIVATION[0], device)
    if transposed:
        quantized.transposed = new_form(cols, rows, ACTIVATION[1], device)
    other = quantized.transposed
    _core.cuda_rmsnorm(
        x.data_ptr(),
        rows,
        cols,
        weight.data_ptr(),
        DTYPE[weight.dtype],
        y.data_ptr(),
        rstd.data_ptr(),
        row.address,
        row.scale_address,
        other.address if other else 0,
        other.scale_address if other else 0,
        *place_of(device),
        eps,
        offset,
    )
    return y, rstd, quantized


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """dx and dweight."""
    if not dy.is_contiguous() or dy.data_ptr() % 16:
        dy = dy.clone(memory_format=torch.contiguous_format)
    cols = x.shape[-1]
    rows = x.numel() // cols
    device = x.device
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    size = _core.cuda_rmsnorm_backward_workspace(device.index, rows, cols)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    _core.cuda_rmsnorm_backward(
        dy.data_ptr(),
        x.data_ptr(),
        rows,
        cols,
        weight.data_ptr(),
        DTYPE[weight.dtype],
        rstd.data_ptr(),
        dx.data_ptr(),
        dweight.data_ptr(),
        workspace.data_ptr(),
        size,
        *place_of(device),
        offset,
    )
    return dx, dweight


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, transposed: bool, made: list[Quantized]
    ) -> Tensor:
        y, rstd, quantized = norm_forward(x, weight, eps, offset, transposed)
        made.append(quantized)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        dx, dweight = norm_backward(dy, *ctx.saved_tensors, ctx.offset)
        return dx, dweight if ctx.needs_input_grad[1] else None, None, None, None, None


def norm(module: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """y = x * rsqrt(mean(x^2) + eps) * (weight + offset), rounded once, and its FP8 forms for its readers."""
    transposed = module.__dict__.get(cl.FEEDS, 0) == 2 and torch.is_grad_enabled()
    made: list[Quantized] = []
    y = _Norm.apply(x, weight, eps, offset, transposed, made)
    if not y.is_inference():
        cl.attach_quantized(y, made[0])
    cl.tag_producer(y, module)
    return y


# ---- gated MLP -----------------------------------------------------------------------------------------------------


class Gating(NamedTuple):
    """How an activation combines gate and up, side by side in [rows, 2 * inner]: halves, or in turn (interleaved).
    Plain: silu(gate) * up. With alpha and limit, as gpt-oss has it: gate at most limit, up within +-limit, then
    gate * sigmoid(alpha * gate) * (up + 1)."""

    interleaved: bool = False
    alpha: float | None = None
    limit: float | None = None

    def numbers(self) -> tuple[int, int, float, float]:
        """What the library's calls end with."""
        if (self.alpha is None) != (self.limit is None):
            raise InvalidArgumentError(f"{self} has one of alpha and limit; give both or none")
        return int(self.interleaved), int(self.alpha is not None), self.alpha or 0.0, self.limit or 0.0


PLAIN = Gating()


def _half(gate_up: Tensor, inner: int, second: bool) -> Tensor:
    return gate_up[:, inner:] if second else gate_up[:, :inner]


def swiglu_forward(gate_up: Tensor, inner: int, transposed: bool, gating: Gating = PLAIN) -> tuple[Form, Form | None]:
    """The activation of gate_up [rows, 2 * inner], quantized: row-wise, and transposed when asked for."""
    rows, device = gate_up.shape[0], gate_up.device
    row = new_form(rows, inner, ACTIVATION[0], device)
    other = new_form(inner, rows, ACTIVATION[1], device) if transposed else None
    _core.cuda_swiglu(
        gate_up.data_ptr(),
        rows,
        inner,
        row.address,
        row.scale_address,
        other.address if other else 0,
        other.scale_address if other else 0,
        *place_of(gate_up.device),
        *gating.numbers(),
    )
    return row, other


def swiglu_backward(da: Tensor, gate_up: Tensor, inner: int, gating: Gating = PLAIN) -> tuple[Form, Form]:
    """The gradient of gate_up for da [rows, inner], quantized in both orientations. Halves need inner to be a multiple
    of 128."""
    rows, device = gate_up.shape[0], gate_up.device
    row, transposed = new_form(rows, 2 * inner, GRADIENT[0], device), new_form(2 * inner, rows, GRADIENT[1], device)
    _core.cuda_swiglu_backward(
        da.data_ptr(),
        gate_up.data_ptr(),
        rows,
        inner,
        row.address,
        row.scale_address,
        transposed.address,
        transposed.scale_address,
        *place_of(gate_up.device),
        *gating.numbers(),
    )
    return row, transposed


def _gated_mlp_gradients(ctx: Any, dy: Tensor, in_place: bool) -> tuple:
    x_buffer, a_buffer, gate_up = ctx.saved_tensors
    inner, hidden = ctx.inner, ctx.like[-1]
    rows = gate_up.shape[0]
    device = dy.device
    gate_q, up_q, down_q = ctx.forms
    gate, up, down = ctx.weights
    dyq = cl.quantized_gradient(dy, True, True)
    grad = accumulate.target(ctx, down, 3) if in_place else None
    ddown = cl.weight_gradient(cl.made(dyq.transposed), Form(a_buffer, inner, rows, ACTIVATION[1]), down.dtype, grad)
    if grad is not None:
        accumulate.added(grad)
        ddown = None
    da = cl.product(cl.made(dyq.row), cl.made(down_q.transposed), None, dy, torch.bfloat16)
    both, both_t = swiglu_backward(da, gate_up, inner)
    del da
    grad = accumulate.stacked_target(ctx, gate, up, 1) if in_place else None
    dgate_up = cl.weight_gradient(both_t, Form(x_buffer, hidden, rows, ACTIVATION[1]), gate.dtype, grad)
    dgate, dup = dgate_up[:inner], dgate_up[inner:]
    if grad is not None:
        accumulate.added(gate.grad, up.grad)
        dgate = dup = None
    dx = None
    if ctx.needs_input_grad[0]:
        dx = torch.empty(ctx.like, dtype=torch.bfloat16, device=device)
        flat = dx.view(rows, hidden)
        for half, form in enumerate((gate_q, up_q)):
            cl.gemm(
                both.columns(half * inner, inner),
                cl.made(form.transposed),
                flat,
                None,
                half == 1,
            )
    return dx, dgate, dup, ddown, None, None, None


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        xq: Quantized,
        forms: tuple[Quantized, Quantized, Quantized],
        save: bool,
    ) -> Tensor:
        inner = gate.shape[0]
        rows = x.numel() // x.shape[-1]
        device = x.device
        gate_up = torch.empty((rows, 2 * inner), dtype=torch.bfloat16, device=device)
        x_row = cl.made(xq.row)
        for half, form in enumerate(forms[:2]):
            cl.gemm(x_row, cl.made(form.row), _half(gate_up, inner, half == 1))
        a_row, a_t = swiglu_forward(gate_up, inner, save)
        if a_t is not None:
            ctx.save_for_backward(cl.made(xq.transposed).buffer, a_t.buffer, gate_up)
            ctx.forms, ctx.like, ctx.inner = forms, x.shape, inner
            ctx.weights = gate, up, down
        return cl.product(a_row, cl.made(forms[2].row), None, x, x.dtype)

    backward = staticmethod(accumulate.backward(_gated_mlp_gradients))


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down · (silu(gate · x) * (up · x)). x [..., H] BF16; gate and up [I, H], down [H, I], all trainable or none."""
    save = torch.is_grad_enabled() and gate.requires_grad
    cl.note_consumer(x, save)
    xq = cl.quantized_activation(x, True, save)
    back = save and x.requires_grad
    forms = (
        cl.quantized_weight(gate, True, back),
        cl.quantized_weight(up, True, back),
        cl.quantized_weight(down, True, save),
    )
    return _GatedMLP.apply(x, gate, up, down, xq, forms, save)


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        rows, vocabulary = logits.shape
        device = logits.device
        lse, loss = torch.empty((2, rows), dtype=torch.float32, device=device)
        _core.cuda_cross_entropy(
            logits.data_ptr(),
            DTYPE[logits.dtype],
            rows,
            vocabulary,
            logits.stride(0),
            labels.data_ptr(),
            ignore_index,
            lse.data_ptr(),
            loss.data_ptr(),
            0,
            0,
            0,
            0,
            *place_of(device),
        )
        ctx.save_for_backward(logits, labels, lse)
        ctx.ignore_index = ignore_index
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        logits, labels, lse = ctx.saved_tensors
        rows, vocabulary = logits.shape
        dlogits = torch.empty((rows, vocabulary), dtype=logits.dtype, device=logits.device)
        _core.cuda_cross_entropy(
            logits.data_ptr(),
            DTYPE[logits.dtype],
            rows,
            vocabulary,
            logits.stride(0),
            labels.data_ptr(),
            ctx.ignore_index,
            lse.data_ptr(),
            0,
            dloss.data_ptr(),
            dloss.stride(0),
            dlogits.data_ptr(),
            vocabulary,
            *place_of(logits.device),
        )
        return dlogits, None, None


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Loss of each row: logits [rows, vocabulary] on a GPU, labels int64 [rows]; float32 [rows], 0 where ignored."""
    if logits.stride(1) != 1 or logits.stride(0) < logits.shape[1]:
        logits = logits.contiguous()
    return _CrossEntropy.apply(logits, labels.contiguous(), ignore_index)
