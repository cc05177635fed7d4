"""The text generator: draws, streaming, stop strings, and rows that come, go and do not mix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twintune.errors import UserError
from twintune.generation import TextGenerator
from twintune.sampling import Sampling, probabilities

END = 256
VOCABULARY = 257
LLAMA_TOKENIZER = Path(__file__).parents[1].parent / "shared/data/tokenizers/llama2/tokenizer.model"


class Utf8:
    """A byte-level tokenizer's decoder."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class Script:
    """A model that says a given text after each prompt, the prompt's only token being the text's number."""

    def __init__(self, *texts: Sequence[int], vocabulary: int = VOCABULARY) -> None:
        self.texts = texts
        self.vocabulary = vocabulary
        self.steps = 0
        self.begun: list[tuple[list[int], list[int]]] = []  # places and the lengths of their prompts

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        raise NotImplementedError

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        self.rows = [self.texts[prompt[0]] for prompt in prompts]
        self.said = [0] * len(prompts)
        self._begin(range(len(prompts)), prompts)
        return self._say()

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        assert tokens.shape == (len(self.rows),)
        self.steps += 1
        self.said = [said + 1 for said in self.said]
        return self._say()

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        for place, prompt in zip(places, prompts, strict=True):
            self.rows[place], self.said[place] = self.texts[prompt[0]], 0
        self._begin(places, prompts)
        return self._say()[list(places)]

    def _begin(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        self.begun.append((list(places), [len(prompt) for prompt in prompts]))

    def _say(self) -> NDArray[np.float32]:
        logits = np.zeros((len(self.rows), self.vocabulary), np.float32)
        for row, (text, said) in enumerate(zip(self.rows, self.said, strict=True)):
            logits[row, text[said] if said < len(text) else END] = 1
        return logits


class Chain:
    """A model whose logits depend on a row's tokens so far, and on nothing beside it in the batch."""

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        raise NotImplementedError

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        self.rows = [list(prompt) for prompt in prompts]
        return self._next()

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))
        return self._next()

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        for place, prompt in zip(places, prompts, strict=True):
            self.rows[place] = list(prompt)
        return self._next()[list(places)]

    def _next(self) -> NDArray[np.float32]:
        return np.stack([np.random.default_rng(row).normal(0, 2, 64).astype(np.float32) for row in self.rows])


def random_logits(seed: int, size: int = 200) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


def test_draws_follow_the_probabilities() -> None:
    logits = random_logits(0, size=8)
    sampling = Sampling(1, temperature=1.3, top_k=5, num_return_sequences=4000)
    model = Script([0])
    model._say = lambda: np.tile(logits, (len(model.rows), 1))  # type: ignore[method-assign]
    drawn = TextGenerator(model, Utf8(), [END], batch_size=500).generate_ids([[0]], sampling)
    counts = Counter(token for (token,) in drawn)
    share = np.array([counts[token] / 4000 for token in range(8)])
    expected = probabilities(logits, sampling)
    assert np.abs(share - expected).max() < 0.04  # five standard deviations of a share of 4000 draws
    assert set(counts) == set(np.flatnonzero(expected))


def test_a_text_does_not_depend_on_its_batch() -> None:
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    sampling = Sampling(12, 1.0, 0.95, num_return_sequences=3, seed=7, repetition_penalty=1.2, min_new_tokens=2)
    texts = {size: TextGenerator(Chain(), Utf8(), [0, 1], size).generate(prompts, sampling) for size in (1, 4, 99)}
    assert texts[1] == texts[4] == texts[99]
    assert [len(group) for group in texts[1]] == [3] * 5
    assert len({text for group in texts[1] for text in group}) == 15
    other = TextGenerator(Chain(), Utf8(), [0, 1]).generate(prompts, replace(sampling, seed=8))
    assert other != texts[1]


def test_the_longest_prompts_begin_and_others_take_the_places_of_texts_that_ended() -> None:
    model = Script(b"abc", b"a", b"", b"abcdef", b"ab")
    prompts = [[number] * length for number, length in enumerate([2, 9, 4, 7, 4])]
    texts = TextGenerator(model, Utf8(), [END], batch_size=2).generate(prompts, Sampling(6))
    assert texts == [["abc"], ["a"], [""], ["abcdef"], ["ab"]]
    # "a" ends at its second token, the empty text at its first; then "ab" runs beside "abcdef", and "abc" to the end.
    assert model.begun == [([0, 1], [9, 7]), ([0], [4]), ([0], [4]), ([0], [2])]
    assert model.steps == 1 + 2 + 3


def test_more_places_than_prompts_and_no_prompts_at_all() -> None:
    model = Script(b"a")
    assert TextGenerator(model, Utf8(), [END], batch_size=9).generate([[0]], Sampling(6)) == [["a"]]
    assert model.begun == [([0], [1])]
    assert TextGenerator(model, Utf8(), [END]).generate([], Sampling(6)) == []
    assert len(model.begun) == 1


def test_no_text_is_shorter_than_min_new_tokens() -> None:
    prompts = [[number] for number in range(20)]
    closing = list(range(3, 40))  # of 64 tokens: most texts end at once
    free = TextGenerator(Chain(), Utf8(), closing).generate_ids(prompts, Sampling(12))
    held = TextGenerator(Chain(), Utf8(), closing).generate_ids(prompts, Sampling(12, min_new_tokens=5))
    assert min(map(len, free)) == 0
    assert min(map(len, held)) == 5
    assert [one for one in free if len(one) >= 5] == [new for old, new in zip(free, held, strict=True) if len(old) >= 5]


def test_greedy_text_is_the_likeliest() -> None:
    model = Chain()
    (ids,) = TextGenerator(model, Utf8(), []).generate_ids([[3, 4]], Sampling(5))
    row = [3, 4]
    for token in ids:
        assert token == np.random.default_rng(row).normal(0, 2, 64).argmax()
        row.append(token)
    assert len(ids) == 5


def test_a_vanishing_temperature_is_greedy() -> None:
    prompts = [[1, 2], [3]]
    generator = TextGenerator(Chain(), Utf8(), [])
    assert generator.generate(prompts, Sampling(9, temperature=1e-4)) == generator.generate(prompts, Sampling(9))


def test_the_closing_token_ends_a_text_and_is_not_in_it() -> None:
    model = Script(b"one", [], b"three\x00after")
    generator = TextGenerator(model, Utf8(), [END, 0])
    assert generator.generate([[0], [1], [2]], Sampling(50)) == [["one"], [""], ["three"]]
    assert model.steps == 5  # the longest text and its end; no step for what nobody reads


def test_a_text_is_cut_at_max_new_tokens() -> None:
    model = Script(b"a long text", b"short")
    assert TextGenerator(model, Utf8(), [END]).generate([[0], [1]], Sampling(6)) == [["a long"], ["short"]]
    assert model.steps == 5


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_streaming_never_shows_half_a_character(batch_size: int) -> None:
    texts = ["题目：小华 has 3 🍎", "naïve ☕", "", "plain"]
    shown: dict[int, list[str]] = {}
    model = Script(*(text.encode() for text in texts))
    result = TextGenerator(model, Utf8(), [END], batch_size).generate(
        [[0], [1], [2], [3]], Sampling(60), lambda row, piece: shown.setdefault(row, []).append(piece)
    )
    assert result == [[text] for text in texts]
    assert shown == {row: list(text) for row, text in enumerate(texts) if text}


def test_a_character_cut_by_the_end_is_shown_at_the_end() -> None:
    shown: list[str] = []
    model = Script("好🍎".encode())
    result = TextGenerator(model, Utf8(), [END]).generate([[0]], Sampling(5), lambda _, piece: shown.append(piece))
    assert result == [["好\N{REPLACEMENT CHARACTER}"]]
    assert shown == ["好", "\N{REPLACEMENT CHARACTER}"]


def test_streaming_with_the_llama_tokenizer() -> None:
    if not LLAMA_TOKENIZER.is_file():
        pytest.skip(f"{LLAMA_TOKENIZER} is not here")
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(LLAMA_TOKENIZER))

    class Pieces:
        def decode(self, ids: Sequence[int]) -> str:
            return str(pieces.decode(list(ids)))

    text = "题目：小华手里有 3 apples 🍎, naïve 鱻 text"
    model = Script(pieces.encode(text), vocabulary=pieces.vocab_size())
    shown: list[str] = []
    result = TextGenerator(model, Pieces(), [END]).generate([[0]], Sampling(90), lambda _, piece: shown.append(piece))
    assert result == [[text]]
    assert "".join(shown) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


@pytest.mark.parametrize("stop_text", ["### End", "\n\n", "。"])
def test_a_stop_text_ends_a_text_and_is_never_shown(stop_text: str) -> None:
    texts = [f"one ## two #\n{stop_text} three", f"{stop_text}x", "no end ###\n", f"数{stop_text[:-1]}"]
    shown: dict[int, str] = {}
    model = Script(*(text.encode() for text in texts))
    generator = TextGenerator(model, Utf8(), [END], 3, stop_text)
    prompts = [[0], [1], [2], [3]]
    result = generator.generate(
        prompts, Sampling(60), lambda row, piece: shown.update({row: shown.get(row, "") + piece})
    )
    expected = [text.split(stop_text)[0] for text in texts]
    assert result == [[text] for text in expected]
    assert shown == {row: text for row, text in enumerate(expected) if text}
    assert generator.generate_ids(prompts, Sampling(60)) == [list(text.encode()) for text in expected]


@pytest.mark.parametrize("stop_text", [None, "###", "d"])
def test_the_first_of_several_stop_strings_ends_a_text(stop_text: str | None) -> None:
    texts = ["abcdefgh", "ab###cd", "efabg", "xy#z", "bc\nd"]
    model = Script(*(text.encode() for text in texts))
    shown: dict[int, str] = {}
    result = TextGenerator(model, Utf8(), [END], 2, stop_text).generate(
        [[number] for number in range(5)],
        Sampling(60, stop_strings=("efg", "\n", "bg", "z!")),
        lambda row, piece: shown.update({row: shown.get(row, "") + piece}),
    )
    ends = ["efg", "\n", "bg", *([] if stop_text is None else [stop_text])]
    expected = [min((text.split(end)[0] for end in ends), key=len) for text in texts]
    assert result == [[text] for text in expected]
    assert shown == {row: text for row, text in enumerate(expected) if text}


def test_a_token_that_straddles_the_stop_text_is_kept_as_a_token_and_cut_as_a_text() -> None:
    class Pairs:
        def decode(self, ids: Sequence[int]) -> str:
            return "".join(["ab", "c#", "##"][number] for number in ids)

    generator = TextGenerator(Script([0, 1, 2, 0]), Pairs(), [END], stop_text="###")
    assert generator.generate([[0]], Sampling(9)) == [["abc"]]
    assert generator.generate_ids([[0]], Sampling(9)) == [[0, 1]]


def test_rows_are_numbered_by_prompt_then_sequence() -> None:
    shown: dict[int, str] = {}
    texts = TextGenerator(Chain(), Utf8(), [], batch_size=4).generate(
        [[1], [2], [3]],
        Sampling(6, temperature=1.0, num_return_sequences=2),
        lambda row, piece: shown.update({row: shown.get(row, "") + piece}),
    )
    assert [shown[row] for row in range(6)] == [text for group in texts for text in group]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="prompt 2: it must have at least one token"):
        TextGenerator(Chain(), Utf8(), []).generate([[1], []], Sampling(3))


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = Script(b"abc", b"abc")
    model._say = lambda: np.full((2, VOCABULARY), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="prompt 1: logits must be numbers, got NaN after 0 new tokens"):
        TextGenerator(model, Utf8(), [END]).generate([[0], [1]], Sampling(3))
