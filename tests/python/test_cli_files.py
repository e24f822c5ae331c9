"""deepwell and the file system: bad input, shards, existing outputs, full disks, signals, memory, the progress bar."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import assert_refused, command_path, leftovers, peer_facts, raw_file, read_raw, run


@pytest.fixture
def checkpoint(tmp_path, rng):
    path = tmp_path / "in.safetensors"
    save_file({"w": torch.from_numpy(rng.standard_normal((64, 96))).float(), "bias": torch.ones(5)}, path)
    return path


def sparse_checkpoint(path, rows: int, cols: int) -> None:
    """One BF16 matrix of zeros that takes no room on the disk."""
    size = rows * cols * 2
    header = raw_file({"w": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [0, size]}})
    path.write_bytes(header)
    os.truncate(path, len(header) + size)


GOOD = {"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
HOSTILE = {
    "empty": b"",
    "text": b"this is no checkpoint at all, only text",
    "truncated": raw_file(GOOD, b"abc"),
    "trailing": raw_file(GOOD, b"abcde"),
    "long header": struct.pack("<Q", 10**8) + b"{}",
    "huge header": struct.pack("<Q", 2**63) + b"{}" * 100,
    "not UTF-8": raw_file(b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"abcd"),
    "nested": raw_file(b'{"t":' + b"[" * 100000 + b"]" * 100000 + b"}"),
    "duplicate": raw_file(b'{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[0],'
                          b'"data_offsets":[4,4]}}', b"abcd"),
    "overlap": raw_file(GOOD | {"u": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abcd"),
    "hole": raw_file({"t": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"abcd"),
    "shape": raw_file({"t": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"abcd"),
    "dtype": raw_file({"t": {"dtype": "Q4_K", "shape": [4], "data_offsets": [0, 4]}}, b"abcd"),
    "pickle": b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01K\x01s." * 4,
    "newlines": raw_file({"a\nb\x1b[31m": {"dtype": "U8", "shape": [5], "data_offsets": [0, 4]}}, b"abcd"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", ["quantize", "dequantize", "inspect"])
def test_hostile_files(tmp_path, kind, command):
    path = tmp_path / "in.safetensors"
    path.write_bytes(HOSTILE[kind])
    output = () if command == "inspect" else ("-o", tmp_path / "out.safetensors")
    done = run(command, path, *output, check=False)
    assert_refused(done, 1, f"deepwell {command}: ", str(path))
    assert "\x1b" not in done.stderr
    assert os.listdir(tmp_path) == ["in.safetensors"]
    assert path.read_bytes() == HOSTILE[kind]


def test_files_that_are_none(tmp_path, checkpoint):
    out = tmp_path / "out.safetensors"
    assert_refused(run("quantize", tmp_path / "missing", "-o", out, check=False), 1, "missing", "No such file")
    assert_refused(run("quantize", "/dev/null", "-o", out, check=False), 1, "/dev/null", "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    assert_refused(run("quantize", tmp_path / "pipe", "-o", out, check=False), 1, "not a regular file")
    (tmp_path / "empty").mkdir()
    assert_refused(run("quantize", tmp_path / "empty", "-o", tmp_path / "o", check=False), 1, "holds no .safetensors")


def test_existing_outputs(tmp_path, checkpoint):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    assert_refused(run("quantize", checkpoint, "-o", out, check=False), 1, "exists", "--force")
    assert out.read_bytes() == b"precious"
    run("quantize", checkpoint, "-o", out, "--force")
    assert "w_scale" in peer_facts(out)
    before = checkpoint.read_bytes()
    assert_refused(run("quantize", checkpoint, "-o", checkpoint, "--force", check=False), 1, "is the input")
    os.symlink(checkpoint, tmp_path / "link")
    assert_refused(run("quantize", checkpoint, "-o", tmp_path / "link", "--force", check=False), 1, "is the input")
    assert checkpoint.read_bytes() == before
    assert_refused(run("quantize", checkpoint, "-o", tmp_path, "--force", check=False), 1, str(tmp_path))
    assert_refused(run("quantize", checkpoint, "-o", "/dev/full", "--force", check=False), 1, "not a regular file")
    assert_refused(run("quantize", checkpoint, "-o", tmp_path / "no" / "o", check=False), 1, "create its folder")
    assert not leftovers(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path, checkpoint):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run("quantize", checkpoint, "-o", tmp_path / "locked" / "out.safetensors", check=False)
    assert_refused(done, 1, "Permission denied", "choose a folder")


def test_file_system_without_writing(checkpoint):
    """As above for root too: /proc takes no files from anybody."""
    done = run("quantize", checkpoint, "-o", "/proc/out.safetensors", check=False)
    assert_refused(done, 1, "cannot write /proc/out.safetensors")


def limited(limit: int, value: int):
    return lambda: resource.setrlimit(limit, (value, value))


SMALL_FILES = limited(resource.RLIMIT_FSIZE, 1 << 20)


def test_full_disk(tmp_path):
    """A limit on file sizes fails a write in the middle, as a full disk does."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out"
    sparse_checkpoint(path, 4096, 4096)
    out.mkdir()
    done = run("quantize", path, "-o", out / "o.safetensors", check=False, preexec_fn=SMALL_FILES)
    assert_refused(done, 1, "o.safetensors", "free some space")
    assert os.listdir(out) == []


def test_full_standard_output(checkpoint):
    with open("/dev/full", "w") as full:
        done = subprocess.run([command_path(), "inspect", checkpoint], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("deepwell inspect: cannot write to standard output")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("sharded", [False, True])
def test_interrupted(tmp_path, number, sharded):
    """The scalar reference takes many seconds for this; the signal comes when the temporary file is there."""
    model = tmp_path / "model"
    model.mkdir()
    sparse_checkpoint(model / "m.safetensors", 16384, 16384)
    source, out = model / "m.safetensors", tmp_path / "out"
    if sharded:
        index = {"metadata": {}, "weight_map": {"w": "m.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        source = model
    process = subprocess.Popen(
        [command_path(), "quantize", source, "-o", out], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"DEEPWELL_ISA": "ref"}, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background job ignores SIGINT
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not leftovers(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -number
    assert stderr == f"deepwell quantize: interrupted; nothing was written to {out}\n"
    assert stdout == ""
    assert os.listdir(tmp_path) == ["model"]


# Runs a command and prints its exit code and peak memory in KiB. In a process of its own: the peak that the kernel
# reports for a child counts that of the process it was forked from, and this one holds PyTorch.
PEAK = """
import os, sys
child = os.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@pytest.mark.parametrize(("rows", "cols"), [(32768, 10000), (1, 320_000_000), (128, 2_500_000)])
def test_memory_is_bounded(tmp_path, rows, cols):
    """640 MB in one tensor, of any shape, within less than half of that."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    sparse_checkpoint(path, rows, cols)
    for command, *rest in (
        ("inspect", path, "--block", "128x128"),
        ("quantize", path, "-o", out, "--block", "128x128"),
    ):
        program = [command_path(), command, *rest, "--threads", "16"]
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", PEAK, *map(str, program)], check=True, capture_output=True, text=True
        )
        code, peak = map(int, done.stdout.split()[-2:])
        assert code == 0
        assert peak * 1024 < 300e6, f"{command} used {peak} KiB"
    assert peer_facts(out)["w"] == ("F8_E4M3", [rows, cols])
    out.unlink()


def test_a_lie_in_a_header_costs_no_memory(tmp_path):
    path = tmp_path / "in.safetensors"
    path.write_bytes(struct.pack("<Q", 99_999_999) + b"{}")
    done = run("inspect", path, check=False, preexec_fn=limited(resource.RLIMIT_AS, 80 << 20))
    assert_refused(done, 1, "claims a header")


def run_on_terminal(*arguments: object) -> tuple[int, str]:
    """Standard error is a terminal 100 columns wide."""
    controller, terminal = pty.openpty()
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([command_path(), *map(str, arguments)], stderr=terminal, stdout=subprocess.DEVNULL,
                               env={"TERM": "xterm", "DEEPWELL_ISA": "ref"})  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # the terminal's other end was closed
            break
        if not part:
            break
        shown += part
    os.close(controller)
    return process.wait(), shown.decode()


def test_progress_bar(tmp_path):
    path = tmp_path / "in.safetensors"
    sparse_checkpoint(path, 4096, 8192)
    code, shown = run_on_terminal("quantize", path, "-o", tmp_path / "a.safetensors", "--threads", 1)
    assert code == 0
    assert "quantizing [" in shown
    assert "ETA" in shown
    assert "/s" in shown
    assert "67.11 MB" in shown
    assert shown.endswith("\r\x1b[K")  # the bar is taken away
    assert all(len(line) < 110 for line in shown.split("\r"))
    done = run("quantize", path, "-o", tmp_path / "b.safetensors")
    assert done.stderr == ""


# ---- sharded checkpoints ----


@pytest.fixture
def model(tmp_path, rng):
    """A folder as the Hub's: two shards, an index, configuration, tokenizer, and things that are not wanted."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {
        "model-00001-of-00002.safetensors": {
            "model.embed_tokens.weight": torch.from_numpy(rng.standard_normal((50, 64))).bfloat16(),
            "layers.0.up.weight": torch.from_numpy(rng.standard_normal((130, 70))).bfloat16(),
        },
        "model-00002-of-00002.safetensors": {
            "layers.1.up.weight": torch.from_numpy(rng.standard_normal((64, 64))).half(),
            "layers.1.bias": torch.ones(64),
            "unlisted": torch.ones(3),
        },
    }
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors if tensor != "unlisted"}
    index = {"metadata": {"total_size": 1, "total_parameters": 7}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"a": 1}')
    os.symlink("config.json", folder / "tokenizer.json")
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / ".gitattributes").write_text("hidden")
    (folder / "original").mkdir()
    return folder, {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


def load_all(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_directory_round_trip(tmp_path, model):
    folder, source = model
    run("quantize", folder, "-o", tmp_path / "q")
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(os.listdir(tmp_path / "q")) == sorted(
        [*weights, "config.json", "tokenizer.json", "model.safetensors.index.json"]
    )
    assert (tmp_path / "q" / "tokenizer.json").read_text() == '{"a": 1}'
    assert not (tmp_path / "q" / "tokenizer.json").is_symlink()
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    facts = {name: (shard, fact) for shard in weights for name, fact in peer_facts(tmp_path / "q" / shard).items()}
    assert index["weight_map"] == {name: shard for name, (shard, _) in facts.items() if name != "unlisted"}
    assert {"layers.0.up.weight_scale", "layers.1.up.weight_scale"} <= index["weight_map"].keys()
    sizes = [len(read_raw(tmp_path / "q" / shard)[1][name][2]) for name, shard in index["weight_map"].items()]
    assert index["metadata"] == {"total_size": sum(sizes), "total_parameters": 7}

    run("dequantize", tmp_path / "q" / "model.safetensors.index.json", "-o", tmp_path / "d")
    assert sorted(os.listdir(tmp_path / "d")) == [*weights, "model.safetensors.index.json"]
    restored = load_all(tmp_path / "d")
    assert restored.keys() == source.keys()
    for name, tensor in source.items():
        assert restored[name].dtype == tensor.dtype
        # Half a step of E4M3 relative to its value, or of its smallest subnormal in the block's scale.
        error = (restored[name].double() - tensor.double()).abs()
        bound = tensor.double().abs() * 2**-4 + tensor.double().abs().max() * 2**-17
        assert (error <= bound).all() if name.endswith("up.weight") else (error == 0).all(), name
    first = json.loads((folder / "model.safetensors.index.json").read_text())
    assert (
        json.loads((tmp_path / "d" / "model.safetensors.index.json").read_text())["weight_map"] == first["weight_map"]
    )

    lines = json.loads(run("inspect", tmp_path / "q", "--json").stdout)
    assert lines["files"] == 2
    assert lines["record"]["block"] == "1x32"


def test_directory_with_one_file(tmp_path, checkpoint):
    folder = tmp_path / "single"
    folder.mkdir()
    os.rename(checkpoint, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    run("quantize", folder, "-o", tmp_path / "q")
    assert sorted(os.listdir(tmp_path / "q")) == ["config.json", "model.safetensors"]


def test_directory_outputs(tmp_path, model):
    folder, _ = model
    out = tmp_path / "q"
    assert_refused(run("quantize", folder, "-o", folder, "--force", check=False), 1, "is the input")
    assert_refused(run("quantize", folder, "-o", tmp_path / "q.safetensors", check=False), 1, "named like a directory")
    out.mkdir()
    (out / "mine").write_text("stays")
    assert_refused(run("quantize", folder, "-o", out, check=False), 1, "not empty", "--force")
    assert os.listdir(out) == ["mine"]
    run("quantize", folder, "-o", out, "--force")
    assert (out / "mine").read_text() == "stays"
    assert (out / "model.safetensors.index.json").exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../model/model-00001-of-00002.safetensors", "/etc/passwd", "x/y.safetensors", "a.bin"]
)
def test_index_that_points_outside(tmp_path, model, shard):
    folder, _ = model
    index = {"weight_map": {"layers.0.up.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(run("quantize", folder, "-o", tmp_path / "q", check=False), 1, "plain name", "index.json")
    assert not (tmp_path / "q").exists()


def test_index_that_lies(tmp_path, model):
    folder, _ = model
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"ghost": "model-00001-of-00002.safetensors"}}))
    assert_refused(run("quantize", path, "-o", tmp_path / "q", check=False), 1, "ghost", "does not hold it")
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"ghost": "model-3.safetensors"}}))
    assert_refused(run("quantize", path, "-o", tmp_path / "q", check=False), 1, "model-3.safetensors", "No such file")
    path.write_text("{" * 1000)
    assert_refused(run("quantize", path, "-o", tmp_path / "q", check=False), 1, str(path))
    # A scale's name that is taken in another shard.
    other = load_file(folder / "model-00002-of-00002.safetensors") | {"layers.0.up.weight_scale": torch.ones(1)}
    save_file(other, folder / "model-00002-of-00002.safetensors")
    taken = {"layers.0.up.weight_scale": "model-00002-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": index["weight_map"] | taken}))
    assert_refused(run("quantize", folder, "-o", tmp_path / "q", check=False), 1, "layers.0.up.weight_scale", "--skip")
    assert not (tmp_path / "q").exists()


def test_failure_in_the_second_shard_leaves_nothing(tmp_path, model):
    folder, _ = model
    save_file({"layers.1.up.weight": torch.zeros(2048, 2048), "layers.1.bias": torch.ones(1)},
              folder / "model-00002-of-00002.safetensors")  # fmt: skip
    done = run("quantize", folder, "-o", tmp_path / "q", check=False, preexec_fn=SMALL_FILES)
    assert_refused(done, 1, "model-00002-of-00002.safetensors", "free some space")
    assert os.listdir(tmp_path) == ["model"]


def test_several_checkpoints_in_one_folder(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.zeros(4, 32)}, tmp_path / f"{name}.safetensors")
    assert_refused(run("inspect", tmp_path, check=False), 1, "2 checkpoints", "name the one")
    save_file({"w": torch.zeros(4, 32)}, tmp_path / "model.safetensors")
    lines = json.loads(run("inspect", tmp_path, "--json").stdout)["tensors"]
    assert [line["file"] for line in lines] == ["model.safetensors"]
