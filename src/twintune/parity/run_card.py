"""The run card: what a reviewer reads in a minute to know what was shown, of what, and how to show it again."""

from shlex import quote

from twintune.markdown import block, escape, markdown_table
from twintune.parity.markdown_report import job_table, ladder_table, sides_table, tolerances_table
from twintune.parity.verdict import Side, Verdict
from twintune.parity.wording import conclusion


def run_card(verdict: Verdict) -> str:
    """Verdict, ladder, what was not measured, job, sides, tolerances, and the commands, as Markdown."""
    parts = [
        "# Run card",
        f"**{escape(conclusion(verdict))}**",
        _difference(verdict),
        "## What was compared",
        ladder_table(verdict),
        "## What was not measured",
        _not_measured(verdict),
        "## The job",
        job_table(verdict),
        "## Where it ran",
        sides_table(verdict),
        "## Tolerances",
        tolerances_table(verdict),
        "## Do it again",
        "With the recipe of this job; the second command runs on the second machine, the last one on any:",
        block(commands(verdict)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands(verdict: Verdict) -> list[str]:
    """The commands, for a shell, that record both sides, each with the other's adapter too, and compare them."""
    first, second = verdict.sides
    both = f"{quote(first.name)} {quote(second.name)}"
    return [
        _record(first),
        f"{_record(second)} --peer {quote(first.name)}",
        f"twintune parity cross recipe.yaml {both} {_dtype(first)} --device {quote(first.device)}",
        f"twintune parity compare {both}",
    ]


def _record(side: Side) -> str:
    machine = f"{_dtype(side)} --backend {quote(side.backend)} --device {quote(side.device)}"
    steps = f" --steps {len(side.steps)}" if side.steps else ""
    return f"twintune parity record recipe.yaml {machine}{steps} -o {quote(side.name)}"


def _dtype(side: Side) -> str:
    return quote(f"backend.dtype={side.dtype}")


def _difference(verdict: Verdict) -> str:
    rung = verdict.first_difference
    if rung is None:
        return ""
    return f"Likely cause: {escape(rung.cause)}" if rung.cause else f"Result: {escape(rung.summary)}"


def _not_measured(verdict: Verdict) -> str:
    rungs_by_reason: dict[str, list[str]] = {}
    for rung in verdict.rungs:
        if rung.status == "not measured":
            rungs_by_reason.setdefault(rung.summary, []).append(str(rung.number))
    if not rungs_by_reason:
        return "Nothing: every rung was measured."
    rows = ((", ".join(numbers), reason) for reason, numbers in rungs_by_reason.items())
    return markdown_table(("rungs", "why not"), rows)
