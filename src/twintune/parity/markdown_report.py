"""A verdict as Markdown: report.md, and the tables that the run card shares with it."""

from collections.abc import Iterator

from twintune.markdown import block, escape, markdown_table
from twintune.parity.verdict import Rung, Verdict
from twintune.parity.wording import conclusion, figure, ladder_rows, side_names, value_and_limit, version_rows


def markdown_report(verdict: Verdict) -> str:
    """Verdict, first difference, the ladder with every measure, both sides, the job and the tolerances."""
    parts = [
        "# Parity of two runs",
        f"**{escape(conclusion(verdict))}**",
        *_difference(verdict.first_difference),
        "## The ladder",
        ladder_table(verdict),
        "## Every rung",
        *(part for rung in verdict.rungs for part in _rung(rung)),
        "## The two sides",
        sides_table(verdict),
        "## The job",
        job_table(verdict),
        "## Hidden states and logits, by stage of the network",
        _stage_table(verdict),
        "## Tolerances",
        tolerances_table(verdict),
        "## Loss and gradient norm by step",
        "Differences are second minus first.",
        _step_table(verdict),
    ]
    return "\n\n".join(parts) + "\n"


def ladder_table(verdict: Verdict) -> str:
    """One line a rung, with the measure that decided it."""
    headers = ("", "rung", "result", "what decides", "value", "limit")
    return markdown_table(headers, ladder_rows(verdict))


def sides_table(verdict: Verdict) -> str:
    """What computed, and every version, side by side."""
    computed = [(what, *(getattr(side, what) for side in verdict.sides), "") for what in ("backend", "device", "dtype")]
    versions = [(*row, "" if same else "differs") for *row, same in version_rows(verdict)]
    return markdown_table(("", *side_names(verdict), ""), [*computed, *versions])


def job_table(verdict: Verdict) -> str:
    """The facts of the job."""
    return markdown_table(("what", "value"), verdict.job.items())


def tolerances_table(verdict: Verdict) -> str:
    """Every limit with where it comes from."""
    rows = ((name, figure(limit), source) for name, (limit, source) in verdict.tolerances.items())
    return markdown_table(("tolerance", "limit", "where it comes from"), rows)


def _difference(rung: Rung | None) -> Iterator[str]:
    if rung is None:
        return
    yield "## The first difference"
    yield markdown_table(
        ("what", "value"),
        [("rung", f"{rung.number}, {rung.name}"), ("place", rung.place), ("likely cause", rung.cause)],
    )
    if rung.details:
        yield block(rung.details)


def _rung(rung: Rung) -> Iterator[str]:
    yield f"### {rung.number}. {escape(rung.name)}: {rung.status}"
    yield f"Result: {escape(rung.summary)}"
    if rung.measures:
        rows = ((measure.name, *value_and_limit(measure), measure.place) for measure in rung.measures)
        yield markdown_table(("measure", "value", "limit", "place"), rows)


def _stage_table(verdict: Verdict) -> str:
    errors = verdict.stage_errors
    stages = list(dict.fromkeys(stage for series in errors.values() for stage in series))
    if not stages:
        return "Not measured."
    rows = (
        (stage, *(figure(series[stage]) if stage in series else "" for series in errors.values())) for stage in stages
    )
    return markdown_table(("stage", *(f"relative error {name}" for name in errors)), rows)


def _step_table(verdict: Verdict) -> str:
    first, second = ({step.step: step for step in side.steps} for side in verdict.sides)
    if not first and not second:
        return "Neither side has a log of steps."
    headers = ("step", "loss, first", "loss, second", "difference", "norm, first", "norm, second", "difference")
    rows = []
    for number in sorted(first.keys() | second.keys()):
        cells = [str(number)]
        for what in ("loss", "grad_norm"):
            values = [getattr(log[number], what) if number in log else None for log in (first, second)]
            cells += ["no step" if value is None else f"{value:.6f}" for value in values]
            left, right = values
            cells.append("" if left is None or right is None else f"{right - left:+.1e}")
        rows.append(cells)
    return markdown_table(headers, rows)
