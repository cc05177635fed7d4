"""A verdict as one HTML page that needs no other file, no script and no network."""

from pathlib import Path
from typing import Any

from twintune.html_page import render_page
from twintune.parity.charts import grad_norm_charts, loss_charts, stage_charts, stages_of
from twintune.parity.drawing import SIZE
from twintune.parity.verdict import Verdict
from twintune.parity.wording import (
    HEADLINES,
    computed_by,
    deciding_measure,
    detail,
    figure,
    outcome,
    share_of_limit,
    side_names,
    value_and_limit,
    version_rows,
)

PAGE = Path(__file__).with_name("page.html.jinja")


def html_page(verdict: Verdict) -> str:
    """The page: verdict, first difference, ladder, charts, tolerances, versions, job; all text is escaped."""
    values: dict[str, Any] = {
        "verdict": verdict,
        "outcome": outcome(verdict),
        "headline": HEADLINES[outcome(verdict)],
        "detail": detail(verdict)[:1].upper() + detail(verdict)[1:],
        "names": side_names(verdict),
        "computed_by": computed_by,
        "deciding_measure": deciding_measure,
        "value_and_limit": value_and_limit,
        "share_of_limit": share_of_limit,
        "figure": figure,
        "size": SIZE,
        "step_charts": [*loss_charts(verdict), *grad_norm_charts(verdict)],
        "stage_charts": stage_charts(verdict),
        "stages": stages_of(verdict),
        "versions": version_rows(verdict),
    }
    return render_page(PAGE, values)
