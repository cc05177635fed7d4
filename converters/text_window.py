"""The stretch of a text that is being read: it grows at the end and is let go at the beginning."""

import re
from collections.abc import Iterator

from twintune.converters.faults import MOST_CHARACTERS

# JSON's white space: str.isspace() would also pass over U+3000 and U+2028, which are text.
WHITESPACE = re.compile(r"[ \t\r\n]*")


def after_whitespace(text: str, position: int) -> int:
    """The position of the first character from `position` on that is no white space, or the text's end."""
    match = WHITESPACE.match(text, position)
    return match.end() if match else position


class TextWindow:
    """Text from `position` on is yet to be read; memory is bounded by a record and a chunk.

    Attributes:
        text: the stretch held, in characters.
        position: where in it reading goes on.
    """

    def __init__(self, chunks: Iterator[str]) -> None:
        self.text = ""
        self.position = 0
        self._chunks = chunks
        self._line, self._column = 1, 1  # of text[0]

    def grow(self) -> bool:
        """Let go of what is read and at least double the rest, up to a record's most; False at the end."""
        parts = [self.text[self.position :]]
        size = len(parts[0])
        wanted = min(2 * size, max(size, MOST_CHARACTERS)) + 1
        while size < wanted and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            size += len(chunk)
        if size == len(parts[0]):
            return False
        self._line, self._column = self.place(self.position)
        self.text, self.position = "".join(parts), 0
        return True

    def place(self, position: int) -> tuple[int, int]:
        """Line and column, both from 1, of a position in `text`."""
        lines = self.text.count("\n", 0, position)
        if not lines:
            return self._line, self._column + position
        return self._line + lines, position - self.text.rfind("\n", 0, position)

    def next_character(self) -> str:
        """Pass over white space; the character there, or an empty text at the end."""
        while True:
            self.pass_whitespace()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def pass_whitespace(self) -> bool:
        """Pass over the white space that is held; whether there was any."""
        before = self.position
        self.position = after_whitespace(self.text, before)
        return self.position > before

    def line_ahead(self) -> str:
        """The rest of this line, at most a record's most and one character of it; nothing is read."""
        while (end := self.text.find("\n", self.position)) < 0:
            if len(self.text) - self.position > MOST_CHARACTERS or not self.grow():
                break
        line = self.text[self.position :] if end < 0 else self.text[self.position : end]
        return line[: MOST_CHARACTERS + 1]

    def character_after(self, line: str) -> str:
        """The first character after `line`, as line_ahead gave it, that is no white space; nothing is read."""
        while True:
            after = after_whitespace(self.text, self.position + len(line))
            if after < len(self.text):
                return self.text[after]
            if len(self.text) - self.position > MOST_CHARACTERS or not self.grow():
                return ""

    def lines(self) -> Iterator[tuple[int, str]]:
        """Every line to the end with its number, without its newline.

        Of a line much longer than MOST_CHARACTERS only the beginning comes, still longer than that.
        """
        number = self.place(self.position)[0]
        while True:
            last = self.text.rfind("\n", self.position)
            if last >= 0:
                block = self.text[self.position : last].split("\n")
                self.position = last + 1
                yield from enumerate(block, number)
                number += len(block)
            if len(self.text) - self.position > MOST_CHARACTERS:
                yield number, self.text[self.position : self.position + MOST_CHARACTERS + 1]
                self._pass_line()
                number += 1
            elif not self.grow():
                break
        if self.position < len(self.text):
            yield number, self.text[self.position :]
            self.position = len(self.text)

    def _pass_line(self) -> None:
        """Read to the end of the line, holding no more than a chunk of it."""
        while (end := self.text.find("\n", self.position)) < 0:
            self.position = len(self.text)
            if not self.grow():
                return
        self.position = end + 1
