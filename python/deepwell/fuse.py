"""Finds what can run fused with the quantization around it on a Hopper GPU, and makes it do so: RMSNorms, gated MLPs
and the causal language-model loss of transformers.

Norms and MLPs are recognized by what they compute (recognize.py), not by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import convert, cuda_fused, recognize
from . import cuda_linear as cl
from .dataflow import flow_of
from .plan import FUSE, Decision, Plan, matches

_NORM, _MLP = "_deepwell_norm", "_deepwell_mlp"
_LOSS = "_deepwell_loss"
_NORM_COLUMNS = 16384  # dw_rmsnorm_backward's limit


class FusedNorm(convert.Converted):
    """forward of an RMSNorm whose output converted layers read."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (x,) = inputs or named.values()
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

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (x,) = inputs or named.values()
        layers = [self._modules[name] for name in self.__dict__[_MLP]]  # type: ignore[attr-defined]
        weights = [layer.weight for layer in layers]
        trainable = weights[0].requires_grad
        if (
            cuda_fused.eager(x)
            and all(isinstance(layer, convert.MXLinear) and not recognize.hooked(layer) for layer in layers)
            and all(w.dtype == x.dtype and w.device == x.device and w.requires_grad == trainable for w in weights)
            and (trainable or not torch.is_grad_enabled())
        ):
            return cuda_fused.gated_mlp(x, *weights)
        return self._deepwell_original.forward(self, x)  # type: ignore[attr-defined]


convert.register_behaviour(FusedNorm, _NORM, cl.FEEDS)
convert.register_behaviour(FusedGatedMLP, _MLP)


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
        norm = _fusable_norm(module)
        if norm is not None:
            size = module.weight.shape[0]  # type: ignore[union-attr]
            found.append(_norm_fusion(name, module, norm, size))
            continue
        mlp = _fusable_gated_mlp(name, module, converted)
        if mlp is not None:
            found.append(_mlp_fusion(name, module, mlp))
    for name, module in model.named_modules():
        if _uses_causal_lm_loss(module):
            found.append(_loss_fusion(f"{name}.loss_function" if name else "loss_function", module))
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


def _loss_fusion(name: str, model: nn.Module) -> Fusion:
    def apply() -> None:
        model.__dict__[_LOSS] = model.__dict__.get("_loss_function")
        model.loss_function = causal_lm_loss  # type: ignore[assignment]

    reason = "reads the logits in their own type, once each way"
    return Fusion(_decision(name, "cross-entropy", reason), apply, None)


def restore_loss(model: nn.Module) -> None:
    """Gives a model of transformers its own loss back."""
    if _LOSS in model.__dict__:
        own = model.__dict__.pop(_LOSS)
        model.__dict__.pop("_loss_function", None)
        if own is not None:
            model.__dict__["_loss_function"] = own


# ---- what the kernels take ------------------------------------------------------------------------------------------


def _fusable_norm(module: nn.Module) -> tuple[float, float] | None:
    """(eps, weight offset) of an RMSNorm that the kernels take."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or weight.dtype != torch.bfloat16 or not weight.is_contiguous():
        return None
    if weight.shape[0] % 16 or weight.shape[0] > _NORM_COLUMNS:
        return None
    return recognize.rms_norm(module)


def _fusable_gated_mlp(name: str, module: nn.Module, converted: set[str]) -> tuple[str, str, str] | None:
    """Names of the gate, up and down layers of a gated MLP that the kernels take."""
    prefix = f"{name}." if name else ""
    linears = {child: layer for child, layer in module.named_children() if isinstance(layer, nn.Linear)}
    if len(linears) != 3 or any(
        prefix + child not in converted or layer.weight.dtype != torch.bfloat16 for child, layer in linears.items()
    ):
        return None
    found = recognize.gated_mlp(module)
    if found is None:
        return None
    inner, hidden = linears[found[0]].weight.shape
    return None if inner % 128 or inner == hidden else found


def _uses_causal_lm_loss(module: nn.Module) -> bool:
    """Whether the module's forward calls its loss_function, and that is transformers' causal language-model loss."""
    prop = getattr(type(module), "loss_function", None)
    if not isinstance(prop, property) or prop.fset is None:
        return False
    if not any(call.path == "loss_function" for call in flow_of(type(module)).calls):
        return False
    try:
        loss = module.loss_function
    except Exception:  # a model without a known loss type raises what it likes
        return False
    return getattr(loss, "__name__", "") == "ForCausalLMLoss" and loss.__module__.startswith("transformers.")


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
