"""Recognizes modules by what they compute: a candidate of the right structure is run on a few random tokens and
compared with a formula. Names of classes do not matter, nor where the module lies.

A probe runs the module's own forward with training on and off, as a dropout of the one would not show in the other. The
generators and the training flags are afterwards what they were; hooks of the module itself do not run. A forward that
also does something else (counts its calls, say) is not recognized, as whatever takes its place would not do it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dataflow import without_side_effects

EPSILONS = ("variance_epsilon", "eps", "epsilon")
_TOKENS = 16
_LARGE = 256.0
# What is not the formula is wrong by orders of magnitude more than these, in units of the dtype's spacing at 1 (2^-7
# for BF16) or, where that is less, of 2^-16: in FP32 the order of sums over up to 2^14 columns matters,
# 2^-24 * sqrt(2^14), with 2 in reserve. A norm rounds at most three times where the formula does not round; a gated MLP
# rounds gate, up, the activation, the product and the result, errors that add up in norm; a linear layer may round
# before it adds the bias.
_NORM_SPACINGS, _MLP_SPACINGS, _LINEAR_SPACINGS = 1.0, 2.0, 1.0

LINEAR, TRANSPOSED = "linear", "transposed"


def rms_norm(module: nn.Module) -> tuple[float, float] | None:
    """(eps, weight offset) of an RMSNorm over the last dimension, x / sqrt(mean(x^2) + eps) * (weight + offset), with
    offset 0 or 1."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or not weight.is_floating_point() or not _takes_one_tensor(module):
        return None
    if any(p is not None and p is not weight for p in module._parameters.values()) or module._modules:
        return None
    size = weight.shape[0]
    return next(
        (found for eps in _epsilons(module, weight) if size and (found := _norm_with(module, weight, eps))), None
    )


def _epsilons(module: nn.Module, weight: Tensor) -> list[float]:
    """What its epsilon may be. One that is not given is the spacing at 1, of the tensors' type or of FP32."""
    eps = next((value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if eps is None and isinstance(module, nn.RMSNorm) and module.eps is None:
        return [torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps]
    return [] if eps is None else [eps]


def _norm_with(module: nn.Module, weight: Tensor, eps: float) -> tuple[float, float] | None:
    """(eps, offset) if this is the epsilon."""
    size = weight.shape[0]
    # The second row is so small that eps decides; the third would meet a clamp. The mean is not zero, so that a layer
    # norm, which subtracts it, differs; and magnitudes grow along the row, so that a norm over groups of columns does.
    scale = torch.tensor([[3.0], [max(eps, 1e-12) ** 0.5], [_LARGE]], device=weight.device)
    ramp = torch.linspace(0.5, 2.0, size, device=weight.device)
    x = ((_sample(weight, 3, size) + 1.0) * ramp * scale).to(weight.dtype)
    results = list(_results(module, x))
    normalized = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        expected = normalized * (weight.detach().float() + offset)
        if all(_close(y, expected, weight.dtype, _NORM_SPACINGS) for y in results):
            return eps, offset
    return None


def gated_mlp(module: nn.Module) -> tuple[str, str, str] | None:
    """The names of the gate, up and down layers of an MLP that computes down(silu(gate(x)) * up(x)), without biases."""
    linears = {child: layer for child, layer in module.named_children() if isinstance(layer, nn.Linear)}
    if len(linears) != 3 or module._parameters or module._buffers or not _takes_one_tensor(module):
        return None
    if any(layer.bias is not None or hooked(layer) or not plain_linear(layer) for layer in linears.values()):
        return None
    if any(any(True for _ in layer.parameters()) for child, layer in module.named_children() if child not in linears):
        return None
    first, second, third = linears
    for gate, up, down in ((first, second, third), (second, first, third)):
        g, u, d = (linears[child].weight for child in (gate, up, down))
        inner, hidden = g.shape
        if u.shape != g.shape or d.shape != (hidden, inner) or not g.dtype == u.dtype == d.dtype:
            return None
        x = _sample(g, _TOKENS, hidden)
        with torch.no_grad():
            # Activations around 1, where silu has its shape, and so large that a clamp would show.
            reach = F.linear(x, g.float()).square().mean().sqrt()
            scale = torch.where(torch.arange(_TOKENS, device=g.device) < _TOKENS // 2, 1.0, _LARGE)
            x = (x * scale[:, None] / reach.clamp_min(1e-6)).to(g.dtype)
            expected = F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d).float()
        # An output of zeros (weights not initialized yet) shows nothing.
        if float(expected.norm()) > 0 and all(_close(y, expected, x.dtype, _MLP_SPACINGS) for y in _results(module, x)):
            return gate, up, down
    return None


def linear(module: nn.Module) -> str:
    """LINEAR for a module that computes x · weight^T + bias as nn.Linear does, though its forward is its own;
    TRANSPOSED for one that computes x · weight + bias; else "". Both gradients are compared too."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or weight.dim() != 2 or parameters.keys() - {"weight", "bias"} or bias is weight:
        return ""
    if module._modules or module._buffers or not weight.is_floating_point() or not _takes_one_tensor(module):
        return ""
    if type(weight.data) is not Tensor or weight.layout != torch.strided or not all(weight.shape):
        return ""
    for form, rows in ((LINEAR, weight), (TRANSPOSED, weight.t())):
        if bias is not None and bias.shape != rows.shape[:1]:
            continue
        if _computes_linear(module, weight, bias, form):
            return form
    return ""


def plain_linear(module: nn.Module) -> bool:
    """Whether it is an nn.Linear with nn.Linear's own forward."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _computes_linear(module: nn.Module, weight: Tensor, bias: Tensor | None, form: str) -> bool:
    def formula(x: Tensor) -> Tensor:
        return F.linear(x, weight if form == LINEAR else weight.t(), bias)

    columns = weight.shape[1] if form == LINEAR else weight.shape[0]
    x = _sample(weight, 1, 2, columns).to(weight.dtype)
    wanted: list[Tensor] | None = None
    for _ in _modes(module):
        found = _with_gradients(lambda x: type(module).forward(module, x), x, weight)
        wanted = wanted or (_with_gradients(formula, x, weight) if found else None)
        if found is None or wanted is None or not any(float(part.norm()) > 0 for part in wanted):
            return False
        if not all(_close(f, w.float(), w.dtype, _LINEAR_SPACINGS) for f, w in zip(found, wanted, strict=True)):
            return False
    return True


def _with_gradients(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> list[Tensor] | None:
    """[y, dx, dweight] (the last where it can be had), or None where the function does something else."""
    x = x.clone().requires_grad_()
    try:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            y = function(x)
            dy = torch.linspace(-1.0, 1.0, y.numel(), device=y.device).view(y.shape).to(y.dtype)
            wanted = [x, weight] if weight.requires_grad else [x]
            return [y.detach(), *torch.autograd.grad(y, wanted, dy)]
    except Exception:  # as in _run
        return None


def _takes_one_tensor(module: nn.Module) -> bool:
    """Whether forward has one parameter and no more, so that nobody can call it with more, and only computes."""
    if not without_side_effects(type(module).forward):
        return False
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())
    except (TypeError, ValueError):
        return False
    return len(parameters) == 2 and parameters[1].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def _sample(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(20)
    return torch.randn(shape, generator=generator, device=like.device, dtype=torch.float32)


def _modes(module: nn.Module) -> Iterator[None]:
    """Two turns, with training on and off; then flags and generators as they were."""
    flags = [(inner, inner.training) for inner in module.modules()]
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with contextlib.ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=devices))
        for inner, training in flags:
            undo.callback(setattr, inner, "training", training)
        for training in (True, False):
            for inner, _ in flags:
                inner.training = training
            yield


def _results(module: nn.Module, x: Tensor) -> Iterator[Tensor | None]:
    """What forward gives, training and not."""
    for _ in _modes(module):
        yield _run(module, x)


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """The module's own forward, without its hooks; None where it does not take one tensor and give one, or writes into
    the one it takes."""
    given = x.clone()
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            y = type(module).forward(module, given)
    except Exception:  # whatever a stranger's forward may raise, it is not the one looked for
        return None
    return y if isinstance(y, Tensor) and torch.equal(given, x) else None


def _close(y: Tensor | None, expected: Tensor, dtype: torch.dtype, spacings: float) -> bool:
    """Whether `y` is of this dtype and each row of it what was expected, but for rounding."""
    if y is None or y.shape != expected.shape or y.dtype != dtype:
        return False
    tolerance = spacings * max(torch.finfo(dtype).eps, 2.0**-16)
    error = (y.float() - expected).norm(dim=-1)
    return bool((error <= tolerance * expected.norm(dim=-1)).all())
