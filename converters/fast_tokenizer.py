"""A Hugging Face fast tokenizer behind our interface."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twintune.converters.tokenizer import Encoding, Tokenizer, Vocabulary
from twintune.errors import UserError


class FastTokenizer(Tokenizer):
    """A transformers tokenizer that the `tokenizers` library backs, so that it knows character offsets."""

    def __init__(self, source: Path, tokenizer: Any, pad_token: str | None) -> None:
        added = tokenizer.added_tokens_decoder
        vocabulary = Vocabulary(
            ids=tokenizer.get_vocab(),
            special_ids={token.content: number for number, token in added.items() if token.special},
            bos=tokenizer.bos_token,
            eos=tokenizer.eos_token,
            pad=tokenizer.pad_token,
            unk=tokenizer.unk_token,
        )
        super().__init__(source, vocabulary, pad_token)
        self.has_chat_template = tokenizer.chat_template is not None
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may carry both, saved from somebody's training
        self._backend.no_padding()

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """See Tokenizer."""
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoding(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        text: str = self._tokenizer.decode(
            [int(number) for number in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """See Tokenizer."""
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


def load_fast_tokenizer(folder: Path, pad_token: str | None, trust_remote_code: bool) -> FastTokenizer:
    """Load a folder's tokenizer with transformers.

    Raises:
        UserError: if transformers cannot read it or has no fast tokenizer for it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder}: model.name_or_path must hold a tokenizer that transformers reads, got: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: the tokenizer must be a fast one, which knows character offsets, got "
            f"{type(tokenizer).__name__}; add its tokenizer.json"
        )
    return FastTokenizer(folder, tokenizer, pad_token)
