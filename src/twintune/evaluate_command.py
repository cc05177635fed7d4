"""`twintune evaluate`: how many questions the base and the tuned model answer correctly, on either backend or both."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from twintune.command_arguments import DeviceFlag, Overrides, RecipeFile, recipe_with

AskedBackend = Literal["auto", "cuda", "ascend", "both"]


def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter folder: it is scored beside its base.", show_default=False)
    ] = None,
    backend: Annotated[
        AskedBackend | None, typer.Option(help="both puts them side by side.", show_default="recipe's")
    ] = None,
    device: DeviceFlag = None,
    vote: Annotated[
        int | None,
        typer.Option(metavar="N", help="Answers to draw; the most frequent one wins.", show_default="recipe's"),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="For the answers and the report; one that was killed goes on.")
    ] = Path("evaluation"),
) -> None:
    """Score a model, and an adapter beside it, on questions with known answers.

    Answers that lie in the output folder already, from an earlier run or from another machine, stand beside.
    """
    from rich.console import Console

    from twintune.artifacts import RECIPE
    from twintune.evaluation.evaluate import evaluate_sides
    from twintune.evaluation.questions import read_questions
    from twintune.evaluation.report import difference_lines, make_report, score_table, write_report
    from twintune.evaluation.sides import decide_sides, other_sides

    flags = {"evaluate.vote": None if vote is None else str(vote), "backend.device": device}
    loaded = recipe_with(recipe, overrides, flags)
    questions = read_questions(loaded)
    sides = decide_sides(loaded, questions, adapter, backend or loaded.backend.name)
    print(f"questions: {len(questions.questions)}, from {questions.source}")
    for sentence in questions.left_out:
        print(f"left out: {sentence}")
    for side in sides:
        print(f"{side.name}: {side.device.value} ({side.device.reason}), {side.dtype.value} ({side.dtype.reason})")
    outcomes, others = other_sides(output_dir, sides, len(questions.questions))
    outcomes |= evaluate_sides(loaded, questions, sides, output_dir, lambda text: print(text, file=sys.stderr))
    report = make_report(questions, [*sides, *others], outcomes)
    console = Console(soft_wrap=True)
    console.print(score_table(report))
    for line in difference_lines(report):
        console.print(line, markup=False, highlight=False)
    loaded.save(output_dir / RECIPE)
    written = write_report(report, outcomes, output_dir)
    print(f"report: {', '.join(str(path) for path in written)}")
