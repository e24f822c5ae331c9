"""The model to beat: how often each byte followed each other byte in the training text."""

from __future__ import annotations

import numpy as np

SMOOTHING = 0.1


class Bigram:
    """P(next | previous) = (count(previous, next) + k) / (count(previous) + 256 k): add-k smoothing."""

    def __init__(self, text: np.ndarray, k: float = SMOOTHING) -> None:
        pairs = text[:-1].astype(np.int64) * 256 + text[1:]
        counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256).astype(np.float64)
        self.log_probability = np.log(counts + k) - np.log(counts.sum(axis=1, keepdims=True) + 256 * k)

    def loss(self, previous: np.ndarray, following: np.ndarray) -> float:
        """Mean negative log-likelihood in nats per byte."""
        return float(-self.log_probability[previous, following].mean())
