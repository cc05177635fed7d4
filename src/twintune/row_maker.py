"""Records to rows as one recipe says: the work of one process on one part of the records."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from twintune.converters.conversation import NothingTrained
from twintune.converters.encoding import encode_batch
from twintune.converters.formats import RecordFormat
from twintune.converters.rows import Row, TooLong, label_batch
from twintune.converters.sources import is_for_validation
from twintune.converters.templates import Segment, Template
from twintune.converters.tokenizer import Encoding, Tokenizer
from twintune.errors import UserError
from twintune.recipe_sections import DataSection


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
        # Each step for all records before the next step for any: faster by half, as the tokenizer's tables and
        # Python's own drive each other out of the processor's cache.
        rendered = [self._render(item) for item in taken]
        rows = iter(self._label([each for record in rendered if isinstance(record, list) for each in record]))
        kept: list[Kept] = []
        rejected: list[Rejected] = []
        for item, record in zip(taken, rendered, strict=True):
            made = [record] if isinstance(record, UserError) else [next(rows) for _ in record]
            errors = [one for one in made if isinstance(one, UserError)]
            if errors:  # one bad conversation rejects the record that holds it
                reason = "; ".join(errors[0].messages)
                rejected.append(Rejected(item.file, item.record, _kind(errors[0]), reason))
            else:
                validation = self.data.val_size > 0 and is_for_validation(item.value, self.data.val_size)
                kept += [self._kept(item, row, validation) for row in made if isinstance(row, Row)]
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

    def _label(self, segments: list[list[Segment]]) -> list[Row | UserError]:
        """The row of each conversation, or what is wrong with it."""
        data = self.data
        special = self.template.add_special_tokens
        encodings = encode_batch(segments, self.tokenizer, special, data.split_special_tokens)
        batch = [each for each, encoding in zip(segments, encodings, strict=True) if isinstance(encoding, Encoding)]
        encoded = [encoding for encoding in encodings if isinstance(encoding, Encoding)]
        rows = iter(label_batch(batch, encoded, self.tokenizer, data.cutoff_len, data.truncation_strategy))
        return [encoding if isinstance(encoding, UserError) else next(rows) for encoding in encodings]

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
