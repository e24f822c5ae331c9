"""Turns a PyTorch model into the facts that the plan is made from. Changes nothing, and runs nothing of the model but
what looks like a linear layer with a forward of its own (recognize.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import _core, convert, parts, recognize, registry, roles
from .errors import InvalidArgumentError
from .plan import LayerFacts, ModelFacts
from .structure import Input, Structure


class ModelOptimizer:
    """Analyzes models."""

    def analyze_model(self, model: nn.Module, precision: str = "mxfp8") -> ModelFacts:
        """The facts of every layer that could be converted: nn.Linear, modules that compute the same, and types with a
        registered kernel; and of stacks of experts, which are named and left alone.

        Raises InvalidArgumentError for something that is not an nn.Module, has no parameters, or has parameters on the
        meta device or not initialized yet."""
        return analyze(model, precision)


def analyze(model: Any, precision: str = "mxfp8") -> ModelFacts:
    device = check_model(model)
    structure = Structure(model)
    candidates = list(_candidates(structure, precision))
    found = roles.find(model, structure, [(c.name, c.module) for c in candidates if c.is_linear])
    layers = [_layer(candidate, structure, found) for candidate in candidates]
    return ModelFacts(
        type(model).__name__,
        tuple(_with_shared_inputs(layers, structure)),
        tuple(structure.modules),
        sum(p.numel() for p in model.parameters()),
        device,
        tuple(parts.find(structure, {c.name: c.extents for c in candidates if c.is_linear})),
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


@dataclass(frozen=True)
class _Candidate:
    """A module the plan decides about. form: what `recognize.linear` says of one whose forward is not nn.Linear's."""

    name: str
    module: nn.Module
    kernel: registry.RegisteredKernel | None
    form: str = ""

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, nn.Linear) or bool(self.form)

    @property
    def experts(self) -> int:
        """How many are stacked in it, where it is such a stack and nobody registered a kernel for it."""
        return 0 if self.kernel is not None or self.is_linear else roles.expert_count(self.module)

    @property
    def extents(self) -> tuple[int, int]:
        """(in_features, out_features); zeros for what is no linear layer."""
        weight = getattr(self.module, "weight", None)
        if self.form and isinstance(weight, Tensor):
            rows, columns = weight.shape
            return (rows, columns) if self.form == recognize.TRANSPOSED else (columns, rows)
        if isinstance(self.module, nn.Linear):
            return self.module.in_features, self.module.out_features
        return roles.expert_extents(self.module) if self.experts else (0, 0)


def _candidates(structure: Structure, precision: str) -> Iterator[_Candidate]:
    for name, module in structure.modules.items():
        kernel = registry.kernel_for(module, precision)
        form = "" if kernel is not None or _changed(module) or recognize.plain_linear(module) else _form(module)
        if kernel is not None or isinstance(module, nn.Linear) or form or roles.expert_count(module):
            yield _Candidate(name, module, kernel, form)


def _form(module: nn.Module) -> str:
    return "" if isinstance(module, nn.Embedding) else recognize.linear(module)


def _layer(candidate: _Candidate, structure: Structure, found: roles.Roles) -> LayerFacts:
    name, module, kernel = candidate.name, candidate.module, candidate.kernel
    weight = getattr(module, "weight", None)
    tensor = weight if isinstance(weight, Tensor) else next(module.parameters(), None)
    in_features, out_features = candidate.extents
    obstacle = _obstacle(candidate, structure)
    if kernel is not None and not obstacle:
        obstacle = kernel.supports(module)
    role, role_reason = ("experts", "") if candidate.experts else found.of.get(name, ("linear", ""))
    readers = sorted(set(structure.readers[name]))
    return LayerFacts(
        name=name,
        kind=_kind(candidate),
        class_name=type(module).__name__,
        in_features=in_features,
        out_features=out_features,
        parameters=sum(p.numel() for p in module.parameters()),
        dtype=str(tensor.dtype).removeprefix("torch.") if tensor is not None else "float32",
        device=tensor.device.type if tensor is not None else "cpu",
        role=role,
        role_reason=role_reason,
        obstacle=obstacle,
        kernel=kernel.name if kernel is not None else "deepwell",
        transposed=candidate.form == recognize.TRANSPOSED,
        matrices=max(candidate.experts, 1),
        tokens_share=found.share.get(name, 1.0),
        runs=float(structure.places[name]),
        frozen=tensor is not None and not tensor.requires_grad,
        input_from=structure.producer_of(name),
        note=f"{' and '.join(readers)} may also read its weight without calling it" if readers else "",
    )


def _kind(candidate: _Candidate) -> str:
    if candidate.kernel is not None:
        return candidate.kernel.kind
    return "nn.Linear" if isinstance(candidate.module, nn.Linear) else registry.kind_of(type(candidate.module))


def _with_shared_inputs(layers: list[LayerFacts], structure: Structure) -> Iterator[LayerFacts]:
    groups: dict[Input, list[str]] = {}
    for layer in layers:
        source = structure.input_of(layer.name) if layer.in_features else None
        if source is not None:
            groups.setdefault(source, []).append(layer.name)
    first = {name: names[0] for names in groups.values() for name in names[1:]}
    for layer in layers:
        yield dataclasses.replace(layer, shares_input=first.get(layer.name, ""))


def _changed(module: nn.Module) -> bool:
    """Whether its class does not say what it does."""
    return convert.is_converted(module) or "forward" in module.__dict__ or parametrize.is_parametrized(module)


def _obstacle(candidate: _Candidate, structure: Structure) -> str:
    """Why the module's form rules conversion out, or ""."""
    name, module = candidate.name, candidate.module
    if convert.is_converted(module):
        return "converted already, by a call on a part of the model"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if parametrize.is_parametrized(module):
        return "its parameters are parametrized; remove the parametrization first"
    readers = structure.readers[name]
    if readers and not structure.uses[name]:
        return f"{readers[-1]} reads its weight without calling it"
    if candidate.kernel is not None:
        return ""
    if not candidate.is_linear:
        return f"{candidate.experts} experts' weights in one tensor: this version converts linear layers only"
    if not recognize.plain_linear(module) and not candidate.form:
        return f"its class {type(module).__name__} overrides nn.Linear's forward"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed before each forward (pruning or weight norm), not a parameter"
    if type(weight.data) is not Tensor or weight.layout != torch.strided:
        return f"its weight is a {type(weight.data).__name__} of layout {weight.layout}, not a dense tensor"
    if getattr(module, "bias", None) is not None and "bias" not in module._parameters:
        return "its bias is computed before each forward (pruning or weight norm), not a parameter"
    return ""
