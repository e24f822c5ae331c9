"""optimize, restore, and the plan a model carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import analyze, attention, convert, fuse, registry
from . import profile as profiling
from .errors import InvalidArgumentError
from .explanation import Explanation
from .plan import ModelFacts, Options, Plan, check_available, make_plan, parse_options, with_reported

_PLAN = "_deepwell_plan"


class QuantizationPlanner:
    """Makes plans from facts; `optimize` makes the same one."""

    def plan(
        self,
        facts: ModelFacts,
        precision: str = "mxfp8",
        target: str = "auto",
        strategy: str | Mapping[str, str] = "auto",
        profile: bool = False,
        *,
        block_size: int | None = None,
        skip: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        inference: bool = False,
        tokens: int = 0,
        sequence: int = 0,
        gpu: str = "",
        expect: bool = True,
    ) -> Plan:
        """The plan for a model described by `ModelOptimizer.analyze_model`. Arguments and errors as in `optimize`, and
        precision "fp8" and "bf16" and every strategy are planned, too. profile changes nothing here: a description
        cannot be run.

        inference: no gradients. tokens, sequence: of one pass and of one sequence, for predictions; 0: 8192 and 4096.
        gpu: whose figures predict ("h100", "h200", "b200", "gb200", "cpu"); "": the target's usual one. expect: raise
        when nothing is left to convert."""
        options = parse_options(
            *(precision, target, strategy, profile, block_size, skip, only, facts.device),
            inference=inference,
            tokens=tokens,
            sequence=sequence,
        )
        return make_plan(facts, options, gpu=gpu, expect=expect)


def optimize(
    model: nn.Module,
    precision: str = "mxfp8",
    target: str = "auto",
    strategy: str | Mapping[str, str] = "auto",
    profile: bool = False,
    verbose: bool = False,
    *,
    block_size: int | None = None,
    skip: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
) -> nn.Module:
    """Makes every suitable layer of `model` train with FP8 operands, and returns the same model.

    Parameters, their names and dtypes, the state_dict, hooks and optimizers stay as they are; each converted module's
    class becomes a subclass of its own. `deepwell.restore(model)` undoes it, `deepwell.explain(model)` shows what was
    decided and why.

    precision: "mxfp8". "fp8" and "bf16" are not available in this version.
    target: whose numerics to use: "cpu" (activations and gradients in blocks of 1x32, weights in 128x128), "hopper"
        (1x128 and 128x128), "blackwell" (1x32, weights too), or "auto": where the model is. On a CPU all of them are
        emulated exactly, which is for numerics and not faster.
    strategy: "auto" or "mxfp8_dense", or a mapping from module-name patterns to "mxfp8" or "keep", first match first;
        a layer that is kept by default only for its role (output head, router, adapter) can be converted so.
    profile: run each distinct size of layer on this device, forward and backward, as it is and converted, and let the
        times decide in place of predictions: a few seconds, remembered in $XDG_CACHE_HOME/deepwell (~/.cache/deepwell)
        for this device and driver. On a CPU, where conversion is for numerics, the times are only shown.
    verbose: print a line for each decision and a summary.
    block_size: 32 (MX proper, weights too) or 128 (Hopper's) instead of the target's own.
    skip, only: module-name patterns (as in fnmatch; a pattern that matches a module holds for all inside it).

    Kept in high precision, each with its reason in the plan: output heads, routers, low-rank adapters, stacks of
    experts, layers with a dimension under 32, float64 layers, parametrized, pruned or weight-normed layers, layers
    whose weight another module reads without calling them, and classes with their own forward, unless a trial on two
    tokens, both gradients included, shows that it computes what nn.Linear does (or, on the CPU, the same with the
    weight transposed, as GPT-2's Conv1D).

    A model that was optimized with the same arguments is returned as it is. Everything else that cannot be done raises
    and leaves the model unchanged: InvalidArgumentError (not a module, no parameters, meta device, unknown or
    contradicting arguments, patterns that match nothing, nothing to convert, optimized with other arguments) and
    UnsupportedError (what this version or machine lacks).

    nn.TransformerEncoderLayer has a fused path for inference that reads its layers' weights without calling them; it
    stays in the model's own precision (torch.backends.mha.set_fastpath_enabled(False) turns it off)."""
    device = analyze.check_model(model)
    options = parse_options(precision, target, strategy, profile, block_size, skip, only, device)
    check_available(options)
    if options.profile:
        options = replace(options, tokens=profiling.profile_tokens(options))
    known = model.__dict__.get(_PLAN)
    if known is None:
        known = _plan(model, options)
        fusions = attention.find(model, known)
        if options.device == "hopper":
            fusions += fuse.find(model, known)
        if fusions:
            known = with_reported(known, [f.decision for f in fusions])
        _apply(model, known, fusions)
    elif known.options != options:
        raise InvalidArgumentError(
            f"this {type(model).__name__} is optimized already, with other arguments; "
            "call deepwell.restore(model) first"
        )
    if verbose:
        print(Explanation(known))
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes `optimize` on `model` and everything inside it, and returns the model. Values trained meanwhile stay.

    Raises InvalidArgumentError when nothing in it is converted, or a converted module's class was changed again."""
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    modules = list(model.modules())
    converted = [module for module in modules if convert.is_converted(module)]
    if not converted:
        raise InvalidArgumentError(f"this {type(model).__name__} is not optimized; there is nothing to restore")
    for module in converted:
        convert.check_revertible(module)
    for module in converted:
        convert.revert(module)
    for module in modules:
        attention.restore(module)
        fuse.restore_loss(module)
        module.__dict__.pop(_PLAN, None)
    return model


def explain(model: nn.Module) -> Explanation:
    """The decisions made for an optimized model: `print` it, or use `.to_json()`, `.to_html()` or `.plan`.

    Raises InvalidArgumentError for a model that is not optimized."""
    return Explanation(find_plan(model))


def find_plan(model: Any) -> Plan:
    """The plan that `model`, or the module it wraps, carries."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            if _PLAN in module.__dict__:
                return module.__dict__[_PLAN]
    raise InvalidArgumentError(f"this {type(model).__name__} is not optimized; call deepwell.optimize(model) first")


def carries_plan(module: nn.Module) -> bool:
    """Whether `optimize` was called on this very module."""
    return _PLAN in module.__dict__


def _plan(model: nn.Module, options: Options) -> Plan:
    """What to do with the model's layers; with `options.profile` after measuring their sizes on the model's device."""
    facts = analyze.analyze(model, options.precision)
    device = next(model.parameters()).device
    gpu = "h200" if device.type == "cuda" and "H200" in torch.cuda.get_device_name(device) else ""
    if not options.profile:
        return make_plan(facts, options, gpu=gpu)
    measured = profiling.measure(make_plan(facts, options, gpu=gpu, expect=False), device)
    return make_plan(replace(facts, remarks=measured.remarks), options, gpu=gpu, measurements=measured.measurements)


def _apply(model: nn.Module, plan: Plan, fusions: Sequence[fuse.Fusion | attention.Attention]) -> None:
    """Converts as planned: all of it, or on failure nothing."""
    done: list[nn.Module] = []
    try:
        for decision in plan.decisions:
            if not decision.converted:
                continue
            module = model.get_submodule(decision.name)
            if decision.kernel == "deepwell":
                convert.convert_linear(module, plan.recipe, decision.transposed)
            else:
                convert.convert_to_kernel(module, registry.registered(decision.kind, plan.options.precision))
            done.append(module)
        for fusion in fusions:
            fusion.apply()
            if fusion.module is not None:
                done.append(fusion.module)
    except BaseException:
        for module in done:
            convert.revert(module)
        for module in model.modules():
            attention.restore(module)
            fuse.restore_loss(module)
        raise
    model.__dict__[_PLAN] = plan
