"""Records of contests and exercise collections: the logic contest and Math23K."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, NamedTuple

from twintune.converters.conversation import Message
from twintune.converters.faults import shown
from twintune.converters.fields import Turns, optional_text, required_text
from twintune.converters.record_layout import Layout

ANSWER = "答案是:"
REASONING = ("reasoning", "analysis")


class ContestQuestion(NamedTuple):
    """One multiple-choice question about a problem.

    Attributes:
        options: by letter.
        answer: the letter of the right one.
        reasoning: what leads to it; empty where the record has none.
    """

    problem: str
    question: str
    options: dict[str, str]
    answer: str
    reasoning: str

    @property
    def turns(self) -> Turns:
        """The problem and the question, each under its heading; then the reasoning, and the letter in a last line."""
        options = (f"{letter}. {option}" for letter, option in self.options.items())
        asked = "\n".join((f"题目:\n{self.problem}\n\n问题:\n{self.question}", *options))
        told = f"{self.reasoning}\n{ANSWER}{self.answer}" if self.reasoning else f"{ANSWER}{self.answer}"
        return Message("human", asked), Message("assistant", told)


def contest_questions(record: Mapping[str, Any], problems: list[str]) -> list[ContestQuestion]:
    """The questions of a logic contest's record; what is wrong with it is added to `problems`, a sentence each."""
    problem = required_text(record, "problem", problems)
    questions = record.get("questions")
    if not isinstance(questions, list) or not questions:
        problems.append(f"questions must be a list that is not empty, got {shown(questions)}")
        return []
    read = []
    for number, question in enumerate(questions, 1):
        wrong: list[str] = []
        read.append(_question(problem, question, wrong))
        problems.extend(f"question {number}: {sentence}" for sentence in wrong)
    return read


def read_logic_contest(record: Mapping[str, Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """One conversation a question: see ContestQuestion.turns."""
    return [question.turns for question in contest_questions(record, problems)]


def read_math23k(record: Mapping[str, Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """The one conversation of a word problem: its equation, then its answer in a last line."""
    text, equation, answer = (required_text(record, key, problems) for key in ("original_text", "equation", "ans"))
    return [(Message("human", text), Message("assistant", f"{equation}\n{ANSWER}{answer}"))]


def _question(problem: str, question: Any, problems: list[str]) -> ContestQuestion:
    if not isinstance(question, dict):
        problems.append(f"a question must be a JSON object with question, options and answer, got {shown(question)}")
        return ContestQuestion(problem, "", {}, "", "")
    text = required_text(question, "question", problems)
    options = _options(question, problems)
    letter = required_text(question, "answer", problems)
    if letter and options and letter not in options:
        problems.append(f"answer must be one of {', '.join(options)}, got {shown(letter)}")
    reasons = [reason for key in REASONING if (reason := optional_text(question, key, problems))]
    return ContestQuestion(problem, text, options, letter, "\n".join(reasons))


def _options(question: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """The options by letter."""
    options = question.get("options")
    if not isinstance(options, list) or not 0 < len(options) <= len(ascii_uppercase):
        problems.append(f"options must be a list of 1 to {len(ascii_uppercase)} texts, got {shown(options)}")
        return {}
    named = {f"option {letter}": text for letter, text in zip(ascii_uppercase, options, strict=False)}
    return {name[-1]: required_text(named, name, problems) for name in named}
