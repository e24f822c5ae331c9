"""Small random models of many architectures: each a function that makes one, and what to feed it.

Widths are multiples of 128 and heads of 32 where the architecture lets them be, so that what decides in the plan is the
structure and not the size. Routers choose all of the experts where they can, so that a step is a continuous function
and can be compared: of some of them, the least change of a layer chooses others for some tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

HIDDEN, INNER, HEADS, VOCABULARY, TOKENS, BATCH = 128, 256, 4, 384, 32, 2
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """make: the model. inputs: for one training step. run: gives loss and logits. jumps: the least change may change
    which experts are chosen."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    run: Callable[[nn.Module, Inputs], tuple[Tensor, Tensor]]
    jumps: bool = False


ARCHITECTURES: dict[str, Architecture] = {}


def run_transformers(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    output = model(**inputs)
    return output.loss, output.logits


def run_plain(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss of each token's successor."""
    tokens = inputs["tokens"]
    logits = model(tokens)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()), logits


def run_classifier(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    logits = model(inputs["x"])
    return F.cross_entropy(logits, inputs["target"]), logits


def text() -> Inputs:
    tokens = torch.randint(3, VOCABULARY, (BATCH, TOKENS))
    return {"input_ids": tokens, "labels": tokens}


# ---- transformers ----------------------------------------------------------------------------------------------------

# The names of sizes that most configurations share.
_COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 4, "moe_intermediate_size": INNER}


def _transformers(
    name: str,
    model: str,
    config: str,
    inputs: Callable[[], Inputs] = text,
    common: bool = True,
    jumps: bool = False,
    **sizes: object,
) -> None:
    def make() -> nn.Module:
        settings = {**(_COMMON if common else {"vocab_size": VOCABULARY, "pad_token_id": 0}), **sizes}
        made = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return made.train()

    ARCHITECTURES[name] = Architecture(make, inputs, run_transformers, jumps)


def _causal(name: str, family: str, jumps: bool = False, **sizes: object) -> None:
    text_config = f"{family}TextConfig" if hasattr(transformers, f"{family}TextConfig") else f"{family}Config"
    _transformers(name, f"{family}ForCausalLM", text_config, jumps=jumps, **sizes)


_causal("llama", "Llama")
_causal("mistral", "Mistral", sliding_window=16)
_causal("qwen2", "Qwen2")
_causal("qwen3", "Qwen3", head_dim=32)
_causal("gemma", "Gemma", head_dim=32)
_causal("gemma2", "Gemma2", head_dim=32, sliding_window=16)
_causal("gemma3", "Gemma3", head_dim=32, sliding_window=16)
_causal("phi", "Phi")
_causal("phi3", "Phi3")
_causal("gpt_neox", "GPTNeoX")
_causal("olmo", "Olmo")
_causal("olmo2", "Olmo2")
_causal("granite", "Granite")
_causal("stablelm", "StableLm")
_causal("falcon", "Falcon", num_kv_heads=2, new_decoder_architecture=True, ffn_hidden_size=INNER)
_causal("cohere", "Cohere")
_causal("starcoder2", "Starcoder2")
_causal("nemotron", "Nemotron")
_causal("smollm3", "SmolLM3")
_causal("glm4", "Glm4")
_causal("opt", "OPT", ffn_dim=INNER, word_embed_proj_dim=HIDDEN)
_causal("mixtral", "Mixtral", num_local_experts=4, num_experts_per_tok=4)
_causal("qwen2_moe", "Qwen2Moe", num_experts=4, shared_expert_intermediate_size=INNER, **_EXPERTS)
_causal("qwen3_moe", "Qwen3Moe", num_experts=4, head_dim=32, **_EXPERTS)
_causal("olmoe", "Olmoe", num_experts=4, num_experts_per_tok=4)
_causal(
    "deepseek_v3",
    "DeepseekV3",
    n_routed_experts=4,
    n_group=2,
    topk_group=2,
    first_k_dense_replace=1,
    q_lora_rank=64,
    kv_lora_rank=64,
    qk_rope_head_dim=32,
    qk_nope_head_dim=32,
    v_head_dim=32,
    num_key_value_heads=HEADS,
    **_EXPERTS,
)
_causal("glm4_moe", "Glm4Moe", n_routed_experts=4, first_k_dense_replace=1, head_dim=32, **_EXPERTS)
_causal("gpt_oss", "GptOss", num_local_experts=4, num_experts_per_tok=4, head_dim=32, sliding_window=16)
_causal("phimoe", "Phimoe", jumps=True, num_local_experts=4)
_causal("granitemoe", "GraniteMoe", num_local_experts=4, num_experts_per_tok=4)
_causal("llama4", "Llama4", num_local_experts=4, num_experts_per_tok=4, head_dim=32, intermediate_size_mlp=INNER)
_causal(
    "qwen3_next",
    "Qwen3Next",
    head_dim=32,
    num_experts=4,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    shared_expert_intermediate_size=INNER,
    layer_types=["linear_attention", "full_attention"],
    **_EXPERTS,
)
_causal(
    "bamba",
    "Bamba",
    mamba_n_heads=4,
    mamba_d_head=64,
    mamba_d_state=32,
    mamba_n_groups=1,
    mamba_chunk_size=16,
    attn_layer_indices=[1],
)
_transformers(
    "gpt2", "GPT2LMHeadModel", "GPT2Config", common=False, n_embd=HIDDEN, n_layer=2, n_head=HEADS, n_inner=INNER
)
_transformers("bert", "BertForMaskedLM", "BertConfig")
_transformers("modernbert", "ModernBertForMaskedLM", "ModernBertConfig", cls_token_id=1, sep_token_id=2)
_transformers("albert", "AlbertForMaskedLM", "AlbertConfig", embedding_size=HIDDEN)
_transformers(
    "t5",
    "T5ForConditionalGeneration",
    "T5Config",
    common=False,
    d_model=HIDDEN,
    d_ff=INNER,
    num_layers=2,
    num_heads=HEADS,
    d_kv=32,
    decoder_start_token_id=0,
)


def _images() -> Inputs:
    return {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.arange(8)}


_transformers("vit", "ViTForImageClassification", "ViTConfig", _images, image_size=32, patch_size=8, num_labels=10)


def _speech() -> Inputs:
    return {"input_features": torch.randn(BATCH, 80, 64), "labels": torch.randint(3, VOCABULARY, (BATCH, 16))}


_transformers(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    _speech,
    common=False,
    d_model=HIDDEN,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=INNER,
    decoder_ffn_dim=INNER,
    max_source_positions=32,
    max_target_positions=32,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)


def _llama_with_lora() -> nn.Module:
    import peft

    adapters = peft.LoraConfig(r=64, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.1)
    return peft.get_peft_model(ARCHITECTURES["llama"].make(), adapters).train()


ARCHITECTURES["llama_lora"] = Architecture(_llama_with_lora, text, run_transformers)


# ---- plain PyTorch ---------------------------------------------------------------------------------------------------


def _tokens() -> Inputs:
    return {"tokens": torch.randint(0, VOCABULARY, (BATCH, TOKENS))}


class EncoderLM(nn.Module):
    """PyTorch's own encoder, whose attention reads its output projection's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.unembed = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.unembed(self.encoder(self.embed(tokens), mask=mask, is_causal=True))


ARCHITECTURES["torch_encoder"] = Architecture(EncoderLM, _tokens, run_plain)


class PlainAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.wq(x), self.wk(x), self.wv(x)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).flatten(2))


class PlainFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class PlainRouted(nn.Module):
    """Experts in a list behind a linear layer that ranks them, with names that say nothing; a gate of one column."""

    def __init__(self) -> None:
        super().__init__()
        self.assign = nn.Linear(HIDDEN, 4, bias=False)
        self.branches = nn.ModuleList(PlainFeedForward() for _ in range(4))
        self.always = PlainFeedForward()
        self.amount = nn.Linear(HIDDEN, 1)
        self.top_k = 2

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.assign(x).float().softmax(-1).topk(self.top_k, -1)
        y = self.always(x) * self.amount(x).sigmoid()
        for index, branch in enumerate(self.branches):
            share = (weights * (chosen == index)).sum(-1, keepdim=True)
            y = y + share * branch(x)
        return y


class PlainBlock(nn.Module):
    def __init__(self, routed: bool) -> None:
        super().__init__()
        self.attention = PlainAttention()
        self.feed_forward = PlainRouted() if routed else PlainFeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(HIDDEN, eps=1e-5), nn.RMSNorm(HIDDEN, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class PlainDecoder(nn.Module):
    """Built the way torchtitan's models are: layers in a dictionary, nothing inherited, sizes as arguments."""

    def __init__(self, routed: bool = False) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleDict({str(i): PlainBlock(routed) for i in range(2)})
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.output = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h)
        return self.output(self.norm(h))


ARCHITECTURES["plain_decoder"] = Architecture(PlainDecoder, _tokens, run_plain)
ARCHITECTURES["plain_experts"] = Architecture(lambda: PlainDecoder(routed=True), _tokens, run_plain, True)


def _stack() -> nn.Module:
    return nn.Sequential(nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, INNER), nn.GELU(), nn.Linear(INNER, 10))


def _vectors() -> Inputs:
    return {"x": torch.randn(BATCH * TOKENS, HIDDEN), "target": torch.randint(0, 10, (BATCH * TOKENS,))}


ARCHITECTURES["linear_stack"] = Architecture(_stack, _vectors, run_classifier)
