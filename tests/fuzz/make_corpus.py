"""Writes the seed corpus of the fuzz targets: small files of every kind that the readers know. Run it after a change of
the format; the files are committed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent


def safetensors(header: object, data: bytes = b"", pad: int = 0) -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


RECORD = {
    "deepwell.version": "0.1.0",
    "deepwell.format": "mxfp8",
    "deepwell.block": "1x32",
    "deepwell.rounding": "rceil",
    "deepwell.layout": "row",
    "deepwell.source_dtypes": '{"w":"BF16"}',
}
FILES = {
    "empty": safetensors({}),
    "one": safetensors({"a": tensor("F32", [2], 0, 8)}, bytes(8), pad=5),
    "several": safetensors(
        {
            "__metadata__": {"format": "pt", "é\n": ""},
            "b": tensor("BF16", [1, 3], 0, 6),
            "scalar": tensor("U8", [], 6, 7),
            "none": tensor("I64", [0, 4], 7, 7),
            "narrow": tensor("F4", [2], 7, 8),
        },
        bytes(8),
    ),
    "quantized": safetensors(
        {"__metadata__": RECORD, "w": tensor("F8_E4M3", [2, 3], 0, 6), "w_scale": tensor("F8_E8M0", [2, 1], 6, 8)},
        bytes(8),
    ),
    "square": safetensors(
        {
            "__metadata__": {**RECORD, "deepwell.block": "128x128"},
            "w": tensor("F8_E4M3", [2, 3], 0, 6),
            "w_scale": tensor("F8_E8M0", [1, 1], 6, 7),
        },
        bytes(7),
    ),
    "overlap": safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)),
    "hole": safetensors({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, bytes(3)),
    "huge_shape": safetensors({"a": tensor("F64", [2**62, 2**62], 0, 8)}, bytes(8)),
    "twice": safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{}}', bytes(1)),
    "deep": safetensors('{"a":[[[[[[[[[[]]]]]]]]]]}'),
    "escapes": safetensors('{"__metadata__":{"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00":"\\u0001"}}'),
    "long_claim": struct.pack("<Q", 10**8) + b"{}",
}
CONFIGS = {
    "dense": {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096},
    "experts": {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000},
    "parts": {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 1, "n_embd": 2}},
    "strange": {"model_type": 3, "vocab_size": -1, "hidden_size": 1e30, "top_k": 9223372036854775807},
}
INDEXES = {
    "one": {"weight_map": {"a": "model.safetensors"}},
    "two": {
        "metadata": {"total_size": 12, "dtype": "bf16", "nested": {"x": [1, 2.5, None, True]}},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    },
    "outside": {"weight_map": {"a": "../model.safetensors"}},
    "wrong": {"weight_map": {"a": 1}, "other": []},
}


def main() -> None:
    for folder in ("fuzz_safetensors", "fuzz_index", "fuzz_config"):
        (HERE / "corpus" / folder).mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (HERE / "corpus" / "fuzz_safetensors" / name).write_bytes(content)
    for name, content in INDEXES.items():
        (HERE / "corpus" / "fuzz_index" / name).write_text(json.dumps(content))
    for name, content in CONFIGS.items():
        (HERE / "corpus" / "fuzz_config" / name).write_text(json.dumps(content))


if __name__ == "__main__":
    main()
