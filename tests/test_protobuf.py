"""MindSpore can be imported after what reads protobuf too."""

import subprocess
import sys
from pathlib import Path

import pytest

from twintune.backends import missing_packages

TRACKED_FIRST = """
import sys
from pathlib import Path
from twintune.trackers import TrackedRun
from twintune.tracking import Trackers
with Trackers(("tensorboard",), TrackedRun(Path(sys.argv[1]), "run", {}), lambda step: None):
    import mindspore
"""


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="the ascend extra is not installed")
def test_mindspore_is_imported_after_a_tracker(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", TRACKED_FIRST, tmp_path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
