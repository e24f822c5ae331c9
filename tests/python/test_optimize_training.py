"""A converted model trains, copies, saves and transforms as the model it was."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import deepwell
from deepwell import ops
from torch_models import TinyLM, assert_equal, gradients, mlp


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    torch.manual_seed(seed)


def tokens() -> torch.Tensor:
    return torch.randint(0, 96, (3, 11))


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


class Recorder:
    """Stands in for the extension and writes down which orientations were quantized."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, bool]] = []

    def __getattr__(self, name: str):
        return getattr(deepwell._core, name)

    def quantize(self, *arguments):
        self.calls.append((arguments[9] is not None, arguments[10] is not None))
        return deepwell._core.quantize(*arguments)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(ops, "_core", recorder)
    return recorder


ROW, TRANSPOSED, BOTH = (True, False), (False, True), (True, True)


# ---- parameters, state, optimizers -----------------------------------------------------------------------------------


def test_parameters_and_state_dict_are_the_same_objects_and_bytes() -> None:
    model = TinyLM(tied=True)
    parameters = dict(model.named_parameters())
    ids = {name: (id(p), p.data_ptr(), p.dtype) for name, p in parameters.items()}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    deepwell.optimize(model)
    assert {name: (id(p), p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == ids
    assert list(model.state_dict()) == list(state)
    assert_equal(dict(model.state_dict()), state)
    loss(model, tokens()).backward()
    assert_equal(dict(model.state_dict()), state)


def test_state_dict_loads_both_ways() -> None:
    plain, converted = TinyLM(), deepwell.optimize(TinyLM())
    converted.load_state_dict(plain.state_dict(), strict=True)
    other = TinyLM()
    other.load_state_dict(converted.state_dict(), strict=True)
    assert_equal(dict(other.state_dict()), dict(plain.state_dict()))
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=True), dict(plain.state_dict()))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> list[float]:
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def test_optimizers_made_before_and_after_train_alike() -> None:
    first = TinyLM()
    second = copy.deepcopy(first)
    before = torch.optim.AdamW(first.parameters(), lr=1e-2)
    deepwell.optimize(first)
    deepwell.optimize(second)
    after = torch.optim.AdamW(second.parameters(), lr=1e-2)
    batches = [tokens()] * 12
    losses = train(first, before, batches)
    assert losses == train(second, after, batches)
    assert losses[-1] < 0.7 * losses[0]


def test_training_follows_full_precision() -> None:
    """Next tokens drawn from four successors of each, fresh ones in every step: the loss falls from log 96 towards
    log 4 and stays there. Quality bar: within 1% of full precision on the same data."""
    successors = torch.randint(0, 96, (96, 4))
    batches = []
    for _ in range(60):
        x = torch.randint(0, 96, (16, 16))
        batches.append((x, successors[x, torch.randint(0, 4, x.shape)]))
    plain = TinyLM()
    converted = deepwell.optimize(copy.deepcopy(plain))
    means = []
    for model in (plain, converted):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for x, y in batches:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            value.backward()
            optimizer.step()
            losses.append(value.item())
        means.append(sum(losses[-20:]) / 20)
        assert means[-1] < 0.5 * losses[0]
    assert means[0] != means[1]  # it is quantized
    assert abs(means[1] - means[0]) < 0.01 * means[0]


def test_edits_of_data_are_seen_at_once() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64, bias=False))
    x = torch.randn(5, 64)
    y = layer(x)
    layer.weight.data.mul_(2.0)  # no version counter moves
    torch.testing.assert_close(layer(x), 2 * y, rtol=0, atol=0)


def test_weight_changed_between_forward_and_backward_is_an_error_as_ever() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    y = layer(torch.randn(5, 64, requires_grad=True))
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- only what is needed ---------------------------------------------------------------------------------------------


def test_training_quantizes_each_tensor_once_in_both_orientations(recorder: Recorder) -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    y = layer(torch.randn(5, 64, requires_grad=True))
    assert recorder.calls == [BOTH, ROW]  # x, weight
    y.sum().backward()
    assert recorder.calls[2:] == [BOTH, ROW]  # dy, weight


def test_nothing_is_kept_for_a_backward_that_cannot_come(recorder: Recorder) -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    x = torch.randn(5, 64)
    with torch.no_grad():
        a = layer(x)
    with torch.inference_mode():
        b = layer.eval()(x)
    assert recorder.calls == [ROW, ROW] * 2
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_input_without_gradient(recorder: Recorder) -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    layer(torch.randn(5, 64)).sum().backward()
    assert recorder.calls == [BOTH, ROW, TRANSPOSED]


def test_frozen_weight(recorder: Recorder) -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).sum().backward()
    assert recorder.calls == [ROW, ROW, ROW, ROW]
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    frozen = x.grad.clone()
    x.grad = None
    layer.weight.requires_grad_(True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, frozen, rtol=0, atol=0)
    assert layer.weight.grad is not None


def test_only_the_bias_trains(recorder: Recorder) -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 64)).sum().backward()
    assert recorder.calls == [ROW, ROW]
    torch.testing.assert_close(layer.bias.grad, torch.full((64,), 5.0))


# ---- autograd's machinery --------------------------------------------------------------------------------------------


def test_gradients_accumulate() -> None:
    model = deepwell.optimize(TinyLM())
    parts = [tokens(), tokens()]
    separate = []
    for part in parts:
        model.zero_grad()
        loss(model, part).backward()
        separate.append(gradients(model))
    model.zero_grad()
    for part in parts:
        loss(model, part).backward()
    assert_equal(gradients(model), {name: separate[0][name] + separate[1][name] for name in separate[0]})


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    model = deepwell.optimize(mlp())
    x = torch.randn(40, 64)
    results = []
    for wrapped in (False, True):
        model.zero_grad()
        source = x.clone().requires_grad_()
        y = checkpoint(model, source, use_reentrant=reentrant) if wrapped else model(source)
        y.square().mean().backward()
        results.append({**gradients(model), "x": source.grad, "y": y.detach()})
    assert_equal(*results)


def test_a_layer_used_twice_and_a_shared_module() -> None:
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.GELU(), layer)
    deepwell.optimize(model)
    assert [d.name for d in deepwell.explain(model).plan.decisions] == ["0"]
    x = torch.randn(33, 64, requires_grad=True)
    model(x).sum().backward()
    assert model[0] is model[2]
    assert layer.weight.grad.abs().sum() > 0
    deepwell.restore(model)


def test_tied_linear_weights_sum_their_gradients() -> None:
    one, two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    two.weight = one.weight
    model = deepwell.optimize(nn.Sequential(one, two))
    x = torch.randn(40, 64)
    model(x).sum().backward()
    tied = one.weight.grad.clone()
    separate = nn.Sequential(copy.deepcopy(one), copy.deepcopy(one))
    separate(x).sum().backward()
    torch.testing.assert_close(tied, separate[0].weight.grad + separate[1].weight.grad)


def test_retained_graph_and_partial_gradients() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    x = torch.randn(40, 64, requires_grad=True)
    y = layer(x).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    weight, again = torch.autograd.grad(y, [layer.weight, x])
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert weight.shape == layer.weight.shape


def test_second_derivatives_and_forward_mode_say_that_they_are_not_there() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    x = torch.randn(4, 64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(deepwell.UnsupportedError, match="second derivative"):
        first.sum().backward()
    with pytest.raises(deepwell.UnsupportedError, match="jvp"):
        jvp(layer, (x.detach(),), (x.detach(),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), x.detach())
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            layer(dual)


def test_hooks_and_attributes_stay() -> None:
    model = mlp()
    seen: list[str] = []
    model[0].register_forward_pre_hook(lambda m, a: seen.append("pre"))
    model[0].register_forward_hook(lambda m, a, y: seen.append("forward"))
    model[0].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    model[0].weight.register_hook(lambda g: seen.append("weight"))
    model[0].note = "mine"
    deepwell.optimize(model)
    model(torch.randn(4, 64, requires_grad=True)).sum().backward()
    assert sorted(seen) == ["backward", "forward", "pre", "weight"]
    assert model[0].note == "mine"
    deepwell.restore(model)
    assert model[0].note == "mine"
    assert len(model[0]._forward_hooks) == 1


def test_saved_tensors_are_a_quarter_of_the_input() -> None:
    layer = deepwell.optimize(nn.Linear(256, 64))
    saved: list[torch.Tensor] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(torch.randn(128, 256, requires_grad=True))
    kept = sum(t.nbytes for t in saved if t is not layer.weight and t.shape != layer.weight.shape)
    assert kept == 128 * 256 + 256 * 4


# ---- torch.func ------------------------------------------------------------------------------------------------------


def test_functional_call_and_grad() -> None:
    model = deepwell.optimize(TinyLM())
    batch = tokens()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    computed = grad(lambda p: loss(lambda b: functional_call(model, p, (b,)), batch))(parameters)
    loss(model, batch).backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(computed[name], expected, rtol=1e-5, atol=1e-7)
    doubled = {name: 2 * p for name, p in parameters.items()}
    assert (functional_call(model, doubled, (batch,)) != model(batch)).any()


def test_per_example_gradients() -> None:
    model = deepwell.optimize(mlp())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 40, 64)

    def energy(p: dict, example: torch.Tensor) -> torch.Tensor:
        return functional_call(model, p, (example,)).square().sum()

    together = vmap(grad(energy), in_dims=(None, 0))(parameters, x)
    of_sum = grad(lambda p: vmap(lambda e: energy(p, e))(x).sum())(parameters)
    for name in parameters:
        each = torch.stack([grad(energy)(parameters, example)[name] for example in x])
        torch.testing.assert_close(together[name], each)
        torch.testing.assert_close(of_sum[name], each.sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vmap(model)(x), torch.stack([model(e) for e in x]), rtol=0, atol=0)
    torch.testing.assert_close(
        vmap(model, in_dims=1)(x), torch.stack([model(x[:, i]) for i in range(40)]), rtol=0, atol=0
    )


def test_jacobian_by_reverse_mode() -> None:
    layer = deepwell.optimize(nn.Linear(32, 32, bias=False))
    x = torch.randn(32)
    jacobian = jacrev(layer)(x)
    for output in range(32):
        source = x.clone().requires_grad_()
        layer(source)[output].backward()
        torch.testing.assert_close(jacobian[output], source.grad)


# ---- copies and files ------------------------------------------------------------------------------------------------


class Inherits(nn.Linear):
    pass


def assert_independent_and_equal(model: nn.Module, other: nn.Module) -> None:
    assert [type(m) for m in model.modules()] == [type(m) for m in other.modules()]
    x = torch.randn(9, 64)
    torch.testing.assert_close(model(x), other(x), rtol=0, atol=0)
    assert deepwell.explain(other).plan == deepwell.explain(model).plan
    with torch.no_grad():
        other[0].weight.add_(1.0)
    assert (model(x) != other(x)).any()
    other(x).sum().backward()
    deepwell.restore(other)
    assert type(other[1]) is Inherits
    assert type(model[1]) is not Inherits


@pytest.mark.parametrize("how", ["deepcopy", *(f"pickle{n}" for n in range(2, 6)), "torch.save"])
def test_copies(how: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), Inherits(64, 64))
    model[0].note = ["mine"]
    deepwell.optimize(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = pickle.loads(pickle.dumps(model, protocol=int(how.removeprefix("pickle"))))
    assert other[0].note == ["mine"]
    assert_independent_and_equal(model, other)


def test_a_fresh_process_loads_a_saved_model(tmp_path) -> None:
    model = deepwell.optimize(mlp(), target="hopper")
    x = torch.randn(5, 64)
    torch.save({"model": model, "x": x, "y": model(x)}, tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "saved = torch.load(sys.argv[1], weights_only=False)\n"
        "import deepwell\n"
        "assert torch.equal(saved['model'](saved['x']), saved['y'])\n"
        "assert deepwell.explain(saved['model']).plan.options.target == 'hopper'\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class Quantized(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.full((40, 64), float(index + 1))
        return deepwell.MXFPQuantizer().dequantize(deepwell.MXFPQuantizer().quantize_tensor(x))


def test_forked_data_loader() -> None:
    model = deepwell.optimize(mlp())
    model(torch.randn(40, 64))  # the parent's threads run
    loader = DataLoader(Quantized(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    assert torch.equal(batches[1][1], torch.full((40, 64), 4.0))
    model(batches[0]).sum().backward()


# ---- changes after conversion ----------------------------------------------------------------------------------------


def test_dtype_changed_since() -> None:
    model = deepwell.optimize(mlp())
    assert model.bfloat16()(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(deepwell.InvalidArgumentError, match="float64"):
        model.double()(torch.randn(3, 64, dtype=torch.float64))


def test_wrong_inputs_are_named() -> None:
    layer = deepwell.optimize(nn.Linear(64, 64))
    for x, named in (
        (torch.randn(3, 65), "(3, 65)"),
        (torch.randn(3, 64).half(), "float16"),
        (torch.ones(3, 64, dtype=torch.int64), "int64"),
        (torch.randn(()), "()"),
    ):
        with pytest.raises(deepwell.InvalidArgumentError) as error:
            layer(x)
        assert named in str(error.value)


def test_moved_to_meta_it_gives_shapes() -> None:
    model = deepwell.optimize(mlp()).to("meta")
    assert model(torch.empty(2, 3, 64, device="meta")).shape == (2, 3, 64)


def test_representation_names_the_recipe() -> None:
    model = deepwell.optimize(mlp(), target="blackwell")
    assert "mxfp8 e4m3, blocks 1x32, weight 1x32" in repr(model)
    assert "in_features=64" in repr(model)


def test_operator_registrations_hold_together() -> None:
    """PyTorch's own checks: schema, autograd registration, fake tensors, traced training."""
    for save_x in (True, False):
        x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((3, 5, 64), (48, 64), (48,)))
        if not save_x:
            weight = weight.detach()
        torch.library.opcheck(
            torch.ops.deepwell.mx_linear.default, (x, weight, bias, "e4m3/rceil/1x32/128x128", torch.float32, save_x)
        )
    torch.library.opcheck(
        torch.ops.deepwell.mx_linear.default,
        (torch.randn(7, 64), torch.randn(48, 64), None, "e4m3/rceil/1x128/1x32", torch.bfloat16, True),
    )
    x_t, x_t_scale = torch.ops.deepwell.mx_linear(
        torch.randn(15, 64), torch.randn(48, 64), None, "e4m3/rceil/1x32/1x32", torch.float32, True
    )[1:]
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.deepwell.mx_linear_backward.default,
            (
                torch.randn(3, 5, 48),
                torch.randn(48, 64),
                x_t,
                x_t_scale,
                "e4m3/rceil/1x32/1x32",
                torch.float32,
                *wanted,
            ),
        )
