"""Reads the source of a module's forward: which submodules it calls and with what, whose weights it reads without
calling them, whose output is ranked. Nothing is executed. Where there is no source (a class typed at a prompt, a
compiled extension) nothing is known, and callers treat what is not known as unused.

The reading is a small abstract interpretation: every expression has a value with an identity, so that two calls with
one variable, not assigned in between, are seen to share their input; and with makers, the submodules whose results it
was computed from without another submodule in between. Both branches of an `if` are read, a loop's body once. Methods
that forward calls on `self` are followed."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

ANY = "*"  # stands for an index in the path of a submodule: "layers.*"
_PARAMETERS = frozenset({"weight", "bias"})
_CHOOSING = frozenset({"topk", "argmax", "argsort"})
# What is looked up on a parameter without using its values.
_METADATA = frozenset(
    {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "is_cuda", "stride"}
)
_QUESTIONS = frozenset({"isinstance", "hasattr", "getattr", "type", "id", "len"})
_DEPTH = 6  # methods followed from forward


@dataclass(frozen=True)
class Value:
    """What an expression gives. module: the path of the submodule it is, if it is one."""

    identity: int
    makers: frozenset[str] = frozenset()
    module: str = ""


@dataclass
class Call:
    """One place where a submodule is called: its path below self, and its arguments by position or name."""

    path: str
    arguments: dict[int | str, Value]


@dataclass
class Flow:
    """What a class's forward does with its submodules. inputs: forward's own parameters, by position and by name.
    made: the submodule whose result a value is, by the value's identity. functions: the last names of what else it
    calls. loops: first and last identity of the values made in each loop, which differ from pass to pass."""

    calls: list[Call] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    choosers: set[str] = field(default_factory=set)
    inputs: dict[int | str, Value] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    loops: list[tuple[int, int]] = field(default_factory=list)

    def varies(self, value: Value) -> bool:
        return any(first <= value.identity <= last for first, last in self.loops)


def flow_of(module_type: type) -> Flow:
    """What the forward of this class does. An empty Flow where its source cannot be read."""
    return _flow(module_type, getattr(module_type, "forward", None))


@functools.lru_cache(maxsize=1024)
def _flow(module_type: type, forward: Any) -> Flow:  # forward is part of the key: classes get patched
    reader = _Reader(module_type)
    tree = _tree(forward)
    if tree is not None:
        try:
            reader.enter(tree)
        except RecursionError:
            return Flow()
    return reader.flow


@functools.lru_cache(maxsize=1024)
def without_side_effects(forward: Any) -> bool:
    """Whether a forward's own statements only compute: they assign local names and return. False without source."""
    tree = _tree(forward)
    if tree is None:
        return False
    documented = ast.get_docstring(tree) is not None
    for node in (inner for statement in tree.body[documented:] for inner in ast.walk(statement)):
        if isinstance(node, (ast.Expr, ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom, ast.Delete)):
            return False
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            return False
    return True


def _tree(function: Any) -> ast.FunctionDef | None:
    function = inspect.unwrap(function) if callable(function) else None
    if not isinstance(function, FunctionType):
        return None
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None
    return parsed[0] if parsed and isinstance(parsed[0], ast.FunctionDef) else None


def _parameters(tree: ast.FunctionDef) -> list[str]:
    """Names after self."""
    return [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)][1:]


class _Reader:
    def __init__(self, module_type: type) -> None:
        self.module_type = module_type
        self.flow = Flow()
        self.numbers = itertools.count()
        self.stack: list[str] = []
        self.names: dict[str, Value] = {}
        self.returned: list[Value] = []
        self.self_name = "self"

    def fresh(self, of: Iterable[Value] = ()) -> Value:
        return Value(next(self.numbers), frozenset().union(*(value.makers for value in of)))

    def enter(self, tree: ast.FunctionDef) -> None:
        """Reads forward itself."""
        for position, name in enumerate(_parameters(tree)):
            self.flow.inputs[position] = self.flow.inputs[name] = self.names[name] = self.fresh()
        for argument in tree.args.kwonlyargs:
            self.flow.inputs[argument.arg] = self.names[argument.arg] = self.fresh()
        self.function(tree)

    def function(self, tree: ast.FunctionDef) -> None:
        first = (*tree.args.posonlyargs, *tree.args.args)
        self.self_name = first[0].arg if first else "self"
        self.block(tree.body)

    # ---- statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.bind(target, value)
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            operands = [self.value(node.value)] if node.value is not None else []
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                operands.append(self.names.get(node.target.id, self.fresh()))
            single = operands[0] if len(operands) == 1 and isinstance(node, ast.AnnAssign) else self.fresh(operands)
            self.bind(node.target, single)
        elif isinstance(node, ast.If):
            self.value(node.test)
            self.branches([node.body, node.orelse])
        elif isinstance(node, (ast.For, ast.While)):
            self.loop(node)
        elif isinstance(node, ast.With):
            for item in node.items:
                value = self.value(item.context_expr)
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, value)
            self.block(node.body)
        elif isinstance(node, ast.Try):
            self.branches([[*node.body, *node.orelse], *(handler.body for handler in node.handlers)])
            self.block(node.finalbody)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                self.returned.append(self.value(node.value))
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child)

    def branches(self, bodies: list[list[ast.stmt]]) -> None:
        before = self.names
        after = []
        for body in bodies:
            self.names = dict(before)
            self.block(body)
            after.append(self.names)
        self.names = {}
        for name in set().union(*after):
            values = [names[name] for names in after if name in names]
            same = all(value == values[0] for value in values)
            self.names[name] = values[0] if same else self.fresh(values)

    def loop(self, node: ast.For | ast.While) -> None:
        # What the body assigns differs from one pass to the next, so it is nothing known when the body begins.
        first = next(self.numbers)
        assigned = {n.id for s in node.body for n in ast.walk(s) if isinstance(n, ast.Name) and _stores(n)}
        for name in assigned & self.names.keys():
            self.names[name] = self.fresh([self.names[name]])
        if isinstance(node, ast.For):
            self.bind_items(node.target, node.iter)
        else:
            self.value(node.test)
        self.branches([[*node.body, *node.orelse], []])
        self.flow.loops.append((first, next(self.numbers)))
        for name in assigned & self.names.keys():
            self.names[name] = self.fresh([self.names[name]])

    def bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self.bind(part, self.fresh([value]))
        elif isinstance(target, ast.Starred):
            self.bind(target.value, self.fresh([value]))
        elif isinstance(target, ast.Subscript):
            self.value(target.slice)

    def bind_items(self, target: ast.expr, iterable: ast.expr) -> None:
        """Binds a loop's target to the items of what it runs over: submodules, where that is a list of them."""
        named = isinstance(iterable, ast.Call) and isinstance(iterable.func, (ast.Attribute, ast.Name))
        counted = _last(iterable.func) if named else ""
        if counted == "enumerate" and isinstance(target, ast.Tuple) and len(target.elts) == 2 and iterable.args:
            self.bind(target.elts[0], self.fresh())
            self.bind_items(target.elts[1], iterable.args[0])
        elif counted == "zip" and isinstance(target, ast.Tuple) and len(target.elts) == len(iterable.args):
            for part, source in zip(target.elts, iterable.args, strict=True):
                self.bind_items(part, source)
        elif counted == "items" and isinstance(target, ast.Tuple) and len(target.elts) == 2:
            self.bind(target.elts[0], self.fresh())
            self.bind(target.elts[1], self.item(self.value(iterable)))
        else:
            self.bind(target, self.item(self.value(iterable)))

    # ---- expressions

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name):
            return self.names.setdefault(node.id, self.fresh())
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self.part(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self.bind(node.target, value)
            return value
        if isinstance(node, ast.Lambda):
            return self.fresh()
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self.comprehension(node)
        return self.fresh([self.value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)])

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        before = dict(self.names)
        for generator in node.generators:
            self.bind_items(generator.target, generator.iter)
            for condition in generator.ifs:
                self.value(condition)
        elements = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        made = self.fresh([self.value(element) for element in elements])
        self.names = before
        return made

    def part(self, node: ast.Attribute | ast.Subscript) -> Value:
        """An attribute or an item."""
        if isinstance(node, ast.Subscript):
            self.value(node.slice)
            owner = self.value(node.value)
            return owner if owner.module and isinstance(node.slice, ast.Slice) else self.item(owner)
        if isinstance(node.value, ast.Name) and node.value.id == self.self_name:
            return Value(next(self.numbers), module=node.attr)
        if node.attr in _METADATA and isinstance(node.value, ast.Attribute) and node.value.attr in _PARAMETERS:
            return self.fresh()
        owner = self.value(node.value)
        if owner.module and node.attr in _PARAMETERS:
            self.flow.reads.add(owner.module)
        elif owner.module:
            return Value(next(self.numbers), module=f"{owner.module}.{node.attr}")
        return self.fresh([owner])

    def item(self, owner: Value) -> Value:
        if owner.module:
            return Value(next(self.numbers), module=f"{owner.module}.{ANY}")
        return self.fresh([owner])

    def call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
            return self.fresh()
        positional = [self.value(argument) for argument in node.args]
        named = {keyword.arg: self.value(keyword.value) for keyword in node.keywords}
        everything = [*positional, *named.values()]
        arguments = {**dict(enumerate(positional)), **{name: value for name, value in named.items() if name}}
        called = _last(node.func) if isinstance(node.func, (ast.Attribute, ast.Name)) else ""
        self.flow.functions.add(called)
        chooses = called in _CHOOSING
        if isinstance(node.func, ast.Attribute) and not self.method_of_self(node.func):
            receiver = self.value(node.func)
            if receiver.module and not chooses:
                return self.submodule(receiver.module, arguments)
            everything.append(receiver)
        elif isinstance(node.func, ast.Attribute):
            return self.method(node.func.attr, arguments, everything)
        else:
            callee = self.value(node.func)
            if callee.module:
                return self.submodule(callee.module, arguments)
            everything.append(callee)
        result = self.fresh(everything)
        if chooses:
            self.flow.choosers |= result.makers
        return result

    def submodule(self, path: str, arguments: dict[int | str, Value]) -> Value:
        """A call of self.path, or of a method of it, which `path` then ends in."""
        owner, _, last = path.rpartition(".")
        if owner and last in ("values", "items"):
            return Value(next(self.numbers), module=owner)
        path = owner if owner and last in ("forward", "__call__") else path
        self.flow.calls.append(Call(path, arguments))
        result = Value(next(self.numbers), frozenset({path}))
        self.flow.made[result.identity] = path
        return result

    def method_of_self(self, function: ast.Attribute) -> bool:
        on_self = isinstance(function.value, ast.Name) and function.value.id == self.self_name
        return on_self and inspect.isroutine(getattr(self.module_type, function.attr, None))

    def method(self, name: str, arguments: dict[int | str, Value], everything: list[Value]) -> Value:
        """A call of one of the class's own methods, which is read with these arguments."""
        found = inspect.getattr_static(self.module_type, name, None)
        tree = _tree(found) if isinstance(found, FunctionType) else None
        if tree is None or name in self.stack or len(self.stack) == _DEPTH:
            return self.fresh(everything)
        outer = self.names, self.returned, self.self_name
        self.stack.append(name)
        self.names, self.returned = {}, []
        for position, parameter in enumerate(_parameters(tree)):
            self.names[parameter] = arguments.get(position) or arguments.get(parameter) or self.fresh()
        for keyword in tree.args.kwonlyargs:
            self.names[keyword.arg] = arguments.get(keyword.arg) or self.fresh()
        self.function(tree)
        returned = self.returned
        self.names, self.returned, self.self_name = outer
        self.stack.pop()
        return returned[0] if len(returned) == 1 else self.fresh(returned)


def _stores(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _last(function: ast.Attribute | ast.Name) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id
