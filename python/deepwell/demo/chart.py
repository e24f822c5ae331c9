"""The report's curves as SVG coordinates; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 56, 16, 12, 42


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential average over about a thirtieth of the values, without the pull of a starting value."""
    keep = 1 - 1 / max(1.0, len(values) / 30)
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in [low, high], roughly `about` of them."""
    raw = (high - low) / max(1, about)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def loss_chart(report: dict[str, Any]) -> dict[str, Any]:
    full, mxfp8 = report["curves"]["full_precision"], report["curves"]["mxfp8"]
    bigram = report["bigram_heldout_loss"]
    every = [*full, *mxfp8, bigram]
    margin = 0.04 * (max(every) - min(every)) + 1e-6
    axes = _Axes(len(full), min(every) - margin, max(every) + margin, 320)
    return {
        **axes.frame("{:g}"),
        "full_raw": axes.path(full),
        "mxfp8_raw": axes.path(mxfp8),
        "full": axes.path(smooth(full)),
        "mxfp8": axes.path(smooth(mxfp8)),
        "bigram": round(axes.y(bigram), 1),
    }


def difference_chart(report: dict[str, Any]) -> dict[str, Any]:
    """Relative difference of the smoothed curves in percent, over the band that the demo allows at the end."""
    full, mxfp8 = smooth(report["curves"]["full_precision"]), smooth(report["curves"]["mxfp8"])
    percent = [100 * (b - a) / a for a, b in zip(full, mxfp8, strict=True)]
    allowed = 100 * report["allowed_relative_difference"]
    reach = 1.25 * max(allowed, *map(abs, percent))
    axes = _Axes(len(percent), -reach, reach, 190)
    return {
        **axes.frame("{:+g}%"),
        "curve": axes.path(percent),
        "band_top": round(axes.y(allowed), 1),
        "band_height": round(axes.y(-allowed) - axes.y(allowed), 1),
        "zero": round(axes.y(0.0), 1),
    }


class _Axes:
    """Steps 1 to `steps` from left to right, [low, high] from bottom to top."""

    def __init__(self, steps: int, low: float, high: float, height: int) -> None:
        self.steps, self.low, self.high, self.height = steps, low, high, height

    def x(self, step: float) -> float:
        return LEFT + (step - 1) / max(1, self.steps - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (self.height - TOP - BOTTOM)

    def path(self, values: Sequence[float]) -> str:
        points = [f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in enumerate(values, 1)]
        return "M" + "L".join(points if len(points) > 1 else points * 2)

    def frame(self, y_label: str) -> dict[str, Any]:
        def marks(values: list[float], place: Callable[[float], float], text: str) -> list[dict[str, Any]]:
            texts = (text.format(round(v, 9)) if v else text.format(0).lstrip("+") for v in values)
            return [{"at": round(place(v), 1), "text": label} for v, label in zip(values, texts, strict=True)]

        return {
            "width": WIDTH,
            "height": self.height,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": self.height - BOTTOM,
            "x_ticks": marks([t for t in ticks(0, self.steps, 8) if t >= 1 and t == int(t)], self.x, "{:g}"),
            "y_ticks": marks(ticks(self.low, self.high, 5), self.y, y_label),
        }
