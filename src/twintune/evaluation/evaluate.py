"""An evaluation: every side answers every question, each answer is kept at once, and a report is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from twintune.chat import recipe_sampling
from twintune.errors import UserError
from twintune.evaluation.answer_log import Outcome, append, begin_log, log_path, resume_log
from twintune.evaluation.answers import final_answer, same_answer
from twintune.evaluation.questions import EvaluationQuestion, Questions
from twintune.evaluation.sides import Side, load_side
from twintune.recipe import Recipe
from twintune.voting import Answerer, Vote, derived_seed, vote

Status = Callable[[str], None]
BATCHES_TOGETHER = 4  # asked at once, so that the next question takes the place of one that is answered


@dataclass(frozen=True)
class Batch:
    """Consecutive questions of one kind that are asked together; a kill loses no more."""

    number: int
    first: int  # number of its first question, from 0
    questions: Sequence[EvaluationQuestion]


def evaluate_sides(
    recipe: Recipe, questions: Questions, sides: Sequence[Side], output_dir: Path, status: Status
) -> dict[str, list[Outcome]]:
    """Answer every question with every side; what the folder's logs have already is not asked again.

    Args:
        recipe: with its sampling, votes and retries.
        questions: what is asked.
        sides: who answers.
        output_dir: gets answers-NAME.jsonl for each side; it may hold those of an evaluation that was killed.
        status: is told in a sentence what goes on.

    Returns:
        the outcomes by name of the side, one for each question.

    Raises:
        UserError: for a log that was begun with other settings, and what loading and answering raise.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / ".lock", timeout=0):
            begun = {side.name: _earlier(side, output_dir) for side in sides}
            return {side.name: _answer(side, recipe, questions, begun[side.name], output_dir, status) for side in sides}
    except Timeout:
        raise UserError(
            f"{output_dir}: --output-dir must be a folder that no other process evaluates into, got one in use"
        ) from None


def _earlier(side: Side, output_dir: Path) -> list[Outcome]:
    path = log_path(output_dir, side.name)
    return resume_log(path, side.settings) if path.exists() else []


def _answer(
    side: Side, recipe: Recipe, questions: Questions, outcomes: list[Outcome], output_dir: Path, status: Status
) -> list[Outcome]:
    total, path = len(questions.questions), log_path(output_dir, side.name)
    if len(outcomes) == total:
        return outcomes
    if outcomes:
        status(f"{side.name}: goes on after {len(outcomes)} of {total} answers")
    status(f"{side.name}: loading")
    chat = load_side(side, recipe)
    if not path.exists():
        begin_log(path, side.settings)
    for batch in _batches(questions.questions, BATCHES_TOGETHER * recipe.train.per_device_eval_batch_size):
        if batch.first + len(batch.questions) <= len(outcomes):
            continue
        # A batch that a kill tore is asked again as a whole, so that every draw is what it would have been.
        new = _ask(chat, batch, recipe)[max(0, len(outcomes) - batch.first) :]
        append(path, new)
        outcomes += new
        correct = sum(outcome.correct for outcome in outcomes)
        status(f"{side.name}: {len(outcomes)} of {total} answered, {correct} correct")
    return outcomes


def _batches(questions: Sequence[EvaluationQuestion], size: int) -> Iterator[Batch]:
    number = first = 0
    for _, group in groupby(questions, key=lambda question: question.kind):
        alike = list(group)
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            yield Batch(number, first, batch)
            number, first = number + 1, first + len(batch)


def _ask(chat: Answerer, batch: Batch, recipe: Recipe) -> list[Outcome]:
    kind = batch.questions[0].kind
    sampling = recipe_sampling(recipe.generate)
    votes = vote(
        chat,
        [question.messages for question in batch.questions],
        recipe.evaluate.vote,
        replace(sampling, seed=derived_seed(sampling.seed, 0, batch.number)),
        lambda text: final_answer(text, kind),
        recipe.evaluate.retries,
    )
    numbered = enumerate(zip(batch.questions, votes, strict=True), batch.first + 1)
    return [_outcome(number, question, cast) for number, (question, cast) in numbered]


def _outcome(number: int, question: EvaluationQuestion, cast: Vote) -> Outcome:
    return Outcome(
        number,
        question.file,
        question.row,
        question.kind,
        question.messages[-1].text,
        question.gold,
        cast.answer,
        cast.answer is not None and same_answer(cast.answer, question.gold),
        cast.distribution,
        cast.none,
        cast.attempts,
        cast.texts,
    )
