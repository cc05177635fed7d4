"""A backend that computes nothing: what the front end knows of a backend is what is here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Choice, Name, Step, TrainJob, Watcher
from twintune.converters.adapter import read_adapter, write_adapter
from twintune.errors import UserError
from twintune.schedule import learning_rates


@dataclass
class FakeBackend:
    """Trains by writing the initial adapter back, and always says token 5."""

    fails_at_step: int | None = None
    name: Name = "cuda"
    jobs: list[TrainJob] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    appended: list[NDArray[np.int64]] = field(default_factory=list)

    def choose_device(self, asked: str) -> Choice:
        return Choice("cpu", f"asked {asked}")

    def choose_dtype(self, asked: str, device: str) -> Choice:
        return Choice("float32", f"asked {asked} on {device}")

    def plan(self, job: TrainJob) -> dict[str, str]:
        return {"fake.yaml": f"steps: {job.schedule.max_steps}\n"}

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        self.jobs.append(job)
        watcher.status("pretending")
        for number, rate in enumerate(learning_rates(job.schedule, job.optimizer.learning_rate), 1):
            if number == self.fails_at_step:
                raise UserError(f"step {number}: loss must be finite, got nan")
            watcher.step(Step(number, 1 / number, 0.5, float(rate), 7, 0.25))
        write_adapter(job.output_dir / "adapter", read_adapter(job.initial_adapter)[1], job.lora, str(job.model))

    def load_model(
        self, model: Path, adapter: Path | None, *, pad_token_id: int, device: str, dtype: str
    ) -> "FakeBackend":
        self.loaded.append((model, adapter, pad_token_id, device, dtype))
        return self

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        return [self._always(len(row)) for row in rows]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        return self._always(len(prompts))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.appended.append(tokens)
        return self._always(len(tokens))

    def _always(self, count: int) -> NDArray[np.float32]:
        return np.eye(1, 400, 5, dtype=np.float32).repeat(count, axis=0)
