"""One spelling for what solutions write in many: full-width signs, Markdown and LaTeX become plain text."""

import re
import unicodedata

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# A full-width comma separates and never groups digits, so that it must not become an ASCII one.
KEPT = {ord("，"): "，"}
SIGNS = {"−": "-", "﹣": "-", "‐": "-", "‑": "-", "–": "-", "—": "-", "﹪": "%", "∶": ":", "≈": "=", "≒": "=", "⁄": "/"}
SPACES = {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "\u200b": ""}
TABLE = str.maketrans({chr(code): chr(other) for code, other in FULL_WIDTH.items()} | SIGNS | SPACES) | KEPT

VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
COMMANDS = (
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r" ?\n[ \n]*"), "\n"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr|quad|qquad)(?![A-Za-z])"), ""),
    (re.compile(r"\\[,;:!]|\\ "), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(r"\\(?:approx|doteq)(?![A-Za-z])"), "="),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\\sqrt"), "√"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)"), "°"),
    (re.compile(r"\\?%"), "%"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"(?:\b(?:US|HK))?\\?\$"), ""),  # of LaTeX and of dollars: neither changes a number
    (re.compile(r"\*\*|`|(?<![A-Za-z\d])_+|_+(?![A-Za-z\d])"), ""),
)


def plain(text: str) -> str:
    r"""The text with one spelling for each sign; a LaTeX fraction becomes ((a)/(b)), as Math23K writes them.

    `\boxed{...}` stays, for it marks an answer.
    """
    text = VULGAR_FRACTION.sub(_vulgar_fraction, text.translate(TABLE))
    for pattern, plainer in COMMANDS:
        text = pattern.sub(plainer, text)
    before = ""
    while before != text and "\\" in text:  # from the innermost braces outwards
        before = text
        text = FRACTION.sub(_fraction, WRAPPERS.sub(r"\1", text))
    return text


def _vulgar_fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return f"(({above})/({below}))"


def _fraction(match: re.Match[str]) -> str:
    above, below = match.group(1) or match.group(2) or "", match.group(3) or match.group(4) or ""
    return f"(({above.strip()})/({below.strip()}))"
