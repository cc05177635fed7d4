"""A Hugging Face fast tokenizer behind our interface; transformers only loads it."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from twintune.converters.tokenizer import Encoding, Span, Tokenizer, Vocabulary
from twintune.errors import UserError
from twintune.protobuf import share_with_mindspore

# One character of Unicode's private plane A stands for each special token: no normalizer touches them.
FIRST_STAND_IN = 0xF0000


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, which knows character offsets.

    Args:
        source: the folder it was read from.
        backend: a tokenizers.Tokenizer.
        named: the texts of its bos, eos, pad and unk, None for what it lacks.
        pad_token: model.pad_token.
        chat_template: its own, as jinja text.
    """

    def __init__(
        self,
        source: Path,
        backend: Any,
        named: Mapping[str, str | None],
        pad_token: str | None,
        chat_template: str | None,
    ) -> None:
        backend.no_truncation()  # a tokenizer.json may carry both, saved from somebody's training
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        special_ids = {token.content: number for number, token in added.items() if token.special}
        vocabulary = Vocabulary(ids=backend.get_vocab(with_added_tokens=True), special_ids=special_ids, **named)
        super().__init__(source, vocabulary, pad_token, chat_template)
        self._backend = backend

    def encode(self, text: str, add_special_tokens: bool, special_spans: Sequence[Span] | None = None) -> Encoding:
        """See Tokenizer."""
        if special_spans is not None:
            return self._plain.encode(text, add_special_tokens, special_spans)
        return _encode(self._backend, text, add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        text: str = self._backend.decode([int(number) for number in ids], skip_special_tokens=True)
        return text

    @cached_property
    def _plain(self) -> "_PlainText":
        return _PlainText(self.source, self._backend)

    def __getstate__(self) -> dict[str, Any]:
        # The library does not pickle encode_special_tokens, on which _plain rests.
        return {name: value for name, value in self.__dict__.items() if name != "_plain"}


class _PlainText:
    """A copy of a tokenizer to which special tokens are plain text, and stand-ins are the special tokens.

    A stand-in is as long as its token, so that offsets stay, and has its flags (lstrip, normalized, ...).
    """

    def __init__(self, source: Path, backend: Any) -> None:
        from tokenizers import AddedToken

        added = {number: token for number, token in backend.get_added_tokens_decoder().items() if token.special}
        self._source = source
        self._stand_ins = {
            token.content: chr(FIRST_STAND_IN + place) * len(token.content)
            for place, token in enumerate(added.values())
        }
        self._backend = _without_merges_to(set(self._stand_ins), backend)
        self._backend.encode_special_tokens = True
        self._backend.add_tokens(
            [
                AddedToken(
                    self._stand_ins[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=False,
                )
                for token in added.values()
            ]
        )
        self._originals = {
            self._backend.token_to_id(self._stand_ins[token.content]): number for number, token in added.items()
        }

    def encode(self, text: str, add_special_tokens: bool, special_spans: Sequence[Span]) -> Encoding:
        self._refuse_stand_ins(text)
        pieces, done = [], 0
        for first, last in special_spans:
            pieces += [text[done:first], self._stand_ins[text[first:last]]]
            done = last
        ids, offsets = _encode(self._backend, "".join([*pieces, text[done:]]), add_special_tokens)
        return Encoding(np.array([self._originals.get(number, number) for number in ids.tolist()], np.int32), offsets)

    def _refuse_stand_ins(self, text: str) -> None:
        last = FIRST_STAND_IN + len(self._stand_ins) - 1
        for character in text if not text.isascii() else "":
            if FIRST_STAND_IN <= ord(character) <= last:
                raise UserError(
                    f"a text that spells a special token of {self._source} must not hold the private characters "
                    f"U+{FIRST_STAND_IN:X} to U+{last:X} as well, got U+{ord(character):X}; remove it"
                )


def load_fast_tokenizer(
    folder: Path, pad_token: str | None, trust_remote_code: bool, added_tokens: Sequence[str] = ()
) -> FastTokenizer:
    """Load a folder's tokenizer with transformers; `added_tokens` become special tokens after its last id.

    Raises:
        UserError: if transformers cannot read it or has no fast tokenizer for it.
    """
    tokenizer = _read(folder, trust_remote_code)
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(_special(added_tokens))
    named = {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    return FastTokenizer(folder, backend, named, pad_token, _default_template(tokenizer.chat_template))


def save_fast_tokenizer(folder: Path, output_dir: Path, added_tokens: Sequence[str]) -> None:
    """Write a folder's tokenizer with `added_tokens`, under the ids that load_fast_tokenizer gives them.

    Raises:
        UserError: as load_fast_tokenizer.
    """
    tokenizer = _read(folder, trust_remote_code=False)
    tokenizer.add_tokens(_special(added_tokens), special_tokens=True)
    tokenizer.save_pretrained(output_dir)


def missing_tokens(folder: Path, tokens: Sequence[str]) -> tuple[str, ...]:
    """Those of `tokens` that are no special tokens of a folder's tokenizer.

    Raises:
        UserError: as load_fast_tokenizer.
    """
    added = _read(folder, trust_remote_code=False).backend_tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    return tuple(token for token in tokens if token not in special)


def _special(texts: Sequence[str]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(text, special=True, normalized=False) for text in texts]


def _made_of_sentencepiece(folder: Path) -> bool:
    return not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file()


def _read(folder: Path, trust_remote_code: bool) -> Any:
    """The fast tokenizer of transformers."""
    share_with_mindspore()  # transformers may read a SentencePiece model with protobuf
    import transformers
    from transformers import AutoTokenizer

    if int(transformers.__version__.split(".")[0]) > 4 and _made_of_sentencepiece(folder):
        raise UserError(
            f"{folder}: tokenizer.json must be there with transformers {transformers.__version__}, got tokenizer.model "
            "alone, of which it makes another tokenizer (without bos, other spaces); save tokenizer.json with "
            "transformers 4, or remove tokenizer_config.json: then SentencePiece itself is used"
        )
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
    return tokenizer


def _default_template(chat_template: str | dict[str, str] | None) -> str | None:
    """A tokenizer may have several, for tools or retrieval; transformers takes `default` for a chat."""
    return chat_template.get("default") if isinstance(chat_template, dict) else chat_template


def _encode(backend: Any, text: str, add_special_tokens: bool) -> Encoding:
    encoding = backend.encode(text, add_special_tokens=add_special_tokens)
    ids = np.array(encoding.ids, np.int32)
    flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids))
    return Encoding(ids, flat.reshape(-1, 2))


def _without_merges_to(texts: set[str], backend: Any) -> Any:
    """A copy whose BPE cannot put the tokens of `texts` together from their letters, as LLaMA's merges can."""
    from tokenizers import Tokenizer as Backend

    state = json.loads(backend.to_str())
    if state["model"]["type"] == "BPE":
        state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) not in texts]
    return Backend.from_str(json.dumps(state))
