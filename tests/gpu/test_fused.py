"""Norms, gated MLPs and the loss fused with quantization, alone and inside a transformers model."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepwell
from deepwell import cuda_fused, cuda_linear, fuse

transformers = pytest.importorskip("transformers")

DEVICE = torch.device("cuda", 0)
BF16 = torch.bfloat16
ROUNDED_ONCE = 2.0**-8  # a value rounded to BF16, relative, at most; a factor of sqrt(3) less in norm


def quantized_matches(form: cuda_linear.Form, matrix: Tensor) -> bool:
    """Whether a form holds exactly what quantizing `matrix` gives."""
    again = cuda_linear.Quantized()
    cuda_linear.quantize_into(again, matrix.contiguous(), *matrix.shape, (form.block, form.block), True, False)
    assert again.row is not None
    return torch.equal(form.buffer[: matrix.numel()], again.row.buffer[: matrix.numel()]) and torch.equal(
        form.buffer[cuda_linear.scale_offset(*matrix.shape) :],
        again.row.buffer[cuda_linear.scale_offset(*matrix.shape) :],
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "cols"), [(16, 128), (48, 4096), (128, 2048), (256, 7168), (144, 272), (128, 14336)])
def test_norm(rows: int, cols: int, offset: float) -> None:
    x = (torch.randn(rows, cols, device=DEVICE) * torch.rand(rows, 1, device=DEVICE) * 9).to(BF16)
    weight = torch.randn(cols, device=DEVICE).to(BF16)
    dy = torch.randn(rows, cols, device=DEVICE).to(BF16)
    reference_x = x.double().requires_grad_()
    reference_w = weight.double().requires_grad_()
    expected = reference_x * torch.rsqrt(reference_x.square().mean(-1, keepdim=True) + 1e-5) * (reference_w + offset)
    expected.backward(dy.double())
    y, rstd, quantized = cuda_fused.norm_forward(x, weight, 1e-5, offset, True)
    assert ((y.double() - expected).abs() <= 1.01 * ROUNDED_ONCE * expected.abs() + 1e-30).all()
    assert quantized_matches(quantized.row, y)
    assert quantized_matches(quantized.transposed, y.t())
    dx, dweight = cuda_fused.norm_backward(dy, x, weight, rstd, offset)
    assert oracle.relative(dx, reference_x.grad) < ROUNDED_ONCE / 3**0.5
    assert oracle.relative(dweight, reference_w.grad) < ROUNDED_ONCE / 3**0.5


@pytest.mark.parametrize("rows", [1, 2, 17, 300, 4100])
@pytest.mark.parametrize("cols", [24, 64, 1001, 1536, 2048, 4096, 7168, 8200, 16384])
def test_norm_backward_whatever_groups_a_block_has(cols: int, rows: int) -> None:
    """From fifteen groups of threads to one; fewer rows than groups, and more than the device holds at once."""
    h = torch.randn(rows, cols, device=DEVICE).to(BF16)
    weight, dy = torch.randn(cols, device=DEVICE).to(BF16), torch.randn(rows, cols, device=DEVICE).to(BF16)
    rstd = torch.rsqrt(h.float().square().mean(-1) + 1e-5)
    dx, dweight = cuda_fused.norm_backward(dy, h, weight, rstd, 1.0)
    scale, pulled = rstd.double()[:, None], dy.double() * (weight.double() + 1.0)
    expected = scale * (pulled - h.double() * scale**2 * (pulled * h.double()).mean(-1, keepdim=True))
    # One rounding to BF16 of each element, at most; FP32 sums before it.
    assert oracle.relative(dx, expected) < 1.01 * ROUNDED_ONCE
    assert oracle.relative(dweight, (dy.double() * h.double() * scale).sum(0)) < 1.01 * ROUNDED_ONCE
    again = cuda_fused.norm_backward(dy, h, weight, rstd, 1.0)
    assert torch.equal(again[0], dx)
    assert torch.equal(again[1], dweight)


def scales_of(form: cuda_linear.Form) -> Tensor:
    """The scale of every element, [rows, cols]."""
    scales = form.buffer[cuda_linear.scale_offset(form.rows, form.cols) :].view(torch.float32).double()
    if form.block == cuda_linear.BLOCK_1X128:
        return scales.view(-1, form.rows).t().repeat_interleave(128, 1)[:, : form.cols]
    wide = scales.view((form.rows + 127) // 128, -1).repeat_interleave(128, 0).repeat_interleave(128, 1)
    return wide[: form.rows, : form.cols]


GATINGS = {
    "plain": cuda_fused.PLAIN,
    "interleaved": cuda_fused.Gating(interleaved=True),
    "clamped": cuda_fused.Gating(alpha=1.702, limit=2.5),  # limits that these numbers reach
    "gpt-oss": cuda_fused.Gating(interleaved=True, alpha=1.702, limit=2.5),
}


@pytest.mark.parametrize("name", GATINGS)
@pytest.mark.parametrize(("rows", "inner"), [(16, 128), (64, 384), (144, 1536), (256, 14336)])
def test_swiglu(rows: int, inner: int, name: str) -> None:
    gating = GATINGS[name]
    gate_up = (torch.randn(rows, 2 * inner, device=DEVICE) * 3).to(BF16)
    da = torch.randn(rows, inner, device=DEVICE).to(BF16)
    reference = gate_up.double().requires_grad_()
    gate, up = (reference[:, i::2] if gating.interleaved else reference[:, i * inner :][:, :inner] for i in range(2))
    if gating.limit is None:
        expected = F.silu(gate) * up
    else:
        gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
        expected = gate * torch.sigmoid(gating.alpha * gate) * (up + 1)
    expected.backward(da.double())
    row, transposed = cuda_fused.swiglu_forward(gate_up, inner, True, gating)
    assert (row.block, transposed.block) == cuda_linear.ACTIVATION
    both, both_t = cuda_fused.swiglu_backward(da, gate_up, inner, gating)
    for form, form_t, exact in ((row, transposed, expected.detach()), (both, both_t, reference.grad)):
        for made, matrix in ((form, exact), (form_t, exact.t())):
            codes = made.buffer[: matrix.numel()].view(torch.float8_e4m3fn).view(matrix.shape).double()
            scales = scales_of(made)
            # One BF16 rounding and one to E4M3: half a step is 2^-4 of a normal value, 2^-10 of the scale below those.
            bound = (2.0**-4 + 2.0**-7) * matrix.abs() + 2.0**-10 * 1.01 * scales
            assert ((codes * scales - matrix).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (37, 1000), (64, 32003), (130, 777)])
def test_cross_entropy(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    logits = (torch.randn(rows, vocabulary, device=DEVICE) * 4).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=DEVICE)
    labels[::5] = -100
    weights = torch.rand(rows, device=DEVICE)
    losses = cuda_fused.cross_entropy(logits, labels)
    (losses * weights).sum().backward()
    reference = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(reference, labels, reduction="none")
    (expected * weights.double()).sum().backward()
    # FP32 exponentials and sums: a few units in the last place of the logarithm's argument, absolute in the loss.
    assert (losses.double() - expected).abs().max() < 2.0**-18 * (1 + expected.abs().max())
    assert oracle.relative(logits.grad, reference.grad) < {BF16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 2.0**-20)


def test_cross_entropy_shows_faults() -> None:
    logits = torch.randn(5, 64, device=DEVICE)
    logits[1, 3], logits[2, 5], logits[3] = float("nan"), float("inf"), -float("inf")
    labels = torch.tensor([1, 2, 3, 4, 99], device=DEVICE)
    losses = cuda_fused.cross_entropy(logits, labels)
    assert losses[0].isfinite()
    assert losses[1:].isnan().all()


# ---- inside a model --------------------------------------------------------------------------------------------------


def llama(**changes: int) -> nn.Module:
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        **changes,
    }
    config = transformers.LlamaConfig(attn_implementation="sdpa", **sizes)
    return transformers.LlamaForCausalLM(config).to(DEVICE, BF16).train()


STRATEGY = {"lm_head": "keep", "*": "mxfp8"}


def actions(model: nn.Module) -> dict[str, str]:
    return {d.name: f"{d.action} {d.kind}" for d in deepwell.explain(model).plan.decisions}


def test_what_is_fused() -> None:
    found = actions(deepwell.optimize(llama(), strategy=STRATEGY))
    assert found["model.layers.0.input_layernorm"] == "fuse RMSNorm"
    assert found["model.layers.1.mlp"] == "fuse gated MLP"
    assert found["loss_function"] == "fuse cross-entropy"
    assert found["lm_head"] == "keep nn.Linear"


def test_what_looks_alike_is_not_fused() -> None:
    class Gelu(nn.Module):  # another activation
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(256, 512, bias=False), nn.Linear(256, 512, bias=False)
            self.c = nn.Linear(512, 256, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.gelu(self.a(x)) * self.b(x))

    class Scaled(nn.Module):  # an RMSNorm with another exponent
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(256)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * (x.float().square().mean(-1, keepdim=True) + self.eps).rsqrt().square().to(x.dtype)

    model = nn.Sequential(Scaled(), Gelu()).to(DEVICE, BF16)
    found = actions(deepwell.optimize(model, strategy={"*": "mxfp8"}))
    assert not any(action.startswith("fuse") for action in found.values())


def test_recognition_leaves_the_generator_alone() -> None:
    model = llama()
    before = torch.cuda.get_rng_state(DEVICE)
    deepwell.optimize(model, strategy=STRATEGY)
    assert torch.equal(before, torch.cuda.get_rng_state(DEVICE))


def run(model: nn.Module, **inputs: Tensor) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def test_fused_is_what_the_layers_alone_compute() -> None:
    plain = llama()
    fused, unfused = copy.deepcopy(plain), copy.deepcopy(plain)
    deepwell.optimize(fused, strategy=STRATEGY)
    deepwell.optimize(unfused, strategy=STRATEGY)
    for module in unfused.modules():
        if isinstance(module, (fuse.FusedNorm, fuse.FusedGatedMLP)):
            module.__class__ = module._deepwell_original
    tokens = torch.randint(0, 1000, (2, 128), device=DEVICE)
    inputs = {"input_ids": tokens, "labels": tokens}
    losses, gradients = zip(*(run(m, **inputs) for m in (plain, unfused, fused, fused)), strict=True)
    # FP8's own error, from the plain model, is the measure: fusing only rounds less often.
    error = [sum((g - p).float().norm() ** 2 for g, p in zip(gs, gradients[0], strict=True)) ** 0.5 for gs in gradients]
    assert max(error[2:]) <= 1.1 * error[1]
    assert losses[2] == pytest.approx(losses[1], rel=2e-3)
    # In the second pass the norms run fused too. Their weights are ones here, so even the rounding is the same.
    assert losses[3] == losses[2]


def test_padding_and_packed_sequences() -> None:
    plain = llama()
    model = deepwell.optimize(copy.deepcopy(plain), strategy=STRATEGY)
    tokens = torch.randint(0, 1000, (2, 128), device=DEVICE)
    mask = torch.ones_like(tokens)
    mask[0, :40] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    positions = torch.cat([torch.arange(50), torch.arange(78)]).to(DEVICE)[None]
    cases = (
        {"input_ids": tokens, "attention_mask": mask, "labels": labels},
        {"input_ids": tokens[:1], "position_ids": positions, "labels": tokens[:1]},
        {"input_ids": tokens[:, :77], "labels": tokens[:, :77]},  # 154 tokens: not whole groups of 16
    )
    for inputs in cases:
        for _ in range(2):
            assert run(model, **inputs)[0] == pytest.approx(run(plain, **inputs)[0], rel=1e-2)
    with torch.no_grad():
        changed = tokens.clone()
        changed[0, :40] = 7  # behind the mask: must not matter to the rest
        first = model(input_ids=tokens, attention_mask=mask).logits[0, 40:]
        assert torch.equal(first, model(input_ids=changed, attention_mask=mask).logits[0, 40:])


def test_passes_repeat_bit_for_bit() -> None:
    """Kernels begin while the one ahead of them still runs; none may read or write too early."""
    model = deepwell.optimize(llama(num_hidden_layers=4), strategy=STRATEGY)
    for shape in ((1, 48), (2, 128), (4, 512)):
        tokens = torch.randint(0, 1000, shape, device=DEVICE)
        with torch.no_grad():
            for _ in range(2):  # norms learn, kernels are chosen
                model(input_ids=tokens)
            logits = [model(input_ids=tokens).logits for _ in range(30)]
        assert all(torch.equal(one, logits[0]) for one in logits)


def test_gradients_of_a_gated_mlp_are_added_in_place() -> None:
    mlp = deepwell.optimize(llama(), strategy=STRATEGY).model.layers[0].mlp
    weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    batches = [torch.randn(2, 64, 512, device=DEVICE, dtype=BF16) for _ in range(3)]
    alone = []
    for x in batches:
        mlp.zero_grad()
        mlp(x).square().sum().backward()
        alone.append([w.grad.double() for w in weights])
    mlp.zero_grad()
    for i, x in enumerate(batches):
        mlp(x).square().sum().backward()
        if i == 0:
            first = [w.grad for w in weights]
    for w, grad, parts in zip(weights, first, zip(*alone, strict=True), strict=True):
        assert w.grad is grad
        # Three gradients and three sums, each rounded once to BF16, by 2^-9 of a value.
        assert float((grad.double() - sum(parts)).norm() / sum(parts).norm()) < 2.0**-7


def test_hooks_on_inner_layers_still_run() -> None:
    model = deepwell.optimize(llama(), strategy=STRATEGY)
    seen = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    tokens = torch.randint(0, 1000, (1, 64), device=DEVICE)
    model(input_ids=tokens)
    assert seen == [1]
    handle.remove()


def test_restore_and_state() -> None:
    plain = llama()
    model = copy.deepcopy(plain)
    tokens = torch.randint(0, 1000, (1, 64), device=DEVICE)
    inputs = {"input_ids": tokens, "labels": tokens}
    expected = run(plain, **inputs)
    deepwell.optimize(model, strategy=STRATEGY)
    run(model, **inputs)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    deepwell.restore(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    loss, gradients = run(model, **inputs)
    assert loss == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))


def test_a_step_waits_for_nothing() -> None:
    model = deepwell.optimize(llama(), strategy=STRATEGY)
    tokens = torch.randint(0, 1000, (2, 128), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens))
        hidden = model.model.layers[0].mlp(hidden)
        logits = model.lm_head(model.model.norm(hidden))
        model.loss_function(logits=logits, labels=tokens, vocab_size=1000).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_follows_bf16() -> None:
    """60 steps on a task that does not end at zero: the next token is one of two, chosen by the one before. Single
    short runs differ by a few percent either way; what is tested is that FP8 does not fall behind."""
    plain = llama(num_hidden_layers=2)
    model = deepwell.optimize(copy.deepcopy(plain), strategy=STRATEGY)
    generator = torch.Generator(device=DEVICE).manual_seed(5)
    curves = []
    for net in (plain, model):
        generator.manual_seed(5)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        losses = []
        for _ in range(60):
            tokens = torch.zeros(8, 128, dtype=torch.long, device=DEVICE)
            coins = torch.randint(0, 2, tokens.shape, generator=generator, device=DEVICE)
            for position in range(1, tokens.shape[1]):
                tokens[:, position] = (tokens[:, position - 1] * 3 + 1 + 5 * coins[:, position]) % 97
            loss = net(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        curves.append(torch.stack(losses)[-10:].mean().item())
    assert curves[1] < 1.03 * curves[0]
