"""Every bad file and record of tests/data/bad: one clear line, and the good records beside it are read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_data import Case, cases, expected, make_corpus
from twintune.converters.data_files import find_files
from twintune.converters.formats import load_format
from twintune.converters.sources import Rejection, read_file
from twintune.errors import UserError

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    folder = make_corpus(tmp_path_factory.mktemp("corpus"))
    yield {case.name: case for case in cases(folder)}
    shutil.rmtree(folder)


def told(entry: str) -> list[str]:
    """The line of each file or record that is refused."""
    lines = []
    try:
        for path in find_files(entry):
            record_format = load_format(path)
            for record in read_file(path):
                place = f"{path}: row {record.row}: "
                if isinstance(record, Rejection):
                    lines.append(place + record.reason)
                    continue
                try:
                    record_format.conversations(record.value, str(record.row))
                except UserError as error:
                    lines.append(place + "; ".join(error.messages))
    except UserError as error:
        lines.extend(error.messages)
    return lines


@pytest.mark.parametrize("name", expected())
def test_one_clear_line(corpus: dict[str, Case], name: str) -> None:
    case = corpus[name]
    (line,) = told(case.entry)
    assert case.words in line
    assert line.startswith(str(Path(case.entry).parent))
    assert " must " in line
    assert ", got" in line
    assert "\n" not in line
    assert len(line.removeprefix(case.entry)) < 400


def test_the_corpus_is_large_and_every_file_of_it_is_expected() -> None:
    from tests.bad_data import FOLDER

    committed = {
        str(path.relative_to(FOLDER))
        for path in FOLDER.rglob("*")
        if path.is_file() and path.name not in ("expected.json", "dataset_info.json", ".gitattributes")
    }
    assert committed <= expected().keys()
    assert len(expected()) >= 60
