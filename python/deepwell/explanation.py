"""A plan for people (aligned text, one HTML page) and for programs (JSON), all three written by libdeepwell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan


@dataclass(frozen=True)
class Explanation:
    """The decisions of a plan. str() is an aligned table with a summary; `plan` has the data itself."""

    plan: Plan

    def __str__(self) -> str:
        return self.plan.explained(0).rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        page = self.to_html()
        return page[page.index("<h1>") : page.index("<script>")]

    def summary(self) -> list[str]:
        """The sentences under the table."""
        _, _, sentences = str(self).partition("\n\n")
        return sentences.splitlines()

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON; docs/plan.md describes the schema, "deepwell.plan/1"."""
        return json.dumps(json.loads(self.plan.explained(1)), indent=indent)

    def to_html(self) -> str:
        """A page that needs no other file: a table that sorts, bars of time and memory, reasons."""
        return self.plan.explained(2)


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The rows as lines with columns padded to equal width; the columns in `right` are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
