"""The one exception for what a user can mend: it becomes exit code 2 and no traceback."""

import sys
from collections.abc import Iterable


class UserError(Exception):
    """What a user can mend, each message as `FILE: section.key must be RULE, got VALUE` plus the remedy.

    Attributes:
        messages: one sentence a problem; several where they could be collected before raising.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


MOST_SHOWN = 20


def print_errors(messages: Iterable[str]) -> None:
    """Print what a user can mend as the command line does."""
    for message in messages:
        print(f"twintune: {message}", file=sys.stderr, flush=True)


def raise_collected(problems: Iterable[str]) -> None:
    """Raise one UserError for all problems, or return if there is none.

    At most MOST_SHOWN are printed; a last line counts the rest, so that nothing is dropped unsaid.
    """
    problems = list(problems)
    if not problems:
        return
    shown = problems[:MOST_SHOWN]
    if len(problems) > MOST_SHOWN:
        shown.append(f"... and {len(problems) - MOST_SHOWN} more of {len(problems)} problems")
    raise UserError(*shown)
