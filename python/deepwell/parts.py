"""Finds the parts of a model that are no linear layers but take time around them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .dataflow import flow_of
from .plan import PartFacts
from .recognize import EPSILONS
from .structure import Structure

# What attention ends in, by the names that PyTorch and transformers call it.
_ATTENTION = frozenset({"scaled_dot_product_attention", "attention_interface", "multi_head_attention_forward"})


Extents = dict[str, tuple[int, int]]  # (in_features, out_features) of linear layers, by name


def find(structure: Structure, extents: Extents) -> Iterator[PartFacts]:
    for name, module in structure.modules.items():
        if isinstance(module, nn.Embedding):
            yield _part(name, module, "embedding", module.embedding_dim, module.num_embeddings)
        elif width := _norm_width(module):
            yield _part(name, module, "norm", width)
        elif width := _gated_width(name, module, structure, extents):
            yield _part(name, module, "gated_mlp", width)
        elif width := _attention_width(name, module, structure, extents):
            yield _part(name, module, "attention", width)


def _part(name: str, module: nn.Module, kind: str, width: int, rows: int = 0) -> PartFacts:
    parameters = sum(p.numel() for p in module._parameters.values() if p is not None)
    return PartFacts(name, kind, type(module).__name__, width, parameters, rows)


def _norm_width(module: nn.Module) -> int:
    """Of a module with a weight, perhaps a bias, an epsilon and nothing else."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    weight = parameters.get("weight")
    if weight is None or weight.dim() != 1 or parameters.keys() - {"weight", "bias"} or module._modules:
        return 0
    return weight.shape[0] if any(isinstance(getattr(module, name, None), float) for name in EPSILONS) else 0


def _gated_width(name: str, module: nn.Module, structure: Structure, extents: Extents) -> int:
    """Of a module with three linear layers, two of one shape reading one tensor, the third back from another."""
    linears = _linears_in(name, module, extents)
    for third in linears if len(linears) == 3 else ():
        first, second = (other for other in linears if other != third)
        source = structure.input_of(first)
        together = source is not None and source == structure.input_of(second) != structure.input_of(third)
        if together and extents[first] == extents[second] == extents[third][::-1]:
            return extents[first][1]
    return 0


def _attention_width(name: str, module: nn.Module, structure: Structure, extents: Extents) -> int:
    """Of a module that calls an attention function: what the projection of its result reads, or else what the first
    layer, the queries' one, gives."""
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    linears = _linears_in(name, module, extents)
    flow = flow_of(type(module))
    if not linears or not flow.functions & _ATTENTION:
        return 0
    for linear in linears:
        source = structure.input_of(linear)
        if source and source.owner == name and all(v.identity != source.identity for v in flow.inputs.values()):
            return extents[linear][0]
    return extents[linears[0]][1]


def _linears_in(name: str, module: nn.Module, extents: Extents) -> list[str]:
    names = (f"{name}.{child}" if name else child for child, _ in module.named_children())
    return [child for child in names if child in extents]
