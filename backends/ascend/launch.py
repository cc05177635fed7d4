"""Starting the processes of a run by msrun."""

from collections.abc import Sequence

from twintune.backends import Machines
from twintune.errors import UserError


def launch(command: Sequence[str], machines: Machines) -> None:
    """Run a command as several processes. Raises UserError: this is not there yet."""
    raise UserError(
        f"command line: --nproc must be 1 with --backend ascend, got {machines.nproc * machines.nnodes}; "
        "use --backend cuda"
    )
