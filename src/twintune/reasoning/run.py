"""`twintune reason`: from a recipe to a contest file whose questions have their reasoning.

No question is lost: it is in the output, or in OUTPUT's .failed.jsonl with the reason. The same command again asks only
for what is missing, as every answer is in the cache from the moment it came.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from twintune.answer_sections import ReasoningSection
from twintune.artifacts import cache_folder, sha256_json
from twintune.errors import UserError
from twintune.reasoning.cache import AnswerCache
from twintune.reasoning.endpoint import open_endpoint
from twintune.reasoning.files import Filled, refuse_overwriting, write_filled
from twintune.reasoning.fill import Answerer, Outcome, Rule, ask_missing, look_up
from twintune.reasoning.local import open_local
from twintune.reasoning.questions import Prompt, read_questions
from twintune.recipe import Recipe


def run_reasoning(recipe: Recipe, output: Path | None) -> Filled:
    """Fill in the reasoning of a recipe's questions and write them to `output`, or to data.train's one file.

    Raises:
        UserError: for settings and files that break a rule, before anybody is asked; for an endpoint that would
            refuse every question; for a cache that is open elsewhere.
    """
    section = recipe.reasoning
    entries = section.input or tuple(file.path for file in recipe.data.train)
    place = _output(recipe, output)
    refuse_overwriting(place, entries)
    questions = read_questions(entries)
    who = {"model": _model(section)} | section.model_dump(include={"base_url", "temperature", "max_new_tokens"})
    rule = Rule(section.max_attempts, section.require_gold)
    with AnswerCache(cache_folder() / "reasoning" / f"{sha256_json(who)[:16]}.jsonl") as cache:
        outcomes = look_up(questions.asks, Prompt(section.prompt), cache, who, rule)
        if missing := sum(outcome.state == "missing" for outcome in outcomes):
            answerer = _answerer(recipe, len(cache))
            with _watched(missing) as settled:
                ask_missing(outcomes, answerer, cache, rule, settled)
    return write_filled(place, outcomes, questions.rejections)


def _output(recipe: Recipe, output: Path | None) -> Path:
    if output is not None:
        return output
    train = recipe.data.train
    if not recipe.reasoning.input or len(train) != 1:
        raise UserError(
            "command line: --output must be given, got nothing; or name the questions as reasoning.input, "
            "and as data.train the one file to write"
        )
    return Path(train[0].path)


def _model(section: ReasoningSection) -> str:
    if section.model is None:
        raise UserError(
            "recipe: reasoning.model must be given, got nothing; name the endpoint's model, or a local one "
            "where there is no reasoning.base_url"
        )
    return section.model


def _answerer(recipe: Recipe, drawn: int) -> Answerer:
    section = recipe.reasoning
    return open_local(recipe, drawn) if section.base_url is None else open_endpoint(section, section.base_url)


@contextmanager
def _watched(count: int) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on a terminal, and what tells it that a question is settled."""
    console = Console(stderr=True)
    failed = 0
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reasoning", total=count)

        def settled(outcome: Outcome) -> None:
            nonlocal failed
            failed += outcome.state == "failed"
            bar.update(task, advance=1, description=f"reasoning, {failed} failed" if failed else "reasoning")

        yield settled
