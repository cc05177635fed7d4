"""The tokenizer of a model folder: a Hugging Face fast tokenizer, or SentencePiece alone."""

from collections.abc import Sequence
from pathlib import Path

from twintune.artifacts import sha256_file, sha256_json
from twintune.converters.fast_tokenizer import load_fast_tokenizer
from twintune.converters.sentencepiece_tokenizer import load_sentencepiece_tokenizer
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

SENTENCEPIECE_FILE = "tokenizer.model"
FAST_FILES = ("tokenizer.json", "tokenizer_config.json")
OTHER_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def load_tokenizer(
    path: Path, pad_token: str | None = None, trust_remote_code: bool = False, added_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Load a model folder's tokenizer, or a SentencePiece model file.

    A folder with tokenizer.json or tokenizer_config.json is read by transformers, one with tokenizer.model
    only by SentencePiece. Each of `added_tokens` becomes a special token: under its own id if the vocabulary
    has it, else after the largest.

    Raises:
        UserError: if there is no tokenizer, it cannot be read, has no eos, no token can be its pad, or a
            token to add is empty.
    """
    if not all(token.strip() for token in added_tokens):
        raise UserError(f"model.added_tokens must be texts that are not empty, got {list(added_tokens)!r}")
    if path.is_file():
        return load_sentencepiece_tokenizer(path, pad_token, added_tokens)
    if any((path / name).is_file() for name in FAST_FILES):
        return load_fast_tokenizer(path, pad_token, trust_remote_code, added_tokens)
    if (path / SENTENCEPIECE_FILE).is_file():
        return load_sentencepiece_tokenizer(path / SENTENCEPIECE_FILE, pad_token, added_tokens)
    raise UserError(
        f"{path}: model.name_or_path must hold a tokenizer ({', '.join((*FAST_FILES, SENTENCEPIECE_FILE))}), "
        "got none; copy the tokenizer's files there"
    )


def tokenizer_hash(path: Path) -> str:
    """The sha256 of a tokenizer's files and their names."""
    names = (*FAST_FILES, SENTENCEPIECE_FILE, *OTHER_FILES)
    files = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    return sha256_json({file.name: sha256_file(file) for file in files})
