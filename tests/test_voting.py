"""Votes over texts that a scripted answerer gives, and over a tiny model's."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from twintune.answering import check_votes
from twintune.chat import Question
from twintune.errors import UserError
from twintune.evaluation.answers import final_answer
from twintune.sampling import Sampling
from twintune.voting import Vote, derived_seed, vote

DRAWN = Sampling(max_new_tokens=8, temperature=0.7, seed=5)


@dataclass
class Script:
    """Gives written texts: for each question a list, of which every attempt takes the next ones."""

    texts: dict[str, list[str]]
    asked: list[tuple[list[Question], Sampling]] = field(default_factory=list)

    def answer(self, questions: Sequence[Question], sampling: Sampling) -> list[list[str]]:
        self.asked.append((list(questions), sampling))
        each = sampling.num_return_sequences
        return [[self.texts[str(question)].pop(0) for _ in range(each)] for question in questions]


def test_the_most_frequent_answer_counts_and_the_distribution_is_told() -> None:
    script = Script({"q": ["答案是:3", "答案是：４", "答案是:３", "不知道", "3"]})
    (cast,) = vote(script, ["q"], 5, DRAWN, final_answer, 0)
    assert (cast.answer, cast.distribution, cast.none, cast.attempts) == ("3", {"3": 3, "4": 1}, 1, 1)
    assert cast.tied == ()
    assert str(cast) == "3 x 3, 4 x 1, no answer x 1"
    assert script.asked[0][1].num_return_sequences == 5
    assert script.asked[0][1].seed == DRAWN.seed


def test_ties_go_to_the_answer_seen_first_and_are_told() -> None:
    (cast,) = vote(Script({"q": ["9", "4", "4", "9", "1"]}), ["q"], 5, DRAWN, final_answer, 0)
    assert cast.answer == "9"
    assert cast.tied == ("9", "4")
    assert str(cast).endswith("; tied: 9, 4, the first one counts")


def test_only_questions_without_any_answer_are_asked_again_with_new_seeds() -> None:
    script = Script({"a": ["1", "none"], "b": ["none", "none", "none", "none", "2", "none"], "c": ["none"] * 6})
    a, b, c = vote(script, ["a", "b", "c"], 2, DRAWN, final_answer, 2)
    assert [questions for questions, _ in script.asked] == [["a", "b", "c"], ["b", "c"], ["b", "c"]]
    assert len({sampling.seed for _, sampling in script.asked}) == 3
    assert (a.answer, a.attempts, a.none) == ("1", 1, 1)
    assert (b.answer, b.attempts, b.none, len(b.texts)) == ("2", 3, 5, 6)
    assert (c.answer, c.attempts, c.none, c.distribution) == (None, 3, 6, {})
    assert str(c) == "no answer x 6; asked 3 times"


def test_seeds_are_told_apart_and_the_first_is_the_users_own() -> None:
    assert derived_seed(7, 0) == derived_seed(7, 0, 0) == 7
    seeds = [derived_seed(seed, *numbers) for seed in (0, 7) for numbers in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 1))]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("samples", "retries", "temperature", "sentence"),
    [
        (0, 0, 0.7, r"evaluate\.vote \(--vote\) must be at least 1, got 0"),
        (3, -1, 0.7, r"evaluate\.retries \(--retries\) must be 0 or above, got -1"),
        (3, 0, 0.0, r"generate\.temperature must be above 0 to draw 3 answers with 0 retries, got 0"),
        (1, 2, 0.0, r"generate\.temperature must be above 0 to draw 1 answers with 2 retries, got 0"),
    ],
)
def test_what_would_draw_the_same_again_is_refused(
    samples: int, retries: int, temperature: float, sentence: str
) -> None:
    script = Script({"q": ["1"] * 9})
    with pytest.raises(UserError, match=sentence):
        vote(script, ["q"], samples, Sampling(8, temperature=temperature), final_answer, retries)
    assert not script.asked


def test_one_greedy_text_is_a_vote_too() -> None:
    (cast,) = vote(Script({"q": ["7"]}), ["q"], 1, Sampling(8), final_answer, 0)
    assert cast == Vote("7", {"7": 1}, 0, 1, ("7",))


def test_flags_of_generate_that_do_not_go_with_votes_are_refused() -> None:
    with pytest.raises(UserError, match="--retries must come with --vote, got 2 without it"):
        check_votes(None, 2, Sampling(4))
    with pytest.raises(UserError, match="--num-return-sequences must be left out with --vote"):
        check_votes(3, 0, Sampling(4, temperature=1.0, num_return_sequences=2))
    with pytest.raises(UserError, match="temperature must be above 0"):
        check_votes(3, 0, Sampling(4))
