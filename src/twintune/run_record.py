"""run.json of a run folder: what was chosen and why, and what each session of the run cost.

A session is one process: a run that was killed and went on from a checkpoint has several.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from twintune.artifacts import write_json
from twintune.errors import UserError

RECORD = "run.json"
FINISHED = "finished"


@dataclass
class Session:
    """One process that trained.

    Attributes:
        first_step: its first optimizer step, from 1.
        seconds: from its first work to the end of training; None while it goes on, and if it was killed.
        ended: `finished`, or the error that ended it; empty while it goes on, and if it was killed.
        process_memory: bytes that the process took at most.
        device_memory: bytes that the framework took on an accelerator at most; None on a CPU.
        trackers: what went wrong with a tracker, by its name.
    """

    first_step: int
    seconds: float | None = None
    ended: str = ""
    process_memory: int | None = None
    device_memory: int | None = None
    trackers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """Where a run is computed, by the names that the command line takes."""

    backend: str
    device: str
    dtype: str


@dataclass(frozen=True)
class RunRecord:
    """What a run folder knows of its run besides the logs.

    Attributes:
        steps: of the whole run.
        chosen: backend, device and dtype, of the last session.
        plan: what runs where and why, pairs of a name and a sentence, of the last session.
        versions: of Python and the packages that decide numbers, of the last session.
        sessions: in their order.
    """

    steps: int
    chosen: Chosen
    plan: list[tuple[str, str]]
    versions: dict[str, str]
    sessions: list[Session] = field(default_factory=list)


def read_record(folder: Path) -> RunRecord:
    """Read run.json.

    Raises:
        UserError: if it is missing, or not what twintune train wrote.
    """
    path = folder / RECORD
    try:
        return TypeAdapter(RunRecord).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: must be the record that twintune train writes, got: {' '.join(str(error).split())[:200]}; "
            "give the output folder of a run"
        ) from None


@contextmanager
def record_session(folder: Path, record: RunRecord, steps_done: int = 0) -> Iterator[Session]:
    """Write run.json when a session begins, and again with what it cost when it ends, well or not.

    Args:
        folder: the run folder.
        record: without sessions; those of the folder are kept where the run goes on.
        steps_done: steps behind the checkpoint from which it goes on.

    Raises:
        UserError: if the run goes on and its run.json cannot be read.
    """
    earlier = read_record(folder).sessions if steps_done else []
    session = Session(steps_done + 1)
    record = replace(record, sessions=[*earlier, session])
    _write(folder, record)
    began = time.perf_counter()
    try:
        yield session
        session.ended = FINISHED
    except BaseException as error:
        session.ended = f"{type(error).__name__}: {error}"
        raise
    finally:
        session.seconds = time.perf_counter() - began
        session.process_memory = process_memory()
        _write(folder, record)


def _write(folder: Path, record: RunRecord) -> None:
    write_json(folder / RECORD, asdict(record))


def process_memory() -> int:
    """Bytes of main memory that this process took at most; Linux counts them in KiB, macOS in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
