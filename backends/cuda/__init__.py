"""The cuda backend: PyTorch and PEFT, on an Nvidia GPU or on a CPU. Importing it does not import torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Choice, Device, Group, LanguageModel, Machines, Name, Probe
from twintune.backends.job import OptimizerName, Quantization, Rank, TrainJob, Watcher


class CudaBackend:
    """The Backend protocol on PyTorch and PEFT."""

    name: Name = "cuda"

    def choose_device(self, asked: str) -> Choice:
        """`auto`, `cpu` or `cuda` to a device that is here. Raises UserError if it is not."""
        from twintune.backends.cuda.device import choose_device

        return choose_device(asked)

    def describe_device(self, device: str) -> Device:
        """See device.describe_device."""
        from twintune.backends.cuda.device import describe_device

        return describe_device(device)

    def choose_dtype(self, asked: str, device: str) -> Choice:
        """See device.choose_dtype."""
        from twintune.backends.cuda.device import choose_dtype

        return choose_dtype(asked, device)

    def choose_optimizer(self, asked: OptimizerName, device: str) -> Choice:
        """See optimizer.choose_optimizer."""
        from twintune.backends.cuda.optimizer import choose_optimizer

        return choose_optimizer(asked, device)

    def choose_cache(self, asked: str, model: Path, adapter: Path | None, device: str, dtype: str) -> Choice:
        """See device.choose_cache."""
        from twintune.backends.cuda.device import choose_cache

        return choose_cache(asked)

    def plan(self, job: TrainJob) -> dict[str, str]:
        """Nothing: this backend writes no configuration for its framework."""
        return {}

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        """Train and write `adapter/` (PEFT format) into job.output_dir."""
        from twintune.backends.cuda.train import train

        train(job, watcher)

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
    ) -> LanguageModel:
        """Load a Hugging Face folder, with a PEFT adapter on it or none; its cache is static."""
        from twintune.backends.cuda.decode import load_language_model

        return load_language_model(
            model, adapter, pad_token_id=pad_token_id, device=device, dtype=dtype, quantization=quantization
        )

    def learning_rates(self, job: TrainJob) -> NDArray[np.float64]:
        """See train.job_learning_rates."""
        from twintune.backends.cuda.train import job_learning_rates

        return job_learning_rates(job)

    def open_probe(self, job: TrainJob) -> Probe:
        """The network of a job with its initial adapter on it."""
        from twintune.backends.cuda.probe import CudaProbe

        return CudaProbe(job)

    def join(self, rank: Rank) -> Group:
        """See ranks.TorchGroup."""
        from twintune.backends.cuda.ranks import join

        return join(rank)

    def launch(self, command: Sequence[str], machines: Machines) -> None:
        """See launch.launch."""
        from twintune.backends.cuda.launch import launch

        launch(command, machines)

    def peak_memory(self, device: str) -> int | None:
        """Bytes of tensors on the GPU at most so far; None on a CPU."""
        import torch

        return None if device == "cpu" else int(torch.cuda.max_memory_allocated())
