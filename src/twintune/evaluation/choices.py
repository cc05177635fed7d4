"""The letter that a text chooses, A to E."""

import re

LETTER = r"(?<![A-Za-z])([A-E])(?![A-Za-z'])"
# Bounded, or a model that loops (选选选...) would take the time of the cube of its text.
OPENING = r"[\s\"'“”‘’(\[【{*:是为选项]{0,8}(?:options?\s+|choices?\s+)?[\s\"'“”(\[【{]{0,4}"
MARKED = re.compile(
    r"(?:\\boxed\s*\{|####|【答案】"
    r"|(?:answer|choice|option)[\"']?\s*(?:is|would be|should be|must be|[:=])"
    r"|答案(?:应该|应|就)?\s*(?:是|为|选|[:=】])|答\s*:"
    rf"|(?:故|应|应该|因此|所以|正确|我)?选(?:择|项)?(?:的是)?|choose|select|pick){OPENING}{LETTER}",
    re.IGNORECASE,
)
JUDGED = re.compile(
    rf"{LETTER}\s*[)）】]?\s*(?:项|选项)?\s*(?:is\s+(?:the\s+)?(?:correct|right)|是?(?:正确|对)的?(?!吗))"
)
ALONE = re.compile(rf"\s*[(\[【]?\s*{LETTER}\s*(?:[)\].、:】]|$)", re.MULTILINE)
BRACKETED = re.compile(r"\(([A-E])\)")
# A second letter beside the first: the text does not decide.
ANOTHER = re.compile(r"[)\]】\s]*(?:[,、，/&和与或及]|and\b|or\b)[\s(\[【]*[A-E](?![A-Za-z])", re.IGNORECASE)


def marked_letters(text: str) -> str:
    """The letters behind the last marker of plain text that has one behind it: `B`, `AC`, or nothing."""
    for match in reversed(list(MARKED.finditer(text))):
        letter = match.group(1)
        if letter.islower() and not re.match(r"\s*(?:[)\].,。，}]|$)", text[match.end() :]):
            continue  # the article in "the answer is a bird"
        other = ANOTHER.match(text, match.end())
        return letter.upper() + (other.group()[-1].upper() if other else "")
    return ""


def choose(text: str) -> str | None:
    r"""The letter that plain text chooses, or None if it names none, or several.

    It is the one behind the last marker (答案是, 故选, "Answer:", `\boxed`), else one judged right, else one that
    the text opens with, else the last one in brackets.
    """
    if letters := marked_letters(text):
        return letters if len(letters) == 1 else None
    if judged := JUDGED.findall(text):
        return str(judged[-1])
    if (alone := ALONE.match(text)) and not ANOTHER.match(text, alone.end(1)):
        return alone.group(1)
    if bracketed := BRACKETED.findall(text):
        return str(bracketed[-1])
    return None
