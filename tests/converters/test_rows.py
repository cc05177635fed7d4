import re
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_tokenizers import CHATML_SPECIAL, save_chatml_tokenizer
from twintune.converters.conversation import Conversation, Message
from twintune.converters.rows import IGNORED, TooLong, make_row
from twintune.converters.templates import Segment, load_template
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError

TALK = Conversation("talk", (Message("human", "How many clips?"), Message("assistant", "由题目可知：48 clips")))


@pytest.mark.parametrize("folder", ["tiny_tokenizer_folder", "tiny_sentencepiece_folder", "tiny_fast_twin_folder"])
def test_row_is_the_tokenizer_run_on_the_text_with_answer_and_closing_trained(
    request: pytest.FixtureRequest, folder: str
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(folder))
    template = load_template("tokenizer" if tokenizer.chat_template else "vicuna_v1.1", tokenizer)
    segments = template.segments(TALK)
    row = make_row(segments, tokenizer, template.add_special_tokens, 512)
    text = "".join(segment.text for segment in segments)
    assert row.input_ids.tolist() == tokenizer.encode(text, template.add_special_tokens).ids.tolist()
    assert row.input_ids.dtype == row.labels.dtype == np.int32
    learned = row.labels[row.labels != IGNORED]
    assert tokenizer.decode(learned.tolist()).strip() == TALK.messages[1].text
    assert learned[-1] == template.stop_token_id
    assert np.array_equal(learned, row.input_ids[row.labels != IGNORED])
    assert row.trained_tokens == len(learned)
    assert not row.cut


def test_token_that_straddles_the_start_of_an_answer_is_trained(tiny_sentencepiece_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_sentencepiece_folder)
    text = "What is 3 plus 4? The answer is 7."
    start = text.index("answer")
    encoding = tokenizer.encode(text, False)
    straddling = [number for number, (first, last) in enumerate(encoding.offsets) if first < start < last]
    assert len(straddling) == 1  # "▁an" or longer: otherwise this test shows nothing
    row = make_row([Segment(text[:start], False), Segment(text[start:], True)], tokenizer, False, 512)
    assert np.flatnonzero(row.labels != IGNORED)[0] == straddling[0]


def test_long_row_loses_its_end_and_says_so(tiny_tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    segments = load_template("tokenizer", tokenizer).segments(TALK)
    whole = make_row(segments, tokenizer, False, 512)
    short = make_row(segments, tokenizer, False, len(whole.input_ids) - 3)
    assert short.cut
    assert np.array_equal(short.input_ids, whole.input_ids[:-3])
    assert np.array_equal(short.labels, whole.labels[:-3])


def test_a_long_row_loses_its_start_but_for_the_bos(tiny_sentencepiece_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_sentencepiece_folder)
    template = load_template("vicuna_v1.1", tokenizer)
    segments = template.segments(TALK)
    whole = make_row(segments, tokenizer, True, 512)
    short = make_row(segments, tokenizer, True, len(whole.input_ids) - 3, "left")
    assert short.cut
    assert short.input_ids.tolist() == [tokenizer.bos_token_id, *whole.input_ids[4:].tolist()]
    assert short.labels.tolist() == [IGNORED, *whole.labels[4:].tolist()]
    without_bos = make_row(segments, tokenizer, False, len(whole.input_ids) - 4, "left")
    assert np.array_equal(without_bos.input_ids, whole.input_ids[4:])


def test_a_long_row_is_refused_where_the_recipe_says_delete(tiny_tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    segments = load_template("tokenizer", tokenizer).segments(TALK)
    length = len(make_row(segments, tokenizer, False, 512, "delete").input_ids)
    assert not make_row(segments, tokenizer, False, length, "delete").cut
    with pytest.raises(TooLong, match=f"at most data.cutoff_len {length - 1} tokens, got {length}"):
        make_row(segments, tokenizer, False, length - 1, "delete")


def test_row_without_anything_to_train_is_refused(tiny_tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    segments = load_template("tokenizer", tokenizer).segments(TALK)
    with pytest.raises(UserError, match=r"at least one token must be trained, got none.*raise data\.cutoff_len"):
        make_row(segments, tokenizer, False, 8)


def test_pad_in_a_row_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path), pad_token=CHATML_SPECIAL[1])
    segments = load_template("tokenizer", tokenizer).segments(TALK)
    message = "pad token must not occur in a row.*got '<|im_start|>' at token 1; .*model.pad_token"
    with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*")):
        make_row(segments, tokenizer, False, 512)
