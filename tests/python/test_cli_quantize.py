"""deepwell quantize and dequantize on single files: values, layout, metadata, selection."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command import (
    BLOCKS,
    assert_refused,
    leftovers,
    peer_facts,
    raw_file,
    read_raw,
    reference_quantize,
    run,
    to_float32,
)

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EDGES = [0, 1, 31, 32, 33, 127, 128, 129, 300]


def random_matrix(rng: np.random.Generator, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    values = rng.standard_normal((rows, cols)) * np.exp2(rng.integers(-12, 8, (rows, 1)))
    return torch.from_numpy(values).to(dtype)


def assert_quantized(source: dict[str, torch.Tensor], path, block: str, rounding: str = "rceil") -> None:
    _, tensors = read_raw(path)
    for name, tensor in source.items():
        data, scale, _ = reference_quantize(to_float32(tensor), block, rounding)
        high, wide = BLOCKS[block]
        rows, cols = tensor.shape
        assert tensors[name] == ("F8_E4M3", [rows, cols], data), name
        assert tensors[name + "_scale"] == ("F8_E8M0", [-(-rows // high), -(-cols // wide)], scale), name


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rounding", ["rceil", "floor"])
def test_values_at_the_edges_of_blocks(tmp_path, rng, block, rounding):
    source = {
        f"{dtype}.{rows}x{cols}": random_matrix(rng, rows, cols, DTYPES[dtype])
        for dtype in DTYPES
        for rows, cols in zip(EDGES + list(rng.permutation(EDGES)), list(reversed(EDGES)) + EDGES, strict=True)
    }
    save_file(source, tmp_path / "in.safetensors")
    run(
        "quantize",
        tmp_path / "in.safetensors",
        "-o",
        tmp_path / "q.safetensors",
        "--block",
        block,
        "--rounding",
        rounding,
    )
    assert_quantized(source, tmp_path / "q.safetensors", block, rounding)
    assert peer_facts(tmp_path / "q.safetensors").keys() == {n for k in source for n in (k, k + "_scale")}

    run("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "d.safetensors")
    restored = load_file(tmp_path / "d.safetensors")
    assert restored.keys() == source.keys()
    for name, tensor in source.items():
        decoded = reference_quantize(to_float32(tensor), block, rounding)[2]
        assert torch.equal(restored[name], torch.from_numpy(decoded).to(tensor.dtype)), name


@pytest.mark.parametrize("block", BLOCKS)
def test_shapes_that_are_cut_into_tiles(tmp_path, rng, block):
    """Tensors of several tiles: tall, square, rows wider than a tile, columns of one element."""
    shapes = [(3000, 900), (131, 17000), (2, 2_200_001), (1_100_000, 1), (129, 16385)]
    source = {
        f"t{i}": random_matrix(rng, rows, cols, DTYPES[dtype])
        for i, ((rows, cols), dtype) in enumerate(zip(shapes, ["BF16", "F32", "F16", "F32", "BF16"], strict=True))
    }
    save_file(source, tmp_path / "in.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors", "--block", block, "--threads", 3)
    assert_quantized(source, tmp_path / "q.safetensors", block)
    run("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "d.safetensors", "--dtype", "f32")
    restored = load_file(tmp_path / "d.safetensors")
    for name, tensor in source.items():
        decoded = reference_quantize(to_float32(tensor), block)[2]
        assert torch.equal(restored[name], torch.from_numpy(decoded).to(torch.float32)), name


def test_nan_and_infinity_stay_visible(tmp_path, rng):
    source = {"w": random_matrix(rng, 4, 100, torch.float32)}
    source["w"][1, 40] = float("nan")
    source["w"][2, 99] = float("-inf")
    save_file(source, tmp_path / "in.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors")
    assert_quantized(source, tmp_path / "q.safetensors", "32")


def test_everything_else_is_copied(tmp_path, rng):
    source = {
        "w": random_matrix(rng, 64, 64, torch.bfloat16),
        "scalar": torch.tensor(3.25),
        "vector": torch.randn(77, dtype=torch.float16),
        "experts": torch.randn(3, 32, 32, dtype=torch.bfloat16),
        "double": torch.randn(32, 32, dtype=torch.float64),
        "ints": torch.arange(64).reshape(8, 8),
        "bools": torch.tensor([[True, False]]),
        "f8": torch.randn(32, 32).to(torch.float8_e4m3fn),
        "f8_e5m2": torch.randn(4, 32).to(torch.float8_e5m2),
        "complex": torch.randn(5, dtype=torch.complex64),
        "empty": torch.zeros(0, dtype=torch.int8),
        "empty_rank3": torch.zeros(4, 0, 2),
    }
    save_file(source, tmp_path / "in.safetensors", metadata={"format": "pt", "ключ": 'a "quoted"\nvalue'})
    before = (tmp_path / "in.safetensors").read_bytes()
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors")
    assert (tmp_path / "in.safetensors").read_bytes() == before
    _, original = read_raw(tmp_path / "in.safetensors")
    metadata, tensors = read_raw(tmp_path / "q.safetensors")
    assert tensors.keys() == original.keys() | {"w_scale"}
    for name in source.keys() - {"w"}:
        assert tensors[name] == original[name]
    assert metadata["format"] == "pt"
    assert metadata["ключ"] == 'a "quoted"\nvalue'
    assert metadata["deepwell.format"] == "mxfp8"
    assert metadata["deepwell.block"] == "1x32"
    assert metadata["deepwell.rounding"] == "rceil"
    assert json.loads(metadata["deepwell.source_dtypes"]) == {"w": "BF16"}

    run("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "d.safetensors")
    restored_metadata, restored = read_raw(tmp_path / "d.safetensors")
    assert restored_metadata == {"format": "pt", "ключ": 'a "quoted"\nvalue'}
    assert restored.keys() == original.keys()
    assert {name: value for name, value in restored.items() if name != "w"} == {
        name: value for name, value in original.items() if name != "w"
    }


def test_every_dtype_of_the_format_is_copied(tmp_path):
    """Opaque bytes, also of types that no framework here can hold."""
    bits = {
        "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "C64": 64, "F64": 64,
        "I64": 64, "U64": 64,
    }  # fmt: skip
    header, data = {}, b""
    for i, (dtype, size) in enumerate(bits.items()):
        content = bytes((i * 16 + k) % 256 for k in range(8 * 4 * size // 8))
        header[f"t.{dtype}"] = {"dtype": dtype, "shape": [8, 4], "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header["w"] = {"dtype": "F32", "shape": [1, 1], "data_offsets": [len(data), len(data) + 4]}
    data += b"\0\0\x80\x3f"
    (tmp_path / "in.safetensors").write_bytes(raw_file(header, data))
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors")
    _, original = read_raw(tmp_path / "in.safetensors")
    _, tensors = read_raw(tmp_path / "q.safetensors")
    assert peer_facts(tmp_path / "q.safetensors").keys() == tensors.keys()
    for dtype in bits:
        assert tensors[f"t.{dtype}"] == original[f"t.{dtype}"]
    assert tensors["w"][2] == b"\x78"  # 1.0 = 256 * 2^-8
    assert tensors["w_scale"][2] == bytes([127 - 8])


def test_tensors_are_aligned_to_their_elements(tmp_path, rng):
    source = {f"w{i}": random_matrix(rng, 3, 5, torch.bfloat16) for i in range(4)}
    source |= {"odd": torch.zeros(3, dtype=torch.uint8), "wide": torch.zeros(3, dtype=torch.float64)}
    save_file(source, tmp_path / "in.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors", "--skip", "w1")
    content = (tmp_path / "q.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header["w1"]["data_offsets"][0] % 2 == 0
    assert header["wide"]["data_offsets"][0] % 8 == 0


def test_what_is_kept_by_default(tmp_path, rng):
    kept = [
        "model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight",
        "shared.weight", "model.layers.0.mlp.gate.weight", "model.layers.0.router.weight", "output.weight",
        "score.weight", "model.norm.weight", "head.weight",
    ]  # fmt: skip
    converted = [
        "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.q_proj.weight", "h.0.attn.c_attn.weight",
        "model.layers.0.mlp.experts.3.down_proj.weight", "encoder.layer.0.attention.output.dense.weight",
    ]  # fmt: skip
    source = {name: random_matrix(rng, 8, 32, torch.bfloat16) for name in kept + converted}
    save_file(source, tmp_path / "in.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "q.safetensors")
    facts = peer_facts(tmp_path / "q.safetensors")
    assert {name for name, (dtype, _) in facts.items() if dtype == "F8_E4M3"} == set(converted)
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "all.safetensors", "--all")
    facts = peer_facts(tmp_path / "all.safetensors")
    assert {name for name, (dtype, _) in facts.items() if dtype == "F8_E4M3"} == set(kept + converted)
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "some.safetensors", "--all", "--skip", "*embed*",
        "--skip=model.layers.0.*")  # fmt: skip
    facts = peer_facts(tmp_path / "some.safetensors")
    assert {name for name, (dtype, _) in facts.items() if dtype == "F8_E4M3"} == {
        name for name in kept + converted if "embed" not in name and not name.startswith("model.layers.0.")
    }


def test_dequantize_without_a_record(tmp_path, rng):
    """A file of another program: pairs are found by names, dtypes and shapes."""
    source = {"w": random_matrix(rng, 40, 70, torch.float32)}
    data, scale, decoded = reference_quantize(to_float32(source["w"]), "32")
    header = {
        "w": {"dtype": "F8_E4M3", "shape": [40, 70], "data_offsets": [0, 2800]},
        "w_scale": {"dtype": "F8_E8M0", "shape": [40, 3], "data_offsets": [2800, 2920]},
        "other_scale": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [2920, 2921]},
    }
    path = tmp_path / "in.safetensors"
    path.write_bytes(raw_file(header, data + scale + b"\x7f"))
    assert_refused(run("dequantize", path, "-o", tmp_path / "d.safetensors", check=False), 1, "--dtype", "w")
    run("dequantize", path, "-o", tmp_path / "d.safetensors", "--dtype", "bf16")
    _, tensors = read_raw(tmp_path / "d.safetensors")
    assert tensors.keys() == {"w", "other_scale"}
    wanted = torch.from_numpy(decoded).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    assert tensors["w"] == ("BF16", [40, 70], wanted)


def test_refusals(tmp_path, rng):
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"w": random_matrix(rng, 4, 32, torch.float32), "w_scale": torch.zeros(2)}, path)
    assert_refused(run("quantize", path, "-o", out, check=False), 1, "w_scale", "--skip")
    assert not out.exists()
    save_file({"w": torch.zeros(4)}, path)
    assert_refused(run("quantize", path, "-o", out, check=False), 1, "nothing to quantize", str(path))
    assert_refused(run("dequantize", path, "-o", out, check=False), 1, "nothing to dequantize")
    save_file({"w": random_matrix(rng, 4, 32, torch.float32)}, path)
    assert_refused(run("quantize", path, "-o", out, "--skip", "w", check=False), 1, "nothing to quantize")
    run("quantize", path, "-o", out)
    assert_refused(run("quantize", out, "-o", tmp_path / "twice.safetensors", check=False), 1, "quantized already")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("isa", ["ref", "avx2", "avx512"])
def test_instruction_sets_and_threads_write_the_same_file(tmp_path, rng, isa):
    available = json.loads(run("info", "--json").stdout)["cpu"]
    if isa != "ref" and not available[f"has_{isa}"]:
        pytest.skip(f"this processor has no {isa}")
    save_file({"w": random_matrix(rng, 700, 1000, torch.float16)}, tmp_path / "in.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "a.safetensors")
    run("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "b.safetensors", "--threads", 1,
        env={"DEEPWELL_ISA": isa})  # fmt: skip
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
