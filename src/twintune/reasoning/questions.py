"""The questions of contest files: read, put to a model by a prompt, and their answers checked against the gold one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twintune.converters.contest_formats import ContestQuestion, contest_questions
from twintune.converters.data_files import find_files
from twintune.converters.formats import load_format
from twintune.converters.sources import Record, Rejection, read_file
from twintune.errors import UserError
from twintune.evaluation.choices import marked_letters
from twintune.evaluation.plain_text import plain

FORMAT = "logic_contest"
PROMPT = """\
以下是一道单项选择题,未观测到的事实都视为假。请逐步分析,并在最后一行写出答案,格式为"答案是:X",X 是选项的字母。

题目:
{{ problem }}

问题:
{{ question }}
{% for letter, option in options.items() %}
{{ letter }}. {{ option }}
{% endfor %}
"""
# A last line that says nothing but the answer: "**答案是:B**", "因此,最终答案为(B)。", "答案:B. text of the option"
CONCLUSION = re.compile(
    r"[\s*#>]*(?:因此|所以|综上所述|综上|故)?[,，:：\s]*(?:最终|正确)?的?[\s*【]*(?:答案|故选|选|\\boxed)"
)


class Ask(NamedTuple):
    """One question of a record.

    Attributes:
        record: as it was read.
        number: of the question in its record, from 1.
    """

    record: Record
    number: int
    question: ContestQuestion

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"{self.record.path}: row {self.record.row}: question {self.number}"


@dataclass(frozen=True)
class Questions:
    """All questions of some files, and the records that hold none because they break a rule."""

    asks: tuple[Ask, ...]
    rejections: tuple[Rejection, ...]


def read_questions(entries: Sequence[str]) -> Questions:
    """The questions of files, folders and globs, in order.

    Raises:
        UserError: for a file that cannot be read, or whose records are not those of the logic contest.
    """
    asks: list[Ask] = []
    rejections: list[Rejection] = []
    for path in (path for entry in entries for path in find_files(entry)):
        load_format(path, FORMAT)
        for record in read_file(path):
            if isinstance(record, Rejection):
                rejections.append(record)
                continue
            problems: list[str] = []
            asks.extend(_asks(record, problems))
            if problems:
                rejections.append(Rejection(str(path), record.row, "; ".join(problems)))
    return Questions(tuple(asks), tuple(rejections))


def _asks(record: Record, problems: list[str]) -> Iterator[Ask]:
    if not isinstance(record.value, dict):
        problems.append(f"a record must be a JSON object, got {record.value!r:.60}")
        return
    questions = contest_questions(record.value, problems)
    if not problems:
        yield from (Ask(record, number, question) for number, question in enumerate(questions, 1))


class Prompt:
    """What a model is told to do with a question.

    Args:
        text: jinja, of problem, question, options (by letter) and answer; rendered in a sandbox.

    Raises:
        UserError: if it is no jinja.
    """

    def __init__(self, text: str | None) -> None:
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        try:
            self._template = environment.from_string(PROMPT if text is None else text)
        except TemplateError as error:
            raise UserError(f"reasoning.prompt must be a jinja text, got: {error}") from None

    def render(self, question: ContestQuestion) -> str:
        """The text that is sent.

        Raises:
            UserError: for an unknown name, a call that fails, or a blank text.
        """
        values: dict[str, Any] = question._asdict()
        del values["reasoning"]
        try:
            text = self._template.render(**values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"reasoning.prompt must be a jinja text of problem, question, options and answer, got: {error}"
            ) from None
        if not text.strip():
            raise UserError("reasoning.prompt must give a text that is not blank, got a blank one")
        return text


def reasoning_towards(answer: str, gold: str) -> str | None:
    """The reasoning of an answer whose last line gives the gold letter, without a line that is the answer alone.

    None for any other answer, and for one without reasoning.
    """
    before, _, last = answer.strip().rpartition("\n")
    if marked_letters(plain(last)) != gold:
        return None
    return (before if CONCLUSION.match(last) else answer).strip() or None
