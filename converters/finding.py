"""What the linter has to say."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One trap that a recipe runs into.

    Attributes:
        severity: an error spoils the model or its answers; a warning may be meant.
        sentence: what is wrong, with the values.
        remedy: what to do about it.
    """

    severity: Literal["error", "warning"]
    sentence: str
    remedy: str
