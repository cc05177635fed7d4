"""Templates to HTML pages in which text from elsewhere acts on nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twintune.visible_text import visible


def render_page(template: Path, values: Mapping[str, Any]) -> str:
    """A jinja template filled in: every text is escaped and made visible, and a name without a value is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def _visible(value: Any) -> Any:
    # A macro's output is Markup, a str subclass, that has been through here piece by piece.
    return visible(value) if type(value) is str else value
