"""How numbers are written in solutions, and what has digits and is no single number."""

import re

from twintune.evaluation.numerals import CHARACTERS, DIGITS

GAP = r"[ \t]*"
INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{INTEGER}(?:\.\d+)?|\.\d+)"
STACKED = rf"\(\({GAP}{DECIMAL}{GAP}\)/\({GAP}{DECIMAL}{GAP}\)\)"  # of LaTeX and of Math23K
SCALES = {
    "万亿": 10**12,
    "亿": 10**8,
    "千万": 10**7,
    "百万": 10**6,
    "十万": 10**5,
    "万": 10**4,
    "千": 10**3,
    "百": 10**2,
    " hundred": 10**2,
    " thousand": 10**3,
    " million": 10**6,
    " billion": 10**9,
    " trillion": 10**12,
}
SCALE = rf"{GAP}(?:万亿|亿|千万|百万|十万|万|千(?![米克瓦卡焦帕])|百|(?:hundred|thousand|million|billion|trillion)\b)"
PERCENT = rf"{GAP}(?:%|percent\b|per cent\b)"
# A minus belongs to the number unless a digit or a word stands before it: 5-3 is a calculation, mid-5 a name.
SIGN = r"(?:(?<![\dA-Za-z)\]}%])[-+](?=[\d.(¥€£￥])|负\s*|\bnegative\s+|\bminus\s+)?"
MIXED = (
    rf"(?:\d+{GAP}{STACKED}|\d+(?:[ \t]+|{GAP}(?:又|and){GAP})\d+{GAP}/{GAP}\d+"
    rf"|\d+{GAP}又{GAP}\d+{GAP}分之{GAP}\d+)"
)
FRACTION = (
    rf"(?:{STACKED}|百分之{GAP}{DECIMAL}|\d+{GAP}分之{GAP}\d+|{DECIMAL}{GAP}/{GAP}{DECIMAL}(?![/\d])|\d+:\d+(?![:\d]))"
)
COMPOUND = r"(?<![A-Za-z\d_.])\d+(?:\.\d+)?[亿万](?:(?:\d+(?:[万百]|千(?![米克])))+\d*|\d{3,8})"  # 3万5千, 1亿2000万
BEFORE = r"(?:(?<![A-Za-z\d_.,])|(?<=RMB)|(?<=USD)|(?<=CNY))"
NUMBER = rf"{BEFORE}{SIGN}[¥€£￥]?{GAP}(?:{MIXED}|{FRACTION}(?:{PERCENT})?|{DECIMAL}(?:{PERCENT}|{SCALE})?)"

MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
DATE = (
    rf"\d{{4}}{GAP}(?P<dash>[-/.]){GAP}\d{{1,2}}{GAP}(?P=dash){GAP}\d{{1,2}}(?!\d)|\d{{1,2}}/\d{{1,2}}/\d{{2,4}}(?!\d)"
    rf"|(?:\d{{4}}{GAP}年{GAP})?\d{{1,2}}{GAP}月(?:{GAP}\d{{1,2}}{GAP}[日号]|份)|\d{{4}}{GAP}年{GAP}\d{{1,2}}{GAP}月"
    rf"|\b{MONTH}[ ]\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?[ ]\d{{4}})?|\d{{1,2}}(?:st|nd|rd|th)?[ ](?:of[ ])?{MONTH}\b"
)
TIME = (
    r"\d{1,2}:[0-5]\d(?::[0-5]\d)?(?!\d)(?:[ ]?[ap]\.?m\b\.?)?|\d{1,2}[ ]?[ap]\.?m\b\.?|\d{1,2}[ ]?o'clock"
    r"|\d{1,2}[ ]?[点时][ ]?(?:\d{1,2}[ ]?分|半|整|钟)|\d{1,2}点(?!\d)"
)
UNIT = r"[^\W\d_]{0,3}"  # between the ends of a range: 5元到7元
RANGE = (
    rf"{DECIMAL}%?{UNIT}{GAP}(?:~|至|到|或者?|\bto\b|\bor\b){GAP}[¥€£￥]?{DECIMAL}%?"
    rf"|\bbetween[ ]{DECIMAL}%?[ ]and[ ]{DECIMAL}|介于{GAP}{DECIMAL}{UNIT}[和与]{GAP}{DECIMAL}"
)
TERM = rf"(?:{MIXED}|{FRACTION}|{DECIMAL})%?"
OPERATOR = rf"(?:{GAP}[-+×÷*^]{GAP}|[ ]+/[ ]+|[ ]+x[ ]+|x(?=\d)|[ ]+(?:plus|minus|times)[ ]+)"
CALCULATION = rf"{TERM}(?:{OPERATOR}\(?[-¥€£￥]?{TERM})+"
IRRATIONAL = rf"{DECIMAL}{GAP}[π√]|√{GAP}[({{]?{GAP}{DECIMAL}|{DECIMAL}[xyz](?![A-Za-z\d])"
EXPONENT = rf"\^{GAP}\{{?{GAP}-?\d+\}}?"
ENUMERATION = r"^[ \t]*(?:\(?\d{1,2}[.)、](?!\d)[ \t]*(?=\S)|(?:Step|步骤)[ \t]*\d+|第\d+步)"
NO_NUMBER = "|".join((ENUMERATION, DATE, TIME, RANGE, CALCULATION, IRRATIONAL, EXPONENT))

# In this order: what is no number is told first, or 10 would be read out of 10:30.
MENTION = re.compile(
    rf"(?P<compound>{COMPOUND})|(?P<nothing>{NO_NUMBER})|(?P<number>{NUMBER})", re.IGNORECASE | re.MULTILINE
)

PLACES = "".join(DIGITS)
NUMERAL = rf"[{PLACES}十][{CHARACTERS}]*(?:点[{PLACES}]+)?"
CHINESE = re.compile(
    rf"(?P<nothing>[{PLACES}十]{{1,3}}点(?:[{PLACES}十]{{1,3}}分|半|整|钟)|{NUMERAL}[到至或]{NUMERAL}"
    rf"|[一]?[三四五六七八九]+(?:角形|边形)|万一|十分(?=[^之钟米])|[周期第统唯][{PLACES}十]"
    r"|一[共样起定些般直下旦致律切边方会向]|[同逐万]一)"
    rf"|(?P<number>负?(?:百分之{NUMERAL}|(?:{NUMERAL}又)?{NUMERAL}分之{NUMERAL}|{NUMERAL}))"
)
