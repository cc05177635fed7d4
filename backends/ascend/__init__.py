"""MindFormers on MindSpore: Ascend NPUs, and CPU for trying and for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from twintune.backends import Choice, Device, Group, LanguageModel, Machines, Name, Probe
from twintune.backends.ascend import profile, runtime
from twintune.backends.ascend.parallel import shares_a_model
from twintune.backends.job import OptimizerName, Quantization, Rank, TrainJob, Watcher


class AscendBackend:
    """The Backend protocol over MindFormers' own Trainer and networks."""

    name: Name = "ascend"

    def choose_device(self, asked: str) -> Choice:
        """See runtime.choose_device."""
        return runtime.choose_device(asked)

    def describe_device(self, device: str) -> Device:
        """See runtime.describe_device."""
        return runtime.describe_device(device)

    def choose_dtype(self, asked: str, device: str) -> Choice:
        """See runtime.choose_dtype."""
        return runtime.choose_dtype(asked, device)

    def choose_optimizer(self, asked: OptimizerName, device: str) -> Choice:
        """See profile.choose_optimizer."""
        return profile.choose_optimizer(asked, device)

    def choose_cache(self, asked: str, model: Path, adapter: Path | None, device: str, dtype: str) -> Choice:
        """See paged_batch.choose_cache."""
        runtime.import_quietly()
        from twintune.backends.ascend.paged_batch import choose_cache

        return choose_cache(asked, model, adapter, device, dtype)

    def plan(self, job: TrainJob) -> dict[str, str]:
        """The MindFormers YAML for an NPU and, unless devices share a model, for CPU; MindFormers knows every key."""
        runtime.import_quietly()
        from twintune.backends.ascend.keys import check_keys, check_overrides

        check_overrides(job.overrides)
        texts = {}
        for device in ("npu",) if shares_a_model(job) else ("npu", "cpu"):
            config = profile.training_config(job, device)
            check_keys(config)
            texts[f"mindformers_{device}.yaml"] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        return texts

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        """See train.train."""
        runtime.import_quietly()
        from twintune.backends.ascend.train import train

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
        """See decode.MindFormersModel."""
        runtime.import_quietly()
        from twintune.backends.ascend.decode import MindFormersModel

        return MindFormersModel(
            model,
            adapter,
            pad_token_id=pad_token_id,
            device=device,
            dtype=dtype,
            quantization=quantization,
            cache_implementation=cache_implementation,
        )

    def learning_rates(self, job: TrainJob) -> NDArray[np.float64]:
        """See schedule.learning_rates."""
        runtime.import_quietly()
        from twintune.backends.ascend.schedule import learning_rates

        return learning_rates(job)

    def open_probe(self, job: TrainJob) -> Probe:
        """See probe.AscendProbe."""
        runtime.import_quietly()
        from twintune.backends.ascend.probe import AscendProbe

        return AscendProbe(job)

    def join(self, rank: Rank) -> Group:
        """See ranks.MindSporeGroup."""
        if rank.world_size > 1:  # msrun's scheduler needs no MindFormers
            runtime.import_quietly()
        from twintune.backends.ascend.ranks import join

        return join(rank)

    def launch(self, command: Sequence[str], machines: Machines) -> None:
        """See launch.launch."""
        from twintune.backends.ascend.launch import launch

        launch(command, machines)

    def peak_memory(self, device: str) -> int | None:
        """Bytes of tensors on the NPU at most so far; None on a CPU."""
        import mindspore

        return None if device == "cpu" else int(mindspore.runtime.max_memory_allocated())
