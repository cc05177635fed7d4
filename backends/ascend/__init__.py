"""MindFormers on MindSpore: Ascend NPUs, and CPU for trying and for tests."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from twintune.backends import Choice, LanguageModel, TrainJob, Watcher
from twintune.backends.ascend import profile, runtime


class AscendBackend:
    """The Backend protocol over MindFormers' own Trainer and networks."""

    name = "ascend"

    def choose_device(self, asked: str) -> Choice:
        """See runtime.choose_device."""
        return runtime.choose_device(asked)

    def choose_dtype(self, asked: str, device: str) -> Choice:
        """See runtime.choose_dtype."""
        return runtime.choose_dtype(asked, device)

    def plan(self, job: TrainJob) -> dict[str, str]:
        """The MindFormers YAML for an NPU and for CPU."""
        devices: Sequence[str] = ("npu", "cpu")
        return {
            f"mindformers_{device}.yaml": yaml.safe_dump(
                profile.training_config(job, device), sort_keys=False, allow_unicode=True
            )
            for device in devices
        }

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        """See train.train."""
        runtime.import_quietly()
        from twintune.backends.ascend.train import train

        train(job, watcher)

    def load_model(
        self, model: Path, adapter: Path | None, *, pad_token_id: int, device: str, dtype: str
    ) -> LanguageModel:
        """See decode.MindFormersModel."""
        runtime.import_quietly()
        from twintune.backends.ascend.decode import MindFormersModel

        return MindFormersModel(model, adapter, pad_token_id=pad_token_id, device=device, dtype=dtype)
