"""How the modules of one model use each other, put together from what the source of each forward says."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from torch import nn

from .dataflow import ANY, Call, Flow, Value, flow_of


@dataclass(frozen=True)
class Input:
    """A value: the module in whose forward it is, its identity there, and the item of a list it is passed to where it
    is another one for each."""

    owner: str
    identity: int
    turn: str = ""


@dataclass(frozen=True)
class Use:
    """One place that calls a module: the name of the module whose forward that is, and the call."""

    owner: str
    call: Call


class Structure:
    """Answers about the modules of `model`, by their names."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        # Under how many names a module is registered: what is shared runs for each of them.
        names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self.places = {name: names[id(module)] for name, module in self.modules.items()}
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.readers: dict[str, list[str]] = defaultdict(list)  # who reads its weight without calling it
        self.choosers: set[str] = set()  # modules whose output is ranked
        for name, module in self.modules.items():
            if module._modules and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                self._add(name, module, flow_of(type(module)))

    def _add(self, owner: str, module: nn.Module, flow: Flow) -> None:
        for call in flow.calls:
            for name in below(owner, module, call.path):
                self.uses[name].append(Use(owner, call))
        for path in flow.reads:
            for name in below(owner, module, path):
                self.readers[name].append(type(module).__name__)
        for path in flow.choosers:
            self.choosers.update(below(owner, module, path))

    def input_of(self, name: str) -> Input | None:
        """What the module reads, the same for all modules that read it too; None when that is not known."""
        found = {self._trace(use, name) for use in self.uses[name]}
        return found.pop() if len(found) == 1 else None

    def producer_of(self, name: str) -> str:
        """The module whose result this one reads as it is, or ""."""
        source = self.input_of(name)
        if source is None:
            return ""
        module = self.modules[source.owner]
        path = flow_of(type(module)).made.get(source.identity, ANY)
        names = [] if ANY in path else below(source.owner, module, path)
        return names[0] if len(names) == 1 else ""

    def _trace(self, use: Use, name: str) -> Input | None:
        """Follows what a call passes on, where it came in as an argument of forward, to where it was made."""
        value = _first(use.call)
        seen = {name}
        while value is not None:
            owner = use.owner
            flow = flow_of(type(self.modules[owner]))
            if ANY in use.call.path and flow.varies(value):
                return Input(owner, value.identity, _turn(owner, use.call.path, name))
            keys = [key for key, own in flow.inputs.items() if own == value]
            outer_uses = self.uses[owner]
            if not keys or len(outer_uses) != 1 or owner in seen:
                return Input(owner, value.identity)
            seen.add(owner)
            outer = next((v for key in keys if (v := outer_uses[0].call.arguments.get(key)) is not None), None)
            if outer is None:
                return Input(owner, value.identity)
            use, name, value = outer_uses[0], owner, outer
        return None


def _turn(owner: str, path: str, name: str) -> str:
    """The item of a list that `name`, called by this path, is or is in."""
    depth = path.split(".").index(ANY) + 1 + (owner.count(".") + 1 if owner else 0)
    return ".".join(name.split(".")[:depth])


def _first(call: Call) -> Value | None:
    """The tensor that a call passes: its first argument, or the only one passed by name."""
    if 0 in call.arguments:
        return call.arguments[0]
    return next(iter(call.arguments.values()), None) if len(call.arguments) == 1 else None


def below(owner: str, module: nn.Module, path: str) -> list[str]:
    """Full names of the submodules that a path below `module` names."""
    found = [(owner, module)]
    for part in path.split("."):
        found = [
            (f"{name}.{child}" if name else child, inner)
            for name, outer in found
            for child, inner in outer._modules.items()
            if inner is not None and part in (ANY, child)
        ]
    return [name for name, _ in found]
