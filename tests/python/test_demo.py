"""The demo's model, arithmetic of its results, reports, and the whole of it in its quick form."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import deepwell
from deepwell.demo import chart, cli, device, report, training
from deepwell.demo.console import printable
from deepwell.demo.model import WINDOW, ByteGPT, ModelShape, generate, rotate, rotation_table

SHAPE = ModelShape(width=64, layers=2, heads=2, mlp_width=128, context=32)


def make_model(seed: int = 0) -> ByteGPT:
    torch.manual_seed(seed)
    return ByteGPT(SHAPE)


# ---- model -----------------------------------------------------------------------------------------------------------


def test_model_starts_near_the_uniform_distribution():
    tokens = torch.randint(256, (4, 32))
    loss = torch.nn.functional.cross_entropy(make_model()(tokens).flatten(0, 1), torch.randint(256, (128,)))
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)


def test_model_sees_only_the_past():
    model, tokens = make_model(), torch.randint(256, (2, 32))
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-3)


def test_embedding_reads_four_bytes():
    torch.manual_seed(0)
    model = ByteGPT(ModelShape(width=64, layers=0, heads=2, mlp_width=128, context=32))
    tokens = torch.randint(256, (1, 12))
    for changed in range(12):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 256
        differs = (model(tokens) - model(other)).abs().amax(dim=-1)[0] > 1e-6
        assert differs.nonzero().flatten().tolist() == list(range(changed, min(12, changed + WINDOW)))


@pytest.mark.parametrize("length", range(1, 6))
def test_model_takes_sequences_shorter_than_its_window(length):
    tokens = torch.randint(256, (2, 5))
    model = make_model()
    assert torch.allclose(model(tokens)[:, :length], model(tokens[:, :length]), atol=1e-6)


def test_rotation_makes_products_depend_on_the_distance_alone():
    q, k = torch.randn(64), torch.randn(64)
    table = rotation_table(32, 64)
    products = rotate(q.expand(32, 64), table) @ rotate(k.expand(32, 64), table).T
    for distance in range(-31, 32):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)
    assert torch.allclose(products.diagonal(), q @ k, atol=1e-4)
    assert products[31, 0].item() != pytest.approx((q @ k).item(), abs=1e-2)


def test_model_refuses_more_than_its_context():
    with pytest.raises(ValueError, match="context of 32"):
        make_model()(torch.zeros(1, 33, dtype=torch.long))


def test_generation_is_the_models_own_choice():
    model = make_model()
    text = generate(model, b"ab", 50, temperature=0, seed=0)
    assert len(text) == 52
    assert text.startswith(b"ab")
    for i in range(2, 52):
        window = torch.tensor([list(text[max(0, i - 32) : i])])
        assert text[i] == model(window)[0, -1].argmax().item()
    assert model.training


def test_generation_follows_the_seed_and_the_probabilities():
    model = make_model()
    a = generate(model, b"x", 40, temperature=1.0, seed=5)
    assert a == generate(model, b"x", 40, temperature=1.0, seed=5)
    assert a != generate(model, b"x", 40, temperature=1.0, seed=6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)  # certain of itself: sampling is taking the likeliest
    likeliest = generate(model, b"x", 5, temperature=0, seed=0)
    assert generate(model, b"x", 5, temperature=1e-4, seed=7) == likeliest
    with pytest.raises(ValueError, match="prompt"):
        generate(model, b"", 1, temperature=1, seed=0)


# ---- training --------------------------------------------------------------------------------------------------------


def test_final_loss_is_the_mean_of_the_last_steps():
    assert [training.final_steps(n) for n in (1, 3, 4, 20, 200, 320, 10**6)] == [1, 1, 1, 5, 50, 50, 50]
    losses = [100.0] * 15 + [1.0, 2.0, 3.0, 4.0, 5.0]
    assert training.final_loss(losses) == 3.0


def test_relative_difference_is_of_the_means_and_signed():
    full = [9.0] * 15 + [1.0, 2.0, 3.0, 4.0, 5.0]
    mxfp8 = [7.0] * 15 + [1.5, 2.0, 3.0, 4.0, 5.0]
    assert training.relative_difference(full, mxfp8) == pytest.approx(0.1 / 3.0)
    assert training.relative_difference(mxfp8, full) == pytest.approx(-0.1 / 3.1)
    assert training.relative_difference(full, full) == 0


def test_learning_rate_rises_and_falls():
    rates = [training.learning_rate(step, training.CPU) for step in range(training.CPU.steps)]
    peak = rates.index(max(rates))
    assert max(rates) == training.CPU.learning_rate
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.06 * max(rates)
    short = training.Settings(SHAPE, 1, 1, 1e-3, 1, False)
    assert training.learning_rate(0, short) > 0


def test_training_learns_and_repeats_itself():
    from deepwell.demo.corpus import Corpus, heldout_starts, training_starts

    text = np.frombuffer(b"the same line again and again\n" * 300, np.uint8)
    corpus = Corpus("lines", text[:8000], text[8000:], 1, "")
    settings = training.Settings(SHAPE, 4, 40, 3e-3, 8, False)
    starts = training_starts(corpus, 32, 4, 40, seed=1)
    heldout = heldout_starts(corpus, 32, 8)
    seen = []
    runs = [
        training.train(make_model(), corpus, starts, heldout, settings, lambda step, loss: seen.append((step, loss)))
        for _ in range(2)
    ]
    assert runs[0].losses == runs[1].losses
    assert seen[:40] == list(enumerate(runs[0].losses, 1))
    assert runs[0].losses[-1] < 0.5 * runs[0].losses[0]
    assert runs[0].heldout_loss < 0.5 * runs[0].losses[0]


def test_training_stops_at_a_loss_that_is_not_finite():
    from deepwell.demo.corpus import Corpus

    model = make_model()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = float("nan")
    text = np.zeros(100, np.uint8)
    settings = training.Settings(SHAPE, 1, 5, 1e-3, 1, False)
    with pytest.raises(training.NonFiniteLossError, match="step 1 of 5"):
        training.train(model, Corpus("", text, text, 1, ""), np.zeros((5, 1), int), np.zeros(1, int), settings, print)


# ---- report ----------------------------------------------------------------------------------------------------------


def test_printable_lets_nothing_command_the_terminal():
    assert printable(b"a\tb\n\x1b[31m\x07\xff\r") == "a\tb\n�[31m���"


@pytest.mark.parametrize(("low", "high"), [(1.7, 5.6), (-1.25, 1.25), (0, 1), (0, 320), (3.0001, 3.0002)])
def test_ticks_are_round_and_inside(low, high):
    marks = chart.ticks(low, high, 5)
    assert 2 <= len(marks) <= 11
    assert all(low - 1e-9 <= mark <= high + 1e-9 for mark in marks)
    assert np.diff(marks) == pytest.approx(np.full(len(marks) - 1, marks[1] - marks[0]))


def test_smoothing_of_a_constant_is_the_constant():
    assert chart.smooth([2.5] * 300) == pytest.approx([2.5] * 300)
    assert chart.smooth([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


class Page(HTMLParser):
    """Collects what could fetch something, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            (name, value) for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text: str) -> None:
    page = Page(text)
    assert not page.links
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert page.tags.count("svg") == 2
    assert "NaN" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder and the completed process of one quick run, in a process of its own as a user starts it."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "deepwell.demo", "--quick", "--device", "cpu", "--out", "deep/er"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return folder / "deep" / "er", done


@pytest.fixture
def quick_report(quick):
    return json.loads((quick[0] / report.JSON_NAME).read_text())


def test_quick_run_succeeds_and_says_what_it_did(quick):
    folder, done = quick
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("blocks.0.mlp.up", "Relative difference", "held out", "bigram", "Sample", "step 20/20"):
        assert word in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == [report.HTML_NAME, report.JSON_NAME]


def test_quick_run_reports_what_it_measured(quick_report):
    got = quick_report
    assert got["steps"] == 20
    assert got["seconds"] > 0
    assert set(got["full_precision"]) == set(got["mxfp8"]) == {"train_loss", "heldout_loss"}
    for name in ("full_precision", "mxfp8"):
        curve = got["curves"][name]
        assert len(curve) == 20
        assert curve[-1] < curve[0]
        assert got[name]["train_loss"] == pytest.approx(sum(curve[-5:]) / 5)
    full, mxfp8 = got["full_precision"]["train_loss"], got["mxfp8"]["train_loss"]
    assert got["relative_difference"] == pytest.approx((mxfp8 - full) / full)
    assert abs(got["relative_difference"]) <= got["allowed_relative_difference"] == 0.01
    # The two runs see the same batches from the same start, but not the same arithmetic.
    assert got["curves"]["mxfp8"] != got["curves"]["full_precision"]
    assert got["curves"]["mxfp8"][0] == pytest.approx(got["curves"]["full_precision"][0], rel=0.01)
    assert got["converted_layers"] == sum(d["action"] == "convert" for d in got["plan"]["decisions"]) == 4
    assert 1 < got["bigram_heldout_loss"] < math.log(256)
    assert got["environment"]["device"] == "cpu"
    assert got["seed"] == 0
    assert len(got["sample"]["text"]) > 0


def test_quick_run_repeats_itself(quick_report, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(quick_report["environment"]["torch_threads"])  # sums depend on how they are divided
    try:
        assert cli.run(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    again = json.loads((tmp_path / report.JSON_NAME).read_text())
    for key in ("curves", "bigram_heldout_loss", "sample", "corpus", "mxfp8_restored_heldout_loss"):
        assert again[key] == quick_report[key]


def test_page_is_self_contained(quick):
    check_page((quick[0] / report.HTML_NAME).read_text())


def test_page_escapes_what_the_run_brings(quick_report):
    hostile = '</pre><script src="x">&'
    quick_report["sample"]["text"] = hostile
    quick_report["facts"]["text"] = hostile
    page = report.render_html(quick_report)
    check_page(page)
    assert page.count("&lt;/pre&gt;&lt;script") == 2


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_page_of_very_few_steps(quick_report, steps):
    for name in ("full_precision", "mxfp8"):
        quick_report["curves"][name] = quick_report["curves"][name][:steps]
    quick_report["steps"] = steps
    check_page(report.render_html(quick_report))


def test_failed_write_leaves_what_was_there(quick_report, tmp_path, monkeypatch):
    (tmp_path / report.JSON_NAME).write_text("older")
    monkeypatch.setattr(report.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        report.write_reports(tmp_path, quick_report)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(report.JSON_NAME, "older")]


# ---- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--steps", "many"], ["--seed", "-1"], ["--device", "tpu"], ["--unknown"]]
)
def test_wrong_usage_exits_with_2_and_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def failure(arguments, capsys) -> str:
    assert cli.run(["--quick", "--device", "cpu", *arguments]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_unusable_arguments_exit_with_1_and_one_line(tmp_path, capsys):
    assert "--text" in failure(["--out", str(tmp_path), "--text", str(tmp_path / "absent")], capsys)
    (tmp_path / "file").write_text("")
    assert "--out" in failure(["--out", str(tmp_path / "file" / "below")], capsys)


def test_difference_beyond_the_allowed_exits_with_1_but_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "relative_difference", lambda full, mxfp8: 0.0101)
    assert "+1.010%" in failure(["--out", str(tmp_path)], capsys)
    assert not json.loads((tmp_path / report.JSON_NAME).read_text())["within_allowed"]
    check_page((tmp_path / report.HTML_NAME).read_text())


def test_loss_that_is_not_finite_exits_with_1_without_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "_loss", lambda *_: torch.tensor(float("inf"), requires_grad=True) * 1)
    assert "full precision: the loss became inf in step 1" in failure(["--out", str(tmp_path)], capsys)
    assert not list(tmp_path.iterdir())


def test_gpu_that_optimize_does_not_serve_is_named(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda *_: "Test GPU")
    monkeypatch.setattr(device.torch.cuda, "get_device_capability", lambda *_: (8, 0))
    chosen, remark = device.choose_device("auto")
    assert chosen.type == "cpu"
    assert "Test GPU has compute capability 8.0" in remark
    with pytest.raises(device.DeviceUnavailableError, match="--device cpu"):
        device.choose_device("cuda")

    def refuse(*_args, **_options):
        raise deepwell.UnsupportedError("no kernels for it")

    monkeypatch.setattr(device.torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_: module)
    monkeypatch.setattr(deepwell, "optimize", refuse)
    assert "no kernels for it" in device.gpu_obstacle()
    monkeypatch.setattr(deepwell, "optimize", lambda model, **_: model)
    assert device.gpu_obstacle() == ""
    assert device.choose_device("auto") == (torch.device("cuda"), "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_behind(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "deepwell.demo", "--quick", "--steps", "100000", "--device", "cpu"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line.startswith("Training"):
                break
        time.sleep(0.5)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert errors == "deepwell.demo: interrupted; no report written\n"
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named_with_the_command():
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('rich', 'jinja2') else find(name, *a)\n"
        "import runpy; runpy.run_module('deepwell.demo', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "pip install rich jinja2" in done.stderr
    assert done.stderr.count("\n") == 1
