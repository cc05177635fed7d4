"""An inspection in the terminal, and as one HTML page that needs no other file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twintune.artifacts import new_file
from twintune.inspection import Example, Inspection
from twintune.prepared import REJECTED

if TYPE_CHECKING:
    from rich.console import Console

PAGE = Path(__file__).with_name("inspection.html.jinja")
BAR_WIDTH = 40
SHOWN_TOKENS = 400  # of an example in the terminal; the page shows all
INVISIBLE = str.maketrans({"\n": "↵\n", "\r": "␍", "\t": "⇥", "\u200b": "·", "\u200d": "·", "\ufeff": "·"})


def facts(inspection: Inspection) -> list[tuple[str, str]]:
    """The figures, as pairs of a name and a sentence."""
    summary = inspection.summary
    rejected = sum(summary.rejected.values())
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in summary.rejected.items())
    lines = [
        (file.name, f"{file.read} records as {file.format.value} ({file.format.reason}), weight {file.weight:g}")
        for file in summary.files
    ]
    lines += [
        ("records", f"read {summary.read} = kept {summary.kept} + rejected {rejected} ({kinds})"),
        ("left out by weight", str(summary.left_out)),
        ("conversations", f"{summary.conversations} to train on, {summary.validation_rows} for validation"),
        ("cut", f"{summary.cut_rows} longer than data.cutoff_len {inspection.cutoff_len}"),
        ("without a closing token", str(summary.not_closed)),
        ("duplicates", f"{summary.duplicates} with the same tokens as an earlier one"),
        ("tokens", f"{summary.tokens:,}, of which {summary.trained_tokens:,} are trained ({_trained(inspection):.1%})"),
        ("rows", f"{summary.count}{', packed' if summary.packed else ''}, longest {summary.row_length} tokens"),
        ("template", inspection.template),
        ("pad token", f"{summary.pad_token.value!r} ({summary.pad_token.reason})"),
    ]
    lines += [(f"padding, {layout}", f"{share:.1%}") for layout, share in inspection.padding.items()]
    return lines


def print_inspection(inspection: Inspection, console: "Console") -> None:
    """Figures, histogram, findings, rejected records and examples; trained text is green."""
    figures = facts(inspection)
    width = max(len(name) for name, _ in figures)
    for name, sentence in figures:
        console.print(f"{name:<{width}}  {sentence}", markup=False, highlight=False)
    console.print("\nconversations by tokens", style="bold")
    most = max(bar.count for bar in inspection.histogram)
    for bar in inspection.histogram:
        console.print(f"{bar.first:>6} to {bar.last:<6} {'█' * round(BAR_WIDTH * bar.count / most)} {bar.count}")
    if inspection.reasons:
        console.print("\nrejected", style="bold")
        console.print(f"all of them: {inspection.prepared.folder / REJECTED}", markup=False, highlight=False)
    for reason in inspection.reasons[:20]:
        console.print(f"{reason.count} x {reason.reason} (first: {reason.first})", markup=False, highlight=False)
    for finding in inspection.findings:
        style = "bold red" if finding.severity == "error" else "yellow"
        console.print(f"\n{finding.severity}: {finding.sentence}; {finding.remedy}", style=style, markup=False)
    for example in inspection.examples:
        _print_example(example, console)


def _print_example(example: Example, console: "Console") -> None:
    from rich.text import Text

    title = f"{example.place} ({example.why}; {example.trained_tokens} of {example.tokens} tokens trained)"
    console.print(f"\n{title}", style="bold", markup=False)
    text = Text()
    for piece in example.pieces[:SHOWN_TOKENS]:
        colour = "green" if piece.trained else "bright_black"
        text.append(piece.text.translate(INVISIBLE), f"{'reverse ' if piece.special else ''}{colour}")
    if len(example.pieces) > SHOWN_TOKENS:
        text.append(f" ... and {len(example.pieces) - SHOWN_TOKENS} more", "italic")
    console.print(text, highlight=False)


def write_page(inspection: Inspection, path: Path) -> None:
    """Write the page, whole or not at all."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    values: dict[str, Any] = {
        "facts": facts(inspection),
        "bars": inspection.histogram,
        "most": max(bar.count for bar in inspection.histogram),
        "reasons": inspection.reasons,
        "findings": inspection.findings,
        "examples": inspection.examples,
        "invisible": lambda text: text.translate(INVISIBLE),
    }
    with new_file(path) as aside:
        aside.write_text(page.render(values), encoding="utf-8")


def _trained(inspection: Inspection) -> float:
    return inspection.summary.trained_tokens / inspection.summary.tokens
