from pathlib import Path

import pytest

from twintune.errors import UserError
from twintune.run_record import Chosen, RunRecord, read_record, record_session

RECORD = RunRecord(8, Chosen("cuda", "cpu", "float32"), [("device", "cpu (asked)")], {"python": "3.11"})


def test_a_session_is_recorded_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    with record_session(tmp_path, RECORD) as session:
        (begun,) = read_record(tmp_path).sessions
        assert (begun.first_step, begun.seconds, begun.ended, begun.process_memory) == (1, None, "", None)
        session.device_memory = 5
        session.trackers = {"wandb": "switched off"}
    record = read_record(tmp_path)
    (ended,) = record.sessions
    assert (record.plan, record.versions, record.chosen) == (RECORD.plan, RECORD.versions, RECORD.chosen)
    assert (ended.ended, ended.device_memory, ended.trackers) == ("finished", 5, {"wandb": "switched off"})
    assert ended.seconds is not None
    assert ended.process_memory is not None
    assert 2**20 < ended.process_memory < 2**42  # bytes, neither pages nor KiB


def test_sessions_of_a_run_that_goes_on_are_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError), record_session(tmp_path, RECORD):
        raise UserError("step 5: loss must be finite, got nan")
    with record_session(tmp_path, RECORD, steps_done=4):
        pass
    first, second = read_record(tmp_path).sessions
    assert (first.first_step, first.ended) == (1, "UserError: step 5: loss must be finite, got nan")
    assert (second.first_step, second.ended) == (5, "finished")


@pytest.mark.parametrize("content", ["", "[]", '{"steps": 8}', "\udcff"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match="must be the record that twintune train writes, got"):
        read_record(tmp_path)
    with pytest.raises(UserError, match="give the output folder of a run"):
        read_record(tmp_path / "elsewhere")
