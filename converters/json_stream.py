"""Records from JSON text of any arrangement, one at a time: an array, one value a line, or objects in a row."""

import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from twintune.converters.faults import MOST_CHARACTERS, TOO_LONG
from twintune.converters.json_scanner import JsonScanner
from twintune.converters.text_window import TextWindow, after_whitespace
from twintune.errors import UserError

COMMA_OR_END = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
ANYTHING = re.compile("()")
NEAR_THE_END = 16  # characters: a literal or an escape cut by the window is shorter


def read_lines(window: TextWindow) -> Iterator[Any]:
    """The value of each line that is not blank, or the Fault that it has."""
    scanner = JsonScanner()
    for number, line in window.lines():
        if line.strip(" \t\r"):
            yield scanner.scan_line(line, number)


def read_array(path: Path, window: TextWindow) -> Iterator[Any]:
    """The values of a JSON array, or the Fault that each has.

    Raises:
        UserError: with line and column where the text is not JSON, since no later record can be found then.
    """
    scanner = JsonScanner()
    window.position += 1
    delimiter = window.next_character()
    if delimiter == "]":
        window.position += 1
    while delimiter != "]":
        value, delimiter = _scan(path, window, scanner, COMMA_OR_END)
        yield value
    if window.next_character():
        raise _malformed(path, window, window.position, "text after the end of the array")


def read_objects(path: Path, window: TextWindow) -> Iterator[Any]:
    """The values of JSON objects written one after another, over any number of lines.

    Raises:
        UserError: as read_array does.
    """
    scanner = JsonScanner()
    while character := window.next_character():
        if character not in "{[":
            raise _malformed(path, window, window.position, "Expecting another object")
        yield _scan(path, window, scanner, ANYTHING)[0]


def _scan(path: Path, window: TextWindow, scanner: JsonScanner, follows: re.Pattern[str]) -> tuple[Any, str]:
    """The value at the window's position and what follows it; the window grows until it holds both."""
    while True:
        try:
            value, end = scanner.scan(window.text, window.position)
        except JSONDecodeError as error:
            if window.pass_whitespace():  # it came only after the window had ended at a comma
                continue
            problem, place = error.msg, error.pos
        else:
            match = follows.match(window.text, end)
            if match:
                window.position = match.end()
                return value, match[1]
            problem, place = "Expecting ',' delimiter", after_whitespace(window.text, end)
        held = len(window.text)
        if held - window.position > MOST_CHARACTERS:
            cut = problem.startswith("Unterminated string") or held - place < NEAR_THE_END
            raise _too_long(path, window) if cut else _malformed(path, window, place, problem)
        if not window.grow():
            raise _malformed(path, window, place, problem)


def _malformed(path: Path, window: TextWindow, position: int, problem: str) -> UserError:
    line, column = window.place(position)
    return UserError(
        f"{path}: line {line}, column {column}: the data must be a JSON array, or one JSON object a line, "
        f"got malformed JSON ({problem})"
    )


def _too_long(path: Path, window: TextWindow) -> UserError:
    line, column = window.place(window.position)
    return UserError(f"{path}: line {line}, column {column}: {TOO_LONG.reason}")
