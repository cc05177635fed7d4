"""A bare SentencePiece model behind our interface, read without transformers."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.converters.tokenizer import Encoding, Span, Tokenizer, Vocabulary
from twintune.errors import UserError

SPACE = "▁"  # what SentencePiece writes for a space
NO_TOKENS = Encoding(np.zeros(0, np.int32), np.zeros((0, 2), np.int32))


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model`, such as LLaMA's; bos is the only token it adds.

    Text between special tokens is encoded stretch by stretch, each with SentencePiece's own leading space, as
    transformers' LlamaTokenizer does in its legacy mode, which LLaMA's published tokenizers use.
    """

    def __init__(self, source: Path, model: Any, pad_token: str | None, added_tokens: Sequence[str] = ()) -> None:
        pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
        ids = {piece: number for number, piece in enumerate(pieces)}
        for token in added_tokens:
            ids.setdefault(token, len(ids))
        special_ids = {
            piece: number for number, piece in enumerate(pieces) if model.is_control(number) or model.is_unknown(number)
        } | {token: ids[token] for token in added_tokens}
        tasks = {"bos": model.bos_id(), "eos": model.eos_id(), "pad": model.pad_id(), "unk": model.unk_id()}
        by_task = {task: pieces[number] if number >= 0 else None for task, number in tasks.items()}
        super().__init__(source, Vocabulary(ids, special_ids, **by_task), pad_token)
        self._model = model
        all_letters = [_letters(model, number, piece) for number, piece in enumerate(pieces)]
        self._letters = np.frombuffer(b"".join(all_letters), np.uint8)
        self._sizes = np.array([len(letters) for letters in all_letters])
        self._places = np.cumsum(self._sizes) - self._sizes  # of each piece in _letters
        begun = [[byte & 0xC0 != 0x80 for byte in letters] for letters in all_letters]
        self._begun = np.array([sum(bytes_begun) for bytes_begun in begun], np.int32)
        self._prefix = b" " if model.encode("a", out_type=str)[0].startswith(SPACE) else b""
        self._continues = np.array([bytes_begun[:1] == [False] for bytes_begun in begun], np.int32)

    def encode(self, text: str, add_special_tokens: bool, special_spans: Sequence[Span] | None = None) -> Encoding:
        """See Tokenizer."""
        spans = self.special_spans(text) if special_spans is None else special_spans
        return self._encode([text], [spans], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        """See Tokenizer."""
        return self._encode(texts, [self.special_spans(text) for text in texts], add_special_tokens)

    def _encode(
        self, texts: Sequence[str], special_spans: Sequence[Sequence[Span]], add_special_tokens: bool
    ) -> list[Encoding]:
        """Encode many texts a step at a time: the tables of each step fill the processor's cache."""
        cut = [_stretches(spans, len(text)) for text, spans in zip(texts, special_spans, strict=True)]
        plain = [
            text[first:last]
            for text, stretches in zip(texts, cut, strict=True)
            for first, last, special in stretches
            if not special
        ]
        ids = [self._model.encode(stretch, return_type="numpy") for stretch in plain]
        encoded = zip(ids, self._offsets(plain, ids), strict=True)
        bos = [_one_token(self._model.bos_id(), 0, 0)] if add_special_tokens and self._model.bos_id() >= 0 else []
        pieces, ends = [NO_TOKENS], [0]
        for text, stretches in zip(texts, cut, strict=True):
            written = [*bos]
            for first, last, special in stretches:
                if special:
                    written.append(_one_token(self.special_tokens[text[first:last]], first, last))
                else:
                    numbers, offsets = next(encoded)
                    written.append(Encoding(numbers, offsets + np.int32(first) if first else offsets))
            pieces += written
            ends.append(ends[-1] + sum([len(piece.ids) for piece in written]))
        all_ids, all_offsets = map(np.concatenate, zip(*pieces, strict=True))
        return [Encoding(all_ids[start:end], all_offsets[start:end]) for start, end in pairwise(ends)]

    def _offsets(self, texts: Sequence[str], ids: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
        """The character offsets of each text's pieces, int32 [pieces, 2].

        SentencePiece's own take longer than its ids, so letters are counted. That holds where the pieces spell the
        texts byte by byte; a model that normalizes texts is asked.
        """
        if not texts:
            return []
        numbers = np.concatenate(ids)
        written = b"".join([self._prefix + text.encode() for text in texts])
        if np.array_equal(self._spelled(numbers), np.frombuffer(written, np.uint8)):
            return self._counted_offsets(numbers, [len(each) for each in ids])
        if len(texts) > 1:
            return [self._offsets([text], [each])[0] for text, each in zip(texts, ids, strict=True)]
        mapping = self._model.encode(texts[0], return_type="offset_mapping")
        return [_with_characters(mapping["offsets"], len(texts[0]))]

    def _spelled(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The bytes of pieces, one after the other."""
        sizes, places = self._sizes[numbers], self._places[numbers]
        sizes, places = sizes[sizes > 0], places[sizes > 0]
        if not len(sizes):
            return np.zeros(0, np.uint8)
        # From one byte to the next by 1, and from the last of a piece to the first of the next: np.repeat takes
        # several times as long.
        jumps = np.ones(sizes.sum(), np.int32)
        jumps[0] = places[0]
        jumps[np.cumsum(sizes)[:-1]] = places[1:] - places[:-1] - sizes[:-1] + 1
        letters: NDArray[np.uint8] = self._letters[np.cumsum(jumps)]
        return letters

    def _counted_offsets(self, numbers: NDArray[np.int32], counts: list[int]) -> list[NDArray[np.int32]]:
        """Offsets of pieces that spell texts of so many pieces each, each text after the model's own prefix.

        A byte within a character stands for the whole of it, a piece of the prefix alone for the first character.
        """
        bounds = [0, *accumulate(counts)]
        begun = self._begun[numbers]
        ends = np.cumsum(begun, dtype=np.int32)
        before = np.concatenate([np.zeros(1, np.int32), ends])[bounds[:-1]] + np.int32(len(self._prefix))
        ends -= np.repeat(before, counts)
        offsets = np.empty((len(numbers), 2), np.int32)
        np.maximum(ends - begun - self._continues[numbers], 0, out=offsets[:, 0])
        np.maximum(ends, 1, out=offsets[:, 1])
        return [offsets[start:end] for start, end in pairwise(bounds)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        special = set(self.special_tokens.values())
        text: str = self._model.decode([int(number) for number in ids if number not in special])
        return text


def load_sentencepiece_tokenizer(
    file: Path, pad_token: str | None, added_tokens: Sequence[str] = ()
) -> SentencePieceTokenizer:
    """Load a SentencePiece model file; `added_tokens` become special tokens after its last id.

    Raises:
        UserError: if it is none.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: the tokenizer must be a SentencePiece model, got: {error}") from None
    return SentencePieceTokenizer(file, model, pad_token, added_tokens)


def _letters(model: Any, number: int, piece: str) -> bytes:
    """The UTF-8 bytes that a piece stands for."""
    return bytes([int(piece[3:-1], 16)]) if model.is_byte(number) else piece.replace(SPACE, " ").encode()


def _one_token(number: int, first: int, last: int) -> Encoding:
    return Encoding(np.array([number], np.int32), np.array([[first, last]], np.int32))


def _stretches(spans: Sequence[Span], length: int) -> list[tuple[int, int, bool]]:
    """The spans and what lies between them, as first and last + 1 character and whether it is a span."""
    stretches, done = [], 0
    for first, last in spans:
        if done < first:
            stretches.append((done, first, False))
        stretches.append((first, last, True))
        done = last
    if done < length:
        stretches.append((done, length, False))
    return stretches


def _with_characters(offsets: Sequence[Span], length: int) -> NDArray[np.int32]:
    """Offsets in which pieces without characters (a leading space, a lone byte) get the next character."""
    found = np.array(offsets, np.int32).reshape(-1, 2)
    following = (max(length - 1, 0), length)
    for place in range(len(found) - 1, -1, -1):
        first, last = found[place]
        if first < last:
            following = (first, first + 1)
        else:
            found[place] = following
    return found
