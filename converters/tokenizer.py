"""What twintune asks of a tokenizer, and the rules for its eos and pad."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twintune.backends import Choice
from twintune.errors import UserError


class Encoding(NamedTuple):
    """Token ids, and for each the first and last + 1 character of the text it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Vocabulary(NamedTuple):
    """A tokenizer's tokens: text to id of all and of the special ones, and the four with a task, if there."""

    ids: Mapping[str, int]
    special_ids: Mapping[str, int]
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None


class Tokenizer(ABC):
    """Text to token ids with character offsets, and back.

    Attributes:
        source: the folder or file it was read from.
        special_tokens: text to id of the tokens that are never split: bos, eos, a chat's turn marks.
        vocab_size: one more than the largest id.
        eos_token_id: where the model stops.
        pad_token_id: fills batches, and occurs in no row.
        pad: the text of the pad token, with the reason it was chosen.
        has_chat_template: whether apply_chat_template can be called.
    """

    has_chat_template: bool

    def __init__(self, source: Path, vocabulary: Vocabulary, pad_token: str | None) -> None:
        self.source = source
        self.special_tokens = vocabulary.special_ids
        self.vocab_size = 1 + max(vocabulary.ids.values())
        self.eos_token_id = _require_eos(source, vocabulary)
        self.pad = _choose_pad(source, vocabulary, pad_token)
        self.pad_token_id = vocabulary.ids[self.pad.value]

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """Encode; special tokens written in the text are found, added ones have empty offsets."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""

    @abstractmethod
    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Render messages of `role` and `content` with the tokenizer's own template.

        Raises:
            jinja2.TemplateError: where the template refuses the messages.
        """


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
