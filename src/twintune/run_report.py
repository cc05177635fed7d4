"""report.md and report.html of one run: what was trained, what it learned, what it cost."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twintune.artifacts import MANIFEST, RECIPE, new_file
from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError
from twintune.html_page import render_page
from twintune.markdown import block, escape, markdown_table
from twintune.recipe import Recipe, load_recipe
from twintune.run_cost import cost_rows
from twintune.run_curve import CURVE, best_evaluation, draw_run
from twintune.run_log import EVALUATIONS, LOG, read_costs, read_evaluations, read_steps
from twintune.run_record import FINISHED, RunRecord, read_record
from twintune.run_samples import find_answers

MARKDOWN = "report.md"
HTML = "report.html"
PAGE = Path(__file__).with_name("run_report.html.jinja")


@dataclass(frozen=True)
class Table:
    """One part of a report.

    Attributes:
        title: its heading.
        headers: of the columns.
        rows: cells; none shows the note alone.
        note: a sentence before the table; empty without one.
        figures: whether all columns hold numbers.
        marked: the row that is the best one; None without one.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    figures: bool = False
    marked: int | None = None


@dataclass(frozen=True)
class RunReport:
    """All that is told of a run, in the order of the report.

    Attributes:
        name: its heading.
        summary: the run in a sentence or two.
        tables: what is told in tables.
        recipe: as YAML.
    """

    name: str
    summary: str
    tables: tuple[Table, ...]
    recipe: str


def write_run_report(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write report.md, report.html and loss_curve.png into the folder of a run, finished or not; give report.md.

    Args:
        folder: what twintune train wrote.
        overrides: `section.key=value` over the run's recipe, such as generate.sample_prompts.

    Raises:
        UserError: for a folder that holds no run, or a run without a step.
    """
    recipe = load_recipe(folder / RECIPE, overrides)
    record = read_record(folder)
    steps, evaluations = read_steps(folder / LOG), read_evaluations(folder / EVALUATIONS)
    if not steps:
        raise UserError(f"{folder / LOG}: the log must hold at least one step, got none; train first")
    costs = read_costs(folder / LOG)
    draw_run(folder / CURVE, steps, evaluations)
    report = RunReport(
        recipe.train.run_name or folder.resolve().name,
        " ".join([*_summary(record, steps, evaluations), *_adapter_of_the_best(folder)]),
        (
            _sample_table(folder, recipe, record),
            _evaluation_table(evaluations),  # after the answers, as it may be long, and the curve shows it
            Table("Cost", ("what", "figure"), cost_rows(steps, costs, evaluations, record.sessions)),
            *_tracker_tables(record),
            Table("What was chosen, and why", ("what", "choice"), record.plan),
            Table("Versions", ("package", "version"), list(record.versions.items())),
        ),
        (folder / RECIPE).read_text(encoding="utf-8"),
    )
    _write(folder / HTML, _page(report, folder / CURVE))
    _write(folder / MARKDOWN, _markdown(report))
    return folder / MARKDOWN


def _write(path: Path, text: str) -> None:
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _summary(record: RunRecord, steps: Sequence[Step], evaluations: Sequence[Evaluation]) -> Iterator[str]:
    ended = record.sessions[-1].ended
    state = "Finished" if ended == FINISHED else f"Stopped by {ended}" if ended else "Not finished"
    yield f"{state}: {len(steps)} of {record.steps} steps."
    yield f"Training loss {steps[0].loss:.4f} at step 1, {steps[-1].loss:.4f} at step {steps[-1].step}."
    best = best_evaluation(evaluations)
    if best is not None:
        yield f"Lowest validation loss {best.loss:.4f} (perplexity {best.perplexity:.3f}) after step {best.step}."


def _adapter_of_the_best(folder: Path) -> Iterator[str]:
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["adapter_is_of_the_best"]:
            yield f"adapter/ is that of checkpoint-{manifest['best_checkpoint']}, the best one."


def _evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    best = best_evaluation(evaluations)
    note = "" if evaluations else "Nothing was evaluated: train.eval_steps asks for it, on the rows of data.val_size."
    headers = ("step", "loss", "perplexity", "trained tokens", "seconds", "")
    rows = [
        (
            str(evaluation.step),
            f"{evaluation.loss:.4f}",
            f"{evaluation.perplexity:.3f}",
            f"{evaluation.tokens:,}",
            f"{evaluation.seconds:.2f}",
            "best" if evaluation is best else "",
        )
        for evaluation in evaluations
    ]
    marked = None if best is None else list(evaluations).index(best)
    return Table("Evaluation", headers, rows, note, figures=True, marked=marked)


def _sample_table(folder: Path, recipe: Recipe, record: RunRecord) -> Table:
    headers = ("question", "before", "after")
    title = "Answers before and after training"
    try:
        answered = find_answers(folder, recipe, record.chosen)
    except (UserError, RuntimeError, MemoryError) as error:  # frameworks raise RuntimeError where memory ends
        return Table(title, headers, [], f"No answers: {' '.join(str(error).split())}")
    rows = [(sample.question, sample.before, sample.after) for sample in answered.samples]
    section = recipe.generate
    picked = f"drawn at temperature {section.temperature:g}" if section.temperature else "the likeliest ones"
    tokens = f"At most {section.max_new_tokens} new tokens, {picked}"
    return Table(title, headers, rows, f"{tokens}; after training: {answered.adapter}/.")


def _tracker_tables(record: RunRecord) -> list[Table]:
    rows = [(name, failure) for session in record.sessions for name, failure in session.trackers.items()]
    return [Table("Trackers that failed", ("tracker", "was"), rows)] if rows else []


def _markdown(report: RunReport) -> str:
    parts = [f"# {escape(report.name)}", escape(report.summary), f"![Loss and learning rate by step]({CURVE})"]
    for table in report.tables:
        parts.append(f"## {table.title}")
        parts += [escape(table.note)] if table.note else []
        parts += [markdown_table(table.headers, table.rows)] if table.rows else []
    parts += ["## Recipe", block([report.recipe.rstrip()])]
    return "\n\n".join(parts) + "\n"


def _page(report: RunReport, curve: Path) -> str:
    image = base64.b64encode(curve.read_bytes()).decode("ascii")
    return render_page(PAGE, {"report": report, "image": image})
