"""Which of several processes this is, as torchrun, accelerate launch, msrun or Slurm say in the environment."""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from twintune.backends.job import Rank
from twintune.errors import UserError

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
MSRUN = ("RANK_ID", "MS_WORKER_NUM", "DEVICE_ID")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Launched:
    """A process among others.

    Attributes:
        rank: its number among them.
        launcher: what started it.
        reason: the variables that say so.
        is_scheduler: whether it only brings msrun's workers together, by the same command as theirs.
    """

    rank: Rank
    launcher: str
    reason: str
    is_scheduler: bool = False


def find_launched(environment: Mapping[str, str]) -> Launched:
    """Which process this is; rank 0 of 1 where no launcher says otherwise.

    Raises:
        UserError: for variables that are not whole numbers, or a rank that is not below their count.
    """
    if environment.get("MS_ROLE") == "MS_SCHED":
        return Launched(Rank(), "msrun", "MS_ROLE is set", is_scheduler=True)
    if environment.get("MS_ROLE") == "MS_WORKER":
        return _launched(environment, "msrun", MSRUN)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        accelerate = any(name.startswith("ACCELERATE_") for name in environment)
        torchrun = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "a launcher"
        return _launched(environment, "accelerate launch" if accelerate else torchrun, TORCH)
    # sbatch sets SLURM_NTASKS for the one process of its script too; a step is what srun starts.
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _launched(environment, "Slurm", SLURM)
    return Launched(Rank(), "none", "no launcher has set ranks")


def _launched(environment: Mapping[str, str], launcher: str, names: tuple[str, str, str]) -> Launched:
    values = []
    for name in names:
        text = environment.get(name, "")
        if not text.isdecimal():
            raise UserError(f"environment: {name} must be a whole number, as {launcher} sets it, got {text!r}")
        values.append(int(text))
    number, world_size, local = values
    if number >= world_size:
        raise UserError(f"environment: {names[0]} must be below {names[1]} {world_size}, got {number}")
    return Launched(Rank(number, world_size, local), launcher, f"{', '.join(names)} are set")


def set_meeting_place(environment: MutableMapping[str, str], launched: Launched) -> None:
    """Have MASTER_ADDR and MASTER_PORT say where the ranks meet; under Slurm the first machine of the step.

    Raises:
        UserError: if a launcher other than Slurm has not set them, or the port is none.
    """
    if launched.launcher == "msrun":  # MS_SCHED_HOST and MS_SCHED_PORT say it
        return
    if launched.launcher == "Slurm":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        job = environment.get("SLURM_JOB_ID", "0")
        environment.setdefault("MASTER_ADDR", first_machine(nodes))
        environment.setdefault("MASTER_PORT", str(20000 + int(job) % 10000))  # jobs on one machine differ
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise UserError(
                f"environment: {name} must say where the ranks meet, got nothing; set it, or start with "
                "twintune train --nproc"
            )
    port = environment["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"environment: MASTER_PORT must be a port, got {port!r}")


def first_machine(nodes: str) -> str:
    """The first name in a list as Slurm writes it: `gpu[03-05,9],login` is gpu03 and others."""
    name = re.match(r"[^,\[]+", nodes)
    if not name:
        raise UserError(f"environment: SLURM_STEP_NODELIST must name machines, got {nodes!r}; set MASTER_ADDR")
    number = re.match(r"\[(\d+)", nodes[name.end() :])
    return name[0] + (number[1] if number else "")
