"""Converted linear layers on the GPU: values, gradients, and what is kept between calls."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import deepwell
from deepwell import cuda_linear

DEVICE = torch.device("cuda", 0)
FORCE = {"*": "mxfp8"}
# The tensor core aligns the products of one step to the largest and keeps about 14 bits, rounding toward zero: 2^-13 of
# it at most for each of the four steps of a block, 2^-11, taken here against the norm. The result is rounded once on
# top: by 2^-8 of a value at most for BF16 and 2^-11 for FP16, uniform, so by a factor of sqrt(3) less in norm.
TOLERANCE = {torch.bfloat16: 2.0**-8 / 3**0.5 + 2.0**-11, torch.float16: 2.0**-11 / 3**0.5 + 2.0**-11}
TOLERANCE[torch.float32] = 2.0**-11


def layer(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).to(DEVICE, dtype)
    return deepwell.optimize(model, strategy=FORCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"),
    [(256, 512, 384), (1, 128, 256), (15, 128, 128), (16, 256, 128), (17, 144, 272), (127, 128, 640), (129, 2048, 512)],
)
def test_values_and_gradients(dtype: torch.dtype, bias: bool, tokens: int, inputs: int, outputs: int) -> None:
    model = layer(inputs, outputs, dtype, bias)
    linear = model[0]
    spread = torch.exp2(torch.randint(-6, 6, (tokens, 1), device=DEVICE).float())
    x = (torch.randn(tokens, inputs, device=DEVICE) * spread).to(dtype).requires_grad_()
    dy = torch.randn(tokens, outputs, device=DEVICE).to(dtype)
    y = model(x)
    assert y.dtype == dtype
    y.backward(dy)
    expected_y, expected_dx, expected_dw = oracle.linear(x.detach(), linear.weight.detach(), linear.bias, dy)
    assert oracle.relative(y.detach(), expected_y.detach()) < TOLERANCE[dtype]
    assert oracle.relative(x.grad, expected_dx) < TOLERANCE[dtype]
    assert oracle.relative(linear.weight.grad, expected_dw) < TOLERANCE[dtype]
    if bias:
        assert oracle.relative(linear.bias.grad, dy.double().sum(0)) < TOLERANCE[dtype]


def test_no_tokens() -> None:
    model = layer(128, 256, torch.bfloat16, True)
    x = torch.randn(0, 128, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    y = model(x)
    assert y.shape == (0, 256)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not model[0].weight.grad.any()


def test_leading_dimensions_and_strides() -> None:
    model = layer(128, 256, torch.bfloat16)
    x = torch.randn(4, 128, 24, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    assert torch.equal(model(x), model(x.contiguous().view(96, 128)).view(4, 24, 256))


def test_nan_reaches_the_result() -> None:
    model = layer(256, 256, torch.bfloat16)
    x = torch.randn(32, 256, device=DEVICE, dtype=torch.bfloat16)
    x[3, 5], x[7, 200] = float("nan"), float("inf")
    y = model(x)
    assert y[3].isnan().all()
    assert y[7].isnan().all()
    assert y[torch.arange(32, device=DEVICE) % 4 != 3].isfinite().all()


def test_inputs_are_quantized_once() -> None:
    q, k = layer(256, 256, torch.bfloat16), layer(256, 128, torch.bfloat16)
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    q(x)
    first = x.__dict__["_deepwell_quantized"].row
    k(x)
    assert x.__dict__["_deepwell_quantized"].row is first
    with torch.no_grad():
        x += 1.0
    changed = q(x)
    assert torch.equal(changed, q(x.clone()))


def test_one_tensor_as_input_and_as_gradient() -> None:
    """Their transposed forms have other blocks: neither may be taken for the other."""
    model = layer(256, 256, torch.bfloat16)
    both, x = (torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    both[3, 5] = 1000.0
    gradients = []
    for dy in (both, both.clone()):
        model.zero_grad()
        model(x).backward(dy)
        first = model[0].weight.grad.clone()
        model.zero_grad()
        model(dy).backward(x)
        gradients.append((first, model[0].weight.grad.clone()))
        model.zero_grad()
        model(x).backward(dy)
        assert torch.equal(model[0].weight.grad, first)
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("how", ["in place", "optimizer", "data", "load"])
def test_weight_copies_follow_the_weight(how: str) -> None:
    model = layer(256, 256, torch.bfloat16)
    linear = model[0]
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16)
    before = model(x)
    other = torch.randn_like(linear.weight)
    if how == "in place":
        with torch.no_grad():
            linear.weight.copy_(other)
    elif how == "optimizer":
        optimizer = torch.optim.SGD(linear.parameters(), lr=1.0)
        linear.weight.grad = linear.weight.detach() - other
        optimizer.step()
    elif how == "data":
        linear.weight.data = other
    else:
        linear.load_state_dict({"weight": other})
    expected = oracle.decoded_1x128(x) @ oracle.decoded_128x128(linear.weight.detach()).t()
    assert oracle.relative(model(x).detach(), expected) < TOLERANCE[torch.bfloat16]
    assert not torch.equal(before, model(x))


def test_weight_copies_die_with_the_weight() -> None:
    gc.collect()
    count = len(cuda_linear._weights)
    model = layer(256, 256, torch.bfloat16)
    model(torch.randn(16, 256, device=DEVICE, dtype=torch.bfloat16))
    assert len(cuda_linear._weights) == count + 1
    weight = weakref.ref(model[0].weight)
    del model
    gc.collect()
    held_by = [] if weight() is None else [type(holder) for holder in gc.get_referrers(weight())]
    assert weight() is None, held_by
    assert len(cuda_linear._weights) == count


def test_frozen_weight_and_inference() -> None:
    model = layer(256, 128, torch.bfloat16)
    model[0].weight.requires_grad_(False)
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    model(x).sum().backward()
    assert x.__dict__["_deepwell_quantized"].transposed is None
    assert x.grad is not None
    with torch.inference_mode():
        assert model(x.detach()).shape == (64, 128)
    with torch.no_grad():
        fresh = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16)
        model(fresh)
        assert fresh.__dict__["_deepwell_quantized"].transposed is None


def test_accumulation_and_checkpointing() -> None:
    model = layer(256, 256, torch.bfloat16)
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    model(x).square().mean().backward()
    once = model[0].weight.grad.clone()
    for reentrant in (False, True):
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
        assert torch.equal(model[0].weight.grad, once)
    model(x).square().mean().backward()
    assert torch.equal(model[0].weight.grad, 2 * once)


def test_autocast() -> None:
    model = layer(256, 128, torch.float32, True)
    x = torch.randn(64, 256, device=DEVICE, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert model[0].weight.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_added_in_place(dtype: torch.dtype) -> None:
    model = layer(256, 384, dtype)
    weight = model[0].weight
    batches = [torch.randn(64, 256, device=DEVICE).to(dtype) for _ in range(3)]
    alone = []
    for x in batches:
        weight.grad = None
        model(x).square().sum().backward()
        alone.append(weight.grad.double())
    weight.grad = None
    for i, x in enumerate(batches):
        model(x).square().sum().backward()
        if i == 0:
            first = weight.grad
    assert weight.grad is first
    # Products may be summed in another order; three gradients and three sums in BF16 are each rounded by 2^-9 at most.
    assert oracle.relative(weight.grad, sum(alone)) < (2.0**-7 if dtype == torch.bfloat16 else TOLERANCE[dtype])
    before = weight.grad.clone()
    (wanted,) = torch.autograd.grad(model(batches[0]).square().sum(), [weight])
    assert torch.equal(weight.grad, before)
    assert oracle.relative(wanted, alone[0]) < 2.0**-8
    seen = []
    handle = weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    model(batches[0]).square().sum().backward()
    handle.remove()
    assert len(seen) == 1


def test_nothing_waits_for_the_device() -> None:
    model = layer(512, 512, torch.bfloat16, True)
    x = torch.randn(128, 512, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_of_a_training_step() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256)).to(DEVICE, torch.bfloat16)
    deepwell.optimize(model, strategy=FORCE)
    twin = copy.deepcopy(model)
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16)

    def stepper(net: nn.Module):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

        def step() -> torch.Tensor:
            loss = (net(x).float() - x.float()).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return step

    step, twin_step = stepper(model), stepper(twin)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        twin_step()
    for _ in range(5):
        graph.replay()
        assert captured.item() == twin_step().item()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).to(DEVICE, torch.bfloat16)
    deepwell.optimize(model, strategy=FORCE)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        eager = model(x)
        # Fused GELU rounds its input less often than eager's; FP8 then moves a value by one step of 2^-3 at most where
        # it crosses a boundary.
        assert oracle.relative(compiled(x).detach(), eager.detach().double()) < 2.0**-5
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_and_copies() -> None:
    plain = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).to(DEVICE, torch.bfloat16)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    model = deepwell.optimize(plain, strategy=FORCE)
    x = torch.randn(32, 256, device=DEVICE, dtype=torch.bfloat16)
    y = model(x)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    # FP8 copies in both orientations would double the file.
    assert buffer.tell() < 1.5 * sum(v.nbytes for v in before.values())
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=False), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
    deepwell.restore(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(x), F.linear(F.linear(x, *plain[0].parameters()), *plain[1].parameters()))


def test_small_layers_are_left_alone_by_default() -> None:
    model = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 512), nn.Linear(512, 512)).to(DEVICE)
    plan = deepwell.explain(deepwell.optimize(model)).plan
    assert [d.action for d in plan.decisions] == ["convert", "keep", "keep"]


def test_a_cpu_conversion_does_not_run_here() -> None:
    model = deepwell.optimize(nn.Sequential(nn.Linear(256, 256)))
    with pytest.raises(deepwell.DeepwellError, match="converted for the CPU"):
        model.to(DEVICE)(torch.randn(16, 256, device=DEVICE))
