"""One JSON value from a text, by the C scanner of the standard library, and what this project refuses in it."""

import json
import re
from json import JSONDecodeError
from typing import Any

from twintune.converters.faults import MOST_CHARACTERS, TOO_LONG, Fault, shown
from twintune.converters.text_window import after_whitespace

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps one of a pair, perhaps half a character


class JsonScanner:
    """Reads values one after another; not to be shared by two threads."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decode = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant).raw_decode

    def scan(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, or the Fault of a record that is JSON and yet unfit; and its end.

        Raises:
            JSONDecodeError: for what is not JSON, or not yet the whole of a value; for numbers of over 4,300
                digits and for what is nested beyond the interpreter's recursion limit.
        """
        self._problems.clear()
        try:
            value, end = self._decode(text, start)
        except JSONDecodeError:
            raise
        except RecursionError:
            raise JSONDecodeError("nested too deeply", text, start) from None
        except ValueError:  # int() refuses what takes quadratic time
            raise JSONDecodeError("a number of too many digits", text, start) from None
        if self._problems:
            return Fault(self._problems[0]), end
        if end - start > MOST_CHARACTERS:
            return TOO_LONG, end
        if SURROGATE.search(text, start, end) and (half := _half_character(value)):
            return half, end
        if not isinstance(value, dict | list):
            return Fault(f"a record must be a JSON object, got {shown(value)}"), end
        return value, end

    def scan_line(self, line: str, number: int) -> Any:
        """The one value of a line of JSON lines, or the Fault that says where it is malformed."""
        if len(line) > MOST_CHARACTERS:
            return Fault(f"line {number}: {TOO_LONG.reason}")
        start = after_whitespace(line, 0)
        try:
            value, end = self.scan(line, start)
        except JSONDecodeError as error:
            return malformed_line(number, error.pos, error.msg)
        end = after_whitespace(line, end)
        return value if end == len(line) else malformed_line(number, end, "Extra data")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            self._problems.append(f"an object must have each key once, got {shown(twice)} twice; remove one")
        return value

    def _constant(self, name: str) -> None:
        self._problems.append(f"numbers must be finite, as JSON has them, got {name}; use null or a number")


def malformed_line(number: int, position: int, problem: str) -> Fault:
    """The Fault of a line that is not JSON at `position`, from 0."""
    return Fault(
        f"line {number}, column {position + 1}: the data must be a JSON array, or one JSON object a line, "
        f"got malformed JSON ({problem})"
    )


def _half_character(value: Any) -> Fault | None:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 10) : error.start + 10]
        return Fault(f"texts must be such that UTF-8 can hold them, got half of a surrogate pair in {shown(around)}")
    return None
