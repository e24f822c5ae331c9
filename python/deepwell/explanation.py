"""A plan for people (aligned text, one HTML page) and for programs (JSON). Pure functions of the plan."""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .plan import ADAPT, FUSE, KEEP, Decision, Plan

_HEADINGS = ("layer", "type", "size", "action", "precision", "blocks", "FLOPs", "why")


@dataclass(frozen=True)
class Explanation:
    """The decisions of a plan. str() is an aligned table with a summary; `plan` has the data itself."""

    plan: Plan

    def __str__(self) -> str:
        rows = [_cells(d) for d in self.plan.decisions]
        lines = align([_HEADINGS, *rows], right=(6,))
        return "\n".join([*lines, "", *self.summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<table>{_table_rows(self.plan)}</table><p>{'<br>'.join(map(html.escape, self.summary()))}</p>"

    def summary(self) -> list[str]:
        """The sentences under the table."""
        plan = self.plan
        converted = len(plan.converted)
        kept = sum(d.action == KEEP for d in plan.decisions)
        fused = Counter(d.kind for d in plan.decisions if d.action == FUSE)
        adapted = Counter(d.kind for d in plan.decisions if d.action == ADAPT)
        recipe = plan.recipe
        covered = sum(d.parameters for d in plan.converted)
        return [
            f"{plan.model}: {converted} of {converted + kept} layers converted to {plan.options.precision} "
            f"({recipe.element.upper()}, {recipe.rounding} scales, blocks {recipe.activation_block}, weights "
            f"{recipe.weight_block}), {kept} left alone.",
            f"{100 * plan.flops_share:.1f}% of the linear layers' FLOPs and {100 * covered / plan.parameters:.1f}% of "
            f"the {plan.parameters:,} parameters are in converted layers; target {plan.options.target}.",
            *([f"Fused with the quantization around them: {_counts(fused)}."] if fused else []),
            *([f"Called in their fastest form: {_counts(adapted)}."] if adapted else []),
            *plan.notes,
        ]

    def to_json(self, indent: int | None = 2) -> str:
        """{"model", "precision", "target", "strategy", "block_size", "skip", "only", "forced", "recipe": {...},
        "parameters", "converted", "kept", "fused", "adapted", "flops_share", "notes": [...],
        "decisions": [{name, kind, action, ...}]}"""
        plan = self.plan
        document = {
            "model": plan.model,
            **dataclasses.asdict(plan.options),
            "recipe": dataclasses.asdict(plan.recipe),
            "parameters": plan.parameters,
            "converted": len(plan.converted),
            "kept": sum(d.action == KEEP for d in plan.decisions),
            "fused": sum(d.action == FUSE for d in plan.decisions),
            "adapted": sum(d.action == ADAPT for d in plan.decisions),
            "flops_share": plan.flops_share,
            "notes": list(plan.notes),
            "decisions": [dataclasses.asdict(d) for d in plan.decisions],
        }
        return json.dumps(document, indent=indent)

    def to_html(self) -> str:
        """A self-contained page: no scripts, no other files."""
        title = f"Deepwell plan for {html.escape(self.plan.model)}"
        summary = "".join(f"<p>{html.escape(line)}</p>" for line in self.summary())
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>{summary}\n<table>{_table_rows(self.plan)}</table></body></html>\n"
        )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1c2330;"
    "background:#fff}table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;"
    "padding:.3rem .6rem;border-bottom:1px solid #dde3ea}"
    "td:first-child{font-family:ui-monospace,monospace}tr.keep td{color:#68707d}"
    "@media(prefers-color-scheme:dark){body{background:#12161c;color:#dce3ec}th,td{border-color:#2b333d}"
    "tr.keep td{color:#8a94a3}}"
)


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _cells(d: Decision) -> tuple[str, ...]:
    size = f"{d.in_features} -> {d.out_features}" if d.in_features else ""
    blocks = f"{d.block}, {d.weight_block}" if d.block else ""
    share = f"{100 * d.flops_share:.1f}%" if d.flops_share else ""
    return (d.name or "(the model)", d.kind, size, d.action, d.precision, blocks, share, d.reason)


def _table_rows(plan: Plan) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in _HEADINGS)
    body = "\n".join(
        f'<tr class="{d.action}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(d)) + "</tr>"
        for d in plan.decisions
    )
    return f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"


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
