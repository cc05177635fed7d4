"""docs/scaling.md says what its script computes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


def test_the_document_has_the_tables_of_its_script() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make_scaling_table.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = printed.strip().split("\n\n### ")
    assert len(tables) == 7
    for table in tables:
        assert table in document, "run python scripts/make_scaling_table.py and put in what it prints"
