"""The final answer of a worked solution, and whether two agree; the same rule for base and tuned models."""

import re

from twintune.errors import UserError

MARKERS = re.compile(r"the (?:final )?answer is|答案是|####", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|。|[.!?](?=\s|$)")
# A minus belongs to the number unless a digit stands before it (5-3 is a calculation); 3/4 stays text.
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?")
ONE_SPELLING = str.maketrans("０１２３４５６７８９．－−／＝", "0123456789.--/=")


def final_answer(text: str) -> str | None:
    """The number a solution ends in, normalised, or None if it has none.

    It is the first number of the sentence after the last marker phrase ("The answer is", "答案是",
    "####"), behind that sentence's last equals sign if it calculates; without a marker, the last number.
    Digits become ASCII, thousands commas and a decimal part's trailing zeros go, units are ignored and
    fractions stay as they are written.
    """
    text = text.translate(ONE_SPELLING)
    for marker in reversed(list(MARKERS.finditer(text))):
        sentence = SENTENCE_END.split(text[marker.end() :].lstrip(" :："), maxsplit=1)[0]
        if number := NUMBER.search(sentence.rpartition("=")[2]):
            return _normalised(number.group())
    numbers = NUMBER.findall(text)
    return _normalised(numbers[-1]) if numbers else None


def exact_match(predicted: str, gold: str) -> bool:
    """Whether two texts have the same final answer; a prediction without one is wrong.

    Raises:
        UserError: if `gold` has no final answer, for then nothing could match it.
    """
    wanted = final_answer(gold)
    if wanted is None:
        raise UserError(f"gold answer must hold a number, got {gold!r}; leave the record out or mend it")
    return final_answer(predicted) == wanted


def _normalised(number: str) -> str:
    """-1,234.50 to -1234.5; 007.0 to 7; -0 to 0; 3/4 as it is."""
    if "/" in number:
        return number
    sign = "-" if number.startswith("-") else ""
    whole, _, decimals = number.lstrip("-").replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    magnitude = (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    return magnitude if magnitude == "0" else sign + magnitude
