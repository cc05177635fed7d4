"""Chinese numerals, 一百二十三 and 三点五, as exact numbers."""

from fractions import Fraction

DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000}
MYRIADS = {"万": 10**4, "亿": 10**8}
CHARACTERS = "".join((*DIGITS, *UNITS, *MYRIADS))


def read_numeral(text: str) -> Fraction | None:
    """The number that Chinese numerals write, with 点 before decimals; None if they write none."""
    whole, point, decimals = text.partition("点")
    if point and not (decimals and all(character in DIGITS for character in decimals)):
        return None
    number = _whole(whole)
    if number is None:
        return None
    digits = "".join(str(DIGITS[character]) for character in decimals)
    return number + Fraction(int(digits or 0), 10 ** len(digits))


def _whole(text: str) -> Fraction | None:
    if not text or any(character not in CHARACTERS for character in text):
        return None
    for myriad in ("亿", "万"):
        above, found, below = text.rpartition(myriad)
        if found:
            return _joined(above, MYRIADS[myriad], below)
    if all(character in DIGITS for character in text):  # 二〇二四, digit by digit
        return Fraction(int("".join(str(DIGITS[character]) for character in text)))
    return _below_myriad(text)


def _joined(above: str, myriad: int, below: str) -> Fraction | None:
    high = _whole(above)
    if high is None:
        return None
    if len(below) == 1 and DIGITS.get(below):  # 三万五 is 35,000
        return high * myriad + DIGITS[below] * Fraction(myriad, 10)
    low = _whole(below) if below else Fraction(0)
    return None if low is None or low >= myriad else high * myriad + low


def _below_myriad(text: str) -> Fraction | None:
    total, digit, last = 0, None, 10**4
    for place, character in enumerate(text):
        if character in UNITS:
            unit = UNITS[character]
            if unit >= last or (digit is None and place and text[place - 1] not in "零〇"):
                return None
            total, digit, last = total + (1 if digit is None else digit) * unit, None, unit
        elif DIGITS[character] and digit is None:
            digit = DIGITS[character]
        elif DIGITS[character] or digit is not None:
            return None
    if digit is not None:
        after_unit = text[-2] in UNITS  # 一百二 is 120, 一百零二 is 102, 十二 is 12
        total += digit * (last // 10 if after_unit else 1)
    return Fraction(total)
