"""Causal attention of Hugging Face decoders, called without a mask wherever the mask is purely causal.

transformers' decoders make their attention masks once per forward pass, and look for packed sequences first (position
ids that start anew inside a row). In eager mode the answer is waited for on the host; a compiled graph cannot wait, so
it gets a mask as a tensor, with which the fast attention backends cost several times as much or do not run at all.

Neither is needed where the caller passed no attention mask, no position ids and no cache: such a batch is causal and
nothing else. A hook on the decoder sees the arguments, so the decision costs no look at any values, and puts a mask
of no elements, [1, 1, 0, 0], in the mask's place. transformers hands a mask of four dimensions through to the
attention as it is, and the implementation registered here reads that one as "causal". Every other mask, and every
call with an attention mask, position ids or a cache, takes transformers' own way."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from typing import Any

import torch
from torch import Tensor, nn

from .plan import ADAPT, Decision, Plan, matches

IMPLEMENTATION = "deepwell"  # its name in transformers' registries
_MAKERS = frozenset({"create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask"})
_WINDOWS = ("sliding_window", "attention_chunk_size")  # a mask shorter than these is purely causal
# What makes a decoder's mask more than causal, and what asks for transformers' own implementation by name.
_OTHER_MASKS = frozenset({"or_mask_function", "and_mask_function", "block_sequence_ids"})
_ASKS_BY_NAME = re.compile(r"_attn_implementation\s*(==|!=|in\b|not\s+in\b)")


def _register() -> None:
    """Makes the implementation known to transformers, which is imported already. Replaces nothing of its own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None and attention_mask.shape[-1] == 0:
            attention_mask = None  # what transformers passes for a mask that is purely causal
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class _CausalMask:
    """The hook. One object without state; copying and unpickling give it again, with transformers told of it."""

    def __call__(self, decoder: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        config = decoder.config
        if config._attn_implementation != IMPLEMENTATION or len(args) > 1 or not getattr(config, "is_causal", True):
            return None
        if any(kwargs.get(name) is not None for name in ("attention_mask", "position_ids", "past_key_values")):
            return None
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            return None
        for name in _WINDOWS:
            window = getattr(config, name, None)
            if window is not None and tokens.shape[1] >= window:
                return None
        return args, {**kwargs, "attention_mask": tokens.new_empty((1, 1, 0, 0), dtype=torch.bool)}

    def __reduce__(self) -> tuple:
        return _unpickled, ()


_HOOK = _CausalMask()


def _unpickled() -> _CausalMask:
    _register()
    return _HOOK


class Attention:
    """The attention of one decoder: its line in the plan, and how to change it."""

    module = None  # no class is swapped

    def __init__(self, name: str, decoder: nn.Module) -> None:
        self.decoder = decoder
        dtype = str(decoder.dtype).removeprefix("torch.")
        reason = "a purely causal mask is neither made as a tensor nor looked for on the host"
        self.decision = Decision(name, "attention", ADAPT, reason, dtype, "", "", IMPLEMENTATION, 0, 0, 0, 0.0)

    def apply(self) -> None:
        _register()
        self.decoder.config._attn_implementation_internal = IMPLEMENTATION
        self.decoder.register_forward_pre_hook(_HOOK, with_kwargs=True)


def find(model: nn.Module, plan: Plan) -> list[Attention]:
    """The decoders in `model` whose attention can be called so."""
    modeling, masking = sys.modules.get("transformers.modeling_utils"), sys.modules.get("transformers.masking_utils")
    if modeling is None or masking is None or not hasattr(masking, "AttentionMaskInterface"):
        return []
    options = plan.options
    named = (*options.skip, *(pattern for pattern, wish in options.forced if wish == "keep"))
    return [
        Attention(name, module)
        for name, module in model.named_modules()
        if isinstance(module, modeling.PreTrainedModel)
        and _suits(module)
        and not any(matches(name, pattern) for pattern in named)
        and (not options.only or any(matches(name, pattern) for pattern in options.only))
    ]


def restore(module: nn.Module) -> None:
    """Gives a decoder transformers' own attention back; does nothing to other modules."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _HOOK]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        if module.config._attn_implementation == IMPLEMENTATION:
            module.config._attn_implementation_internal = "sdpa"


# ---- which decoders ------------------------------------------------------------------------------------------------


def _suits(decoder: Any) -> bool:
    """Whether `decoder` makes its masks with transformers' functions and does nothing else with them: its own forward,
    and every module inside it, only hand them on."""
    config = decoder.config
    if getattr(config, "_attn_implementation", None) != "sdpa" or not decoder._supports_attention_backend:
        return False
    modules = [module for module in decoder.modules() if module is not decoder]
    return (
        "forward" not in decoder.__dict__
        and _makes_causal_masks(type(decoder))
        and all(getattr(module, "config", config) is config for module in modules)
        and all(getattr(module, "is_causal", True) for module in modules)
        and all(_hands_masks_on(kind) for kind in {type(module) for module in modules})
    )


def _source(kind: type) -> tuple[Any, ast.AST] | None:
    """The forward of a class behind its decorators, and its syntax tree; None where there is no source."""
    function = inspect.unwrap(kind.forward)
    try:
        return function, ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


@functools.cache
def _makes_causal_masks(kind: type) -> bool:
    """Whether a decoder's forward uses its attention mask to make causal masks and for nothing else."""
    found = _source(kind)
    if found is None:
        return False
    function, tree = found
    names = set(function.__code__.co_names)
    makers = {name for name in names if name.startswith("create_")}
    local = set(function.__code__.co_varnames)  # `mask_function = create_causal_mask if ... else ...`
    parameters = list(inspect.signature(function).parameters)
    return (
        bool(makers)
        and makers <= _MAKERS
        and all(function.__globals__[name].__module__ == "transformers.masking_utils" for name in makers)
        and not _OTHER_MASKS & {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        and not _OTHER_MASKS & {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        and parameters[1] in ("input_ids", "inputs_embeds")
        and {"attention_mask", "position_ids", "past_key_values"} <= set(parameters)
        and _only_passed(tree, lambda callee: isinstance(callee, ast.Name) and callee.id in makers | local)
        and not _ASKS_BY_NAME.search(_module_source(kind))
    )


@functools.cache
def _hands_masks_on(kind: type) -> bool:
    """Whether a class's forward does nothing with an attention mask but hand it to modules or to the attention."""
    if "attention_mask" not in inspect.signature(kind.forward).parameters:
        return True
    found = _source(kind)
    if found is None:
        return False

    def takes_masks(callee: ast.expr) -> bool:
        if isinstance(callee, ast.Attribute):  # a module inside, not a method, which could do anything
            on_self = isinstance(callee.value, ast.Name) and callee.value.id == "self"
            return on_self and not hasattr(kind, callee.attr)
        return isinstance(callee, ast.Name) and callee.id == "attention_interface"

    return _only_passed(found[1], takes_masks)


def _module_source(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    return inspect.getsource(module) if module is not None else ""


def _only_passed(tree: ast.AST, to: Any) -> bool:
    """Whether each use of attention_mask in `tree` is an argument of a call of such a function, a value of a dict, or
    the question whether it is a dict."""
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                passed.update(a.value if isinstance(a, ast.NamedExpr) else a for a in arguments)
            elif to(node.func):
                passed.update(arguments)
        elif isinstance(node, ast.Dict):
            passed.update(node.values)
    uses = {node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "attention_mask"}
    return uses <= passed
