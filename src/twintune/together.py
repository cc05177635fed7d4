"""What the processes of one run do together before and after training: agree, and speak with one voice.

Each calls the same methods in the same order.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from twintune.backends import Group
from twintune.backends.job import Rank
from twintune.errors import MOST_SHOWN, UserError, print_errors


class Together:
    """The processes of a run, one or many.

    Args:
        rank: of this one.
        group: what carries texts between them; None for one process.
    """

    def __init__(self, rank: Rank, group: Group | None) -> None:
        self.rank = rank
        self.group = group

    def exchange(self, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What every rank gives, JSON values, by rank; where one has errors to tell, all end with exit code 2."""
        if self.group is None:
            return [dict(facts)]
        said: list[dict[str, Any]] = [json.loads(text) for text in self.group.exchange(json.dumps({"facts": facts}))]
        self._end_on_errors(said)
        return [one["facts"] for one in said]

    def require_equal(self, facts: Mapping[str, Any]) -> None:
        """Refuse to go on where a rank has another recipe, other rows or another model.

        Raises:
            UserError: naming each rank and key that differs from those of rank 0.
        """
        first, *others = self.exchange(facts)
        problems = [
            f"rank {number}: {key} must be that of rank 0, {first.get(key)!r}, got {one.get(key)!r}; give all ranks "
            "the same recipe, overrides and data"
            for number, one in enumerate(others, start=1)
            for key in sorted(first.keys() | one.keys())
            if first.get(key) != one.get(key)
        ]
        if problems:
            raise UserError(*problems[:MOST_SHOWN])

    @contextmanager
    def one_machine_first(self) -> Iterator[None]:
        """Let the first rank of each machine do the block before its others: what it makes, they find."""
        if self.rank.local:
            self.exchange({})
        yield
        if not self.rank.local:
            self.exchange({})

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Have rank 0 print the errors of all ranks, once where they say the same, and end them all.

        Raises:
            UserError: of a single process, or if another one has ended without a word.
        """
        try:
            yield
        except UserError as error:
            if self.group is None:
                raise
            try:
                texts = self.group.exchange(json.dumps({"errors": error.messages}))
            except UserError:
                raise error from None
            self._end_on_errors([json.loads(text) for text in texts])
            raise

    def _end_on_errors(self, said: list[dict[str, Any]]) -> None:
        """If any rank has errors: rank 0 prints them, and none ends before, since a launcher then kills the rest."""
        if self.group is None or not any("errors" in one for one in said):
            return
        if self.rank.number == 0:
            print_errors(_all_errors(said))
        self.group.exchange("")
        sys.exit(2)


def _all_errors(said: list[dict[str, Any]]) -> list[str]:
    """Each message once, with the ranks that have it where others have another."""
    ranks: dict[str, list[str]] = {}
    for number, one in enumerate(said):
        for message in dict.fromkeys(one.get("errors", ())):
            ranks.setdefault(message, []).append(str(number))
    return [
        message if len(numbers) == len(said) or message.startswith("rank ") else f"rank {', '.join(numbers)}: {message}"
        for message, numbers in ranks.items()
    ]
