"""A verdict as JUnit XML: a test suite with a case for each rung, for the pages of GitLab and Jenkins."""

from xml.etree import ElementTree

from twintune.parity.verdict import Measure, Rung, Verdict
from twintune.parity.wording import computed_by, conclusion, side_names, value_and_limit
from twintune.visible_text import visible

SUITE = "twintune.parity"


def junit_xml(verdict: Verdict) -> str:
    """A `testsuites` document: a failure holds place, cause and details, a rung not measured is skipped."""
    statuses = [rung.status for rung in verdict.rungs]
    counts = {"tests": str(len(statuses)), "failures": str(statuses.count("different")), "errors": "0", "time": "0"}
    root = ElementTree.Element("testsuites", {"name": SUITE, **counts})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": SUITE, **counts, "skipped": str(statuses.count("not measured"))}
    )
    _add_properties(suite, verdict)
    for rung in verdict.rungs:
        _add_case(suite, rung)
    _add_text(suite, "system-out", [conclusion(verdict)])
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_properties(suite: ElementTree.Element, verdict: Verdict) -> None:
    facts = {name: computed_by(side) for name, side in zip(side_names(verdict), verdict.sides, strict=True)}
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (facts | dict(verdict.job)).items():
        ElementTree.SubElement(properties, "property", {"name": visible(name), "value": visible(value)})


def _add_case(suite: ElementTree.Element, rung: Rung) -> None:
    name = visible(f"{rung.number:02d} {rung.name}")  # some pages sort cases by name
    case = ElementTree.SubElement(suite, "testcase", {"classname": SUITE, "name": name, "time": "0"})
    if rung.status == "different":
        facts = [f"place: {rung.place}", f"likely cause: {rung.cause}", *rung.details]
        lines = [rung.summary, *facts, *map(_sentence, rung.measures)]
        _add_text(case, "failure", lines, {"message": visible(rung.summary), "type": "different"})
    elif rung.status == "not measured":
        ElementTree.SubElement(case, "skipped", {"message": visible(rung.summary)})
    else:
        _add_text(case, "system-out", [rung.summary, *map(_sentence, rung.measures)])


def _sentence(measure: Measure) -> str:
    value, limit = value_and_limit(measure)
    place = f" at {measure.place}" if measure.place else ""
    return f"{measure.name}: {value}{f' of at most {limit}' if limit else ''}{place}"


def _add_text(
    parent: ElementTree.Element, tag: str, lines: list[str], attributes: dict[str, str] | None = None
) -> None:
    element = ElementTree.SubElement(parent, tag, attributes or {})
    element.text = visible("\n".join(lines))
