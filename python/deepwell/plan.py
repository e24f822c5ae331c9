"""The plan: which layers are converted, how, and why the others are not. libdeepwell decides (deepwell/plan.h); this
module carries facts to it and decisions back. Nothing here knows PyTorch, so it runs on descriptions alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import _core
from .errors import InvalidArgumentError, UnsupportedError

PRECISIONS = ("mxfp8", "fp8", "bf16")
CONVERT, KEEP, FUSE, ADAPT = "convert", "keep", "fuse", "adapt"


@dataclass(frozen=True)
class LayerFacts:
    """What the plan needs to know of one layer.

    kind: the module type's public name, such as "nn.Linear". role: "linear", "output_head", "router", "adapter" (one of
    a pair of low rank beside a layer), "experts" (weights of many layers in one tensor), or for layers that are only
    reported "norm", "gated_mlp", "attention", "loss", "other". in_features and out_features are 0 for kinds that have
    none. obstacle: why its form cannot be converted, or "". role_reason: what showed its role. kernel: name of the
    registered implementation that will run it. transposed: its weight is [in_features, out_features].

    matrices: how many of [out_features, in_features] it holds. tokens_share: the part of a step's tokens that each of
    them sees. runs: how often it runs in a pass. frozen: its weight takes no gradient. shares_input: the first of the
    layers that read the very same tensor, "" if that is itself. input_from: the module whose result it reads as it is,
    "" if not known. note: what else a reader of the plan should know. fused, adapted: why it runs fused with the
    quantization around it, or is called in another form; such layers are only reported.
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
    fused: str = ""
    adapted: str = ""

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
    remarks: tuple[str, ...] = ()  # sentences that go with the plan's summary


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
class Cost:
    """Predicted (or measured) milliseconds of one pass and bytes. quantize_ms is part of the first two; host_ms is the
    host's time, hidden where the device is busy longer; alone_ms: the layer by itself. weight_bytes: weight, gradient
    and FP8 copies; saved_bytes: kept from forward for backward."""

    forward_ms: float
    backward_ms: float
    quantize_ms: float
    host_ms: float
    alone_ms: float
    weight_bytes: int
    saved_bytes: int


@dataclass(frozen=True)
class Decision:
    """What happens to one layer. action: "convert" (FP8 operands), "fuse" (its own precision, in one kernel with the
    quantization around it), "adapt" (its own precision, called in its fastest form) or "keep"; reason: why, in words.
    Unless converted, precision is its own dtype and block is "". flops_share: its part of the multiplications of all
    these layers for one token. transposed: its weight is [in_features, out_features]. input_forms, gradient_forms,
    weight_forms: which orientations are quantized ("row", "transposed", "both", ""). full and candidate: what it
    costs as it is and converted or fused, None where nothing is predicted; measured: on this device. by_time: kept for
    its time alone."""

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
    input_forms: str = ""
    gradient_forms: str = ""
    weight_forms: str = ""
    full: Cost | None = None
    candidate: Cost | None = None
    measured: bool = False
    by_time: bool = False

    @property
    def converted(self) -> bool:
        return self.action == CONVERT


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of forward and backward of a linear layer alone, in its own precision and converted."""

    tokens: int
    in_features: int
    out_features: int
    full_ms: float
    candidate_ms: float


@dataclass(frozen=True)
class Options:
    """The arguments of `optimize`, validated. target is never "auto"; patterns are tuples. tokens, sequence: what
    a pass is assumed to hold in predictions; 0 stands for 8192 and 4096."""

    precision: str
    target: str
    strategy: str
    device: str = "cpu"  # where the model is: "cpu" or "hopper"
    forced: tuple[tuple[str, str], ...] = ()  # (pattern, precision or "keep"), from a mapping
    block_size: int | None = None
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    profile: bool = False
    inference: bool = False
    tokens: int = 0
    sequence: int = 0


@dataclass(frozen=True)
class Plan:
    """Decisions for all candidate layers in the model's order, and what they were made for and from."""

    model: str
    options: Options
    recipe: Recipe
    decisions: tuple[Decision, ...]
    parameters: int
    notes: tuple[str, ...] = field(default=())
    facts: ModelFacts | None = field(default=None, repr=False)
    gpu: str = ""
    measurements: tuple[Measurement, ...] = field(default=(), repr=False)

    @property
    def converted(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.converted)

    @property
    def flops_share(self) -> float:
        """Part of the linear layers' multiplications that runs converted."""
        return sum(d.flops_share for d in self.converted)

    def explained(self, form: int) -> str:
        """The plan as text (0), JSON (1) or HTML (2), made by libdeepwell from the same facts."""
        assert self.facts is not None
        return _core.plan_explain(
            _model_tuple(self.facts), _options_tuple(self.options, self.gpu, self.measurements), form
        )


def parse_options(
    precision: Any,
    target: Any,
    strategy: Any,
    profile: Any,
    block_size: Any,
    skip: Any,
    only: Any,
    device: str,
    *,
    inference: bool = False,
    tokens: int = 0,
    sequence: int = 0,
) -> Options:
    """Validates the arguments of `optimize` for a model on `device` ("cpu", "hopper", or what else it is on).

    Raises InvalidArgumentError for values that mean nothing and UnsupportedError for what this version lacks."""
    for what, value in (("precision", precision), ("target", target)):
        if not isinstance(value, str):
            raise InvalidArgumentError(f"{what}={value!r} is not a text; see help(deepwell.optimize) for its values")
    if not isinstance(profile, bool):
        raise InvalidArgumentError(f"profile={profile!r} is not a bool; expected True or False")
    if block_size is not None and (not isinstance(block_size, int) or isinstance(block_size, bool) or block_size == 0):
        raise InvalidArgumentError(f"block_size={block_size!r} is not known; expected 32, 128 or None")
    forced: tuple[tuple[str, str], ...] = ()
    if isinstance(strategy, Mapping):
        forced = _parse_mapping(strategy, precision)
        strategy = "mapping"
    elif not isinstance(strategy, str):
        raise InvalidArgumentError(
            f"strategy={strategy!r} is not known; expected 'auto', another name, or a mapping from module-name "
            "patterns to a precision or 'keep'"
        )
    if device not in ("cpu", "hopper"):
        raise UnsupportedError(
            f"the model is on {device}, and this version of deepwell converts models on Hopper GPUs and, for their "
            "numerics, on the CPU; move the model there first"
        )
    if device == "hopper" and target in ("cpu", "blackwell"):
        raise UnsupportedError(
            f"target={target!r} is emulated on the CPU only, and the model is on a Hopper GPU; use target='auto', or "
            "call model.cpu() first"
        )
    options = Options(
        precision,
        device if target == "auto" else target,
        strategy,
        device,
        forced,
        block_size,
        _parse_patterns("skip", skip),
        _parse_patterns("only", only),
        profile,
        inference,
        tokens,
        sequence,
    )
    _core.plan_check_options(_options_tuple(options))
    return options


def check_available(options: Options) -> None:
    """Raises UnsupportedError for what can be planned, but not run by this version of the library."""
    if options.precision != "mxfp8":
        raise UnsupportedError(
            f"precision={options.precision!r} is not available in this version of deepwell; use precision='mxfp8'"
        )
    if options.strategy in ("mxfp8_moe", "bf16_fused"):
        raise UnsupportedError(
            f"strategy={options.strategy!r} is not available in this version of deepwell; use 'auto' or 'mxfp8_dense'"
        )
    if options.device == "hopper" and options.block_size == 32:
        raise UnsupportedError(
            "block_size=32 is not available on a Hopper GPU in this version of deepwell; use 128, or study its "
            "numerics on the CPU"
        )


def make_plan(
    model: ModelFacts, options: Options, *, gpu: str = "", measurements: Sequence[Measurement] = (), expect: bool = True
) -> Plan:
    """Decides for every layer. gpu: whose figures predict ("h100", "h200", ...); "": the target's usual one.

    Raises InvalidArgumentError for patterns that match no layer, that contradict each other and, when `expect`, when
    nothing is left to convert."""
    measured = tuple(measurements)
    block, weight_block, notes, made = _core.plan(
        _model_tuple(model), _options_tuple(options, gpu, measured), expect=expect
    )
    decided = made[: len(model.layers)]  # parts are in the predictions and in the explanation only
    decisions = tuple(_decision(layer, values) for layer, values in zip(model.layers, decided, strict=True))
    recipe = Recipe(activation_block=block, weight_block=weight_block)
    return Plan(model.class_name, options, recipe, decisions, model.parameters, tuple(notes), model, gpu, measured)


# The roles of layers that are only reported, by what the plan calls them.
_REPORTED_ROLES = {"RMSNorm": "norm", "gated MLP": "gated_mlp", "cross-entropy": "loss", "attention": "attention"}


def with_reported(plan: Plan, reported: Sequence[Decision]) -> Plan:
    """The plan, made anew with layers that run fused or in another form (decisions without costs) behind the others."""
    assert plan.facts is not None
    widths = {part.name: part.width for part in plan.facts.parts}
    layers = tuple(
        LayerFacts(
            d.name,
            d.kind,
            d.kind,
            d.in_features or widths.get(d.name, 0),
            d.out_features,
            d.parameters,
            d.precision,
            plan.facts.device,
            role=_REPORTED_ROLES.get(d.kind, "other"),
            fused=d.reason if d.action == FUSE else "",
            adapted=d.reason if d.action == ADAPT else "",
        )
        for d in reported
    )
    names = {layer.name for layer in layers}
    parts = tuple(part for part in plan.facts.parts if part.name not in names)
    facts = replace(plan.facts, layers=(*plan.facts.layers, *layers), parts=parts)
    return make_plan(facts, plan.options, gpu=plan.gpu, measurements=plan.measurements)


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` (as in a shell, case-sensitive) names this module or one that holds it."""
    return _core.plan_matches(name, pattern)


def _model_tuple(model: ModelFacts) -> tuple:
    """Layers as libdeepwell reads them, by position, where Python names them; the parts behind them."""
    layers = (*model.layers, *(_part(part, model) for part in model.parts))
    positions: dict[str, int] = {}
    for position, layer in enumerate(layers):
        positions.setdefault(layer.name, position)
    rows = []
    for position, layer in enumerate(layers):
        shares = positions.get(layer.shares_input, -1) if layer.shares_input else -1
        rows.append(
            (
                layer.name,
                layer.kind,
                layer.role,
                layer.role_reason,
                layer.obstacle,
                layer.fused,
                layer.adapted,
                "" if layer.kernel == "deepwell" else layer.kernel,
                layer.note,
                layer.in_features,
                layer.out_features,
                layer.matrices,
                layer.tokens_share,
                layer.runs,
                layer.parameters,
                layer.dtype,
                layer.frozen,
                False,
                layer.transposed,
                shares if shares < position else -1,
                positions.get(layer.input_from, -1) if layer.input_from else -1,
            )
        )
    return (model.class_name, model.parameters, list(model.module_names), list(model.remarks), rows)


def _part(part: PartFacts, model: ModelFacts) -> LayerFacts:
    dtype = next((layer.dtype for layer in model.layers), "float32")
    return LayerFacts(
        part.name, part.class_name, part.class_name, part.width, 0, part.parameters, dtype, model.device, part.kind
    )


def _options_tuple(options: Options, gpu: str = "", measurements: Sequence[Measurement] = ()) -> tuple:
    return (
        options.precision,
        options.target,
        "auto" if options.strategy == "mapping" else options.strategy,
        options.device,
        gpu or None,
        options.block_size or 0,
        options.inference,
        options.tokens,
        options.sequence,
        _core.context_info()["threads"] if options.target == "cpu" else 0,
        list(options.forced),
        list(options.skip),
        list(options.only),
        [(m.tokens, m.in_features, m.out_features, m.full_ms, m.candidate_ms) for m in measurements],
    )


def _decision(layer: LayerFacts, values: tuple) -> Decision:
    action, reason, precision, block, weight_block, kernel, share, *rest = values
    *forms, full, candidate, measured, by_time = rest
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
        *forms,
        full=None if full is None else Cost(*full),
        candidate=None if candidate is None else Cost(*candidate),
        measured=measured,
        by_time=by_time,
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


def _parse_mapping(strategy: Mapping[Any, Any], precision: str) -> tuple[tuple[str, str], ...]:
    if not strategy:
        raise InvalidArgumentError("strategy is an empty mapping; expected module-name patterns, or strategy='auto'")
    for pattern, decision in strategy.items():
        if not isinstance(pattern, str) or not pattern:
            raise InvalidArgumentError(f"strategy has the key {pattern!r}; expected a module-name pattern")
        if not isinstance(decision, str):
            raise InvalidArgumentError(
                f"strategy[{pattern!r}]={decision!r} is not a text; expected {precision!r} to convert or 'keep' to "
                "leave alone"
            )
    return tuple(strategy.items())
