"""What is recognized by running it, and what looks alike and is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepwell import recognize

DTYPES = [torch.float32, torch.bfloat16]


class Norm(nn.Module):
    """An RMSNorm, written out; subclasses change a part."""

    offset = 0.0

    def __init__(self, size: int = 256, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(size)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * (self.weight.float() + self.offset)).to(hidden_states.dtype)


class OffsetNorm(Norm):
    offset = 1.0


class ClampedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-50, 50))


class GroupedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float().unflatten(-1, (2, -1))
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y.flatten(-2) * self.weight.float()).to(x.dtype)


class GatedNorm(Norm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x if gate is None else x * gate)


class CountingNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


class WritingNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        x *= 1.0 + torch.finfo(x.dtype).eps
        return super().forward(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 256, 8192])
def test_rms_norms(size: int, dtype: torch.dtype) -> None:
    assert recognize.rms_norm(Norm(size).to(dtype)) == (1e-6, 0.0)
    assert recognize.rms_norm(OffsetNorm(size).to(dtype)) == (1e-6, 1.0)
    assert recognize.rms_norm(nn.RMSNorm(size, eps=1e-5).to(dtype)) == (1e-5, 0.0)
    # PyTorch's default is the spacing at 1 of the type it computes in.
    assert recognize.rms_norm(nn.RMSNorm(size).to(dtype)) == (torch.finfo(torch.float32).eps, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [ClampedNorm, GroupedNorm, GatedNorm, CountingNorm, WritingNorm])
def test_what_is_nearly_an_rms_norm(make: type[Norm], dtype: torch.dtype) -> None:
    assert recognize.rms_norm(make().to(dtype)) is None


@pytest.mark.parametrize("size", [256, 4096, 8192, 12288, 16384])
def test_layer_norms_without_bias_at_widths_where_the_mean_of_random_numbers_is_small(size: int) -> None:
    assert recognize.rms_norm(nn.LayerNorm(size, bias=False).bfloat16()) is None


class MLP(nn.Module):
    def __init__(self, hidden: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ClampedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x).clamp(max=7.0)) * self.up(x).clamp(-7.0, 7.0))


class GeluMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class DroppingMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))


class FunctionallyDroppingMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.down(F.silu(self.gate(x)) * self.up(x)), 0.1, self.training)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_mlps(dtype: torch.dtype) -> None:
    assert recognize.gated_mlp(MLP().to(dtype)) == ("gate", "up", "down")
    for make in (ClampedMLP, GeluMLP, DroppingMLP, FunctionallyDroppingMLP):
        for training in (True, False):
            assert recognize.gated_mlp(make().to(dtype).train(training)) is None, make
    hooked = MLP().to(dtype)
    hooked.gate.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    assert recognize.gated_mlp(hooked) is None


class OwnLinear(nn.Linear):
    """As Falcon has it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        product = hidden_states @ self.weight.T
        return product if self.bias is None else product + self.bias


class Transposed(nn.Module):
    """As GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers_with_a_forward_of_their_own(dtype: torch.dtype) -> None:
    assert recognize.linear(OwnLinear(64, 96).to(dtype)) == recognize.LINEAR
    assert recognize.linear(OwnLinear(64, 64, bias=False).to(dtype)) == recognize.LINEAR
    assert recognize.linear(OwnLinear(64, 64).to(dtype).requires_grad_(False)) == recognize.LINEAR
    for inputs, outputs in ((64, 96), (96, 64), (64, 64)):
        assert recognize.linear(Transposed(inputs, outputs).to(dtype)) == recognize.TRANSPOSED


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.1


class Detached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.detach(), self.bias)


class Halved(nn.Linear):
    """The right result with another gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.detach() + 0.5 * (y - y.detach())


class Dropping(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.1, self.training), self.bias)


class WithAdapter(nn.Linear):
    """As torchtune has it; the second half of an adapter begins as zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Linear(inputs, 8, bias=False), nn.Linear(8, outputs, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b(self.a(x))


class WithRawAdapter(nn.Linear):
    """As loralib has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(8, inputs)), nn.Parameter(torch.zeros(outputs, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.t() @ self.b.t()


class Router(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x).topk(2)


class Logging(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        return super().forward(x)


class Branching(nn.Linear):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make", [Scaled, Detached, Halved, Dropping, WithAdapter, WithRawAdapter, Router, Logging, Branching]
)
def test_what_is_not_quite_a_linear_layer(make: type[nn.Linear], training: bool, capsys: pytest.CaptureFixture) -> None:
    assert recognize.linear(make(64, 96).train(training)) == ""
    assert capsys.readouterr().out == ""


def test_a_linear_layer_of_zeros_shows_nothing() -> None:
    zeros = OwnLinear(64, 64)
    nn.init.zeros_(zeros.weight)
    nn.init.zeros_(zeros.bias)
    zeros.weight.requires_grad_(False)
    assert recognize.linear(zeros) == ""


def test_recognition_leaves_generators_flags_and_gradients_alone() -> None:
    model = nn.ModuleList([DroppingMLP().eval(), Norm(), Dropping(64, 64), Transposed(64, 64)])
    model[0].dropout.train()
    flags = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    recognize.gated_mlp(model[0])
    recognize.rms_norm(model[1])
    recognize.linear(model[2])
    recognize.linear(model[3])
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
