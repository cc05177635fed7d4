"""The processes of one run on MindSpore: how they find each other, and what they tell each other.

MindSpore's collectives on a CPU give up after 30 s (measured, 2.9.0), and one rank may prepare rows for longer: texts
go through sockets of the standard library, whose port the ranks learn by a collective at the start.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Client, Connection, Listener
from socket import gethostname

import mindspore as ms
from mindspore.communication import init
from mindspore.mint.distributed import all_gather_object

from twintune.backends import has_npu
from twintune.backends.job import Rank
from twintune.errors import UserError
from twintune.together import Together


class MindSporeGroup:
    """The Group protocol over connections to rank 0.

    Args:
        rank: of this process.

    Raises:
        UserError: if the cluster of MindSpore does not come about.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        join_cluster()
        self.others: list[Connection] = []  # of rank 0: by rank, from 1
        if rank.world_size == 1:  # the scheduler, when all workers have ended
            return
        if rank.number:
            address, port, secret = _exchange_start(rank, None)
            self.first: Connection = Client((address, port), authkey=bytes.fromhex(secret))
            self.first.send_bytes(str(rank.number).encode())
            return
        key = secrets.token_bytes(16)
        with Listener(("", 0), backlog=rank.world_size, authkey=key) as listener:
            _exchange_start(rank, (gethostname(), listener.address[1], key.hex()))
            came = [listener.accept() for _ in range(1, rank.world_size)]
        self.others = [one for _, one in sorted((int(one.recv_bytes()), one) for one in came)]

    def exchange(self, text: str) -> list[str]:
        """What every rank gives, by rank. Raises UserError if one has ended."""
        if self.rank.number:
            with _naming(self.rank, 0):
                self.first.send_bytes(text.encode())
                return [self.first.recv_bytes().decode() for _ in range(self.rank.world_size)]
        texts = [text.encode()]
        for number, one in enumerate(self.others, start=1):
            with _naming(self.rank, number):
                texts.append(one.recv_bytes())
        for number, one in enumerate(self.others, start=1):
            with _naming(self.rank, number):
                for said in texts:
                    one.send_bytes(said)
        return [said.decode() for said in texts]


def join_cluster() -> None:
    """Become a worker of MindSpore's cluster, or its scheduler until the cluster ends, as msrun's variables say.

    Raises:
        UserError: if not all processes come in time.
    """
    ms.set_context(device_target="Ascend" if has_npu() else "CPU")
    try:
        init()
    except RuntimeError as error:
        place = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
        raise UserError(
            f"environment: {os.environ.get('MS_WORKER_NUM')} ranks must meet at {place} within "
            f"{os.environ.get('MS_TOPO_TIMEOUT')} s, got: {str(error).strip().splitlines()[0][:300]}; start the others"
        ) from None


def _exchange_start(rank: Rank, said: tuple[str, int, str] | None) -> tuple[str, int, str]:
    told: list[tuple[str, int, str]] = [("", 0, "")] * rank.world_size
    all_gather_object(told, said)
    return told[0]


@contextmanager
def _naming(rank: Rank, other: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise UserError(
            f"rank {rank.number}: all ranks must answer, got nothing from {other} ({error!r}); see what ended it, and "
            "go on with --resume"
        ) from None


@cache
def join(rank: Rank) -> MindSporeGroup:
    """The group of this process, once."""
    return MindSporeGroup(rank)


def together(rank: Rank) -> Together:
    """What this process agrees on with the others; a single one joins no cluster."""
    return Together(rank, join(rank) if rank.world_size > 1 else None)
