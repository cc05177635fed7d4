"""What is wrong with one record, and how its values are shown."""

from typing import Any, NamedTuple

MOST_CHARACTERS = 16 * 2**20  # of one record: what is longer is no conversation, and must not fill the memory


class Fault(NamedTuple):
    """A record that cannot be used, in place of its value: the sentence that says why, without file and row."""

    reason: str


TOO_LONG = Fault(f"a record must be at most {MOST_CHARACTERS:,} characters long, got a longer one; split or remove it")


def shown(value: Any) -> str:
    """A value as an error message shows it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
