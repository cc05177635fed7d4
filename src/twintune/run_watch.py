"""Everything that watches a run and fills its folder while it trains."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from twintune.artifacts import RECIPE
from twintune.backends.job import Watcher
from twintune.progress import Progress
from twintune.run_curve import CURVE, RunCurve
from twintune.run_log import EVALUATIONS, LOG, RunLog, read_evaluations, read_steps
from twintune.run_record import RunRecord, record_session
from twintune.step_cost import cost_meter
from twintune.trackers import TrackedRun
from twintune.tracking import Trackers, choose_trackers
from twintune.trees import flat
from twintune.watchers import QuietWatcher, Watchers

if TYPE_CHECKING:
    from twintune.training_plan import Run


class RecipeKeeper(QuietWatcher):
    """A Watcher that puts the recipe beside each checkpoint, so that its adapter answers as it was trained."""

    def __init__(self, run: "Run") -> None:
        self.run = run

    def saved(self, step: int) -> None:
        """Write recipe.yaml into the checkpoint."""
        self.run.recipe.save(self.run.job.checkpoint(step) / RECIPE)


@contextmanager
def watch_run(run: "Run", record: RunRecord, others: Sequence[Watcher] = ()) -> Iterator[Watcher]:
    """A Watcher that fills the run folder: logs, loss curve, trackers, run.json; and shows progress.

    Args:
        run: its logs are cut back to job.steps_done already.
        record: without sessions.
        others: told last.

    Raises:
        UserError: for a tracker that cannot be opened, and what record_session raises.
    """
    job, train = run.job, run.recipe.train
    folder = job.output_dir
    steps = read_steps(folder / LOG) if job.steps_done else []
    evaluations = read_evaluations(folder / EVALUATIONS) if job.steps_done else []
    measure = lru_cache(maxsize=1)(cost_meter(run))  # log, screen and trackers ask for the same step
    settings = flat(run.recipe.model_dump(mode="json"))
    tracked = TrackedRun(folder, train.run_name or folder.resolve().name, settings, job.steps_done)
    with ExitStack() as stack:
        session = stack.enter_context(record_session(folder, record, job.steps_done))
        trackers = stack.enter_context(Trackers(choose_trackers(train.report_to), tracked, measure))
        session.trackers = trackers.failures  # one that fails while it closes is in there too
        curve = stack.enter_context(RunCurve(folder / CURVE, steps, evaluations))
        log = stack.enter_context(RunLog(folder, measure, job.steps_done))
        progress = stack.enter_context(Progress(len(job.order), measure, job.steps_done))
        yield Watchers([log, progress, curve, trackers, RecipeKeeper(run), *others])
        session.device_memory = run.framework.peak_memory(job.device)
