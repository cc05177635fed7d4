"""A bare SentencePiece model behind our interface, read without transformers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twintune.converters.tokenizer import Encoding, Tokenizer, Vocabulary
from twintune.errors import UserError


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model`, such as LLaMA's; bos is the only token it adds.

    Text between special tokens is encoded stretch by stretch, each with SentencePiece's own leading space, as
    transformers' LlamaTokenizer does in its legacy mode, which LLaMA's published tokenizers use.
    """

    has_chat_template = False

    def __init__(self, source: Path, model: Any, pad_token: str | None) -> None:
        pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
        special_ids = {
            piece: number for number, piece in enumerate(pieces) if model.is_control(number) or model.is_unknown(number)
        }
        tasks = {"bos": model.bos_id(), "eos": model.eos_id(), "pad": model.pad_id(), "unk": model.unk_id()}
        by_task = {task: pieces[number] if number >= 0 else None for task, number in tasks.items()}
        ids = {piece: number for number, piece in enumerate(pieces)}
        super().__init__(source, Vocabulary(ids, special_ids, **by_task), pad_token)
        self._model = model
        self._splitter = re.compile("(" + "|".join(map(re.escape, special_ids)) + ")")

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """See Tokenizer."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        if add_special_tokens and self._model.bos_id() >= 0:
            ids.append(self._model.bos_id())
            offsets.append((0, 0))
        start = 0
        for stretch in self._splitter.split(text):
            if stretch in self.special_tokens:
                ids.append(self.special_tokens[stretch])
                offsets.append((start, start + len(stretch)))
            elif stretch:
                mapping = self._model.encode(stretch, return_type="offset_mapping")
                ids.extend(mapping["ids"])
                offsets.extend(_with_characters(mapping["offsets"], start))
            start += len(stretch)
        return Encoding(ids, offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        special = set(self.special_tokens.values())
        text: str = self._model.decode([int(number) for number in ids if number not in special])
        return text

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """See Tokenizer: never called, as has_chat_template is False."""
        raise NotImplementedError


def load_sentencepiece_tokenizer(file: Path, pad_token: str | None) -> SentencePieceTokenizer:
    """Load a SentencePiece model file.

    Raises:
        UserError: if it is none.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: the tokenizer must be a SentencePiece model, got: {error}") from None
    return SentencePieceTokenizer(file, model, pad_token)


def _with_characters(offsets: Sequence[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    """Shift by `start`; pieces without characters (a leading space, a lone byte) get the next character."""
    shifted = []
    following = (0, 0)
    for first, last in reversed(offsets):
        if first < last:
            following = (first + start, first + start + 1)
            shifted.append((first + start, last + start))
        else:
            shifted.append(following)
    return shifted[::-1]
