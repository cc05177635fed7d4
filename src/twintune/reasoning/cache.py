"""Every answer that was paid for, kept at once: what is killed goes on where it was.

A file of JSON lines that only grows, `{"key": ..., "answer": ...}`.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from twintune.errors import UserError


class AnswerCache:
    """The answers of one file by key, in the order in which they came; one process at a time has it open.

    Raises:
        UserError: when entered, if another process has it open, or a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"), timeout=0)
        self._answers: defaultdict[str, list[str]] = defaultdict(list)
        self._stream: BinaryIO

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path}: the cache must be open in one process at a time, got a second one; "
                "wait for the other twintune reason, or stop it"
            ) from None
        try:
            self._read()
            self._stream = self.path.open("ab")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._lock.release()

    def answers(self, key: str) -> list[str]:
        """The answers that there are for a key, the first that came first."""
        return list(self._answers.get(key, ()))

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))

    def add(self, key: str, answer: str) -> None:
        """Keep an answer, on disk when this returns."""
        self._answers[key].append(answer)
        self._stream.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
        self._stream.flush()

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            print(
                f"{self.path}: the last line is half-written, by a process that was killed: it is left out and removed",
                file=sys.stderr,
            )
            os.truncate(self.path, whole)  # or the next answer would be written behind it
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
            except (ValueError, KeyError, TypeError):
                key = answer = None
            if not (isinstance(key, str) and isinstance(answer, str)):
                raise UserError(
                    f"{self.path}: line {number} must be JSON with key and answer, got {line[:60]!r}; remove this line"
                )
            self._answers[key].append(answer)
