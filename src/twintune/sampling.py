"""How the next token is picked from logits, once for both backends.

NumPy in float64, so that the same logits and seed give the same tokens everywhere.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twintune.errors import raise_collected

Scores = NDArray[np.float32] | NDArray[np.float64]  # [vocabulary]


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
        repetition_penalty: makes tokens of the prompt and the text less likely; 1 changes nothing.
        min_new_tokens: no closing token before so many; a stop string ends a text all the same.
        stop_strings: each ends a text, and is not part of it.

    Raises:
        UserError: for every value out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_return_sequences: int = 1
    seed: int = 0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        longest = self.max_new_tokens
        rules = {
            "max_new_tokens": (longest >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (no limit) or above"),
            "num_return_sequences": (self.num_return_sequences >= 1, "at least 1"),
            "seed": (self.seed >= 0, "0 or above"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0 (1: none)"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= max(longest, 0),
                f"0 or above and at most generate.max_new_tokens, {longest}",
            ),
            "stop_strings": (all(self.stop_strings), "texts that are not empty"),
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


def pick_token(
    logits: NDArray[np.float32],
    prompt: Sequence[int],
    text: Sequence[int],
    closing: Collection[int],
    sampling: Sampling,
    draw: np.random.Generator,
) -> int:
    """The next token of a text.

    Args:
        logits: float32 [vocabulary], numbers.
        prompt: token ids before the text.
        text: token ids so far.
        closing: token ids that would end the text.
        sampling: the rules.
        draw: gives one number for each token, unless the text is greedy.
    """
    scores = process_logits(logits, prompt, text, closing, sampling)
    if sampling.temperature == 0:
        return int(scores.argmax())
    cumulative = np.cumsum(probabilities(scores, sampling))
    return int(np.searchsorted(cumulative, draw.random() * cumulative[-1], side="right"))


def process_logits(
    logits: NDArray[np.float32],
    prompt: Sequence[int],
    text: Sequence[int],
    closing: Collection[int],
    sampling: Sampling,
) -> Scores:
    """The logits after repetition_penalty and min_new_tokens: what greedy text takes the largest of.

    The rules are those of Hugging Face's RepetitionPenaltyLogitsProcessor (positive logits of tokens that were seen
    are divided, negative ones multiplied; after Keskar et al. 2019, arXiv:1909.05858) and
    MinNewTokensLengthLogitsProcessor.

    Args:
        logits: float32 [vocabulary].
        prompt: token ids before the text.
        text: token ids so far.
        closing: token ids that would end the text.
        sampling: the rules.

    Returns:
        float64 [vocabulary], or the logits themselves where nothing changes.
    """
    early = len(text) < sampling.min_new_tokens
    if sampling.repetition_penalty == 1 and not early:
        return logits
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        tokens = np.concatenate([np.asarray(prompt, np.int64), np.asarray(text, np.int64)])
        seen = scores[tokens]
        scores[tokens] = np.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
    if early:
        scores[list(closing)] = -np.inf
    return scores


def probabilities(logits: Scores, sampling: Sampling) -> NDArray[np.float64]:
    """The distribution that a token is drawn from: temperature, then top-k, then top-p.

    The rules are those of Hugging Face's TopKLogitsWarper (ties of the last one kept stay) and
    TopPLogitsWarper (the token that crosses p stays; Holtzman et al. 2020, arXiv:1904.09751).

    Args:
        logits: [vocabulary].
        sampling: with a temperature above 0.

    Returns:
        float64 [vocabulary], 0 for tokens that are not kept.
    """
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    kept = _softmax(scores)
    if sampling.top_p < 1:
        scores[_beyond(kept, sampling.top_p)] = -np.inf
        kept = _softmax(scores)
    return kept


def _beyond(shares: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The unlikeliest tokens, of a joint probability of 1 - top_p at most.

    All below (1 - top_p) / vocabulary are among them whatever the others are: only the rest is sorted.
    """
    unlikely = shares < (1 - top_p) / len(shares)
    rest = np.flatnonzero(~unlikely)
    rising = rest[np.argsort(shares[rest], kind="stable")]
    reached = shares[unlikely].sum() + np.cumsum(shares[rising])
    return np.concatenate([np.flatnonzero(unlikely), rising[:-1][reached[:-1] <= 1 - top_p]])


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares
