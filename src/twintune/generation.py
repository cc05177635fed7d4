"""The one text generator over both backends: they give logits, this picks tokens and deals the places of a batch.

Continuous batching: prompts are begun longest first, and where a text ends the next prompt takes its place.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twintune.backends import LanguageModel
from twintune.errors import UserError, raise_collected
from twintune.sampling import Sampling, pick_token

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders put for the bytes of a character begun
OnText = Callable[[int, str], None]


class TextDecoder(Protocol):
    """The part of a tokenizer that generation needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


@dataclass
class _Row:
    """One text on its way."""

    number: int
    prompt: Sequence[int]
    draw: np.random.Generator
    ids: list[int] = field(default_factory=list)
    text: str = ""  # of the ids, without the stop string
    shown: str = ""
    done: bool = False

    def read(self, decoder: TextDecoder, stop_strings: Sequence[str]) -> None:
        """Decode the ids so far, and end the row at the first of the stop strings."""
        self.text = decoder.decode(self.ids)
        begins = [self.text.index(stop) for stop in stop_strings if stop in self.text]
        if begins:
            self.text = self.text[: min(begins)]
            self.done = True
            while self.ids and decoder.decode(self.ids[:-1]).startswith(self.text):
                self.ids.pop()

    def next_piece(self, stop_strings: Sequence[str]) -> str:
        """The new text that no later token can change, or nothing."""
        text = self.text if self.done else _without_begun(self.text, stop_strings)
        settled = self.done or not text.endswith(UNFINISHED)
        if not settled or not text.startswith(self.shown):
            return ""
        piece, self.shown = text[len(self.shown) :], text
        return piece


def _without_begun(text: str, stop_strings: Sequence[str]) -> str:
    """The text without the longest end that may be the beginning of a stop string."""
    for length in range(min(max(map(len, stop_strings), default=0), len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_strings):
            return text[:-length]
    return text


class TextGenerator:
    """Texts for prompts, from any backend's LanguageModel.

    Args (and attributes of the same names):
        model: gives logits.
        tokenizer: turns token ids into text.
        eos_token_ids: tokens that end a text; they are not part of it.
        batch_size: texts that are decoded together.
        stop_text: ends a text as well, and is not part of it; None if only tokens and Sampling.stop_strings do.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextDecoder,
        eos_token_ids: Sequence[int],
        batch_size: int = 8,
        stop_text: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.batch_size = batch_size
        self.stop_text = stop_text

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: OnText | None = None
    ) -> list[list[str]]:
        """Generate texts, `num_return_sequences` for each prompt, in the prompts' order.

        Args:
            prompts: token ids, of any lengths above 0.
            sampling: how tokens are picked.
            on_text: called with a text's number (prompt number * num_return_sequences + its number
                for the prompt) and each new piece of it, never with half a character.

        Raises:
            UserError: for a prompt without tokens, or logits that are not numbers.
        """
        texts = [row.text for row in self._generate(prompts, sampling, on_text)]
        each = sampling.num_return_sequences
        return [texts[start : start + each] for start in range(0, len(texts), each)]

    def generate_ids(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: OnText | None = None
    ) -> list[list[int]]:
        """As `generate`, but the new token ids of each text, in one flat list.

        The closing token is not among them, nor are tokens that lie wholly in the stop string.
        """
        return [row.ids for row in self._generate(prompts, sampling, on_text)]

    def _generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: OnText | None) -> list[_Row]:
        raise_collected(
            f"prompt {number}: it must have at least one token, got none"
            for number, prompt in enumerate(prompts, start=1)
            if not len(prompt)
        )
        rows = list(_rows(prompts, sampling))
        if rows:
            # Like lengths together waste little, and no later prompt outgrows what the first batch made room for.
            self._decode(deque(sorted(rows, key=lambda row: -len(row.prompt))), sampling, on_text)
        return rows

    def _decode(self, waiting: deque[_Row], sampling: Sampling, on_text: OnText | None) -> None:
        rows = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
        tokens = np.zeros(len(rows), np.int64)  # what a row that ended gets does not matter
        places: Sequence[int] = range(len(rows))
        logits = self.model.start([row.prompt for row in rows], sampling.max_new_tokens)
        while True:
            for place, scores in zip(places, logits, strict=True):
                if not rows[place].done:
                    tokens[place] = self._extend(rows[place], scores, sampling, on_text)
            ended = [place for place, row in enumerate(rows) if row.done]
            if ended and waiting:
                places = ended[: len(waiting)]
                for place in places:
                    rows[place] = waiting.popleft()
                logits = self.model.replace(places, [rows[place].prompt for place in places])
            elif len(ended) == len(rows):
                return
            else:
                places = range(len(rows))
                logits = self.model.step(tokens)

    def _extend(self, row: _Row, logits: NDArray[np.float32], sampling: Sampling, on_text: OnText | None) -> int:
        if np.isnan(logits).any():
            raise UserError(
                f"prompt {row.number // sampling.num_return_sequences + 1}: logits must be numbers, got NaN "
                f"after {len(row.ids)} new tokens; check the adapter, or set backend.dtype to float32"
            )
        token = pick_token(logits, row.prompt, row.ids, self.eos_token_ids, sampling, row.draw)
        ended = token in self.eos_token_ids
        if not ended:
            row.ids.append(token)
        row.done = ended or len(row.ids) == sampling.max_new_tokens
        stop_strings = [*sampling.stop_strings, *([] if self.stop_text is None else [self.stop_text])]
        if row.done or on_text is not None or stop_strings:
            row.read(self.tokenizer, stop_strings)
        if on_text is not None and (piece := row.next_piece(stop_strings)):
            on_text(row.number, piece)
        return token


def _rows(prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[_Row]:
    each = sampling.num_return_sequences
    for number in range(len(prompts) * each):
        prompt, sequence = divmod(number, each)
        yield _Row(number, prompts[prompt], np.random.default_rng((sampling.seed, prompt, sequence)))
