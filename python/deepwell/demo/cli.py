"""The demo from its options to its exit code."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

import deepwell

from . import training
from .bigram import SMOOTHING, Bigram
from .console import Screen, printable
from .corpus import Corpus, CorpusError, heldout_starts, load_corpus, training_starts, windows_at
from .device import DeviceUnavailableError, choose_device, describe
from .model import ByteGPT, generate
from .report import write_reports
from .training import (
    NonFiniteLossError,
    Run,
    Settings,
    arithmetic,
    evaluate,
    final_loss,
    final_steps,
    relative_difference,
    train,
)

ALLOWED_DIFFERENCE = 0.01
SAMPLE_BYTES = 500
TEMPERATURE = 0.7
MAX_STEPS = 1_000_000  # the data order is drawn before training


class Interrupted(BaseException):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(arguments: list[str]) -> int:
    """Runs the demo. 0: done; 1: failed, or the difference exceeds what is allowed; 2: wrong usage."""
    options = _parse(arguments)
    screen = Screen()
    try:
        with _signals():
            return _demo(options, screen)
    except Interrupted as stop:
        _complain("interrupted; no report written")
        return 128 + stop.number
    except BrokenPipeError:  # whoever read the output has left; nothing can be said, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CorpusError, DeviceUnavailableError, NonFiniteLossError, deepwell.DeepwellError) as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror}; choose another folder with --out")
    return 1


def _demo(options: argparse.Namespace, screen: Screen) -> int:
    _check_folder(options.out)
    device, remark = choose_device(options.device)
    settings = training.QUICK if options.quick else training.GPU if device.type == "cuda" else training.CPU
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
    if remark:
        screen.say(remark)

    context = settings.shape.context
    corpus = load_corpus(options.text)
    starts = training_starts(corpus, context, settings.batch, settings.steps, options.seed)
    heldout = heldout_starts(corpus, context, settings.heldout_windows)
    bigram_loss = Bigram(corpus.train).loss(*windows_at(corpus.heldout, heldout, context))

    torch.manual_seed(options.seed)
    full_model = ByteGPT(settings.shape).to(device)
    mxfp8_model = copy.deepcopy(full_model)
    _describe_task(screen, corpus, full_model, settings, starts)
    screen.heading("Plan")
    deepwell.optimize(mxfp8_model, precision="mxfp8", verbose=True)
    plan = json.loads(deepwell.explain(mxfp8_model).to_json())

    screen.heading("Training")
    began = time.perf_counter()
    runs = {}
    for name, model in (("full precision", full_model), ("MXFP8", mxfp8_model)):
        try:
            with screen.training(name, settings.steps) as on_step:
                runs[name] = train(model, corpus, starts, heldout, settings, on_step)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{name}: {error}; no report written") from error
    seconds = time.perf_counter() - began

    prompt = b"\n" if options.text else b"def "
    with arithmetic(device, settings):
        written = generate(mxfp8_model, prompt, SAMPLE_BYTES, temperature=TEMPERATURE, seed=options.seed)
    deepwell.restore(mxfp8_model)
    restored_loss = evaluate(mxfp8_model, corpus.heldout, heldout, settings)

    report = _summarize(runs["full precision"], runs["MXFP8"], bigram_loss, plan, settings)
    report |= {
        "seconds": round(seconds, 3),
        "mxfp8_restored_heldout_loss": restored_loss,
        "seed": options.seed,
        "quick": options.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": describe(device),
        "model": dataclasses.asdict(settings.shape) | {"parameters": _parameters(full_model)},
        "corpus": {
            "name": corpus.name,
            "files": corpus.files,
            "train_bytes": len(corpus.train),
            "heldout_bytes": len(corpus.heldout),
            "heldout_bytes_evaluated": heldout.size * context,
            "split": corpus.split,
        },
        "sample": {
            "prompt": printable(prompt),
            "text": printable(written[len(prompt) :]),
            "temperature": TEMPERATURE,
        },
    }
    report["facts"] = _facts(report, settings)
    paths = write_reports(options.out, report)
    _show(screen, report, [str(path) for path in paths])
    if not report["within_allowed"]:
        _complain(
            f"the final training losses differ by {report['relative_difference']:+.3%}, more than "
            f"{ALLOWED_DIFFERENCE:g} of full precision's; see {paths[-1]}"
        )
        return 1
    return 0


def _summarize(full: Run, mxfp8: Run, bigram_loss: float, plan: dict[str, Any], settings: Settings) -> dict[str, Any]:
    difference = relative_difference(full.losses, mxfp8.losses)
    last = final_steps(settings.steps)
    return {
        "steps": settings.steps,
        "full_precision": {"train_loss": final_loss(full.losses), "heldout_loss": full.heldout_loss},
        "mxfp8": {"train_loss": final_loss(mxfp8.losses), "heldout_loss": mxfp8.heldout_loss},
        "relative_difference": difference,
        "relative_difference_definition": (
            "The final training loss is the mean over the "
            + (f"last {last} steps" if last > 1 else "last step")
            + ", whose batches are the same in both runs; the relative difference is (MXFP8 - full precision) / full "
            "precision."
        ),
        "allowed_relative_difference": ALLOWED_DIFFERENCE,
        "within_allowed": abs(difference) <= ALLOWED_DIFFERENCE,
        "converted_layers": plan["converted"],
        "bigram_heldout_loss": bigram_loss,
        "full_precision_arithmetic": "BF16 with FP32 parameters" if settings.autocast else "FP32",
        "timing": {"full_precision_seconds": round(full.seconds, 3), "mxfp8_seconds": round(mxfp8.seconds, 3)},
        "plan": plan,
        "curves": {"full_precision": full.losses, "mxfp8": mxfp8.losses},
    }


def _facts(report: dict[str, Any], settings: Settings) -> dict[str, str]:
    """The report's last table, in words."""
    corpus, machine, shape = report["corpus"], report["environment"], settings.shape
    facts = {
        "text": f"{corpus['name']}: {corpus['files']:,} files, {corpus['train_bytes']:,} bytes to train on",
        "held out": f"{corpus['split']}; {corpus['heldout_bytes_evaluated']:,} of {corpus['heldout_bytes']:,} bytes "
        "evaluated, the same for all three models",
        "bigram model": f"byte pairs counted in the whole training text, add-{SMOOTHING:g} smoothing",
        "model": f"width {shape.width}, {shape.heads} heads, context {shape.context}, blocks: {shape.layers}",
        "batches": f"{settings.batch} windows of {shape.context} bytes, seed {report['seed']}",
        "optimizer": f"AdamW, peak learning rate {settings.learning_rate:g}, linear warm-up, cosine decay",
        "processor": f"{machine['processor']}; threads: {machine['torch_threads']}",
    }
    if "gpu" in machine:
        facts["GPU"] = str(machine["gpu"])
    facts["software"] = f"Deepwell {machine['deepwell']}, PyTorch {machine['torch']}, Python {machine['python']}"
    facts["date"] = report["date"]
    return facts


def _describe_task(screen: Screen, corpus: Corpus, model: ByteGPT, settings: Settings, starts: np.ndarray) -> None:
    screen.say(
        f"Text: {corpus.name} ({corpus.files:,} files, {len(corpus.train):,} bytes to train on, "
        f"{len(corpus.heldout):,} held out)."
    )
    screen.say(
        f"Model: byte-level GPT, {_parameters(model):,} parameters; {settings.steps} steps of "
        f"{starts.shape[1] * settings.shape.context:,} bytes, once in full precision and once in MXFP8."
    )


def _show(screen: Screen, report: dict[str, Any], paths: list[str]) -> None:
    full, mxfp8 = report["full_precision"], report["mxfp8"]
    curves = report["curves"]
    screen.heading("Sample of the MXFP8 model")
    screen.say(report["sample"]["prompt"] + report["sample"]["text"])
    screen.heading("Results")
    screen.results(
        ["nats per byte", "full precision", "MXFP8", "difference", "bigram"],
        [
            _row("first step", curves["full_precision"][0], curves["mxfp8"][0], ""),
            _row(f"training, last {final_steps(report['steps'])} steps", full["train_loss"], mxfp8["train_loss"], ""),
            _row("held out", full["heldout_loss"], mxfp8["heldout_loss"], f"{report['bigram_heldout_loss']:.4f}"),
            ["held out, restored", "", f"{report['mxfp8_restored_heldout_loss']:.4f}", "", ""],
        ],
    )
    timing = report["timing"]
    screen.say()
    screen.say(
        f"Relative difference of the final training loss: {report['relative_difference']:+.3%} "
        f"(allowed: {ALLOWED_DIFFERENCE:.0%}). {report['converted_layers']} layers converted."
    )
    if mxfp8["heldout_loss"] >= report["bigram_heldout_loss"]:
        screen.say("The model does not beat the bigram model yet: give it more --steps.")
    screen.say(
        f"{report['seconds']:.1f} s: full precision {timing['full_precision_seconds']:.1f} s, "
        f"MXFP8 {timing['mxfp8_seconds']:.1f} s"
        + (" (emulated exactly on the CPU)." if report["environment"]["device"] == "cpu" else ".")
    )
    screen.say(f"Reports: {', '.join(paths)}")


def _row(name: str, full: float, mxfp8: float, bigram: str) -> list[str]:
    return [name, f"{full:.4f}", f"{mxfp8:.4f}", f"{mxfp8 / full - 1:+.3%}", bigram]


def _parameters(model: ByteGPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_folder(folder: Path) -> None:
    """Finds out before training, not after it, that the reports cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "not writable", str(folder))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as everywhere else."""
        self.exit(2, f"deepwell.demo: {message}; see python -m deepwell.demo --help\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m deepwell.demo",
        description="Trains a small byte-level GPT in full precision and through deepwell.optimize(precision='mxfp8') "
        "on the same data, compares the two, and writes demo-report.html and demo-report.json.",
    )
    parser.add_argument("--steps", type=_whole(1, MAX_STEPS), metavar="N", help="training steps of each run")
    parser.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0, metavar="N", help="seed of everything random")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder for the reports (default: here)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE_OR_DIR", help="text to train on instead of Python's sources")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument("--quick", action="store_true", help="a tiny model for a few steps, to see that it runs")
    return parser.parse_args(arguments)


def _whole(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return parse


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted, so that temporary files are removed on the way out."""

    def stop(number: int, _frame: object) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(message: str) -> None:
    print(f"deepwell.demo: {message}", file=sys.stderr)
