"""Trains jobs on two ranks: each is a fork of one process, which has imported the frameworks once.

`python -m tests.backends.cuda.two_ranks JOBS.pickle`; each rank writes what it was told, or its error, as JSON.
"""

import json
import os
import pickle
import signal
import socket
import sys
from contextlib import closing
from dataclasses import asdict, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import peft  # noqa: F401  before the forks
import pytest
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import twintune.backends.cuda.ranks as cuda_ranks
from tests.jobs import Recorder
from twintune.backends.cuda.sharding import shard_base
from twintune.backends.cuda.train import make_update, train
from twintune.backends.job import Rank, Step, TrainJob
from twintune.errors import UserError


class Killed(Recorder):
    """A Recorder whose process is killed after a step."""

    def step(self, step: Step) -> None:
        super().step(step)
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def zero_shares(update: Any) -> dict[str, float]:
    """Which part of the moments and of a frozen weight this rank has under DeepSpeed."""
    weight = update._model.get_base_model().get_decoder().layers[0].mlp.down_proj.weight
    moments = sum(kept["exp_avg"].numel() for kept in update._optimizer.state.values())
    trained = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in update._parameters.values())
    share = 1.0 if weight.numel() else weight.ds_tensor.numel() / weight.ds_numel
    return {"moments": moments / trained, "share": share}


def run_rank(name: str, job: TrainJob, number: int) -> None:
    """Train as one of two ranks; what a name begins with happens to rank 1."""
    watcher = Killed() if number and name.startswith("killed") else Recorder()
    if name.startswith("missing"):
        cuda_ranks.ARRIVAL = timedelta(seconds=2)
    own = replace(job, rank=Rank(number, 2, number), output_dir=job.output_dir.with_name(f"{name}-{number}"))
    told: dict[str, Any] = {}

    updates: list[Any] = []

    def make_and_keep(*arguments: Any) -> Any:
        updates.append(make_update(*arguments))
        return updates[0]

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def shard_and_count(*arguments: Any) -> Any:
        model = shard_base(*arguments)
        weight = model.get_base_model().get_decoder().layers[0].mlp.down_proj.weight
        told["share"] = weight.to_local().numel() / weight.numel()
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twintune.backends.cuda.train.shard_base", shard_and_count)
        patch.setattr("twintune.backends.cuda.train.make_update", make_and_keep)
        if number and name.startswith("broken off"):
            patch.setattr("twintune.backends.cuda.train.backward", die)
        try:
            train(own, watcher)
        except UserError as error:
            told["error"] = list(error.messages)
    if name.startswith("stage"):
        told |= zero_shares(updates[0])
    told["steps"] = [asdict(step) for step in watcher.steps]
    told["evaluations"] = [asdict(evaluation) for evaluation in watcher.evaluations]
    job.output_dir.with_name(f"{name}-{number}.json").write_text(json.dumps(told))


def main() -> None:
    """Run every job on both ranks, one job after the other."""
    jobs: dict[str, TrainJob] = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301  written by the test
    if any(job.parallel.zero_stage for job in jobs.values()):
        import deepspeed  # noqa: F401  before the forks too
    import_module("pandas")  # which pyarrow takes for its first array
    for name, job in jobs.items():
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        children = []
        for number in range(1 if name.startswith("missing") else 2):
            child = os.fork()
            if not child:
                run_rank(name, job, number)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
