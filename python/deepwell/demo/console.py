"""What the demo says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINES_PER_RUN = 10


class Screen:
    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Prints text as it is: nothing in it is markup."""
        self.console.print(Text(text))

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def results(self, headings: list[str], rows: list[list[str]]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column, heading in enumerate(headings):
            table.add_column(heading, justify="left" if column == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    @contextmanager
    def training(self, name: str, steps: int) -> Iterator[Callable[[int, float], None]]:
        """Yields what `train` calls after each step."""
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            with Progress(*columns, console=self.console) as progress:
                task = progress.add_task(name, total=steps, loss="")
                yield lambda done, loss: progress.update(task, completed=done, loss=f"loss {loss:.4f}")
            return
        began = time.perf_counter()
        every = max(1, steps // LINES_PER_RUN)

        def line(done: int, loss: float) -> None:
            if done % every == 0 or done == steps:
                self.say(f"{name}: step {done}/{steps}, loss {loss:.4f}, {time.perf_counter() - began:.1f} s")

        yield line


def printable(text: bytes) -> str:
    """A model's output for a terminal or a page: newlines and tabs stay, whatever could command a terminal does not."""
    decoded = text.decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in decoded)
