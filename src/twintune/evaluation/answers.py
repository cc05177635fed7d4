"""The final answer of a worked solution, and whether two agree; the same rule for every model and backend."""

import re
from typing import Literal

from twintune.errors import UserError
from twintune.evaluation.choices import choose, marked_letters
from twintune.evaluation.numbers import Number, find_numbers
from twintune.evaluation.numerals import CHARACTERS
from twintune.evaluation.plain_text import plain

Kind = Literal["number", "choice"]
MARKERS = re.compile(
    r"#{4,}|\\f?boxed\s*(?=\{)"
    r"|\banswer[\"']?\s*(?:is\b|(?:would|will|must|should)\s+be\b|[:=])"
    r"|【答案】|答案\s*(?:应该|应|就)?\s*(?:是|为|等于|[:=])|(?:^|[\s。,，])答\s*:",
    re.IGNORECASE,
)
# Where nothing is marked, 一 is an article (这是一个难题) more often than a number.
ARTICLE = re.compile(rf"(?<![{CHARACTERS}])一(?![{CHARACTERS}分点又])")
SENTENCE_END = re.compile(r"\n|[。；;！!？?]|\.(?=\s|$)")


def final_answer(text: str, kind: Kind = "number") -> str | None:
    r"""What a solution answers, in one spelling, or None if it answers nothing.

    A number is the first of the sentence after the last marker (`\boxed{}`, `####`, "the answer is", 答案是, 答:),
    behind that sentence's last equals sign if it calculates; without a marker, the last of the text. It keeps
    `%`, 万 and million and loses all other units. What is marked and no single number (a range, a date, a
    calculation without a result) answers nothing. A choice is a letter A to E.
    """
    if kind == "choice":
        return choose(plain(text))
    number = _final_number(plain(text))
    return None if number is None else str(number)


def same_answer(one: str, other: str) -> bool:
    """Whether two answers as final_answer gives them are the same, by value: 1/2 is 0.5 and 50%."""
    first, second = (_last(find_numbers(answer)) for answer in (one, other))
    if first is None or second is None:
        return one == other
    return first.equals(second)


def answer_kind(text: str) -> Kind:
    """Whether a text answers by a letter, alone or behind a marker, or else by a number."""
    text = plain(text).strip()
    return "choice" if re.fullmatch(r"[(\[]?[A-E][)\].]?", text) or marked_letters(text) else "number"


def exact_match(predicted: str, gold: str) -> bool:
    """Whether two texts have the same number as their final answer; a prediction without one is wrong.

    Raises:
        UserError: if `gold` has no final answer, for then nothing could match it.
    """
    wanted = final_answer(gold)
    if wanted is None:
        raise UserError(f"gold answer must hold a number, got {gold!r}; leave the record out or mend it")
    answer = final_answer(predicted)
    return answer is not None and same_answer(answer, wanted)


def _final_number(text: str) -> Number | None:
    end = len(text)
    for marker in reversed(list(MARKERS.finditer(text))):
        if mentions := _marked_numbers(text[marker.end() : end]):
            return next((number for number in mentions if number is not None), None)
        end = marker.start()
    return _last(find_numbers(ARTICLE.sub("某", text)))


def _marked_numbers(text: str) -> list[Number | None]:
    """The numbers of the braces or the sentence that follows a marker; those behind its last equals sign, if any."""
    sentence = _braces(text) if text.startswith("{") else SENTENCE_END.split(text.lstrip(" \t\n:\"'*"), maxsplit=1)[0]
    return find_numbers(sentence.rpartition("=")[2]) or find_numbers(sentence)


def _braces(text: str) -> str:
    """What stands in the braces that open a text, through its end if they do not close."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[1:place]
    return text[1:]


def _last(mentions: list[Number | None]) -> Number | None:
    return next((number for number in reversed(mentions) if number is not None), None)
