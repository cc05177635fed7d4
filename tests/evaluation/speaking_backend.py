"""Backends that speak without a network: one says given tokens, one draws from the tokens so far, one is killed."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fake_backend import FakeBackend
from twintune.backends import Choice
from twintune.backends.job import Quantization

VOCABULARY = 400


@dataclass
class SpeakingBackend(FakeBackend):
    """Says `base` token by token, or `tuned` with an adapter, then whatever comes after the end."""

    base: list[int] = field(default_factory=list)
    tuned: list[int] = field(default_factory=list)

    def load_model(
        self,
        model: Path,
        adapter: Path | None,
        *,
        pad_token_id: int,
        device: str,
        dtype: str,
        quantization: Quantization | None = None,
        cache_implementation: str = "static",
    ) -> "SpeakingBackend":
        self.loaded.append(adapter)
        self.says = self.base if adapter is None else self.tuned
        return self

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        self.said = [0] * len(prompts)
        return self._next(range(len(prompts)))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.said = [said + 1 for said in self.said]
        return self._next(range(len(tokens)))

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        for place in places:
            self.said[place] = 0
        return self._next(places)

    def _next(self, places: Sequence[int]) -> NDArray[np.float32]:
        tokens = [self.says[min(self.said[place], len(self.says) - 1)] for place in places]
        return np.eye(VOCABULARY, dtype=np.float32)[tokens]


class DrawingBackend(FakeBackend):
    """Logits of each row are drawn from all its tokens so far: other seeds and other rows give other texts."""

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        self.rows = [list(prompt) for prompt in prompts]
        return self._logits()

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._logits()

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        for place, prompt in zip(places, prompts, strict=True):
            self.rows[place] = list(prompt)
        return self._logits()[list(places)]

    def _logits(self) -> NDArray[np.float32]:
        logits = [np.random.default_rng(row).normal(size=VOCABULARY).astype(np.float32) for row in self.rows]
        return np.stack(logits)


def install(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a backend where evaluation chooses and loads one."""
    for module in ("twintune.chat", "twintune.evaluation.sides"):
        monkeypatch.setattr(f"{module}.load_backend", lambda _: backend)
        monkeypatch.setattr(f"{module}.choose_backend", lambda asked: Choice(asked, "as asked"))


class KilledBackend(DrawingBackend):
    """Kills its process with SIGKILL when it is asked for a step for the given time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(tokens)


if __name__ == "__main__":  # python -m tests.evaluation.speaking_backend STEPS ARGUMENT...
    from twintune.cli import main

    steps, *sys.argv[1:] = sys.argv[1:]
    install(KilledBackend(int(steps)), pytest.MonkeyPatch())
    main()
