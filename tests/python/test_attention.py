"""Attention of transformers' decoders: the right answer for every kind of mask, no mask where it is purely causal."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import masking_utils

import deepwell
from deepwell import attention

TOKENS = 24
WINDOW = 7
SIZES = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    attn_implementation="sdpa",
)


def llama(**other: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **other)).eval()


def mistral() -> nn.Module:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=WINDOW)).eval()


def qwen3() -> nn.Module:
    """One layer of full attention, one with a window."""
    config = transformers.Qwen3Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, layer_types=["full_attention", "sliding_attention"]
    )
    return transformers.Qwen3ForCausalLM(config).eval()


MODELS = {"llama": llama, "mistral": mistral, "qwen3": qwen3}


@pytest.fixture(autouse=True)
def _fresh(seed: int) -> None:
    torch.manual_seed(seed)
    torch._dynamo.reset()


def adapted(model: nn.Module) -> nn.Module:
    """A copy with its attention changed, and nothing else."""
    model = copy.deepcopy(model)
    plan = deepwell.QuantizationPlanner().plan(deepwell.ModelOptimizer().analyze_model(model))
    found = attention.find(model, plan)
    assert [a.decision.name for a in found] == ["model"]
    for a in found:
        a.apply()
    return model


def inputs(kind: str, tokens: int = TOKENS) -> dict[str, Any]:
    batch: dict[str, Any] = {"input_ids": torch.randint(0, 96, (2, tokens)), "use_cache": False}
    if kind == "causal with a cache":
        batch["use_cache"] = True
    elif kind == "nothing padded":
        batch["attention_mask"] = torch.ones(2, tokens, dtype=torch.long)
    elif kind == "padded right":
        batch["attention_mask"] = (torch.arange(tokens) < torch.tensor([[tokens], [tokens - 9]])).long()
    elif kind == "padded left":
        batch["attention_mask"] = (torch.arange(tokens) >= torch.tensor([[0], [9]])).long()
    elif kind == "packed":
        starts = torch.tensor([[0] * 10 + [10] * (tokens - 10), [0] * 5 + [5] * (tokens - 5)])
        batch["position_ids"] = torch.arange(tokens) - starts
    elif kind == "positions of one sequence":
        batch["position_ids"] = torch.arange(tokens).expand(2, -1)
    elif kind == "own mask":
        allowed = torch.rand(2, 1, tokens, tokens) < 0.5
        batch["attention_mask"] = allowed | torch.eye(tokens, dtype=torch.bool)
    else:
        assert kind == "causal"
    return batch


KINDS = (
    "causal",
    "causal with a cache",
    "nothing padded",
    "padded right",
    "padded left",
    "packed",
    "positions of one sequence",
    "own mask",
)


def logits(run: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return run(**batch).logits


CASES = [(kind, TOKENS) for kind in KINDS] + [(kind, n) for kind in KINDS[:3] for n in (WINDOW, WINDOW - 1, 1)]


@pytest.mark.parametrize(("kind", "tokens"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_eager_gives_the_same_bytes(name: str, kind: str, tokens: int) -> None:
    model = MODELS[name]()
    batch = inputs(kind, tokens)
    torch.testing.assert_close(logits(adapted(model), batch), logits(model, batch), rtol=0, atol=0)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    # FP32 sums of at most 96 products in another order: some units of the last place of the largest logit.
    torch.testing.assert_close(actual, expected, rtol=0, atol=64 * 2.0**-23 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_compiled_gives_the_same(name: str, kind: str) -> None:
    model = MODELS[name]()
    batch = inputs(kind)
    compiled = torch.compile(adapted(model), fullgraph=True, backend="eager")
    assert_near(logits(compiled, batch), logits(model, batch))


def test_one_graph_for_many_lengths() -> None:
    model = llama()
    compiled = torch.compile(adapted(model), fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 24, 40):
        batch = inputs("causal", tokens)
        assert_near(logits(compiled, batch), logits(model, batch))


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str) -> None:
    model = MODELS[name]().train()
    other = adapted(model)
    batch = inputs("causal", WINDOW - 1)
    for m in (model, other):
        m(**batch, labels=batch["input_ids"]).loss.backward()
    for (parameter, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0, msg=parameter)


def test_gradient_checkpointing_recomputes_the_same() -> None:
    model = llama().train()
    other = adapted(model)
    other.gradient_checkpointing_enable()
    batch = inputs("causal")
    for m in (model, other):
        m(**batch, labels=batch["input_ids"]).loss.backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_generation(name: str) -> None:
    model = MODELS[name]()
    prompt = inputs("padded left", 12)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    for mask in (prompt["attention_mask"], None):
        texts = [m.generate(prompt["input_ids"], attention_mask=mask, **settings) for m in (model, adapted(model))]
        assert torch.equal(*texts)


def test_tokens_after_a_cache() -> None:
    model = llama()
    ids = inputs("causal")["input_ids"]
    results = []
    for m in (model, adapted(model)):
        with torch.no_grad():
            cache = m(ids[:, :10], use_cache=True).past_key_values
            results.append(m(ids[:, 10:], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


# ---- what it is for ------------------------------------------------------------------------------------------------


def sdpa_masks(run: Any, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """(has a mask, is causal) of each call of scaled_dot_product_attention."""
    calls = []
    own = F.scaled_dot_product_attention

    def record(*arguments: Any, **named: Any) -> Tensor:
        calls.append((named["attn_mask"] is not None, named["is_causal"]))
        return own(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", record)
        logits(run, batch)
    return calls


def test_causal_batches_need_no_mask_and_no_look_at_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(llama())
    assert sdpa_masks(model, inputs("padded left"), monkeypatch) == [(True, False)] * 2
    assert sdpa_masks(model, inputs("packed"), monkeypatch) == [(True, False)] * 2

    def looked(*_: Any, **__: Any) -> None:
        raise AssertionError("the position ids were looked at")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", looked)
    assert sdpa_masks(model, inputs("causal"), monkeypatch) == [(False, True)] * 2
    with pytest.raises(AssertionError, match="looked at"):
        logits(llama(), inputs("causal"))


@pytest.mark.parametrize(("name", "tokens"), [("llama", TOKENS), ("mistral", WINDOW - 1), ("qwen3", WINDOW - 1)])
def test_compiled_graphs_hold_no_mask(name: str, tokens: int) -> None:
    def calls_in_graph(model: nn.Module) -> list[tuple[bool, bool]]:
        calls = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            for node in graph.graph.nodes:
                if node.target is F.scaled_dot_product_attention:
                    calls.append((node.kwargs["attn_mask"] is not None, node.kwargs["is_causal"]))
            return graph

        torch._dynamo.reset()
        logits(torch.compile(model, fullgraph=True, backend=backend), inputs("causal", tokens))
        return calls

    model = MODELS[name]()
    assert calls_in_graph(adapted(model)) == [(False, True)] * 2
    assert calls_in_graph(model) == [(True, False)] * 2  # else there would be nothing to mend


def test_packed_sequences_do_not_see_each_other() -> None:
    model = adapted(llama())
    batch = inputs("packed")
    first = logits(model, batch)
    batch["input_ids"][0, :10] = torch.randint(0, 96, (10,))
    second = logits(model, batch)
    assert torch.equal(first[0, 10:], second[0, 10:])
    assert not torch.equal(first[0, :10], second[0, :10])


# ---- optimize and restore --------------------------------------------------------------------------------------------


def test_optimize_adapts_and_restore_undoes() -> None:
    model = llama()
    untouched = copy.deepcopy(model)
    before = model.config.to_json_string()
    deepwell.optimize(model)
    decision = next(d for d in deepwell.explain(model).plan.decisions if d.action == "adapt")
    assert (decision.name, decision.kind, decision.precision) == ("model", "attention", "float32")
    assert "1 x attention" in str(deepwell.explain(model))
    assert model.config._attn_implementation == "deepwell"
    assert model.config.to_json_string() == before  # what would be saved
    assert untouched.config._attn_implementation == "sdpa"
    assert type(model.model) is type(untouched.model)
    deepwell.restore(model)
    assert model.config._attn_implementation == "sdpa"
    assert not model.model._forward_pre_hooks
    assert not model.model._forward_pre_hooks_with_kwargs
    batch = inputs("causal")
    assert torch.equal(logits(model, batch), logits(untouched, batch))


def test_a_failed_optimize_leaves_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()

    def fail(self: Any) -> None:
        self.decoder.config._attn_implementation_internal = attention.IMPLEMENTATION
        self.decoder.register_forward_pre_hook(attention._HOOK, with_kwargs=True)
        raise RuntimeError("no")

    monkeypatch.setattr(attention.Attention, "apply", fail)
    with pytest.raises(RuntimeError, match="no"):
        deepwell.optimize(model)
    assert model.config._attn_implementation == "sdpa"
    assert not model.model._forward_pre_hooks


@pytest.mark.parametrize("options", [{"skip": "model.layers.0"}, {"only": "*.mlp.*"}])
def test_patterns(options: dict[str, str]) -> None:
    model = deepwell.optimize(llama(), **options)
    assert model.config._attn_implementation == ("deepwell" if "skip" in options else "sdpa")


def test_another_implementation_chosen_later_is_kept() -> None:
    model = deepwell.optimize(llama())
    model.set_attn_implementation("eager")
    logits(model, inputs("causal"))
    deepwell.restore(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("change", ["eager", "bidirectional", "own forward"])
def test_what_does_not_suit_is_left_alone(change: str) -> None:
    model = llama()
    if change == "eager":
        model.set_attn_implementation("eager")
    elif change == "bidirectional":
        model.model.layers[0].self_attn.is_causal = False
    else:
        model.model.forward = model.model.forward
    deepwell.optimize(model)
    assert model.config._attn_implementation == ("eager" if change == "eager" else "sdpa")
    assert not model.model._forward_pre_hooks


def test_decoders_that_use_the_mask_otherwise_are_left_alone() -> None:
    small = dict(vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attn_implementation="sdpa")
    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(**small, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=64)
    )
    gemma3 = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SIZES, sliding_window=WINDOW))
    for model in (opt, gemma3):
        deepwell.optimize(model)
        assert model.config._attn_implementation == "sdpa"


def test_copies_and_pickles_keep_it() -> None:
    model = deepwell.optimize(llama())
    batch = inputs("causal")
    expected = logits(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, batch), expected)
    deepwell.restore(twin)
    assert twin.config._attn_implementation == "sdpa"
    assert not twin.model._forward_pre_hooks
    assert model.config._attn_implementation == "deepwell"

    stream = io.BytesIO()
    torch.save((model, batch, expected), stream)
    script = (
        "import io, sys, torch\n"
        "model, batch, expected = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(**batch).logits, expected)\n"
    )
    subprocess.run([sys.executable, "-c", script], input=stream.getvalue(), check=True, timeout=300)


def test_transformers_is_not_imported_for_other_models() -> None:
    script = (
        "import sys, torch, deepwell\n"
        "deepwell.optimize(torch.nn.Linear(64, 64))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
