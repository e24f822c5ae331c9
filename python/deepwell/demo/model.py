"""A byte-level GPT in plain PyTorch: nothing in it knows of Deepwell, as a user's model would not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256  # every byte is a token
# The model reads each byte together with the three before it. Left to discover its neighbours through attention it does
# so at a moment that hangs on rounding, and two runs in the same arithmetic then end half a percent apart.
WINDOW = 4
# Of the order of what a block adds to it: much smaller, and the blocks drown the bytes before training starts.
EMBEDDING_STD = 0.5

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the model. Widths that are multiples of 128 suit every block size."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    context: int


def rotation_table(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_width / 2] of rotary position embedding (arXiv 2104.09864)."""
    rates = ROTARY_BASE ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), rates)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (x[i], x[i + half]) by its position's angle."""
    cosine, sine = rotation
    a, b = x.chunk(2, dim=-1)
    # Angles need more digits than BF16 has: the sum is made in FP32 and rounded once.
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention through PyTorch's scaled-dot-product attention."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm: the residual stream itself is never normalized or quantized."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class ByteGPT(nn.Module):
    """Maps bytes [batch, length] to logits [batch, length, 256] of the byte that follows each."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        # One table for the byte itself, one for each of those before it.
        self.embeddings = nn.ModuleList(nn.Embedding(VOCABULARY, shape.width) for _ in range(WINDOW))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, VOCABULARY, bias=False)
        cosine, sine = rotation_table(shape.context, shape.width // shape.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD / math.sqrt(WINDOW))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        # Each block adds to the residual stream twice; this keeps the stream's variance independent of the depth.
        for block in self.blocks:
            for last in (block.attention.out, block.mlp.down):
                last.weight.data.mul_(1 / math.sqrt(2 * self.shape.layers))
        # Small first logits: training starts from the uniform distribution's loss, ln 256.
        self.lm_head.weight.data.mul_(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.shape.context:
            raise ValueError(f"{length} bytes exceed the model's context of {self.shape.context}; pass fewer")
        rotation = self.cosine[:length], self.sine[:length]
        x = self.embeddings[0](tokens)
        for back, embedding in enumerate(self.embeddings[1:], 1):
            x = x + functional.pad(embedding(tokens[:, :-back]), (0, 0, back, 0))[:, :length]
        for block in self.blocks:
            x = block(x, rotation)
        return self.lm_head(self.norm(x))


@torch.no_grad()
def generate(model: ByteGPT, prompt: bytes, count: int, *, temperature: float, seed: int) -> bytes:
    """Returns `prompt` and `count` bytes drawn after it. `temperature` 0 takes the likeliest byte each time."""
    if not prompt:
        raise ValueError("the prompt is empty; pass at least one byte")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        text = list(prompt)
        for _ in range(count):
            window = torch.tensor([text[-model.shape.context :]], device=device)
            logits = model(window)[0, -1].float().cpu()
            if temperature == 0:
                text.append(int(logits.argmax()))
            else:
                probabilities = torch.softmax(logits / temperature, dim=-1)
                text.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    finally:
        model.train(was_training)
    return bytes(text)
