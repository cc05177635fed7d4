"""The processes of one run on PyTorch: how they find each other, what they add up, and who is missing."""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from twintune.backends.job import Rank
from twintune.errors import UserError

ARRIVAL = timedelta(seconds=60)  # for the last rank after the first
PREPARATION = timedelta(hours=1)  # one rank prepares rows or converts weights, the others wait; a killed one is noticed
STEP = timedelta(seconds=50)  # NCCL notices a killed rank by nothing else, and all must have stopped within a minute
FAREWELL = timedelta(seconds=5)  # in which those that are left say so


class TorchGroup:
    """The Group protocol over gloo, which needs no GPU and notices at once if a process ends.

    Args:
        rank: of this process.

    Raises:
        UserError: if the port is in use, rank 0 is not reached, or not all ranks come.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.store = _open_store(rank)
        _wait_for_all(self.store, rank)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=rank.number,
            world_size=rank.world_size,
            timeout=PREPARATION,
        )
        atexit.register(dist.destroy_process_group)
        if torch.cuda.is_available() and rank.local < torch.cuda.device_count():
            torch.cuda.set_device(rank.local)

    def exchange(self, text: str) -> list[str]:
        """What every rank gives, by rank. Raises UserError if one has ended."""
        texts: list[Any] = [None] * self.rank.world_size
        with self.naming_the_lost():
            dist.all_gather_object(texts, text)
        return texts

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn the failure of a collective into a UserError that says which ranks have ended."""
        try:
            yield
        except RuntimeError as error:
            if not _of_a_collective(error):
                raise
            lost = ", ".join(map(str, _lost_ranks(self.store, self.rank)))
            raise UserError(
                f"rank {self.rank.number}: all ranks must answer, got nothing from {lost or 'one of them'} "
                f"({str(error).splitlines()[0][:200]}); see what ended it, and go on with --resume"
            ) from None


def _open_store(rank: Rank) -> Any:
    """The key-value store at MASTER_ADDR and MASTER_PORT: rank 0 serves it, unless torchrun's agent does."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank.number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(host, port, rank.world_size, serves, ARRIVAL, wait_for_workers=False)
    except dist.DistError as error:
        rule = "MASTER_PORT must be free" if serves else f"rank 0 must answer within {ARRIVAL.seconds} s"
        raise UserError(
            f"rank {rank.number}: {rule} at {host}:{port}, got: {str(error).splitlines()[0][:200]}; "
            f"{'name another port' if serves else 'start it, or mend MASTER_ADDR and MASTER_PORT'}"
        ) from None


def _wait_for_all(store: Any, rank: Rank) -> None:
    ranks = range(rank.world_size)
    try:
        store.set(f"here/{rank.number}", "")
        store.wait([f"here/{number}" for number in ranks], ARRIVAL)
        return
    except dist.DistError:
        pass
    try:
        missing = [number for number in ranks if not store.check([f"here/{number}"])]
    except dist.DistError:
        raise UserError(
            f"rank {rank.number}: all ranks must come, got none at rank 0, which waited for them; see what it says"
        ) from None
    raise UserError(
        f"rank {rank.number}: {rank.world_size} ranks must come within {ARRIVAL.seconds} s, got "
        f"{rank.world_size - len(missing)} of them and not {', '.join(map(str, missing))}; start these too"
    )


def _of_a_collective(error: RuntimeError) -> bool:
    """Whether it is NCCL's, or gloo's, whose errors are plain ones with the name of its source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _lost_ranks(store: Any, rank: Rank) -> list[int]:
    """Those that do not say within a few seconds that they are still there; rank 0 if the store went with it."""
    others = [number for number in range(rank.world_size) if number != rank.number]
    try:
        store.set(f"left/{rank.number}", "")
        try:
            store.wait([f"left/{number}" for number in others], FAREWELL)
        except dist.DistError:
            return [number for number in others if not store.check([f"left/{number}"])]
    except dist.DistError:
        return [0]
    return []


@cache
def join(rank: Rank) -> TorchGroup:
    """The group of this process, once."""
    return TorchGroup(rank)


class Sums:
    """What the ranks of a run add up while it trains; a run of one rank adds up nothing.

    Args:
        rank: of this process.
        device: `cpu` or `cuda`.

    Raises:
        UserError: if the machine has no device of this rank's local number.
    """

    def __init__(self, rank: Rank, device: str) -> None:
        self.group: TorchGroup | None = None
        if rank.world_size == 1:
            return
        if device == "cuda" and rank.local >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank.number}: a machine must have a GPU for each of its ranks, got {torch.cuda.device_count()} "
                f"for local rank {rank.local}; start fewer, or use --device cpu"
            )
        self.group = join(rank)
        self.device = device
        with self.group.naming_the_lost():
            self.ranks = dist.new_group(backend="nccl" if device == "cuda" else "gloo", timeout=STEP)

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """As the group's; what else goes wrong in a computation with collectives in it is passed on."""
        with self.group.naming_the_lost() if self.group else nullcontext():
            yield

    def number(self, value: float) -> float:
        """The sum of a number over all ranks, in float64, which holds every count of tokens."""
        if self.group is None:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        with self.group.naming_the_lost():
            dist.all_reduce(total, group=self.ranks)
            return float(total)

    def gradients(self, parameters: Sequence[Any]) -> None:
        """Sum the float32 gradients of parameters over all ranks, in place, as one flat tensor."""
        if self.group is None:
            return
        gradients = [parameter.grad.reshape(-1) for parameter in parameters]
        flat = torch.cat(gradients)
        with self.group.naming_the_lost():
            dist.all_reduce(flat, group=self.ranks)
        for parameter, part in zip(parameters, flat.split([len(one) for one in gradients]), strict=True):
            parameter.grad.copy_(part.view_as(parameter.grad))
