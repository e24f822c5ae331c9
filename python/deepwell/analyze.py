"""Turns a PyTorch model into the facts that the plan is made from. Changes nothing and runs nothing of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _core, convert, registry
from .errors import InvalidArgumentError
from .plan import LayerFacts, ModelFacts

# Names that mean a projection to a vocabulary wherever it stands, and names that mean a head on the last layer only.
_HEAD_NAMES = frozenset({"lm_head", "output_head", "vocab_head", "vocab_proj", "embed_out", "unembed", "unembedding"})
_LAST_HEAD_NAMES = frozenset(
    {"head", "classifier", "score", "logits", "to_logits", "output_layer", "output_projection"}
)
_ROUTER_NAMES = frozenset({"router", "gating", "gate_network", "gating_network", "expert_gate"})


class ModelOptimizer:
    """Analyzes models."""

    def analyze_model(self, model: nn.Module, precision: str = "mxfp8") -> ModelFacts:
        """The facts of every layer that could be converted: nn.Linear and types with a registered kernel.

        Raises InvalidArgumentError for something that is not an nn.Module, has no parameters, or has parameters on the
        meta device or not initialized yet."""
        return analyze(model, precision)


def analyze(model: Any, precision: str = "mxfp8") -> ModelFacts:
    device = check_model(model)
    modules = list(model.named_modules())
    heads = _output_heads(model, modules)
    layers = []
    for name, module in modules:
        kernel = registry.kernel_for(module, precision)
        if isinstance(module, nn.Linear) or kernel is not None:
            layers.append(_layer(name, module, kernel, model, heads))
    return ModelFacts(
        type(model).__name__,
        tuple(layers),
        tuple(name for name, _ in modules),
        sum(p.numel() for p in model.parameters()),
        device,
    )


def check_model(model: Any) -> str:
    """Where a usable model is: "cpu" or "hopper" if all of it is there, else words that say where."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InvalidArgumentError(f"model is the class {model.__name__}, not an instance; pass {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidArgumentError(
            "model is a TorchScript module, whose forward is fixed; pass the module it was made from"
        )
    devices = set()
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidArgumentError(
                f"parameter {name!r} has no shape yet (a lazy module); run one forward pass before deepwell.optimize"
            )
        devices.add(parameter.device.type)
    if not devices:
        raise InvalidArgumentError(f"{type(model).__name__} has no parameters; there is nothing to optimize")
    if "meta" in devices:
        raise InvalidArgumentError(
            f"{type(model).__name__} has parameters on the meta device; give them memory and values first "
            "(model.to_empty(device='cpu') and load_state_dict)"
        )
    others = sorted(devices - {"cpu"})
    if not others:
        return "cpu"
    return _gpu_family(model) if devices == {"cuda"} else " and ".join(sorted(devices))


def _gpu_family(model: nn.Module) -> str:
    """ "hopper" if all the model's GPUs are, else words that say what it is on."""
    indices = sorted({parameter.device.index for parameter in model.parameters()})
    for index in indices:
        facts = _core.cuda_device_info(index)
        if facts["target"] != "sm90":
            capability = ".".join(map(str, facts["compute_capability"]))
            return f"a GPU of compute capability {capability} ({facts['name']})"
        if not facts["has_device_code"]:
            return f"{facts['name']}, but this build of deepwell holds no device code for it"
    return "hopper"


def _layer(
    name: str,
    module: nn.Module,
    kernel: registry.RegisteredKernel | None,
    model: nn.Module,
    heads: dict[int, str],
) -> LayerFacts:
    weight = getattr(module, "weight", None)
    tensor = weight if isinstance(weight, torch.Tensor) else next(module.parameters(), None)
    linear = isinstance(module, nn.Linear)
    role, role_reason = "linear", ""
    if linear:
        if id(module) in heads:
            role, role_reason = "output_head", heads[id(module)]
        elif reason := _router_reason(name, model):
            role, role_reason = "router", reason
    obstacle = _obstacle(name, module, model, kernel)
    if kernel is not None and not obstacle:
        obstacle = kernel.supports(module)
    return LayerFacts(
        name=name,
        kind=kernel.kind if kernel is not None else "nn.Linear",
        class_name=type(module).__name__,
        in_features=module.in_features if linear else 0,
        out_features=module.out_features if linear else 0,
        parameters=sum(p.numel() for p in module.parameters()),
        dtype=str(tensor.dtype).removeprefix("torch.") if tensor is not None else "float32",
        device=tensor.device.type if tensor is not None else "cpu",
        role=role,
        role_reason=role_reason,
        obstacle=obstacle,
        kernel=kernel.name if kernel is not None else "deepwell",
    )


def _obstacle(name: str, module: nn.Module, model: nn.Module, kernel: registry.RegisteredKernel | None) -> str:
    """Why the module's form rules conversion out, or ""."""
    if convert.is_converted(module):
        return "converted already, by a call on a part of the model"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if parametrize.is_parametrized(module):
        return "its parameters are parametrized; remove the parametrization first"
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight without calling it"
    if kernel is not None:
        return ""
    if type(module).forward is not nn.Linear.forward:
        return f"its class {type(module).__name__} overrides nn.Linear's forward"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed before each forward (pruning or weight norm), not a parameter"
    if type(weight.data) is not torch.Tensor or weight.layout != torch.strided:
        return f"its weight is a {type(weight.data).__name__} of layout {weight.layout}, not a dense tensor"
    if module.bias is not None and "bias" not in module._parameters:
        return "its bias is computed before each forward (pruning or weight norm), not a parameter"
    return ""


def _output_heads(model: nn.Module, modules: list[tuple[str, nn.Module]]) -> dict[int, str]:
    """The modules that project to the model's output vocabulary, by id, with what showed it."""
    linears = [(name, m) for name, m in modules if isinstance(m, nn.Linear)]
    embeddings = [m for _, m in modules if isinstance(m, nn.Embedding)]
    tied = {id(e._parameters.get("weight")) for e in embeddings}
    heads: dict[int, str] = {}
    declared = _declared_head(model)
    for position, (name, module) in enumerate(linears):
        last = position == len(linears) - 1
        leaf = name.rpartition(".")[2]
        if id(module._parameters.get("weight")) in tied:
            heads[id(module)] = "its weight is an embedding's"
        elif module is declared:
            heads[id(module)] = "the model's get_output_embeddings names it"
        elif leaf in _HEAD_NAMES or (last and leaf in _LAST_HEAD_NAMES):
            heads[id(module)] = f"named {leaf}"
        elif last and any(module.out_features == e.num_embeddings for e in embeddings):
            heads[id(module)] = "the last layer, as wide as the vocabulary"
    return heads


def _declared_head(model: nn.Module) -> Any:
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        return None  # models without a head inherit the method and cannot answer


def _router_reason(name: str, model: nn.Module) -> str:
    parent_name, _, leaf = name.rpartition(".")
    if leaf in _ROUTER_NAMES:
        return f"named {leaf}"
    if leaf == "gate" and hasattr(model.get_submodule(parent_name), "experts"):
        return "a gate beside experts"
    return ""
