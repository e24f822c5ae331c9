"""register_kernel: a user's implementation of a module type, chosen, run, copied, refused and undone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import deepwell
from deepwell import InvalidArgumentError, UnsupportedError, register_kernel, unregister_kernel
from torch_models import TinyLM, mlp


@pytest.fixture
def registered():
    """Registers and undoes it after the test."""
    undo = []

    def register(module_type, implementation, **arguments):
        result = register_kernel(module_type, **arguments)(implementation)
        undo.append(module_type)
        return result

    yield register
    for module_type in undo:
        unregister_kernel(module_type)


def doubled(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return 2 * nn.functional.linear(x, module.weight, module.bias)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((64,), 3.0))

    def forward(self, x: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
        return x * self.scale + offset


def test_a_function_runs_every_linear(registered) -> None:
    assert registered("nn.Linear", doubled) is doubled
    model = mlp()
    x = torch.randn(5, 64)
    expected = 2 * nn.functional.linear(nn.functional.gelu(2 * model[0](x)), model[2].weight, model[2].bias)
    deepwell.optimize(model)
    torch.testing.assert_close(model(x), expected)
    made = deepwell.explain(model).plan.decisions
    assert {d.kernel for d in made} == {"doubled"}
    assert "doubled" in made[0].reason
    assert isinstance(model[0], nn.Linear)
    model(x).sum().backward()
    assert model[0].weight.grad is not None
    with pytest.raises(InvalidArgumentError, match="registered kernels run all"):
        deepwell.health(model)
    deepwell.restore(model)
    assert type(model[0]) is nn.Linear


def test_roles_hold_for_registered_kernels_too(registered) -> None:
    registered("nn.Linear", doubled)
    made = {d.name: d for d in deepwell.explain(deepwell.optimize(TinyLM())).plan.decisions}
    assert not made["out"].converted
    assert made["blocks.0.up"].converted


def test_a_class_that_chooses(registered) -> None:
    class Chooses:
        def supports(self, module: nn.Linear) -> str:
            return "" if module.bias is not None else "it wants a bias"

        def forward(self, module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return doubled(module, x)

    registered("nn.Linear", Chooses, name="choosy")
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
    made = deepwell.explain(deepwell.optimize(model)).plan.decisions
    assert [d.kernel for d in made] == ["choosy", ""]
    assert made[1].reason == "it wants a bias"
    assert "choosy" in [k.name for k in deepwell.kernels() if k.target == "python" and k.operation == "nn.Linear"]


@pytest.mark.parametrize("by", ["class", "path"])
def test_other_module_types(registered, by: str) -> None:
    registered(
        Scaled if by == "class" else f"{__name__}.Scaled", lambda module, x, offset=0.0: x - offset, name="minus"
    )
    model = nn.Sequential(Scaled(), nn.Linear(64, 64))
    deepwell.optimize(model)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model[0](x, offset=1.0), x - 1.0)
    made = deepwell.explain(model).plan.decisions
    assert made[0].kind == f"{__name__}.Scaled"
    assert made[0].kernel == "minus"
    assert made[1].kernel == "deepwell"
    assert "minus" in str(deepwell.explain(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other[0](x, 2.0), x - 2.0)


def test_subclasses_that_inherit_forward_are_served_and_others_not(registered) -> None:
    class Inherits(nn.Linear):
        pass

    class Overrides(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    registered("nn.Linear", doubled)
    model = nn.Sequential(Inherits(64, 64), Overrides(64, 64))
    made = deepwell.explain(deepwell.optimize(model)).plan.decisions
    assert made[0].kernel == "doubled"
    assert "overrides" in made[1].reason


def test_compiled(registered) -> None:
    registered("nn.Linear", doubled)
    model = deepwell.optimize(mlp())
    x = torch.randn(5, 64)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_duplicates_are_refused_until_undone() -> None:
    register_kernel("nn.Linear")(doubled)
    try:
        with pytest.raises(InvalidArgumentError, match="unregister_kernel"):
            register_kernel(nn.Linear, precision="mxfp8")(lambda module, x: x)
    finally:
        unregister_kernel("nn.Linear")
    with pytest.raises(InvalidArgumentError, match="no kernel is registered"):
        unregister_kernel("nn.Linear")
    assert all(k.target != "python" for k in deepwell.kernels())


def test_a_model_whose_kernel_is_gone_says_so() -> None:
    register_kernel("nn.Linear")(doubled)
    model = deepwell.optimize(mlp())
    unregister_kernel("nn.Linear")
    with pytest.raises(UnsupportedError, match="register it again"):
        model(torch.randn(3, 64))
    deepwell.restore(model)(torch.randn(3, 64))


@pytest.mark.parametrize("module_type", ["nn.Lniear", "Linear", "no.such.module", "", int, 3, "torch.add"])
def test_unknown_types_are_named(module_type: object) -> None:
    with pytest.raises(InvalidArgumentError, match="names no module type"):
        register_kernel(module_type)


def test_bad_registrations() -> None:
    with pytest.raises(InvalidArgumentError, match="int4"):
        register_kernel("nn.Linear", precision="int4")
    with pytest.raises(UnsupportedError, match="fp8"):
        register_kernel("nn.Linear", precision="fp8")
    with pytest.raises(InvalidArgumentError, match="cannot register"):
        register_kernel("nn.Linear")(3)
    assert all(k.target != "python" for k in deepwell.kernels())


# ---- the contest --------------------------------------------------------------------------------------------------


def test_dispatch_tells_who_runs_a_module_type(registered) -> None:
    dispatcher = deepwell.DeepwellDispatcher()
    own = dispatcher.dispatch("nn.Linear")
    assert (own.kernel.name, own.kernel.priority) == ("deepwell", 0)
    with pytest.raises(UnsupportedError, match=r"nothing is registered for nn\.LayerNorm"):
        dispatcher.dispatch("nn.LayerNorm")
    registered("nn.Linear", doubled)
    registered(Scaled, lambda module, x, offset=0.0: x, name="plain")
    mine = dispatcher.dispatch("nn.Linear")
    assert (mine.kernel.name, mine.kernel.target, mine.kernel.priority) == ("doubled", "python", 100)
    chosen, rejected = (next(line for line in mine.explanation.splitlines() if n in line) for n in ("doubled", "deepw"))
    assert chosen.startswith("chosen ")
    assert rejected.startswith("rejected ")
    assert "rejected plain: registered for" in mine.explanation
    with pytest.raises(InvalidArgumentError, match="names no module type"):
        dispatcher.dispatch("nn.Lniear")
    with pytest.raises(InvalidArgumentError, match="rows=None"):
        dispatcher.dispatch("quantize", cols=3)


@pytest.mark.parametrize("taken", ["deepwell", "dequantize__ref", "doubled"])
def test_names_that_are_taken_are_refused(taken: str, registered) -> None:
    registered("nn.Linear", doubled)
    with pytest.raises(InvalidArgumentError, match=f"named '{taken}' already"):
        register_kernel(Scaled, name=taken)(doubled)


def test_alignment_takes_part_in_the_choice() -> None:
    dispatcher = deepwell.DeepwellDispatcher()
    assert dispatcher.dispatch(rows=3, cols=3, alignment=1).kernel.alignment == 1  # processors take any
    with pytest.raises(InvalidArgumentError, match="power of two"):
        dispatcher.dispatch(rows=3, cols=3, alignment=3)


def test_plugins_that_cannot_be_loaded(tmp_path) -> None:
    with pytest.raises(deepwell.DeepwellError, match="no such file"):
        deepwell.load_plugin(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(deepwell.DeepwellError, match=r"text\.so"):
        deepwell.load_plugin(tmp_path / "text.so")
