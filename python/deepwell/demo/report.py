"""demo-report.json and demo-report.html: both files appear complete or not at all."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import chart

JSON_NAME = "demo-report.json"
HTML_NAME = "demo-report.html"


def render_html(report: dict[str, Any]) -> str:
    """One self-contained page. Everything that comes from the run is escaped."""
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update(loss_chart=chart.loss_chart(report), difference_chart=chart.difference_chart(report))
    return environment.get_template("report.html.j2").render(report=report)


def write_reports(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Writes both reports below `folder`, replacing older ones, and returns their paths."""
    texts = {JSON_NAME: json.dumps(report, indent=2, allow_nan=False) + "\n", HTML_NAME: render_html(report)}
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in texts}
    try:
        for name, text in texts.items():
            with temporary[name].open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        with _undisturbed():  # so that an interrupt cannot leave one new report beside an old one
            for name, path in temporary.items():
                path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return [folder / name for name in texts]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds back SIGINT and SIGTERM for the moment two renames take."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
