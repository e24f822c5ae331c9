"""What Deepwell decides about a model, in a form that people can review; `tests/python/architectures` holds what was.

    .venv/bin/python tests/python/architecture_tables.py [NAME...]

writes the files of these architectures (of all, without names) as the present code decides. Look at every difference
before committing it: tests/python/architectures/README.md says what to check."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

import deepwell
from deepwell import fuse

FOLDER = Path(__file__).parent / "architectures"

# What a reason begins with or holds, and what the review calls it.
_CATEGORIES = (
    ("output head", "output head"),
    ("router", "router"),
    ("low-rank adapter", "low-rank adapter"),
    ("too small", "too small"),
    ("experts' weights in one tensor", "experts"),
    ("overrides nn.Linear's forward", "own forward"),
    ("without calling it", "weight read, not called"),
)

Groups = dict[str, str]


def describe(model: nn.Module) -> dict[str, object]:
    """The decisions for the model, which is left as it is: {"model", "converted", "fused" (on Hopper), "kept" by
    category, "one input" (layers that are seen to read the same tensor), "rest" (what else there is, by kind)}.

    Each is a mapping from the module that holds them to names; {0,1} stands for several modules that are alike."""
    facts = deepwell.ModelOptimizer().analyze_model(model)
    plan = deepwell.QuantizationPlanner().plan(facts)
    kept: dict[str, list[str]] = {}
    for decision in plan.decisions:
        if not decision.converted:
            kept.setdefault(_category(decision.reason), []).append(decision.name)
    kinds = {part.name: part.kind for part in facts.parts}
    decided = {decision.name for decision in plan.decisions}
    rest: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if name not in decided and (module._parameters or name in kinds):
            rest.setdefault(kinds.get(name, type(module).__name__), []).append(name)
    return {
        "model": facts.class_name,
        "converted": _grouped(decision.name for decision in plan.converted),
        "fused": {kind: _grouped(names) for kind, names in _fusions(model).items()},
        "kept": {category: _grouped(names) for category, names in kept.items()},
        "one input": _shared(facts),
        "rest": {kind: _grouped(names) for kind, names in rest.items()},
    }


def _category(reason: str) -> str:
    return next((category for part, category in _CATEGORIES if part in reason), reason)


def _fusions(model: nn.Module) -> dict[str, list[str]]:
    """What would be fused on a Hopper GPU, were it of BF16 and all its layers converted."""
    dtype = next(model.parameters()).dtype
    model.to(torch.bfloat16)
    plan = deepwell.QuantizationPlanner().plan(deepwell.ModelOptimizer().analyze_model(model))
    found: dict[str, list[str]] = {}
    for fusion in fuse.find(model, plan):
        found.setdefault(fusion.decision.kind, []).append(fusion.decision.name)
    model.to(dtype)
    return found


def _shared(facts: deepwell.ModelFacts) -> list[str]:
    groups: dict[str, list[str]] = {}
    for layer in facts.layers:
        if layer.shares_input:
            groups.setdefault(layer.shares_input, [layer.shares_input]).append(layer.name)
    lines: dict[str, list[str]] = {}
    for names in groups.values():
        common = _common_parent(names)
        inner = " ".join(name[len(common) + 1 if common else 0 :] for name in names)
        pattern, index = _split_index(common)
        lines.setdefault(f"{pattern}: {inner}", []).append(index)
    return [_with_indices(line, indices) for line, indices in lines.items()]


def _common_parent(names: list[str]) -> str:
    common = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _grouped(names: Iterable[str]) -> Groups:
    """{"layers.{0,1}.mlp": "gate up down"}: names by the module that holds them, together for modules that are alike
    but for their first index."""
    leaves: dict[str, list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        leaves.setdefault(parent, []).append(leaf)
    alike: dict[tuple[str, str], list[str]] = {}
    for parent, found in leaves.items():
        pattern, index = _split_index(parent)
        alike.setdefault((pattern, " ".join(found)), []).append(index)
    return {_with_indices(pattern, indices): found for (pattern, found), indices in alike.items()}


def _split_index(name: str) -> tuple[str, str]:
    found = re.search(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return (name[: found.start(1)] + "#" + name[found.end(1) :], found[1]) if found else (name, "")


def _with_indices(pattern: str, indices: list[str]) -> str:
    shown = indices[0] if len(indices) == 1 else "{" + ",".join(indices) + "}"
    return pattern.replace("#", shown, 1)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def main(names: list[str]) -> None:
    import transformers

    from architecture_models import ARCHITECTURES

    transformers.logging.set_verbosity_error()
    FOLDER.mkdir(exist_ok=True)
    for name in names or ARCHITECTURES:
        torch.manual_seed(0)
        path_of(name).write_text(json.dumps(describe(ARCHITECTURES[name].make()), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
