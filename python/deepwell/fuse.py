"""Finds what can run fused with the quantization around it on a Hopper GPU, and makes it do so: RMSNorms, gated MLPs
and the causal language-model loss of transformers.

Modules are recognized by what they compute, not by their names: a candidate of the right structure is run once on a few
random tokens and compared with the formula that the kernels implement. The generator is local; no hook runs; nothing of
the model changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import convert, cuda_fused
from . import cuda_linear as cl
from .plan import FUSE, Decision, Plan, matches

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_NORM, _MLP = "_deepwell_norm", "_deepwell_mlp"
_LOSS = "_deepwell_loss"
_NORM_COLUMNS = 16384  # dw_rmsnorm_backward's limit
_TOKENS = 16
# BF16 rounds to 2^-9 of a value. A norm rounds at most three times where the formula here does not round; a gated MLP
# rounds gate, up, the activation, the product and the result, errors that add up in norm. What is not the formula is
# wrong by orders of magnitude more.
_NORM_TOLERANCE = 4 * 2.0**-9
_MLP_TOLERANCE = 8 * 2.0**-9


class FusedNorm(convert.Converted):
    """forward of an RMSNorm whose output converted layers read."""

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        fits = cuda_fused.eager(x) and weight.dtype == x.dtype and weight.device == x.device
        if fits and self.__dict__.get(cl.FEEDS):
            return cuda_fused.norm(self, x, weight, *self.__dict__[_NORM])
        y = self._deepwell_original.forward(self, x)  # type: ignore[attr-defined]
        if fits:
            cl.tag_producer(y, self)
        return y


class FusedGatedMLP(convert.Converted):
    """forward of down(silu(gate(x)) * up(x)) with converted layers."""

    def forward(self, x: Tensor) -> Tensor:
        layers = [self._modules[name] for name in self.__dict__[_MLP]]  # type: ignore[attr-defined]
        weights = [layer.weight for layer in layers]
        trainable = weights[0].requires_grad
        if (
            cuda_fused.eager(x)
            and all(isinstance(layer, convert.MXLinear) and not _hooked(layer) for layer in layers)
            and all(w.dtype == x.dtype and w.device == x.device and w.requires_grad == trainable for w in weights)
            and (trainable or not torch.is_grad_enabled())
        ):
            return cuda_fused.gated_mlp(x, *weights)
        return self._deepwell_original.forward(self, x)  # type: ignore[attr-defined]


convert.register_behaviour(FusedNorm, _NORM, cl.FEEDS)
convert.register_behaviour(FusedGatedMLP, _MLP)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


# ---- what there is --------------------------------------------------------------------------------------------------


class Fusion:
    """One thing to fuse: its line in the plan, how to do it, and the module whose class that swaps (None: the loss)."""

    def __init__(self, decision: Decision, apply: Callable[[], None], module: nn.Module | None) -> None:
        self.decision, self.apply, self.module = decision, apply, module


def find(model: nn.Module, plan: Plan) -> list[Fusion]:
    """The fusions for `model`, whose linear layers are not converted yet but will be as planned."""
    converted = {decision.name for decision in plan.converted}
    named = (*plan.options.skip, *(pattern for pattern, wish in plan.options.forced if wish == "keep"))
    found = []
    for name, module in model.named_modules():
        if any(matches(name, pattern) for pattern in named) or "forward" in module.__dict__:
            continue
        if plan.options.only and not any(matches(name, pattern) for pattern in plan.options.only):
            continue
        norm = _recognize_norm(module)
        if norm is not None:
            size = module.weight.shape[0]  # type: ignore[union-attr]
            found.append(_norm_fusion(name, module, norm, size))
            continue
        mlp = _recognize_gated_mlp(name, module, converted)
        if mlp is not None:
            found.append(_mlp_fusion(name, module, mlp))
    loss = _recognize_loss(model)
    if loss is not None:
        found.append(_loss_fusion(model))
    return found


def _decision(name: str, kind: str, reason: str, inputs: int = 0, outputs: int = 0, parameters: int = 0) -> Decision:
    return Decision(name, kind, FUSE, reason, "bfloat16", "", "", "deepwell", inputs, outputs, parameters, 0.0)


def _norm_fusion(name: str, module: nn.Module, constants: tuple[float, float], size: int) -> Fusion:
    def apply() -> None:
        module.__dict__[_NORM] = constants
        convert.swap(module, FusedNorm)

    reason = "one pass, which also quantizes its output where converted layers read it"
    return Fusion(_decision(name, "RMSNorm", reason, size, size, size), apply, module)


def _mlp_fusion(name: str, module: nn.Module, layers: tuple[str, str, str]) -> Fusion:
    def apply() -> None:
        module.__dict__[_MLP] = layers
        convert.swap(module, FusedGatedMLP)

    reason = "activation and its gradient are quantized as they are computed"
    return Fusion(_decision(name, "gated MLP", reason), apply, module)


def _loss_fusion(model: nn.Module) -> Fusion:
    def apply() -> None:
        model.__dict__[_LOSS] = model.__dict__.get("_loss_function")
        model.loss_function = causal_lm_loss  # type: ignore[assignment]

    reason = "reads the logits in their own type, once each way"
    return Fusion(_decision("loss_function", "cross-entropy", reason), apply, None)


def restore_loss(model: nn.Module) -> None:
    """Gives a model of transformers its own loss back."""
    if _LOSS in model.__dict__:
        own = model.__dict__.pop(_LOSS)
        model.__dict__.pop("_loss_function", None)
        if own is not None:
            model.__dict__["_loss_function"] = own


# ---- recognition ----------------------------------------------------------------------------------------------------


def _sample(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(20)
    return torch.randn(shape, generator=generator, device=like.device, dtype=torch.float32)


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """The module's own forward, without hooks; None where it does not take one tensor and give one."""
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            y = type(module).forward(module, x)
    except Exception:  # whatever a stranger's forward may raise, it is not the one looked for
        return None
    return y if isinstance(y, Tensor) else None


def _close(y: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    if y is None or y.shape != expected.shape or y.dtype != torch.bfloat16:
        return False
    error = (y.float() - expected).norm()
    return bool(torch.isfinite(error)) and float(error) <= tolerance * float(expected.norm())


def _recognize_norm(module: nn.Module) -> tuple[float, float] | None:
    """(eps, weight offset) of an RMSNorm over the last dimension."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or weight.dtype != torch.bfloat16 or not weight.is_cuda:
        return None
    if len(module._parameters) != sum(p is None or p is weight for p in module._parameters.values()) or any(
        True for _ in module.children()
    ):
        return None
    size = weight.shape[0]
    eps = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if eps is None and isinstance(module, nn.RMSNorm) and module.eps is None:
        eps = torch.finfo(torch.bfloat16).eps
    if eps is None or size % 16 or size > _NORM_COLUMNS or not weight.is_contiguous():
        return None
    # The second row is so small that eps decides.
    x = _sample(weight, 2, size) * torch.tensor([[3.0], [max(eps, 1e-12) ** 0.5]], device=weight.device)
    x = x.to(torch.bfloat16)
    y = _run(module, x)
    normalized = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        expected = normalized * (weight.detach().float() + offset)
        if y is not None and all(_close(y[row], expected[row], _NORM_TOLERANCE) for row in range(2)):
            return eps, offset
    return None


def _recognize_gated_mlp(name: str, module: nn.Module, converted: set[str]) -> tuple[str, str, str] | None:
    """Names of the gate, up and down layers of an MLP that computes down(silu(gate(x)) * up(x))."""
    linears = {child: layer for child, layer in module.named_children() if isinstance(layer, nn.Linear)}
    if len(linears) != 3 or module._parameters or module._buffers:
        return None
    prefix = f"{name}." if name else ""
    if any(prefix + child not in converted or layer.bias is not None for child, layer in linears.items()):
        return None
    if any(any(True for _ in layer.parameters()) for child, layer in module.named_children() if child not in linears):
        return None
    first, second, third = linears
    for gate, up, down in ((first, second, third), (second, first, third)):
        g, u, d = (linears[child].weight for child in (gate, up, down))
        inner, hidden = g.shape
        if u.shape != g.shape or d.shape != (hidden, inner) or inner % 128 or inner == hidden:
            return None
        if not (g.is_cuda and g.dtype == u.dtype == d.dtype == torch.bfloat16):
            return None
        x = _sample(g, _TOKENS, hidden).to(torch.bfloat16)
        with torch.no_grad():
            expected = F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d).float()
        # An output of zeros (weights not initialized yet) shows nothing.
        if float(expected.norm()) > 0 and _close(_run(module, x), expected, _MLP_TOLERANCE):
            return gate, up, down
    return None


def _recognize_loss(model: nn.Module) -> Any:
    """The causal language-model loss of transformers, if that is what the model uses."""
    prop = getattr(type(model), "loss_function", None)
    if not isinstance(prop, property) or prop.fset is None:
        return None
    try:
        loss = model.loss_function
    except Exception:  # a model without a known loss type raises what it likes
        return None
    known = getattr(loss, "__name__", "") == "ForCausalLMLoss" and loss.__module__.startswith("transformers.")
    return loss if known else None


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """transformers' ForCausalLMLoss: the mean (or the sum over num_items_in_batch) of the cross-entropy of each token's
    successor. On a GPU in eager mode the logits are read in their own type; elsewhere transformers computes it."""
    if not logits.is_cuda or torch.compiler.is_compiling() or logits.dtype not in cl.DTYPE:
        from transformers.loss.loss_utils import ForCausalLMLoss

        return ForCausalLMLoss(
            logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels=shift_labels, **kwargs
        )
    if shift_labels is None:
        if labels is None:
            raise ValueError("the loss needs labels or shift_labels")
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    target = shift_labels.reshape(-1).to(logits.device)
    losses = cuda_fused.cross_entropy(logits.reshape(-1, vocab_size), target, ignore_index)
    if num_items_in_batch is None:
        return losses.sum() / (target != ignore_index).sum()
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(logits.device)
    return losses.sum() / num_items_in_batch
