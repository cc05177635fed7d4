"""Starting one command as many processes, on this machine and on others."""

import socket
from collections.abc import Sequence
from contextlib import closing

from twintune.backends import Backend, Machines
from twintune.errors import UserError
from twintune.ranks import find_launched


def choose_machines(nproc: int, nnodes: int, node_rank: int, master: str | None) -> Machines:
    """The processes that the command line asks for, meeting at a port that is free here.

    Args:
        nproc: processes on each machine.
        nnodes: machines.
        node_rank: number of this one.
        master: HOST:PORT of the first; None, with one machine, takes any free port of it.

    Raises:
        UserError: for numbers that do not fit, a missing or wrong --master, or a port in use.
    """
    if not node_rank < nnodes:
        raise UserError(f"command line: --node-rank must be below --nnodes {nnodes}, got {node_rank}")
    if master is None:
        if nnodes > 1:
            raise UserError(
                f"command line: --master must be the HOST:PORT of the first machine with --nnodes {nnodes}, got nothing"
            )
        return Machines(nproc, 1, 0, "127.0.0.1", _free_port("127.0.0.1", 0))
    host, _, port = master.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"command line: --master must be HOST:PORT, such as 10.0.0.1:29500, got {master!r}")
    if node_rank == 0:
        _free_port("", int(port))
    return Machines(nproc, nnodes, node_rank, host, int(port))


def _free_port(host: str, port: int) -> int:
    """The port itself, or any where it is 0. Raises UserError if another process listens there."""
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(
                f"command line: --master must name a free port, got {port}: {error.strerror}; name another one"
            ) from None
        found: int = listener.getsockname()[1]
        return found


def launch(backend: Backend, command: Sequence[str], machines: Machines, environment: dict[str, str]) -> None:
    """Run `python COMMAND` by the backend's launcher.

    Raises:
        UserError: if this process is one of several already, and what Backend.launch raises.
    """
    launched = find_launched(environment)
    if launched.launcher != "none":
        raise UserError(
            f"command line: --nproc must be left out where {launched.launcher} starts the processes "
            f"({launched.reason}), got {machines.nproc}"
        )
    backend.launch(command, machines)
