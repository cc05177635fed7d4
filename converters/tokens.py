"""Text to token ids with character offsets, by a Hugging Face fast tokenizer or by SentencePiece alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from twintune.artifacts import sha256_file, sha256_json
from twintune.backends import Choice
from twintune.errors import UserError

SENTENCEPIECE = "tokenizer.model"
FAST_FILES = ("tokenizer.json", "tokenizer_config.json")
ALL_FILES = (
    *FAST_FILES,
    SENTENCEPIECE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


class Encoding(NamedTuple):
    """Token ids, and for each the first and last + 1 character of the text it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer(Protocol):
    """What twintune asks of a tokenizer.

    Attributes:
        source: the folder or file it was read from.
        special_tokens: text to id of the tokens that are never split, among them bos, eos and a chat's turn marks.
        vocab_size: one more than the largest id.
        pad: the token that fills batches, with the reason; MindFormers hides it wherever it stands.
    """

    source: Path
    special_tokens: Mapping[str, int]
    vocab_size: int
    eos_token_id: int
    pad_token_id: int
    pad: Choice
    has_chat_template: bool

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """Encode; special tokens written in the text are found, added ones have empty offsets."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Render messages of `role` and `content` with the tokenizer's own template."""


class FastTokenizer:
    """A Hugging Face fast tokenizer."""

    def __init__(self, source: Path, tokenizer: Any, pad_token: str | None) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may carry both, saved from somebody's training
        self._backend.no_padding()
        added = tokenizer.added_tokens_decoder
        self.special_tokens = {token.content: number for number, token in added.items() if token.special}
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())
        self.has_chat_template = tokenizer.chat_template is not None
        self.eos_token_id = _require_eos(source, tokenizer.eos_token_id)
        avoided = {tokenizer.eos_token_id, tokenizer.bos_token_id}
        own = {"pad": tokenizer.pad_token, "unk": tokenizer.unk_token}
        self.pad_token_id, self.pad = choose_pad(source, tokenizer.get_vocab(), own, avoided, pad_token)

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """See Tokenizer."""
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoding(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """See Tokenizer. Raises jinja2.TemplateError where the template refuses the messages."""
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


class SentencePieceTokenizer:
    """A bare SentencePiece model, read without transformers; bos is its only added token.

    Text between special tokens is encoded piece by piece, each with SentencePiece's leading space, as LLaMA's
    original tokenizer and transformers' LlamaTokenizer (legacy) do.
    """

    has_chat_template = False

    def __init__(self, source: Path, model: Any, pad_token: str | None) -> None:
        self.source = source
        self._model = model
        self.vocab_size: int = model.get_piece_size()
        vocabulary = {model.id_to_piece(number): number for number in range(self.vocab_size)}
        self.special_tokens = {
            piece: number
            for piece, number in vocabulary.items()
            if model.is_control(number) or model.is_unknown(number)
        }
        self._splitter = re.compile("(" + "|".join(map(re.escape, self.special_tokens)) + ")")
        self.eos_token_id = _require_eos(source, model.eos_id() if model.eos_id() >= 0 else None)
        own = {"pad": self._piece(model.pad_id()), "unk": self._piece(model.unk_id())}
        avoided = {model.eos_id(), model.bos_id()}
        self.pad_token_id, self.pad = choose_pad(source, vocabulary, own, avoided, pad_token)

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """See Tokenizer."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        if add_special_tokens and self._model.bos_id() >= 0:
            ids.append(self._model.bos_id())
            offsets.append((0, 0))
        start = 0
        for part in self._splitter.split(text):
            if part in self.special_tokens:
                ids.append(self.special_tokens[part])
                offsets.append((start, start + len(part)))
            elif part:
                mapping = self._model.encode(part, return_type="offset_mapping")
                ids.extend(mapping["ids"])
                offsets.extend(_fill_empty(mapping["offsets"], start))
            start += len(part)
        return Encoding(ids, offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        special = set(self.special_tokens.values())
        text: str = self._model.decode([int(number) for number in ids if number not in special])
        return text

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """See Tokenizer. A bare SentencePiece model never has a template: has_chat_template says so."""
        raise UserError(
            f"{self.source}: the tokenizer must have a chat template, got a bare SentencePiece model"
        )

    def _piece(self, number: int) -> str | None:
        return self._model.id_to_piece(number) if number >= 0 else None


def load_tokenizer(path: Path, pad_token: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """Load a model folder's tokenizer, or a SentencePiece model file.

    A folder with tokenizer.json or tokenizer_config.json is read by transformers, one with tokenizer.model only by
    SentencePiece.

    Raises:
        UserError: if there is no tokenizer, it cannot be read, has no eos, or no token can be its pad.
    """
    if path.is_file():
        return _load_sentencepiece(path, pad_token)
    if any((path / name).is_file() for name in FAST_FILES):
        return _load_fast(path, pad_token, trust_remote_code)
    if (path / SENTENCEPIECE).is_file():
        return _load_sentencepiece(path / SENTENCEPIECE, pad_token)
    raise UserError(
        f"{path}: model.name_or_path must hold a tokenizer ({', '.join((*FAST_FILES, SENTENCEPIECE))}), got none; "
        "copy the tokenizer's files there"
    )


def tokenizer_hash(path: Path) -> str:
    """The sha256 of a tokenizer's files and their names."""
    files = [path] if path.is_file() else [path / name for name in ALL_FILES if (path / name).is_file()]
    return sha256_json({file.name: sha256_file(file) for file in files})


def choose_pad(
    source: Path,
    vocabulary: Mapping[str, int],
    own: Mapping[str, str | None],
    avoided: set[int | None],
    asked: str | None,
) -> tuple[int, Choice]:
    """Choose the pad token: the asked one, else the tokenizer's pad, else its unk, but never bos or eos.

    MindFormers masks every token equal to pad, in attention and loss, so it must not occur in a row.

    Args:
        source: where the tokenizer came from, for messages.
        vocabulary: token to id.
        own: the tokenizer's tokens by name, in the order they are tried.
        avoided: ids that occur in rows.
        asked: model.pad_token.

    Raises:
        UserError: if the asked token is unknown or avoided, or none fits.
    """
    if asked is not None:
        if asked not in vocabulary or vocabulary[asked] in avoided:
            raise UserError(
                f"{source}: model.pad_token must be a token of this tokenizer other than bos and eos, got {asked!r}"
            )
        return vocabulary[asked], Choice(asked, "model.pad_token")
    for name, token in own.items():
        if token is not None and token in vocabulary and vocabulary[token] not in avoided:
            reason = "the tokenizer's pad token" if name == "pad" else f"no pad token of its own; {name} fits"
            return vocabulary[token], Choice(token, reason)
    raise UserError(
        f"{source}: the tokenizer must have a pad or unk token other than bos and eos, got {dict(own)}; "
        "name a token that never occurs in text as model.pad_token"
    )


def _load_fast(path: Path, pad_token: str | None, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{path}: model.name_or_path must hold a tokenizer that transformers reads, got: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: the tokenizer must be a fast one, which knows character offsets, got "
            f"{type(tokenizer).__name__}; add its tokenizer.json"
        )
    return FastTokenizer(path, tokenizer, pad_token)


def _load_sentencepiece(path: Path, pad_token: str | None) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: the tokenizer must be a SentencePiece model, got: {error}") from None
    return SentencePieceTokenizer(path, model, pad_token)


def _require_eos(source: Path, eos: int | None) -> int:
    if eos is None:
        raise UserError(
            f"{source}: the tokenizer must have an eos token, at which the model stops, got none; "
            "add eos_token to its tokenizer_config.json"
        )
    return eos


def _fill_empty(offsets: Sequence[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    """Give pieces without characters (leading space, all but the last byte of one) those of the next piece."""
    filled = []
    following = (0, 0)
    for first, last in reversed(offsets):
        if first < last:
            following = (start + first, start + last)
        filled.append(following)
    return filled[::-1]
