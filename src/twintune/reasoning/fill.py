"""The reasoning of every question that has none: looked up, asked for, and checked against the gold answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from twintune.artifacts import sha256_json
from twintune.converters.faults import shown
from twintune.reasoning.cache import AnswerCache
from twintune.reasoning.endpoint import Failure, Keep
from twintune.reasoning.questions import Ask, Prompt, reasoning_towards

State = Literal["missing", "present", "cached", "asked", "without", "failed"]


class Answerer(Protocol):
    """Who is asked: an endpoint or a local model."""

    def ask(self, prompts: Sequence[str], keep: Keep) -> None:
        """Ask every prompt; `keep` gets each answer with its prompt's number when it comes."""


@dataclass
class Outcome:
    """What came of one question.

    Attributes:
        ask: the question.
        prompt: what is sent.
        key: of its answers in the cache.
        state: missing as long as it is not settled; present, cached (answered for an earlier run) and asked have a
            reasoning; without is kept all the same; failed is not.
        text: the reasoning, or why it failed.
    """

    ask: Ask
    prompt: str
    key: str
    state: State = "missing"
    text: str = ""

    def settle(self, state: State, text: str = "") -> None:
        """Note what came of it."""
        self.state, self.text = state, text


@dataclass(frozen=True)
class Rule:
    """When an answer counts.

    Attributes:
        max_attempts: answers asked for, until one ends in the gold letter.
        require_gold: whether a question fails where none does; else it is kept without reasoning.
    """

    max_attempts: int
    require_gold: bool


def look_up(
    asks: Sequence[Ask], prompt: Prompt, cache: AnswerCache, who: Mapping[str, Any], rule: Rule
) -> list[Outcome]:
    """What is known of each question before anybody is asked: its own reasoning, or an answer in the cache.

    Args:
        asks: the questions.
        prompt: what is sent for each.
        cache: open.
        who: what decides an answer beside the prompt: endpoint, model, sampling. Both together are the key.
        rule: when an answer counts.

    Raises:
        UserError: if the prompt does not fit a question.
    """
    outcomes = []
    for ask in asks:
        text = prompt.render(ask.question)
        outcome = Outcome(ask, text, sha256_json({**who, "prompt": text}))
        _look_up(outcome, cache, rule)
        outcomes.append(outcome)
    return outcomes


def _look_up(outcome: Outcome, cache: AnswerCache, rule: Rule) -> None:
    question = outcome.ask.question
    if question.reasoning:
        outcome.settle("present", question.reasoning)
        return
    answers = cache.answers(outcome.key)
    found = next((reasoning for answer in answers if (reasoning := reasoning_towards(answer, question.answer))), None)
    if found is not None:
        outcome.settle("cached", found)
    elif not rule.require_gold and len(answers) >= rule.max_attempts:
        outcome.settle("without")


def ask_missing(
    outcomes: Sequence[Outcome],
    answerer: Answerer,
    cache: AnswerCache,
    rule: Rule,
    settled: Callable[[Outcome], None],
) -> None:
    """Ask until every question is settled, and tell when one is. Every answer is cached as it comes.

    Raises:
        UserError: what the answerer raises for all questions; what is cached by then is not asked again.
    """
    for attempt in range(1, rule.max_attempts + 1):
        missing = [outcome for outcome in outcomes if outcome.state == "missing"]
        if not missing:
            return

        def keep(number: int, answer: str | Failure, missing: list[Outcome] = missing, attempt: int = attempt) -> None:
            outcome = missing[number]
            if isinstance(answer, Failure):
                outcome.settle("failed", answer.reason)
            else:
                cache.add(outcome.key, answer)
                _judge(outcome, answer, rule, last=attempt == rule.max_attempts)
            if outcome.state != "missing":
                settled(outcome)

        answerer.ask([outcome.prompt for outcome in missing], keep)


def _judge(outcome: Outcome, answer: str, rule: Rule, *, last: bool) -> None:
    gold = outcome.ask.question.answer
    if reasoning := reasoning_towards(answer, gold):
        outcome.settle("asked", reasoning)
    elif last and rule.require_gold:
        ending = answer.rstrip().rpartition("\n")[2]
        outcome.settle(
            "failed",
            f"none of {rule.max_attempts} answers has a reasoning that ends in the gold answer {gold}; "
            f"the last one ends in {shown(ending[-50:])}",
        )
    elif last:
        outcome.settle("without")
