"""Rendered segments to token ids, by position: what a record wrote can spell no special token."""

from collections.abc import Callable, Sequence

import numpy as np

from twintune.converters.templates import Segment
from twintune.converters.tokenizer import Encoding, Span, Tokenizer
from twintune.errors import UserError


def encode_segments(
    segments: Sequence[Segment], tokenizer: Tokenizer, add_special_tokens: bool, split_special_tokens: bool = True
) -> Encoding:
    """Encode the joined text; special tokens that a record spells are plain text if `split_special_tokens`.

    Raises:
        UserError: if the tokenizer cannot keep them apart.
    """
    text = "".join([segment.text for segment in segments])
    if not split_special_tokens:
        return tokenizer.encode(text, add_special_tokens)
    words = stretches(segments, lambda segment: not segment.content)
    # The usual case: no record spells a special token, nor a part of one that the template's words complete.
    spans = tokenizer.special_spans(text)
    if all(_within(span, words) for span in spans):
        encoding = tokenizer.encode(text, add_special_tokens)
        if not _special_token_of_a_record(encoding, tokenizer, spans):
            return encoding
    spans = [
        (start + first, start + last)
        for start, end in words
        for first, last in tokenizer.special_spans(text[start:end])
    ]
    encoding = tokenizer.encode(text, add_special_tokens, spans)
    if found := _special_token_of_a_record(encoding, tokenizer, spans):
        raise UserError(
            f"a record's text must stay plain text, got {found!r}, which {tokenizer.source} can only read as a "
            "special token; remove it or set data.split_special_tokens to false"
        )
    return encoding


def stretches(segments: Sequence[Segment], wanted: Callable[[Segment], bool]) -> list[Span]:
    """Where the wanted segments stand in the joined text, neighbours as one."""
    found: list[Span] = []
    place = 0
    for segment in segments:
        end = place + len(segment.text)
        if wanted(segment):
            start = found.pop()[0] if found and found[-1][1] == place else place
            found.append((start, end))
        place = end
    return found


def _within(span: Span, stretches: Sequence[Span]) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in stretches)


def _special_token_of_a_record(encoding: Encoding, tokenizer: Tokenizer, spans: Sequence[Span]) -> str | None:
    """The text that became a special token where the template has none, as a normalizer can make of "＜/s＞".

    A token may be wider than its span: some swallow the whitespace beside them (lstrip, rstrip).
    """
    for place in np.flatnonzero(tokenizer.is_special[encoding.ids]):
        first, last = encoding.offsets[place].tolist()
        if first < last and not any(first <= start and end <= last for start, end in spans):
            return next(text for text, number in tokenizer.special_tokens.items() if number == encoding.ids[place])
    return None
