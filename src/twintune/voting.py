"""Several answers to a question, and the one that most of them give (Wang et al. 2022, arXiv:2203.11171)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from twintune.chat import Question
from twintune.errors import raise_collected
from twintune.sampling import Sampling

Extract = Callable[[str], str | None]


class Answerer(Protocol):
    """The part of a Chat that voting needs."""

    def answer(self, questions: Sequence[Question], sampling: Sampling) -> list[list[str]]:
        """`sampling.num_return_sequences` texts for each question."""


@dataclass(frozen=True)
class Vote:
    """What the texts for one question answer.

    Attributes:
        answer: given by most texts, of tied ones the one seen first; None if no text has an answer.
        distribution: texts by their answer, in the order in which the answers were seen.
        none: texts without an answer.
        attempts: how often the question was asked, from 1; each time gave the same number of texts.
        texts: all of them.
    """

    answer: str | None
    distribution: dict[str, int]
    none: int
    attempts: int
    texts: tuple[str, ...]

    @property
    def tied(self) -> tuple[str, ...]:
        """The answers that share the first place, if it is shared."""
        most = max(self.distribution.values(), default=0)
        first = tuple(answer for answer, count in self.distribution.items() if count == most)
        return first if len(first) > 1 else ()

    def __str__(self) -> str:
        counts = [f"{answer} x {count}" for answer, count in self.distribution.items()]
        counts += [f"no answer x {self.none}"] if self.none else []
        tied = f"; tied: {', '.join(self.tied)}, the first one counts" if self.tied else ""
        asked = f"; asked {self.attempts} times" if self.attempts > 1 else ""
        return f"{', '.join(counts)}{tied}{asked}"


def check_voting(samples: int, retries: int, sampling: Sampling) -> None:
    """Refuse what would only draw the same text again.

    Raises:
        UserError: for several samples or retries of greedy text, and numbers out of range.
    """
    problems = [f"evaluate.vote (--vote) must be at least 1, got {samples}"] if samples < 1 else []
    problems += [f"evaluate.retries (--retries) must be 0 or above, got {retries}"] if retries < 0 else []
    if sampling.temperature == 0 and (samples > 1 or retries > 0):
        problems.append(
            f"generate.temperature must be above 0 to draw {samples} answers with {retries} retries, got 0, which "
            "gives the same text each time; set generate.temperature=0.7, or ask once"
        )
    raise_collected(problems)


def vote(
    chat: Answerer, questions: Sequence[Question], samples: int, sampling: Sampling, extract: Extract, retries: int
) -> list[Vote]:
    """Ask each question `samples` times, and again, with a new seed, while none of its texts has an answer.

    Args:
        chat: gives the texts.
        questions: what to ask.
        samples: texts for each question and attempt.
        sampling: its num_return_sequences is replaced by `samples`; its seed is that of the first attempt.
        extract: the answer of a text in one spelling, or None.
        retries: at most so many further attempts.

    Raises:
        UserError: what check_voting and Chat.answer raise.
    """
    check_voting(samples, retries, sampling)
    texts: list[list[str]] = [[] for _ in questions]
    waiting = list(range(len(questions)))
    for attempt in range(retries + 1):
        if not waiting:
            break
        drawn = replace(sampling, num_return_sequences=samples, seed=derived_seed(sampling.seed, attempt))
        answers = chat.answer([questions[number] for number in waiting], drawn)
        for number, new in zip(waiting, answers, strict=True):
            texts[number] += new
        waiting = [number for number in waiting if all(extract(text) is None for text in texts[number])]
    return [_count(each, samples, extract) for each in texts]


def derived_seed(seed: int, *numbers: int) -> int:
    """The seed itself where all numbers are 0, else one of 32 bits that no other seed or numbers are likely to give."""
    return seed if not any(numbers) else int(np.random.SeedSequence((seed, *numbers)).generate_state(1)[0])


def _count(texts: list[str], samples: int, extract: Extract) -> Vote:
    answers = [extract(text) for text in texts]
    distribution = Counter(answer for answer in answers if answer is not None)
    answer = max(distribution, key=distribution.__getitem__, default=None)  # max gives the first seen of tied ones
    return Vote(answer, dict(distribution), answers.count(None), len(texts) // samples, tuple(texts))
