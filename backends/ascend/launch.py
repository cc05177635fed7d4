"""Starting the processes of a run by msrun, showing what rank 0 says, and saying in a sentence which of them failed."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from twintune.backends import Machines
from twintune.errors import UserError

ARRIVAL = 60  # seconds for the last process after the first
MSRUN = "from mindspore.parallel.cluster.run import main; main()"
FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
WATCHED = 0.2  # seconds between two looks at what rank 0 has said


def launch(command: Sequence[str], machines: Machines) -> None:
    """Run `python COMMAND` as msrun does, until all processes end or the first fails.

    Raises:
        UserError: if a process was ended by a signal, or the cluster did not come about.
        SystemExit: with the exit code of the process that failed first, which has said why.
    """
    logs = Path(mkdtemp(prefix="twintune-msrun-"))
    arguments = [sys.executable, "-c", MSRUN, *msrun_arguments(command, machines, logs)]
    # msrun knows no other program than the `python` that it finds first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {"GLOG_v": "3"} | dict(os.environ) | {"PATH": path}
    own_log = logs / "msrun.log"
    with own_log.open("w", encoding="utf-8") as log:
        msrun = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
        try:
            _follow(logs / f"worker_{machines.node_rank * machines.nproc}.log", msrun)
        except BaseException:
            msrun.terminate()
            raise
    if msrun.returncode:
        _end(logs)
    shutil.rmtree(logs)


def msrun_arguments(command: Sequence[str], machines: Machines, logs: Path) -> list[str]:
    """What msrun is given to run `python COMMAND`."""
    return [
        f"--worker_num={machines.nproc * machines.nnodes}",
        f"--local_worker_num={machines.nproc}",
        f"--node_rank={machines.node_rank}",
        f"--master_addr={machines.host}",
        f"--master_port={machines.port}",
        f"--cluster_time_out={ARRIVAL}",
        f"--log_dir={logs}",
        "--join=True",
        "python",
        *command,
    ]


def _follow(said: Path, msrun: subprocess.Popen[bytes]) -> None:
    """Print what a file holds and gets, until msrun has ended."""
    shown = 0
    while True:
        ended = msrun.poll() is not None
        if said.exists():
            with said.open("rb") as stream:
                stream.seek(shown)
                more = stream.read()
            shown += len(more)
            sys.stdout.buffer.write(more)
            sys.stdout.flush()
        if ended:
            return
        time.sleep(WATCHED)


def _end(logs: Path) -> None:
    """Raise what a user is told of the process that failed first."""
    failed = FAILED.search((logs / "msrun.log").read_text(encoding="utf-8", errors="replace"))
    if failed is None:
        raise UserError(f"{logs}: msrun must run to its end, got an error of its own; see msrun.log there")
    process, code = int(failed[1]), int(failed[2])
    if code == 2:
        shutil.rmtree(logs)
        sys.exit(code)
    rank = _rank_of(process, logs)
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise UserError(
        f"rank {rank}: process {process} must run to its end, got {ended} (see {logs}); the other ranks were stopped; "
        "go on from the newest checkpoint with --resume"
    )


def _rank_of(process: int, logs: Path) -> str:
    """As each process says in its first line."""
    for said in logs.glob("worker_*.log"):
        text = said.read_text(encoding="utf-8", errors="replace")
        if found := re.search(rf"^rank: +(\d+) of \d+ in process {process},", text, re.MULTILINE):
            return found[1]
    return "unknown"
