"""Records to rows as one recipe says: the work of one process on one part of the records."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from twintune.converters.conversation import NothingTrained
from twintune.converters.encoding import encode_batch
from twintune.converters.formats import RecordFormat
from twintune.converters.rows import Row, TooLong, label_row
from twintune.converters.sources import stable_hash
from twintune.converters.templates import Segment, Template
from twintune.converters.tokenizer import Encoding, Tokenizer
from twintune.errors import UserError
from twintune.recipe import DataSection


class Item(NamedTuple):
    """A record that was read, or one that could not be.

    Attributes:
        file: its file's number among the recipe's.
        record: its number in the file, from 1.
        value: the JSON value; None if it could not be read.
        reason: why it could not be read; empty if it could.
        copy: above 0 for the further copies that a weight above 1 asks for.
        left_out: whether a weight below 1 leaves it out; the value is not kept then.
    """

    file: int
    record: int
    value: Any
    reason: str = ""
    copy: int = 0
    left_out: bool = False


class Rejected(NamedTuple):
    """A record that gives no row, and why.

    Attributes:
        kind: `invalid`, `nothing_trained`, or `too_long` where data.truncation_strategy is delete.
    """

    file: int
    record: int
    kind: str
    reason: str


class Kept(NamedTuple):
    """A conversation and its row.

    Attributes:
        closed: whether it ends with the token or text at which the model stops.
        validation: whether it is kept for validation.
        digest: 64 bits of the sha256 of the token ids and the copy: equal rows have equal ones.
    """

    file: int
    record: int
    row: Row
    closed: bool
    validation: bool
    digest: int


@dataclass(frozen=True)
class RowMaker:
    """Everything that makes rows of records; it is pickled once for each worker process.

    Attributes:
        formats: of each file.
        data: the recipe's section.
    """

    formats: tuple[RecordFormat, ...]
    tokenizer: Tokenizer
    template: Template
    data: DataSection

    def make(self, items: Iterable[Item]) -> tuple[list[Kept], list[Rejected]]:
        """The rows of some records, in their order, and the records that give none."""
        taken = [item for item in items if not item.left_out]
        # Each step for all records before the next step for any: twice as fast, as a tokenizer's tables fill the
        # processor's cache.
        rendered = [self._render(item) for item in taken]
        segments = [each for record in rendered if isinstance(record, list) for each in record]
        special = self.template.add_special_tokens
        encodings = iter(encode_batch(segments, self.tokenizer, special, self.data.split_special_tokens))
        kept: list[Kept] = []
        rejected: list[Rejected] = []
        for item, record in zip(taken, rendered, strict=True):
            encoded = [] if isinstance(record, UserError) else [(each, next(encodings)) for each in record]
            try:
                if isinstance(record, UserError):
                    raise record
                kept += self._rows(item, encoded)
            except UserError as error:
                rejected.append(Rejected(item.file, item.record, _kind(error), "; ".join(error.messages)))
        return kept, rejected

    def _render(self, item: Item) -> list[list[Segment]] | UserError:
        """The segments of each conversation of a record, or what is wrong with it."""
        data = self.data
        if item.reason:
            return UserError(item.reason)
        try:
            return [
                self.template.segments(conversation, data.mask_history, data.train_on_prompt)
                for conversation in self.formats[item.file].conversations(item.value, str(item.record))
            ]
        except UserError as error:
            return error

    def _rows(self, item: Item, encoded: list[tuple[list[Segment], Encoding | UserError]]) -> list[Kept]:
        """All rows of a record, or none: one bad conversation rejects the record that holds it."""
        data = self.data
        validation = data.val_size > 0 and stable_hash(item.value) < data.val_size
        rows = []
        for segments, encoding in encoded:
            if isinstance(encoding, UserError):
                raise encoding
            row = label_row(segments, encoding, self.tokenizer, data.cutoff_len, data.truncation_strategy)
            rows.append(self._kept(item, row, validation))
        return rows

    def _kept(self, item: Item, row: Row, validation: bool) -> Kept:
        digest = hashlib.sha256(row.input_ids.tobytes() + bytes([item.copy % 256])).digest()
        return Kept(item.file, item.record, row, self._is_closed(row), validation, int.from_bytes(digest[:8], "big"))

    def _is_closed(self, row: Row) -> bool:
        stop = self.template.stop_token_id
        if stop is None:
            return bool(self.template.closing) and not row.cut
        return stop in row.labels[-3:].tolist()  # some templates write a newline or two behind it


def _kind(error: UserError) -> str:
    if isinstance(error, TooLong):
        return "too_long"
    return "nothing_trained" if isinstance(error, NothingTrained) else "invalid"
