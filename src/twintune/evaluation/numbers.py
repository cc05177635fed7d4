"""Numbers in a text, exactly: decimals, fractions, mixed numbers, percent, 万 and million, Chinese numerals."""

import re
from dataclasses import dataclass
from fractions import Fraction

from twintune.evaluation.number_patterns import CHINESE, COMPOUND, MENTION, SCALES
from twintune.evaluation.numerals import read_numeral

LONGEST = 1000  # characters: a model that loops may write more digits than Python reads (4,300)
DIGITS = re.compile(r"\d+(?:\.\d+)?|\.\d+")
MARK = re.compile(rf"(%|percent|per cent)$|({'|'.join(map(str.strip, SCALES))})$", re.IGNORECASE)
NEGATIVE = re.compile(r"^(?:-|负|negative|minus)", re.IGNORECASE)
CHINESE_FRACTION = re.compile(r"(?:(?P<whole>.+)又)?(?P<below>.+)分之(?P<above>.+)")


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: without its mark: 20 for 20%, 5 for 5万.
        mark: `%`, a key of SCALES, or nothing.
    """

    value: Fraction
    mark: str = ""

    @property
    def scaled(self) -> Fraction:
        """The value with its mark: 1/5 for 20%, 50,000 for 5万."""
        return self.value / 100 if self.mark == "%" else self.value * SCALES.get(self.mark, 1)

    def equals(self, other: "Number") -> bool:
        """Whether both are the same number; a mark that only one of them has may be its unit.

        20% equals 20%, 0.2 and 20 ("what percent?" has the answer 20); 5万 equals 50,000 and 5.
        """
        if self.scaled == other.scaled:
            return True
        return (not self.mark or not other.mark) and self.value == other.value

    def __str__(self) -> str:
        return f"{_spelled(self.value)}{self.mark}"


def find_numbers(text: str) -> list[Number | None]:
    """Every mention of numbers in plain text, in order; None for one that is no single number.

    A date, a time, a range, a calculation without its result, a multiple of π: none of them is a number.
    Chinese numerals count where the text has no digits.
    """
    matches = list(MENTION.finditer(text)) or list(CHINESE.finditer(text))
    return [_read(match) for match in matches]


def _read(match: re.Match[str]) -> Number | None:
    text = match.group()
    if match["nothing"] or len(text) > LONGEST:
        return None
    if match.re is CHINESE:
        return _read_chinese(text)
    if re.fullmatch(COMPOUND, text):
        return Number(_compound(text))
    return _read_digits(text)


def _read_digits(text: str) -> Number | None:
    mark = _mark(text)
    digits = [Fraction(part) for part in DIGITS.findall(text.replace(",", ""))]
    if "分之" in text and mark != "%":  # 3分之2 names what is below first
        digits[-2:] = digits[-1], digits[-2]
    if len(digits) == 1:
        value = digits[0]
    elif not digits[-1]:
        return None  # a fraction over nothing
    else:
        value = digits[-2] / digits[-1] + (digits[0] if len(digits) == 3 else 0)
    return Number(-value if NEGATIVE.match(text) else value, mark)


def _mark(text: str) -> str:
    if "百分之" in text:
        return "%"
    found = MARK.search(text)
    if found is None:
        return ""
    if found.group(1):
        return "%"
    word = found.group(2).lower()
    return word if word in SCALES else f" {word}"


def _compound(text: str) -> Fraction:
    """1亿2000万 and 3万5千, whose parts are added."""
    total = Fraction(0)
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)([亿万千百]?)", text):
        total += Fraction(number) * SCALES.get(unit, 1)
    return total


def _read_chinese(text: str) -> Number | None:
    sign = -1 if text.startswith("负") else 1
    text = text.removeprefix("负")
    mark = "%" if text.startswith("百分之") else ""
    parts = CHINESE_FRACTION.fullmatch(text)
    if mark or parts is None:
        value = read_numeral(text.removeprefix("百分之"))
        return None if value is None else Number(sign * value, mark)
    whole, below, above = (read_numeral(parts[name] or "零") for name in ("whole", "below", "above"))
    if whole is None or above is None or not below:
        return None
    return Number(sign * (whole + above / below))


def _spelled(value: Fraction) -> str:
    """12, -0.75, or 1/3 where decimals would not end."""
    rest = value.denominator
    places = 0
    while rest % 10 == 0 or rest % 2 == 0 or rest % 5 == 0:
        rest //= 10 if rest % 10 == 0 else 2 if rest % 2 == 0 else 5
        places += 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
