"""What a run cost: speed, time and memory, as lines for its report."""

from collections.abc import Sequence

from twintune.backends.job import Evaluation, Step
from twintune.run_record import Session
from twintune.step_cost import StepCost

GIB = 2**30


def cost_rows(
    steps: Sequence[Step],
    costs: Sequence[StepCost | None],
    evaluations: Sequence[Evaluation],
    sessions: Sequence[Session],
) -> list[tuple[str, str]]:
    """Pairs of a name and a figure with its unit.

    The first step of each session waits for what is made once (MindSpore compiles its graph), so that speed is
    measured without it. `costs` are those of the steps, None where an older version wrote the log.
    """
    firsts = {session.first_step for session in sessions}
    steady = [step for step in steps if step.step not in firsts]
    waited = [step for step in steps if step.step in firsts]
    trained = sum(step.tokens for step in steps)
    rows = [("trained tokens", f"{trained:,}{_of_all(trained, costs)}")]
    if steady:
        seconds = sum(step.seconds for step in steady)
        speed = sum(step.tokens for step in steady) / seconds
        without = f"without the first step of {_count(len(firsts), 'session')}"
        rows.append(("speed", f"{speed:,.0f} trained tokens/s, {seconds / len(steady):.3g} s a step, {without}"))
        rows += _utilization(steady, costs)
    rows += [(f"step {step.step}, the first of its session", f"{step.seconds:.3g} s") for step in waited]
    rows.append(("time in steps", duration(sum(step.seconds for step in steps))))
    if evaluations:
        time = duration(sum(evaluation.seconds for evaluation in evaluations))
        rows.append(("time in evaluation", f"{time} for {_count(len(evaluations), 'evaluation')}"))
    rows += [(_named("wall time", number, sessions), _wall(session)) for number, session in enumerate(sessions, 1)]
    return rows + [row for number, session in enumerate(sessions, 1) for row in _memory(number, session, sessions)]


def _of_all(trained: int, costs: Sequence[StepCost | None]) -> str:
    known = [cost.input_tokens for cost in costs if cost is not None]
    return f" of {sum(known):,}" if known and len(known) == len(costs) else ""


def _utilization(steps: Sequence[Step], costs: Sequence[StepCost | None]) -> list[tuple[str, str]]:
    """The MFU of some steps together, if it is known of each; `costs` are those of all steps from 1."""
    shares = []
    for step in steps:
        cost = costs[step.step - 1]
        if cost is None or cost.mfu is None:
            return []
        shares.append(cost.mfu * step.seconds)
    return [("MFU", f"{sum(shares) / sum(step.seconds for step in steps):.1%} of the device's peak")]


def _wall(session: Session) -> str:
    if session.seconds is None:
        return f"not known from step {session.first_step} on: it goes on, or was killed"
    return f"{duration(session.seconds)} from step {session.first_step} on, {session.ended}"


def _memory(number: int, session: Session, sessions: Sequence[Session]) -> list[tuple[str, str]]:
    peaks = {"peak memory of the process": session.process_memory, "peak memory of the device": session.device_memory}
    return [
        (_named(name, number, sessions), f"{peak / GIB:.2f} GiB") for name, peak in peaks.items() if peak is not None
    ]


def _named(name: str, number: int, sessions: Sequence[Session]) -> str:
    return name if len(sessions) == 1 else f"{name}, session {number}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 12 min 3 s, 5 h 7 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
