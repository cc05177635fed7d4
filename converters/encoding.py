"""Rendered segments to token ids, by position: what a record wrote can spell no special token."""

from collections.abc import Callable, Sequence

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
    (encoding,) = encode_batch([segments], tokenizer, add_special_tokens, split_special_tokens)
    if isinstance(encoding, UserError):
        raise encoding
    return encoding


def encode_batch(
    batch: Sequence[Sequence[Segment]],
    tokenizer: Tokenizer,
    add_special_tokens: bool,
    split_special_tokens: bool = True,
) -> list[Encoding | UserError]:
    """Encode the joined texts of many conversations as encode_segments does one, errors in their places."""
    texts = ["".join([segment.text for segment in segments]) for segments in batch]
    encodings: list[Encoding | UserError] = list(tokenizer.encode_batch(texts, add_special_tokens))
    if not split_special_tokens:
        return encodings
    for number, (segments, text) in enumerate(zip(batch, texts, strict=True)):
        if not _is_as_meant(segments, text, encodings[number], tokenizer):
            encodings[number] = _encode_by_position(segments, text, tokenizer, add_special_tokens)
    return encodings


def _is_as_meant(segments: Sequence[Segment], text: str, encoding: Encoding | UserError, tokenizer: Tokenizer) -> bool:
    """The usual case: no record spells a special token, nor a part of one that the template's words complete."""
    words = stretches(segments, lambda segment: not segment.content)
    spans = tokenizer.special_spans(text)
    return (
        isinstance(encoding, Encoding)
        and all(_within(span, words) for span in spans)
        and not _special_token_of_a_record(encoding, tokenizer, spans)
    )


def _encode_by_position(
    segments: Sequence[Segment], text: str, tokenizer: Tokenizer, add_special_tokens: bool
) -> Encoding | UserError:
    """Special tokens are those that the template's own words spell."""
    words = stretches(segments, lambda segment: not segment.content)
    spans = [
        (start + first, start + last)
        for start, end in words
        for first, last in tokenizer.special_spans(text[start:end])
    ]
    try:
        encoding = tokenizer.encode(text, add_special_tokens, spans)
    except UserError as error:
        return error
    if found := _special_token_of_a_record(encoding, tokenizer, spans):
        return UserError(
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
    for place in tokenizer.is_special[encoding.ids].nonzero()[0]:
        first, last = encoding.offsets[place].tolist()
        if first < last and not any(first <= start and end <= last for start, end in spans):
            return next(text for text, number in tokenizer.special_tokens.items() if number == encoding.ids[place])
    return None
