import struct
from pathlib import Path
from typing import Any

import pytest

from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError
from twintune.step_cost import StepCost
from twintune.trackers import TrackedRun
from twintune.tracking import PACKAGES, TRACKERS, Trackers, choose_trackers

SETTINGS = {"train.learning_rate": 1e-3, "data.train": [{"path": "data.json", "weight": 1.0}], "model.pad_token": None}
STEPS = [Step(number, 2.0 / number, 0.5, 1e-3, 30, 0.5) for number in (1, 2)]
EVALUATION = Evaluation(2, 0.0, 90, 1.5)
TOLD: dict[str, list[tuple[int, float]]] = {
    "train/loss": [(1, 2.0), (2, 1.0)],
    "train/grad_norm": [(1, 0.5), (2, 0.5)],
    "train/learning_rate": [(1, 1e-3), (2, 1e-3)],
    "train/input_tokens": [(1, 40), (2, 40)],
    "train/tokens_per_second": [(1, 60.0), (2, 60.0)],
    "train/mfu": [(2, 0.5)],
    "train/peak_memory": [(1, 2**30), (2, 2**30)],
    "eval/loss": [(2, 0.0)],
    "eval/perplexity": [(2, 1.0)],
    "eval/runtime": [(2, 1.5)],
}


def measure(step: Step) -> StepCost:
    """MFU is known of the second step alone."""
    return StepCost(40, step.tokens / step.seconds, 0.5 if step.step == 2 else None, 2**30)


def track(folder: Path, *names: str, steps_done: int = 0) -> Trackers:
    with Trackers(names, TrackedRun(folder, "a run 名", SETTINGS, steps_done), measure) as trackers:
        for step in STEPS[steps_done:]:
            trackers.step(step)
        trackers.evaluated(EVALUATION)
    return trackers


def read_events(folder: Path) -> list[Any]:
    """TFRecord framing: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event()
            event.ParseFromString(content[12 : 12 + length])
            events.append(event)
            content = content[16 + length :]
    return events


def test_tensorboard_has_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="comes with MindFormers or twintune[tracking]")
    assert track(tmp_path, "tensorboard").failures == {}
    told: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(tmp_path / "tensorboard"):
        for value in event.summary.value:
            told.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert told.keys() == TOLD.keys()
    for name, values in TOLD.items():
        assert [step for step, _ in told[name]] == [step for step, _ in values]
        stored = [value for _, value in told[name]]
        assert stored == pytest.approx([value for _, value in values], rel=1e-7)  # TensorBoard keeps float32


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="comes with MindFormers or twintune[tracking]")
    track(tmp_path, "tensorboard", steps_done=1)
    starts = [event.step for event in read_events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert starts == [2]


def test_wandb_keeps_every_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="optional, pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert track(tmp_path, "wandb").failures == {}
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert all(name.encode() in content for name in (*TOLD, "train.learning_rate"))


def test_swanlab_keeps_every_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab", reason="optional, pip install swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert track(tmp_path, "swanlab").failures == {}
    (log,) = (tmp_path / "swanlog").glob("run-*/*.swanlab")
    content = log.read_bytes()
    assert all(name.encode() in content for name in TOLD)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, for how mlflow uses it
def test_mlflow_has_every_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="optional, pip install mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert track(tmp_path, "mlflow").failures == {}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("twintune")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("a run 名", "FINISHED")
    assert run.data.params["train.learning_rate"] == "0.001"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in TOLD}
    assert {name: [(each.step, each.value) for each in history] for name, history in histories.items()} == TOLD


class Breaking:
    """A tracker whose server goes away."""

    def __init__(self, run: TrackedRun) -> None:
        self.calls = 0

    def log(self, metrics: Any, step: int) -> None:
        self.calls += 1
        if step == 2:
            raise ConnectionError("no route\nto host")

    def close(self, *, failed: bool) -> None:
        raise AssertionError("it was switched off")


class Unopened:
    def __init__(self, run: TrackedRun) -> None:
        raise ValueError("api_key not configured (no-tty)")


class Listening:
    """A tracker that keeps what it is told."""

    def __init__(self, run: TrackedRun) -> None:
        self.steps: list[int] = []
        self.failed: bool | None = None

    def log(self, metrics: Any, step: int) -> None:
        self.steps.append(step)

    def close(self, *, failed: bool) -> None:
        self.failed = failed


def test_a_tracker_that_fails_is_switched_off_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Breaking)
    monkeypatch.setitem(TRACKERS, "mlflow", Listening)
    with Trackers(("wandb", "mlflow"), TrackedRun(tmp_path, "run", {}), measure) as trackers:
        listening = trackers.trackers["mlflow"]
        for step in STEPS:
            trackers.step(step)
        trackers.evaluated(EVALUATION)
    assert isinstance(listening, Listening)
    assert (listening.steps, listening.failed) == ([1, 2, 2], False)
    assert trackers.failures == {"wandb": "switched off at step 2: ConnectionError: no route to host"}
    assert capfd.readouterr().err.count("wandb") == 1


def test_a_tracker_hears_that_the_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Listening)
    trackers = Trackers(("mlflow",), TrackedRun(tmp_path, "run", {}), measure)
    listening = trackers.trackers["mlflow"]
    with pytest.raises(UserError), trackers:
        raise UserError("loss must be finite, got nan")
    assert isinstance(listening, Listening)
    assert listening.failed is True


def test_a_tracker_that_does_not_open_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Unopened)
    with pytest.raises(UserError, match=r"'wandb' must be a tracker that opens, got: ValueError: api_key .*offline"):
        Trackers(("wandb",), TrackedRun(tmp_path, "run", {}), measure)


def test_packages_that_are_missing_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(PACKAGES, name, f"no_such_{name}")
    with pytest.raises(UserError) as error:
        choose_trackers(("wandb", "mlflow"))
    assert [message.rpartition("; ")[2] for message in error.value.messages] == [
        "run: pip install no_such_wandb",
        "run: pip install no_such_mlflow",
    ]
    choose_trackers(())
