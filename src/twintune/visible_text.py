"""Text from elsewhere, made safe to show: a terminal, an XML file and a page get no character that acts on them."""

import unicodedata


def visible(text: str) -> str:
    r"""Spell out every character that has no picture, but newline and tab.

    C0 control characters become their Unicode control pictures (an escape is `␛`); other controls, marks that
    turn the direction of text, and lone surrogates, which UTF-8 cannot hold, become their number (`\u202e`).
    """
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else _visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    # Cf holds the direction marks, Cn the two numbers that XML forbids (U+FFFE, U+FFFF), Zl and Zp break lines.
    if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp"):
        return f"\\u{code:04x}"
    return character
