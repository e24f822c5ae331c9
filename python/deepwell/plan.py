"""The plan: which layers are converted, how, and why the others are not. Pure functions of layer facts; nothing here
knows PyTorch, so it runs and is tested on descriptions alone."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidArgumentError, UnsupportedError

PRECISIONS = ("mxfp8", "fp8", "bf16")
TARGETS = ("auto", "cpu", "hopper", "blackwell")
STRATEGIES = ("auto", "mxfp8_dense", "mxfp8_moe", "bf16_fused")
FLOAT_DTYPES = ("float32", "float16", "bfloat16")
SMALLEST_EXTENT = 32  # one MX block
HOPPER_MULTIPLE = 16  # FP8 operands of a Hopper GPU's products need rows of whole 16 bytes
# The smallest layer for which FP8 was measured to win on Hopper, forward and backward of it alone (6144 x 2048, on an
# H100; bench/results/h100/linear.json). 1024 x 4096 and 2048 x 2048 lose; nothing between was measured.
HOPPER_SMALLEST_WIDE = 4096
HOPPER_SMALLEST_WEIGHT = 6144 * 2048
CONVERT, KEEP, FUSE = "convert", "keep", "fuse"
_KEPT_ROLES = {"output_head": "output head", "router": "router", "adapter": "low-rank adapter"}


@dataclass(frozen=True)
class LayerFacts:
    """What the plan needs to know of one layer.

    kind: the module type's public name, such as "nn.Linear". role: "linear", "output_head", "router", "adapter" (one of
    a pair of low rank beside a layer) or "experts" (weights of many layers in one tensor). in_features and out_features
    are 0 for kinds that have none. obstacle: why its form cannot be converted, or "". role_reason: what showed its
    role. kernel: name of the registered implementation that will run it. transposed: its weight is [in_features,
    out_features].

    matrices: how many of [out_features, in_features] it holds. tokens_share: the part of a step's tokens that each of
    them sees. runs: how often it runs in a pass. frozen: its weight takes no gradient. shares_input: the first of the
    layers that read the very same tensor, "" if that is itself. input_from: the module whose result it reads as it is,
    "" if not known. note: what else a reader of the plan should know.
    """

    name: str
    kind: str
    class_name: str
    in_features: int
    out_features: int
    parameters: int
    dtype: str
    device: str
    role: str = "linear"
    role_reason: str = ""
    obstacle: str = ""
    kernel: str = "deepwell"
    transposed: bool = False
    matrices: int = 1
    tokens_share: float = 1.0
    runs: float = 1.0
    frozen: bool = False
    shares_input: str = ""
    input_from: str = ""
    note: str = ""

    @property
    def work(self) -> float:
        """Multiplications of one pass, for each of its tokens."""
        return self.in_features * self.out_features * self.matrices * self.tokens_share * self.runs


@dataclass(frozen=True)
class PartFacts:
    """A part that is no linear layer but takes time around them. kind: "embedding", "norm", "gated_mlp" (the activation
    between gate, up and down) or "attention". width: of an embedding's or norm's rows, of the gated MLP's inner
    tensors, of all queries together. rows: of an embedding."""

    name: str
    kind: str
    class_name: str
    width: int
    parameters: int
    rows: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """A model as the plan sees it: its candidate layers, the names of all its modules, its size, and what else there is
    of known kinds."""

    class_name: str
    layers: tuple[LayerFacts, ...]
    module_names: tuple[str, ...]
    parameters: int
    device: str
    parts: tuple[PartFacts, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """The number formats of one converted layer. Blocks lie along the reduction of each of the three products.
    activation_block is that of activations and gradients. On a Hopper GPU, where it is 1x128, the activations of weight
    gradients have blocks of 128x128 instead (deepwell.cuda_linear); the emulation on the CPU does not follow that."""

    element: str = "e4m3"
    rounding: str = "rceil"
    activation_block: str = "1x32"
    weight_block: str = "128x128"

    def __str__(self) -> str:
        return f"{self.element}/{self.rounding}/{self.activation_block}/{self.weight_block}"

    @staticmethod
    def parse(text: str) -> Recipe:
        return Recipe(*text.split("/"))


@dataclass(frozen=True)
class Decision:
    """What happens to one layer. action: "convert" (FP8 operands), "fuse" (its own precision, in one kernel with the
    quantization around it) or "keep"; reason: why, in words. Unless converted, precision is its own dtype and block is
    "". flops_share: its part of the multiplications of all these layers for one token. transposed: its weight is
    [in_features, out_features]."""

    name: str
    kind: str
    action: str
    reason: str
    precision: str
    block: str
    weight_block: str
    kernel: str
    in_features: int
    out_features: int
    parameters: int
    flops_share: float
    transposed: bool = False

    @property
    def converted(self) -> bool:
        return self.action == CONVERT


@dataclass(frozen=True)
class Options:
    """The arguments of `optimize`, validated. target is never "auto"; patterns are tuples."""

    precision: str
    target: str
    strategy: str
    device: str = "cpu"  # where the model is: "cpu" or "hopper"
    forced: tuple[tuple[str, str], ...] = ()  # (pattern, "mxfp8" or "keep"), from a mapping
    block_size: int | None = None
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Decisions for all candidate layers in the model's order, and what they were made for."""

    model: str
    options: Options
    recipe: Recipe
    decisions: tuple[Decision, ...]
    parameters: int
    notes: tuple[str, ...] = field(default=())

    @property
    def converted(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.converted)

    @property
    def flops_share(self) -> float:
        """Part of the linear layers' multiplications that runs converted."""
        return sum(d.flops_share for d in self.converted)


def parse_options(
    precision: Any,
    target: Any,
    strategy: Any,
    profile: Any,
    block_size: Any,
    skip: Any,
    only: Any,
    device: str,
) -> Options:
    """Validates the arguments of `optimize` for a model on `device` ("cpu", "hopper", or what else it is on).

    Raises InvalidArgumentError for values that mean nothing and UnsupportedError for what this version lacks."""
    _expect("precision", precision, PRECISIONS)
    _expect("target", target, TARGETS)
    if precision != "mxfp8":
        raise UnsupportedError(
            f"precision={precision!r} is not available in this version of deepwell; use precision='mxfp8'"
        )
    if not isinstance(profile, bool):
        raise InvalidArgumentError(f"profile={profile!r} is not a bool; expected True or False")
    if profile:
        raise UnsupportedError("profile=True is not available in this version of deepwell; use profile=False")
    if device not in ("cpu", "hopper"):
        raise UnsupportedError(
            f"the model is on {device}, and this version of deepwell converts models on Hopper GPUs and, for their "
            "numerics, on the CPU; move the model there first"
        )
    forced: tuple[tuple[str, str], ...] = ()
    if isinstance(strategy, Mapping):
        forced = _parse_mapping(strategy)
        strategy = "mapping"
    else:
        _expect("strategy", strategy, STRATEGIES, "or a mapping from module-name patterns to 'mxfp8' or 'keep'")
        if strategy in ("mxfp8_moe", "bf16_fused"):
            raise UnsupportedError(
                f"strategy={strategy!r} is not available in this version of deepwell; use 'auto' or 'mxfp8_dense'"
            )
    target = device if target == "auto" else target
    if device == "hopper" and target != "hopper":
        raise UnsupportedError(
            f"target={target!r} is emulated on the CPU only, and the model is on a Hopper GPU; use target='auto', or "
            "call model.cpu() first"
        )
    _check_block_size(block_size, target)
    if device == "hopper" and block_size == 32:
        raise UnsupportedError(
            "block_size=32 is not available on a Hopper GPU in this version of deepwell; use 128, or study its "
            "numerics on the CPU"
        )
    return Options(
        precision,
        target,
        strategy,
        device,
        forced,
        block_size,
        _parse_patterns("skip", skip),
        _parse_patterns("only", only),
    )


def choose_recipe(options: Options) -> Recipe:
    """Blocks by target: weights share one 128x128 quantization where the target can, activations and gradients have the
    target's own block. block_size=32 is MX proper (weights too, quantized along each reduction), 128 is Hopper's."""
    if options.block_size == 32 or options.target == "blackwell":
        return Recipe(activation_block="1x32", weight_block="1x32")
    if options.block_size == 128 or options.target == "hopper":
        return Recipe(activation_block="1x128", weight_block="128x128")
    return Recipe()


def make_plan(model: ModelFacts, options: Options) -> Plan:
    """Decides for every layer. Raises InvalidArgumentError for patterns that match no layer, that contradict each
    other, and when nothing is left to convert."""
    _check_patterns(model, options)
    recipe = choose_recipe(options)
    total = sum(layer.work for layer in model.layers)
    decisions = tuple(_decide(layer, options, recipe, total) for layer in model.layers)
    plan = Plan(model.class_name, options, recipe, decisions, model.parameters, _notes(options))
    if not plan.converted:
        raise InvalidArgumentError(_nothing_to_convert(model, decisions))
    return plan


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` (as in fnmatch, case-sensitive) names this module or one that holds it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1)) or (
        fnmatch.fnmatchcase(name, pattern)
    )


def _decide(layer: LayerFacts, options: Options, recipe: Recipe, total: float) -> Decision:
    wish = next((decision for pattern, decision in options.forced if matches(layer.name, pattern)), None)
    reason = _reason_to_keep(layer, options, wish)
    share = layer.work / total if total else 0.0
    if reason:
        action, precision, block, weight_block, kernel = KEEP, layer.dtype, "", "", ""
    else:
        action, precision, kernel = CONVERT, options.precision, layer.kernel
        own = kernel == "deepwell"
        block, weight_block = (recipe.activation_block, recipe.weight_block) if own else ("", "")
        reason = _reason_to_convert(layer, options, wish) + (f"; {layer.note}" if layer.note else "")
    return Decision(
        layer.name,
        layer.kind,
        action,
        reason,
        precision,
        block,
        weight_block,
        kernel,
        layer.in_features,
        layer.out_features,
        layer.parameters,
        share,
        layer.transposed,
    )


def _reason_to_keep(layer: LayerFacts, options: Options, wish: str | None) -> str:
    if layer.obstacle:
        return layer.obstacle
    if wish == KEEP:
        return "the strategy says keep"
    if any(matches(layer.name, pattern) for pattern in options.skip):
        return "named in skip"
    if options.only and not any(matches(layer.name, pattern) for pattern in options.only):
        return "not named in only"
    if layer.dtype not in FLOAT_DTYPES:
        return f"its weight is {layer.dtype}; float32, float16 and bfloat16 are converted"
    if wish is None and layer.role in _KEPT_ROLES:
        return f"{_KEPT_ROLES[layer.role]} ({layer.role_reason}): stays in high precision"
    smallest = min(layer.in_features, layer.out_features)
    if layer.kernel == "deepwell" and smallest < SMALLEST_EXTENT:
        return f"too small: a dimension of {smallest} is less than one block of {SMALLEST_EXTENT}"
    if layer.kernel == "deepwell" and options.device == "hopper":
        return _reason_to_keep_on_hopper(layer, wish)
    return ""


def _reason_to_keep_on_hopper(layer: LayerFacts, wish: str | None) -> str:
    if layer.transposed:
        return "its weight is stored [in_features, out_features]; products on Hopper take the transpose"
    for what, extent in (("in_features", layer.in_features), ("out_features", layer.out_features)):
        if extent % HOPPER_MULTIPLE:
            return f"{what} {extent} is not a multiple of {HOPPER_MULTIPLE}, which FP8 products on Hopper need"
    wide = max(layer.in_features, layer.out_features)
    small = wide < HOPPER_SMALLEST_WIDE or layer.in_features * layer.out_features < HOPPER_SMALLEST_WEIGHT
    if wish is None and small:
        return (
            f"may lose: FP8 was measured to win on Hopper from {HOPPER_SMALLEST_WIDE} in one dimension and "
            f"{HOPPER_SMALLEST_WEIGHT:,} weights"
        )
    return ""


def _reason_to_convert(layer: LayerFacts, options: Options, wish: str | None) -> str:
    if layer.kernel != "deepwell":
        return f"runs the registered kernel {layer.kernel}"
    if wish is not None:
        return "the strategy says mxfp8"
    if options.device == "hopper":
        return "FP8 products on this GPU"
    if options.target == "cpu":
        return "emulated exactly"
    return f"emulates {options.target} exactly"


def _notes(options: Options) -> tuple[str, ...]:
    if options.device == "hopper":
        return ()
    notes = ["On the CPU this emulates the numerics of MXFP8 exactly; it is not a speed-up."]
    if options.target == "hopper" and options.block_size == 32:
        notes.append("Blocks of 32 on Hopper are for numerics studies: its tensor cores gain no speed from them.")
    elif options.target == "hopper":
        notes.append(
            "For weight gradients a Hopper GPU quantizes activations in blocks of 128x128, this emulation in 1x128."
        )
    return tuple(notes)


def _nothing_to_convert(model: ModelFacts, decisions: Sequence[Decision]) -> str:
    if not decisions:
        return (
            f"nothing to convert: {model.class_name} has no nn.Linear and no type with a registered kernel; "
            "use deepwell.register_kernel for another module type"
        )
    shown = "; ".join(f"{d.name or '(the model)'}: {d.reason}" for d in decisions[:3])
    more = f"; and {len(decisions) - 3} more" if len(decisions) > 3 else ""
    return (
        f"nothing to convert: all {len(decisions)} candidate layers of {model.class_name} are kept ({shown}{more}); "
        "widen skip, only or strategy, or use the model as it is"
    )


def _expect(what: str, value: Any, choices: tuple[str, ...], also: str = "") -> None:
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise InvalidArgumentError(
            f"{what}={value!r} is not known; expected one of {listed}{' ' + also if also else ''}"
        )


def _check_block_size(block_size: Any, target: str) -> None:
    if block_size is None:
        return
    if isinstance(block_size, bool) or block_size not in (32, 128):
        raise InvalidArgumentError(f"block_size={block_size!r} is not known; expected 32, 128 or None")
    if block_size == 128 and target == "blackwell":
        raise InvalidArgumentError(
            "block_size=128 contradicts target='blackwell', whose tensor cores take blocks of 32; use block_size=32"
        )


def _parse_patterns(what: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    patterns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise InvalidArgumentError(
            f"{what}={value!r} is not a module-name pattern or a list of them, such as '*.mlp.*'"
        )
    if not patterns:
        raise InvalidArgumentError(f"{what} is empty; pass at least one module-name pattern, or None")
    return patterns


def _parse_mapping(strategy: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    if not strategy:
        raise InvalidArgumentError("strategy is an empty mapping; expected module-name patterns, or strategy='auto'")
    for pattern, decision in strategy.items():
        if not isinstance(pattern, str) or not pattern:
            raise InvalidArgumentError(f"strategy has the key {pattern!r}; expected a module-name pattern")
        if decision not in ("mxfp8", KEEP):
            raise InvalidArgumentError(
                f"strategy[{pattern!r}]={decision!r} is not known; expected 'mxfp8' to convert or 'keep' to leave alone"
            )
    return tuple(strategy.items())


def _check_patterns(model: ModelFacts, options: Options) -> None:
    names = [layer.name for layer in model.layers]
    by_argument = {"skip": options.skip, "only": options.only, "strategy": tuple(p for p, _ in options.forced)}
    for argument, patterns in by_argument.items():
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise InvalidArgumentError(_no_match(argument, pattern, model))
    for name in names:
        skipped = next((p for p in options.skip if matches(name, p)), None)
        wanted = next((p for p in options.only if matches(name, p)), None)
        wish = next(((p, d) for p, d in options.forced if matches(name, p)), None)
        if skipped and wanted:
            _contradiction(name, f"skip={skipped!r}", f"only={wanted!r}")
        if skipped and wish and wish[1] != KEEP:
            _contradiction(name, f"skip={skipped!r}", f"strategy[{wish[0]!r}]={wish[1]!r}")
        if wanted and wish and wish[1] == KEEP:
            _contradiction(name, f"only={wanted!r}", f"strategy[{wish[0]!r}]={wish[1]!r}")


def _no_match(argument: str, pattern: str, model: ModelFacts) -> str:
    if any(matches(name, pattern) for name in model.module_names if name):
        return f"{argument} pattern {pattern!r} matches modules of {model.class_name}, but none that could be converted"
    close = difflib.get_close_matches(pattern, [name for name in model.module_names if name], n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "; see model.named_modules() for the names"
    return f"{argument} pattern {pattern!r} matches no module of {model.class_name}{hint}"


def _contradiction(name: str, one: str, other: str) -> None:
    raise InvalidArgumentError(f"{one} and {other} contradict each other for module {name!r}; drop one of them")
