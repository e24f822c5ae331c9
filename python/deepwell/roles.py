"""What the linear layers of a model are for, where that decides about their precision: output heads, routers, low-rank
adapters; and which layers are one of several experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .structure import Structure

# Names that mean a projection to a vocabulary wherever it stands, and names that mean a head on the last layer only.
_HEAD_NAMES = frozenset({"lm_head", "output_head", "vocab_head", "vocab_proj", "embed_out", "unembed", "unembedding"})
_LAST_HEAD_NAMES = frozenset(
    {"head", "classifier", "score", "logits", "to_logits", "output_layer", "output_projection"}
)
_ROUTER_NAMES = frozenset({"router", "gating", "gate_network", "gating_network", "expert_gate"})
_TOP_K_NAMES = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_top_k")

Linears = list[tuple[str, nn.Module]]


@dataclass
class Roles:
    """of: (role, what showed it) of layers that are not plain ones. share: of layers of experts and stacks of them, the
    part of the tokens that each expert sees."""

    of: dict[str, tuple[str, str]] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)


def find(model: nn.Module, structure: Structure, linears: Linears) -> Roles:
    found = Roles()
    for name, reason in _adapters(structure, linears).items():
        found.of[name] = "adapter", reason
    for name, module in linears:
        if reason := _router_reason(name, module, structure):
            found.of[name] = "router", reason
    for name, reason in _output_heads(model, structure, linears).items():
        found.of[name] = "output_head", reason
    _share_tokens(structure, found)
    return found


# ---- heads -----------------------------------------------------------------------------------------------------------


def _output_heads(model: nn.Module, structure: Structure, linears: Linears) -> dict[str, str]:
    """The layers that project to the model's output vocabulary, with what showed it."""
    embeddings = [m for m in structure.modules.values() if isinstance(m, nn.Embedding)]
    tied = {id(e._parameters.get("weight")) for e in embeddings}
    vocabulary = max((e.num_embeddings for e in embeddings), default=0)
    as_wide = [name for name, module in linears if _weight(module).shape[0] == vocabulary]  # type: ignore[union-attr]
    declared = _declared_heads(structure)
    heads: dict[str, str] = {}
    for position, (name, module) in enumerate(linears):
        last = position == len(linears) - 1
        leaf = name.rpartition(".")[2]
        if id(module._parameters.get("weight")) in tied:
            heads[name] = "its weight is an embedding's"
        elif id(module) in declared:
            heads[name] = "the model's get_output_embeddings names it"
        elif leaf in _HEAD_NAMES or (last and leaf in _LAST_HEAD_NAMES):
            heads[name] = f"named {leaf}"
        elif last and any(_weight(module).shape[0] == e.num_embeddings for e in embeddings):  # type: ignore[union-attr]
            heads[name] = "the last layer, as wide as the vocabulary"
        elif as_wide == [name]:
            heads[name] = "the only layer as wide as the vocabulary"
    return heads


def _declared_heads(structure: Structure) -> set[int]:
    """What models (also inside wrappers) of transformers name as their heads."""
    heads: set[int] = set()
    for module in structure.modules.values():
        getter = getattr(type(module), "get_output_embeddings", None)
        try:
            head: Any = getter(module) if callable(getter) else None
        except (NotImplementedError, AttributeError):
            continue  # models without a head inherit the method and cannot answer
        heads.add(id(head))
    return heads


# ---- routers and experts ---------------------------------------------------------------------------------------------


def expert_count(module: nn.Module) -> int:
    """How many experts' matrices this module holds stacked in 3-D parameters, or 0."""
    parameters = [p for p in module._parameters.values() if p is not None]
    if not any(p.dim() == 3 for p in parameters) or type(module).__module__.startswith("torch.nn.modules."):
        return 0
    if any(True for child in module.children() for _ in child.parameters()):
        return 0
    counts = {p.shape[0] for p in parameters if p.dim() > 0}
    return counts.pop() if len(counts) == 1 and counts != {1} else 0


def expert_extents(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of an expert's matrices as if they were one: the width they share, and the others'
    sum."""
    stacks = [p for p in module._parameters.values() if p is not None and p.dim() == 3]
    shared = set(stacks[0].shape[1:]).intersection(*(p.shape[1:] for p in stacks))
    width = min(shared, default=stacks[0].shape[2])
    return width, sum(p[0].numel() for p in stacks) // width


def _router_reason(name: str, module: nn.Module, structure: Structure) -> str:
    parent_name, _, leaf = name.rpartition(".")
    parent = structure.modules[parent_name]
    if leaf in _ROUTER_NAMES:
        return f"named {leaf}"
    if leaf == "gate" and hasattr(parent, "experts"):
        return "a gate beside experts"
    if name in structure.choosers:
        return "its output is ranked to choose among experts or tokens"
    for child, sibling in parent.named_children():
        if sibling is not module and _experts_in(sibling) == _weight(module).shape[0] > 1:
            return f"as many outputs as {child} has experts"
    return ""


def _experts_in(module: nn.Module) -> int:
    if isinstance(module, nn.ModuleList):
        types = {type(inner) for inner in module}
        return len(module) if len(types) == 1 else 0
    return expert_count(module)


def _share_tokens(structure: Structure, found: Roles) -> None:
    """Each token goes to top_k of the experts, evenly as far as anybody knows beforehand."""
    for name, module in structure.modules.items():
        parent = structure.modules[name.rpartition(".")[0]]
        if expert_count(module):
            found.share[name] = _top_k(module, parent) / expert_count(module)
        elif isinstance(module, nn.ModuleList) and _experts_in(module) > 1 and _routed(parent, structure, found):
            share = _top_k(module, parent) / len(module)
            found.share.update({inner: share for inner in structure.modules if inner.startswith(f"{name}.")})


def _routed(parent: nn.Module, structure: Structure, found: Roles) -> bool:
    routers = {id(structure.modules[name]) for name, (role, _) in found.of.items() if role == "router"}
    return any(id(child) in routers for child in parent.children())


def _top_k(module: nn.Module, parent: nn.Module) -> int:
    for owner in (module, parent, *parent.children(), getattr(parent, "config", None)):
        for name in _TOP_K_NAMES:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 1


# ---- adapters --------------------------------------------------------------------------------------------------------


def _adapters(structure: Structure, linears: Linears) -> dict[str, str]:
    """Trained pairs in -> r -> out beside one frozen layer in -> out and nothing else, r no larger than in and out:
    what LoRA adds, whatever wraps it."""
    found: dict[str, str] = {}
    groups: dict[str, Linears] = {}
    for name, module in linears:
        groups.setdefault(_wrapper(name, structure), []).append((name, module))
    for wrapper, members in groups.items():
        owner = structure.modules[wrapper]
        if isinstance(owner, nn.Linear):  # a subclass of nn.Linear that holds its own adapter
            members = [(wrapper, owner), *(member for member in members if member[1] is not owner)]
        base_name, base = max(members, key=lambda member: _weight(member[1]).numel())
        others = {name: _weight(module) for name, module in members if module is not base}
        frozen = not _weight(base).requires_grad and all(weight.requires_grad for weight in others.values())
        if others and frozen and _are_pairs(_weight(base).shape, [weight.shape for weight in others.values()]):
            found.update({name: f"beside {base_name.rpartition('.')[2]}" for name in others})
    return found


def _are_pairs(base: torch.Size, others: list[torch.Size]) -> bool:
    wide, deep = base
    downs = [shape[0] for shape in others if shape[1] == deep and shape[0] <= min(base)]
    ups = [shape[1] for shape in others if shape[0] == wide and shape[1] <= min(base)]
    return len(downs) + len(ups) == len(others) and sorted(downs) == sorted(ups)


def _weight(module: nn.Module) -> Tensor:
    return module.weight  # type: ignore[return-value]


def _wrapper(name: str, structure: Structure) -> str:
    """The nearest module around it that is more than a container."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(structure.modules[parent], (nn.ModuleDict, nn.ModuleList, nn.Sequential)):
        parent = parent.rpartition(".")[0]
    return parent
