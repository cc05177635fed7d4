"""Starting the processes of a run by torchrun's agent, and saying in a sentence which of them failed."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from twintune.backends import Machines
from twintune.errors import UserError

ARRIVAL = 60  # seconds for the last machine after the first


def launch(command: Sequence[str], machines: Machines) -> None:
    """Run `python COMMAND` as torchrun does, until all processes end or the first fails.

    Raises:
        UserError: if machines are missing, or a process was ended by a signal.
        SystemExit: with the exit code of the process that failed first, which has said why.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the sentence below says it
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)  # it warns of the OMP_NUM_THREADS=1 that it sets
    parsed = get_args_parser().parse_args(torchrun_arguments(command, machines))
    config, entrypoint, arguments = config_from_args(parsed)
    began = time.monotonic()
    try:
        elastic_launch(config, entrypoint)(*arguments)
    except ChildFailedError as error:
        _end(error.failures)
    except (dist.DistError, RendezvousError) as error:
        reason = str(error).splitlines()[0].rstrip(".")[:200]
        raise UserError(
            f"command line: --master {machines.host}:{machines.port}: {machines.nnodes} machines must meet there "
            f"within {ARRIVAL} s, got after {time.monotonic() - began:.0f} s: {reason}; "
            "start one command on each machine, with --node-rank 0, 1 and so on"
        ) from None


def torchrun_arguments(command: Sequence[str], machines: Machines) -> list[str]:
    """What torchrun is given to run `python COMMAND`."""
    return [
        f"--nproc-per-node={machines.nproc}",
        f"--nnodes={machines.nnodes}",
        f"--node-rank={machines.node_rank}",
        f"--master-addr={machines.host}",
        f"--master-port={machines.port}",
        f"--rdzv-conf=timeout={ARRIVAL}",
        "--no-python",
        sys.executable,
        *command,
    ]


def _end(failures: Mapping[int, ProcessFailure]) -> None:
    """Raise what a user is told of the process that failed first; a killed one makes the others fail after it."""
    rank, failure = min(failures.items(), key=lambda one: (one[1].exitcode > 0, one[1].timestamp))
    if failure.exitcode > 0:
        sys.exit(failure.exitcode)
    raise UserError(
        f"rank {rank}: process {failure.pid} must run to its end, got {failure.signal_name()}; the other ranks were "
        "stopped; go on from the newest checkpoint with --resume"
    )
