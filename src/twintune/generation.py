"""The one text generator over both backends: they give logits, this picks the tokens.

Sampling is NumPy in float64, so that the same logits and seed give the same tokens everywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twintune.backends import LanguageModel
from twintune.errors import UserError, raise_collected

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders put for the bytes of a character begun
OnText = Callable[[int, str], None]


class TextDecoder(Protocol):
    """The part of a tokenizer that generation needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked and how many.

    Attributes:
        max_new_tokens: at most so many for each text, the closing token included.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: keep the likeliest tokens up to the one with which their probability reaches top_p.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        num_return_sequences: texts for each prompt.
        seed: the draws of a text depend on it, the prompt's number and the text's number alone.

    Raises:
        UserError: for every value out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_return_sequences: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (no limit) or above"),
            "num_return_sequences": (self.num_return_sequences >= 1, "at least 1"),
            "seed": (self.seed >= 0, "0 or above"),
        }
        problems = [
            f"generate.{name} must be {rule}, got {getattr(self, name)}"
            for name, (holds, rule) in rules.items()
            if not holds
        ]
        if self.temperature == 0 and self.num_return_sequences > 1:
            problems.append(
                f"generate.num_return_sequences must be 1 for greedy text, got {self.num_return_sequences} "
                "equal ones; set generate.temperature above 0"
            )
        raise_collected(problems)


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The distribution that a token is drawn from: temperature, then top-k, then top-p.

    The rules are those of Hugging Face's TopKLogitsWarper (ties of the last one kept stay) and
    TopPLogitsWarper (the token that crosses p stays; Holtzman et al. 2020, arXiv:1904.09751).

    Args:
        logits: float32 [vocabulary].
        sampling: with a temperature above 0.

    Returns:
        float64 [vocabulary], 0 for tokens that are not kept.
    """
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    kept = _softmax(scores)
    if sampling.top_p < 1:
        rising = np.argsort(kept, kind="stable")
        dropped = rising[np.cumsum(kept[rising]) <= 1 - sampling.top_p]
        dropped = dropped[dropped != rising[-1]]
        scores[dropped] = -np.inf
        kept = _softmax(scores)
    return kept


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@dataclass
class _Row:
    """One text on its way."""

    number: int
    prompt: Sequence[int]
    draw: np.random.Generator
    ids: list[int] = field(default_factory=list)
    text: str = ""  # of the ids, without the stop text
    shown: str = ""
    done: bool = False

    def pick(self, logits: NDArray[np.float32], sampling: Sampling) -> int:
        if sampling.temperature == 0:
            return int(logits.argmax())
        cumulative = np.cumsum(probabilities(logits, sampling))
        return int(np.searchsorted(cumulative, self.draw.random() * cumulative[-1], side="right"))

    def read(self, decoder: TextDecoder, stop_text: str | None) -> None:
        """Decode the ids so far, and end the row at its stop text."""
        self.text = decoder.decode(self.ids)
        if stop_text is not None and stop_text in self.text:
            self.text = self.text[: self.text.index(stop_text)]
            self.done = True
            while self.ids and decoder.decode(self.ids[:-1]).startswith(self.text):
                self.ids.pop()

    def next_piece(self, stop_text: str | None) -> str:
        """The new text that no later token can change, or nothing."""
        text = self.text if self.done else _without_begun(self.text, stop_text or "")
        settled = self.done or not text.endswith(UNFINISHED)
        if not settled or not text.startswith(self.shown):
            return ""
        piece, self.shown = text[len(self.shown) :], text
        return piece


def _without_begun(text: str, stop_text: str) -> str:
    """The text without the longest end that may be the beginning of `stop_text`."""
    for length in range(min(len(stop_text), len(text)), 0, -1):
        if text.endswith(stop_text[:length]):
            return text[:-length]
    return text


class TextGenerator:
    """Texts for prompts, from any backend's LanguageModel.

    Args (and attributes of the same names):
        model: gives logits.
        tokenizer: turns token ids into text.
        eos_token_ids: tokens that end a text; they are not part of it.
        batch_size: texts that are decoded together.
        stop_text: ends a text as well, and is not part of it; None if only tokens do.
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
        """Generate texts, `num_return_sequences` for each prompt.

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

        The closing token is not among them, nor are tokens that lie wholly in the stop text.
        """
        return [row.ids for row in self._generate(prompts, sampling, on_text)]

    def _generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: OnText | None) -> list[_Row]:
        raise_collected(
            f"prompt {number}: it must have at least one token, got none"
            for number, prompt in enumerate(prompts, start=1)
            if not len(prompt)
        )
        rows = list(_rows(prompts, sampling))
        for start in range(0, len(rows), self.batch_size):
            self._decode(rows[start : start + self.batch_size], sampling, on_text)
        return rows

    def _decode(self, rows: list[_Row], sampling: Sampling, on_text: OnText | None) -> None:
        logits = self.model.start([row.prompt for row in rows], sampling.max_new_tokens)
        for left in reversed(range(sampling.max_new_tokens)):
            tokens = np.zeros(len(rows), np.int64)  # what a finished row gets does not matter
            for place, row in enumerate(rows):
                if not row.done:
                    tokens[place] = self._extend(row, logits[place], sampling, left, on_text)
            if all(row.done for row in rows):
                return
            logits = self.model.step(tokens)

    def _extend(
        self,
        row: _Row,
        logits: NDArray[np.float32],
        sampling: Sampling,
        left: int,
        on_text: OnText | None,
    ) -> int:
        if np.isnan(logits).any():
            raise UserError(
                f"prompt {row.number // sampling.num_return_sequences + 1}: logits must be numbers, got NaN "
                f"after {len(row.ids)} new tokens; check the adapter, or set backend.dtype to float32"
            )
        token = row.pick(logits, sampling)
        ended = token in self.eos_token_ids
        if not ended:
            row.ids.append(token)
        row.done = ended or left == 0
        if row.done or on_text is not None or self.stop_text is not None:
            row.read(self.tokenizer, self.stop_text)
        if on_text is not None and (piece := row.next_piece(self.stop_text)):
            on_text(row.number, piece)
        return token


def _rows(prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[_Row]:
    each = sampling.num_return_sequences
    for number in range(len(prompts) * each):
        prompt, sequence = divmod(number, each)
        yield _Row(number, prompts[prompt], np.random.default_rng((sampling.seed, prompt, sequence)))
