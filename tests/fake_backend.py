"""A backend that computes nothing: what the front end knows of a backend is what is here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Choice, Device, Forward, Machines, Name, StepGradients
from twintune.backends.job import Quantization, Rank, Step, TrainJob, Watcher
from twintune.converters.adapter import read_adapter, write_adapter
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.models import read_model_config
from twintune.schedule import learning_rates


@dataclass
class FakeBackend:
    """Trains by writing the initial adapter back, and always says token 5."""

    fails_at_step: int | None = None
    name: Name = "cuda"
    jobs: list[TrainJob] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    appended: list[NDArray[np.int64]] = field(default_factory=list)
    launched: list[tuple[list[str], Machines]] = field(default_factory=list)

    def choose_device(self, asked: str) -> Choice:
        return Choice("cpu", f"asked {asked}")

    def describe_device(self, device: str) -> Device:
        return Device("Fake 910B", None)

    def choose_dtype(self, asked: str, device: str) -> Choice:
        return Choice("float32", f"asked {asked} on {device}")

    def choose_optimizer(self, asked: str, device: str) -> Choice:
        return Choice("FakeOptimizer", f"asked {asked} on {device}")

    def choose_cache(self, asked: str, model: Path, adapter: Path | None, device: str, dtype: str) -> Choice:
        return Choice("static", f"asked {asked} on {device} in {dtype}")

    def plan(self, job: TrainJob) -> dict[str, str]:
        return {"fake.yaml": f"steps: {job.schedule.max_steps}\n"}

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        self.jobs.append(job)
        watcher.status("pretending")
        for number, rate in enumerate(learning_rates(job.schedule, job.optimizer.learning_rate), 1):
            if number == self.fails_at_step:
                raise UserError(f"step {number}: loss must be finite, got nan")
            watcher.step(Step(number, 1 / number, 0.5, float(rate), 7, 0.25))
        for folder in (*map(job.snapshot, job.snapshot_steps), job.output_dir / "adapter"):
            write_adapter(folder, read_adapter(job.initial_adapter)[1], job.lora, str(job.model))

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
    ) -> "FakeBackend":
        self.loaded.append((model, adapter, pad_token_id, device, dtype, quantization))
        return self

    def learning_rates(self, job: TrainJob) -> NDArray[np.float64]:
        return learning_rates(job.schedule, job.optimizer.learning_rate)

    def open_probe(self, job: TrainJob) -> "FakeProbe":
        return FakeProbe(job)

    def join(self, rank: Rank) -> "FakeBackend":
        return self

    def exchange(self, text: str) -> list[str]:
        return [text]

    def launch(self, command: Sequence[str], machines: Machines) -> None:
        self.launched.append((list(command), machines))

    def peak_memory(self, device: str) -> int | None:
        return None if device == "cpu" else 7 * 2**30

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        return [always(len(row)) for row in rows]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        return always(len(prompts))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.appended.append(tokens)
        return always(len(tokens))

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return always(len(places))


class FakeProbe:
    """Gives back the weights it has, and says token 5 with a loss of 1 on 7 tokens a row."""

    def __init__(self, job: TrainJob) -> None:
        self.config = read_model_config(job.model)
        self.weights = dict(read_weights(job.model, self.config))
        self.matrices = read_adapter(job.initial_adapter)[1]

    def base(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        yield from self.weights.items()

    def put_base(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        self.weights |= dict(tensors)

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        return dict(self.matrices)

    def put_adapter(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self.matrices = dict(tensors)

    def forward(self, rows: Sequence[Sequence[int]]) -> list[Forward]:
        layers = [f"layers.{number}" for number in range(self.config["num_hidden_layers"])]
        stages = ["embed_tokens", *layers, "norm"]
        return [
            Forward(
                always(len(row)),
                {stage: np.ones((len(row), self.config["hidden_size"]), np.float32) for stage in stages},
            )
            for row in rows
        ]

    def gradients(self, numbers: NDArray[np.int64]) -> StepGradients:
        sevens = np.full(numbers.shape, 7)
        gradients = {name: np.ones_like(tensor) for name, tensor in self.matrices.items()}
        return StepGradients(1.0, 7 * numbers.size, sevens.astype(np.float64), sevens, gradients)


def always(count: int) -> NDArray[np.float32]:
    return np.eye(1, 400, 5, dtype=np.float32).repeat(count, axis=0)
