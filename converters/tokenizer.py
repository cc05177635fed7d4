"""What twintune asks of a tokenizer, and the rules for its eos and pad."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Choice
from twintune.errors import UserError

Span = tuple[int, int]  # first and last + 1 character


class Encoding(NamedTuple):
    """A text's tokens.

    Attributes:
        ids: int32 [tokens].
        offsets: int32 [tokens, 2], the first and last + 1 character that each token stands for.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]


class Vocabulary(NamedTuple):
    """A tokenizer's tokens: text to id of all and of the special ones, and the four with a task, if there."""

    ids: Mapping[str, int]
    special_ids: Mapping[str, int]
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None


class Tokenizer(ABC):
    """Text to token ids with character offsets, and back. Can be pickled, and read without transformers then.

    Attributes:
        source: the folder or file it was read from.
        special_tokens: text to id of the tokens that are never split: bos, eos, a chat's turn marks.
        is_special: bool [vocab_size], whether an id is that of a special token, which no text must become; not unk.
        vocab_size: one more than the largest id.
        bos_token_id: opens a text, if the tokenizer has one.
        eos_token_id: where the model stops.
        unk_token_id: stands for what the vocabulary lacks, if the tokenizer has one.
        pad_token_id: fills batches, and occurs in no row.
        pad: the text of the pad token, with the reason it was chosen.
        chat_template: the tokenizer's own chat template as jinja text, if it has one.
        named_tokens: what a chat template may write by name: bos_token, eos_token and the like.
    """

    def __init__(
        self, source: Path, vocabulary: Vocabulary, pad_token: str | None, chat_template: str | None = None
    ) -> None:
        self.source = source
        self.special_tokens = dict(vocabulary.special_ids)
        self.vocab_size = 1 + max(vocabulary.ids.values())
        self.bos_token_id = vocabulary.ids.get(vocabulary.bos) if vocabulary.bos else None
        self.eos_token_id = _require_eos(source, vocabulary)
        self.unk_token_id = vocabulary.ids.get(vocabulary.unk) if vocabulary.unk else None
        tasks = {self.bos_token_id, self.eos_token_id}  # GPT-2 names one token for all
        arising = {self.unk_token_id} - tasks
        self.is_special = np.zeros(self.vocab_size, np.bool_)
        self.is_special[[number for number in self.special_tokens.values() if number not in arising]] = True
        self.pad = _choose_pad(source, vocabulary, pad_token)
        self.pad_token_id = vocabulary.ids[self.pad.value]
        self.chat_template = chat_template
        named = {name: getattr(vocabulary, name) for name in ("bos", "eos", "unk", "pad")}
        self.named_tokens = {f"{name}_token": token for name, token in named.items() if token is not None}
        self._special_pattern = re.compile("|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True))))

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool, special_spans: Sequence[Span] | None = None) -> Encoding:
        """Encode; the tokens that `add_special_tokens` adds have empty offsets.

        Special tokens stand where `special_spans` says, whatever else the text spells is plain text; None takes
        each that the text spells.

        Raises:
            UserError: if the text holds what this tokenizer needs to keep special and plain tokens apart.
        """

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        """Encode each text as `encode` does where each special token that it spells is one."""
        return [self.encode(text, add_special_tokens) for text in texts]

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""

    def special_spans(self, text: str) -> list[Span]:
        """Where the text spells a special token, the longest where several start."""
        return [match.span() for match in self._special_pattern.finditer(text)] if self.special_tokens else []


def _require_eos(source: Path, vocabulary: Vocabulary) -> int:
    if vocabulary.eos is None or vocabulary.eos not in vocabulary.ids:
        raise UserError(
            f"{source}: the tokenizer must have an eos token, at which the model stops, "
            f"got {vocabulary.eos!r}; set eos_token in its tokenizer_config.json"
        )
    return vocabulary.ids[vocabulary.eos]


def _choose_pad(source: Path, vocabulary: Vocabulary, asked: str | None) -> Choice:
    """The asked token, else the tokenizer's pad, else its unk, but never bos or eos, which occur in rows."""
    fitting = vocabulary.ids.keys() - {vocabulary.bos, vocabulary.eos}
    if asked is not None:
        if asked in fitting:
            return Choice(asked, "model.pad_token")
        raise UserError(f"{source}: model.pad_token must be a token of the tokenizer, not bos or eos, got {asked!r}")
    if vocabulary.pad in fitting:
        return Choice(str(vocabulary.pad), "the tokenizer's pad token")
    if vocabulary.unk in fitting:
        return Choice(str(vocabulary.unk), "the tokenizer's unk token, as it has no pad token that fits")
    raise UserError(
        f"{source}: the tokenizer must have a pad or unk token other than bos and eos, as MindFormers hides "
        f"pad wherever it stands, got pad {vocabulary.pad!r} and unk {vocabulary.unk!r}; "
        "name a token that never occurs in text as model.pad_token"
    )
