"""One run of stock MindFormers for scripts/bench_train.py, on a CPU.

    python -m scripts.bench_train_mindformers JOB.json

MindFormers' own Trainer, step cell and mean loss on padded rows; all else is configured as twintune does. Prints what
bench_train_peer.py prints.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench_step_ascend import finetune, stock_config
from scripts.bench_train_twintune import make_job
from twintune.backends.ascend.runtime import import_quietly
from twintune.converters.rows import IGNORED


def main() -> None:
    """Train, and tell what it took."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job = make_job(settings)
    import_quietly()
    import mindspore as ms

    class Timed(ms.Callback):  # type: ignore[misc]  # mindspore ships no types
        """Seconds, CPU seconds and loss of each step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.cpu_seconds: list[float] = []
            self.losses: list[float] = []
            self.began = (0.0, 0.0)

        def on_train_step_begin(self, run_context: Any) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_train_step_end(self, run_context: Any) -> None:
            self.losses.append(float(run_context.original_args().net_outputs[0].asnumpy()))
            self.seconds.append(time.perf_counter() - self.began[0])
            self.cpu_seconds.append(time.process_time() - self.began[1])

    timed = Timed()
    finetune(job, stock_config(job), timed)
    told = {
        "tokens": trained_tokens(Path(settings["rows"]), settings["batch"], settings["steps"]),
        "seconds": timed.seconds,
        "cpu_seconds": timed.cpu_seconds,
        "losses": timed.losses,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(told))


def trained_tokens(rows: Path, batch: int, steps: int) -> list[int]:
    """Of each step, whose rows come in the order of the file."""
    with rows.open(encoding="utf-8") as stream:
        counts = [sum(label != IGNORED for label in json.loads(line)["labels"][1:]) for line in stream]
    return [sum(counts[step * batch : (step + 1) * batch]) for step in range(steps)]


if __name__ == "__main__":
    main()
