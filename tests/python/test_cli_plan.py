"""deepwell plan: a plan from a checkpoint's headers and config.json."""

from __future__ import annotations

import json
import struct
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import assert_refused, leftovers, run
from deepwell import _core

DECISION_KEYS = {
    *("name", "kind", "role", "in_features", "out_features", "matrices", "parameters", "dtype", "runs", "frozen"),
    *("transposed", "shares_input", "input_from", "action", "reason", "precision", "block", "weight_block", "kernel"),
    *("input_forms", "gradient_forms", "weight_forms", "flops_share", "measured", "full", "candidate", "tile"),
}


def write(folder: Path, shapes: dict[str, tuple[int, ...]], config: dict | None, dtype: str = "BF16") -> Path:
    """A checkpoint whose data is a hole: only its header is read."""
    folder.mkdir(exist_ok=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, count = end, 1
        for extent in shape:
            count *= extent
        end = begin + 2 * count
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama(layers: int, hidden: int, inner: int, vocabulary: int, kv: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        for name, shape in (
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ):
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def plan(folder: Path, *arguments: object) -> tuple[dict, dict[str, dict]]:
    document = json.loads(run("plan", folder, "--json", *arguments).stdout)
    return document, {d["name"]: d for d in document["decisions"]}


@pytest.fixture
def eight_billion(tmp_path: Path) -> Path:
    config = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096}
    return write(tmp_path / "llama", llama(32, 4096, 14336, 128256, 1024), config)


def test_an_8b_checkpoint_in_no_time(eight_billion: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        document, made = plan(eight_billion)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2
    assert document["schema"] == "deepwell.plan/1"
    assert document["model"] == "llama"
    assert document["parameters"] == 8_030_261_248
    assert all(set(d) == DECISION_KEYS for d in document["decisions"])
    block = {name.rpartition(".")[2]: d for name, d in made.items() if name.startswith("model.layers.31.")}
    converted = {name for name, d in block.items() if d["action"] == "convert"}
    assert converted == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    reason = block["k_proj"]["reason"]
    assert reason.startswith("predicted to lose: ")
    assert "would win from about" in reason
    many = {d["name"]: d for d in plan(eight_billion, "--seq-len", 8192, "--batch", 8)[0]["decisions"]}
    assert many["model.layers.31.self_attn.k_proj"]["action"] == "convert"
    fused = {"input_layernorm", "post_attention_layernorm", "activation"}
    assert fused == {n for n, d in block.items() if d["action"] == "fuse"}
    assert block["attention"]["in_features"] == 4096
    names = [d["name"] for d in document["decisions"]]
    assert names[block["up_proj"]["shares_input"]] == "model.layers.31.mlp.gate_proj"
    assert names[block["down_proj"]["input_from"]] == "model.layers.31.mlp.activation"
    assert block["up_proj"]["candidate"]["quantize_ms"] < block["gate_proj"]["candidate"]["quantize_ms"]
    assert made["lm_head"]["role"] == "output_head"
    assert sum(d["flops_share"] for d in document["decisions"]) == pytest.approx(1)
    assert document["predicted"]["planned_ms"] < document["predicted"]["full_ms"]
    # AdamW alone: weight, gradient and both states in BF16, seven passes at the speed of a copy.
    speed = next(e[2] for e in _core.plan_evidence() if e[:2] == ("h100", "copy, own precision"))
    assert document["predicted"]["optimizer_ms"] == pytest.approx(8_030_261_248 * 14 / speed / 1e9, rel=1e-3)


def test_the_measured_step_is_predicted(tmp_path: Path) -> None:
    """The prediction leaves out what it does not list (rotary embedding, residual sums, copies), up to a fifth."""
    path = Path(__file__).resolve().parents[2] / "bench" / "results" / "h100" / "step_dense.json"
    case = "Llama 8B width, 8 layers, batch 2 x 4096"
    rows = {row["metric"]: row for row in json.loads(path.read_text())["rows"] if row["case"] == case}
    step, memory = rows["step"], rows["peak memory"]
    config = {"model_type": "llama", "vocab_size": 32000}
    folder = write(tmp_path / "llama", llama(8, 4096, 14336, 32000, 1024), config)
    predicted = plan(folder, "--target", "h100", "--batch", 2, "--seq-len", 4096)[0]["predicted"]
    assert predicted["full_ms"] / predicted["planned_ms"] == pytest.approx(
        step["peers"]["eager"] / step["deepwell"], rel=0.15
    )
    assert predicted["full_ms"] == pytest.approx(step["peers"]["eager"], rel=0.25)
    assert predicted["full_bytes"] == pytest.approx(memory["peers"]["eager"] * 2**20, rel=0.1)
    assert predicted["planned_bytes"] == pytest.approx(memory["deepwell"] * 2**20, rel=0.1)


def test_targets_tokens_and_inference(eight_billion: Path) -> None:
    times = {}
    for target in ("h100", "h200", "b200", "gb200"):
        document, made = plan(eight_billion, "--target", target)
        times[target] = document["predicted"]["planned_ms"]
        assert document["predicted"]["gpu"] == target
        assert document["predicted"]["measured"] == target.startswith("h")
        tile = made["model.layers.0.mlp.up_proj"]["tile"]
        assert (tile is not None) == target.endswith("b200")
    assert times["gb200"] < times["b200"] < min(times["h100"], times["h200"])
    assert "not measured" in run("plan", eight_billion, "--target", "b200").stdout
    few, _ = plan(eight_billion, "--seq-len", 128, "--batch", 1)
    assert few["predicted"]["tokens"] == 128
    assert few["converted"] == 0  # so few tokens are not worth quantizing the weights for
    inference, made = plan(eight_billion, "--inference", "--seq-len", 8192)
    down = made["model.layers.0.mlp.down_proj"]
    assert down["full"]["backward_ms"] == 0
    assert (down["input_forms"], down["weight_forms"]) == ("row", "row")
    assert inference["predicted"]["optimizer_ms"] == 0


def test_choices(eight_billion: Path) -> None:
    _, made = plan(eight_billion, "--skip", "*.layers.0", "--skip", "*.up_proj")
    assert made["model.layers.0.mlp.down_proj"]["reason"] == "named in skip"
    assert made["model.layers.9.mlp.up_proj"]["reason"] == "named in skip"
    _, made = plan(eight_billion, "--only", "*.up_proj")
    assert {n.rpartition(".")[2] for n, d in made.items() if d["action"] == "convert"} == {"up_proj"}
    document, made = plan(eight_billion, "--strategy", "bf16_fused")
    assert document["converted"] == 0
    assert document["fused"] > 0
    document, _ = plan(eight_billion, "--precision", "fp8")
    assert document["precision"] == "fp8"
    assert document["converted"] == 160


def test_the_page(eight_billion: Path, tmp_path: Path) -> None:
    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells: list[str] = []
            self.bars = 0

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open.append(tag)
            self.bars += tag == "div" and ("class", "bar then") in attrs
            assert not any(name in ("src", "href") for name, _ in attrs)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            if self.open and self.open[-1] == "td":
                self.cells.append(data)

    out = tmp_path / "plan.html"
    assert run("plan", eight_billion, "--html", out).stdout == ""
    page = Page()
    page.feed(out.read_text())
    assert page.open == []
    assert "model.layers.31.mlp.down_proj" in page.cells
    assert page.bars > 2 * 32 * 7
    assert_refused(run("plan", eight_billion, "--html", out, check=False), 1, "plan.html", "exists")
    run("plan", eight_billion, "--html", out, "--force")
    assert leftovers(tmp_path) == []


def test_experts_one_by_one_become_one_layer(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in llama(2, 2048, 0, 32000, 512).items() if ".mlp." not in name}
    for layer in range(2):
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = (64, 2048)
        for expert in range(64):
            for name, shape in (("gate_proj", (768, 2048)), ("up_proj", (768, 2048)), ("down_proj", (2048, 768))):
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"] = shape
    config = {"model_type": "qwen3_moe", "vocab_size": 32000, "num_experts": 64, "num_experts_per_tok": 8}
    folder = write(tmp_path / "moe", shapes, config)
    document, made = plan(folder)
    experts = made["model.layers.0.mlp.experts.*.up_proj"]
    assert (experts["role"], experts["matrices"], experts["in_features"]) == ("experts", 64, 2048)
    assert experts["parameters"] == 64 * 768 * 2048
    assert made["model.layers.0.mlp.gate"]["role"] == "router"
    # A token goes through 8 of them, whatever there are.
    per_token = {n: d["flops_share"] for n, d in made.items()}
    query = per_token["model.layers.0.self_attn.q_proj"]
    assert per_token["model.layers.0.mlp.experts.*.up_proj"] / query == pytest.approx(8 * 768 / 2048)
    assert experts["action"] == "keep"
    _, made = plan(folder, "--strategy", "mxfp8_moe", "--seq-len", 131072, "--batch", 4)
    assert made["model.layers.0.mlp.experts.*.up_proj"]["action"] == "convert"
    config.pop("num_experts_per_tok")
    document, _ = plan(write(folder, shapes, config))
    assert any("all of them" in note for note in document["notes"])


def test_stacked_experts_and_tied_heads(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 256)}
    shapes["model.layers.0.mlp.experts.gate_up_proj"] = (8, 256, 1536)
    shapes["model.layers.0.mlp.experts.down_proj"] = (8, 768, 256)
    shapes["model.layers.0.mlp.router.weight"] = (8, 256)
    config = {"model_type": "gpt_oss", "vocab_size": 32000, "hidden_size": 256, "num_local_experts": 8}
    _, made = plan(write(tmp_path / "oss", shapes, {**config, "experts_per_token": 4}))
    pair, down = (made[f"model.layers.0.mlp.experts.{name}"] for name in ("gate_up_proj", "down_proj"))
    assert (pair["in_features"], pair["out_features"], pair["matrices"]) == (256, 1536, 8)
    assert (down["in_features"], down["out_features"], down["transposed"]) == (768, 256, True)
    assert made["model.layers.0.mlp.experts.activation"]["in_features"] == 768
    assert made["model.layers.0.mlp.router"]["role"] == "router"
    assert made["lm_head"]["parameters"] == 0
    assert "embedding" in made["lm_head"]["reason"]


def test_transposed_weights(tmp_path: Path) -> None:
    shapes = {"wte.weight": (50304, 2048), "wpe.weight": (1024, 2048), "h.0.mlp.c_fc.weight": (2048, 8192)}
    document, made = plan(write(tmp_path / "gpt2", shapes, {"model_type": "gpt2", "vocab_size": 50304}))
    layer = made["h.0.mlp.c_fc"]
    assert (layer["in_features"], layer["out_features"], layer["action"]) == (2048, 8192, "keep")
    assert "take the transpose" in layer["reason"]
    assert made["wpe"]["role"] == "embedding"
    assert any("attention is in no prediction" in note for note in document["notes"])


def test_an_unknown_family_is_planned_and_its_unknown_parts_are_named(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (50000, 2048), "backbone.mixer.scale": (2048,)}
    for layer in range(3):
        prefix = f"backbone.blocks.{layer}."
        shapes[f"{prefix}in_proj.weight"] = (8192, 2048)
        shapes[f"{prefix}conv1d.weight"] = (8192, 1, 4)
        shapes[f"{prefix}A_log"] = (64,)
        shapes[f"{prefix}in_proj.lora_A.weight"] = (16, 2048)
    folder = write(tmp_path / "odd", shapes, {"model_type": "hyena9", "vocab_size": 50000})
    document, made = plan(folder)
    assert made["backbone.blocks.0.in_proj"]["action"] == "convert"
    assert made["backbone.embeddings"]["role"] == "embedding"
    assert made["backbone.blocks.0.in_proj.lora_A"]["role"] == "adapter"
    assert made["backbone.blocks.0.A_log"]["role"] == "other"
    assert not any(d["action"] == "fuse" or d["shares_input"] is not None for d in document["decisions"])
    known, unknown = document["notes"]
    assert "hyena9 is not known" in known
    for part in ("backbone.blocks.N.convNd (3)", "backbone.blocks.N.A_log (3)", "backbone.mixer.scale"):
        assert part in unknown
    (folder / "config.json").unlink()
    assert any("no config.json" in note for note in plan(folder)[0]["notes"])


def test_what_is_quantized_already_is_left_alone(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (8192, 8192), "model.layers.0.mlp.up_proj.weight_scale": (8192, 256)}
    folder = write(tmp_path / "fp8", shapes, {"model_type": "llama"}, dtype="I16")
    document, made = plan(folder)
    assert list(made) == ["model.layers.0.mlp.up_proj"]
    assert "its weight is I16" in made["model.layers.0.mlp.up_proj"]["reason"]
    assert document["converted"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ((), 2, ("one CHECKPOINT",)),
        (("{folder}", "--target", "a100"), 1, ("a100", "h100")),
        (("{folder}", "--seq-len", "0"), 2, ("--seq-len",)),
        (("{folder}", "--batch", "many"), 2, ("--batch",)),
        (("{folder}", "--precision", "int4"), 1, ("precision='int4'",)),
        (("{folder}", "--strategy", "mxfp8_moe", "--precision", "fp8"), 1, ("contradicts",)),
        (("{folder}", "--skip", "*.upp"), 1, ("matches no module", "l.0.up")),
        (("{folder}", "--json", "--html", "x.html"), 2, ("exclude",)),
        (("{folder}/nothing",), 1, ("nothing",)),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], code: int, parts: tuple[str, ...], tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"l.0.up.weight": (64, 64)}, {"model_type": "x"})
    done = run("plan", *(a.format(folder=folder) for a in arguments), check=False)
    assert_refused(done, code, *parts)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', "[" * 5000, ""])
def test_a_broken_config_is_named(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"l.0.up.weight": (64, 64)}, None)
    (folder / "config.json").write_text(text)
    assert_refused(run("plan", folder, check=False), 1, "config.json")


def test_names_from_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"l.0.\x1b[2J\n.weight": (64, 64)}, {"model_type": "<b>\x1b"})
    for arguments in ((), ("--json",)):
        assert "\x1b" not in run("plan", folder, *arguments).stdout
    run("plan", folder, "--html", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<b>" not in page
    assert "\x1b" not in page
