"""A LoRA run through MindFormers' own Trainer, watched step by step."""

import time
from contextlib import redirect_stdout
from typing import Any

import mindspore as ms
import numpy as np
from mindformers import Trainer
from numpy.typing import NDArray

import twintune.backends.ascend.step  # noqa: F401  registers the step cell with MindFormers
from twintune.artifacts import write_yaml
from twintune.backends.ascend.checkpoint import resume, save
from twintune.backends.ascend.compile_cache import KeptGraph, kept_graph
from twintune.backends.ascend.data import TokenNumbers, ordered_dataset
from twintune.backends.ascend.dropout import has_dropout, put_on_dropout
from twintune.backends.ascend.evaluation import Evaluator
from twintune.backends.ascend.keys import check_keys, check_overrides
from twintune.backends.ascend.parallel import require_whole_models
from twintune.backends.ascend.parameters import adapter_tensors, names_of_trained, parameters_by_name, put_on_adapter
from twintune.backends.ascend.profile import compiled_length, packed_borders, training_config
from twintune.backends.ascend.ranks import together
from twintune.backends.ascend.runtime import start
from twintune.backends.ascend.trained_positions import most_trained, put_on_trained_positions
from twintune.backends.job import PrefixTuning, Step, TrainJob, Watcher
from twintune.converters.adapter import write_adapter
from twintune.converters.base_checkpoint import base_checkpoint
from twintune.errors import UserError
from twintune.models import read_model_config


def train(job: TrainJob, watcher: Watcher) -> None:
    """Train a job and write `adapter/` and MindFormers' own checkpoints into job.output_dir.

    Raises:
        UserError: if a weight did not arrive in the network, or a step is not finite.
    """
    require_whole_models(job)
    watcher.status("converting the base weights (once for each model)")
    with together(job.rank).one_machine_first():
        base = base_checkpoint(job.model, read_model_config(job.model), job.dtype, job.quantization)
    config_file = job.output_dir / "mindformers.yaml"
    check_overrides(job.overrides)
    settings = training_config(job, job.device)
    check_keys(settings)
    write_yaml(config_file, settings)
    config = start(config_file)
    borders = packed_borders(job, job.device) if job.packed else None
    if borders:
        watcher.status(f"attention of packed rows: {borders.value} ({borders.reason})")
    dataset = ordered_dataset(
        job.rows / "rows.mindrecord",
        job.own_order[job.steps_done :],
        compiled_length(job.row_length),
        job.pad_token_id,
        borders.value if borders else None,
        TokenNumbers(job.seed, job.own_places[job.steps_done :]) if has_dropout(job) else None,
    )
    positions = most_trained(job)
    watcher.status(f"building the network (logits at {positions} positions: no micro-batch trains more)")
    reporter = Reporter(job, watcher, positions)
    log = (job.output_dir / "mindformers.log").open("a", encoding="utf-8")
    # MindFormers prints its whole configuration and more.
    shapes = [*dataset.output_shapes(), [positions]]
    with log, redirect_stdout(log), kept_graph(job, settings, shapes) as reporter.graph:
        trainer = Trainer(args=config, task="text_generation", train_dataset=dataset, callbacks=[reporter])
        trainer.finetune(finetune_checkpoint=str(base))
    # It looks like PEFT's and is not: its targets are MindFormers' names as a regex, and it has no base.
    (job.output_dir / "mindformers" / "adapter_config.json").unlink(missing_ok=isinstance(job.adapter, PrefixTuning))
    if job.rank.number == 0:
        write_adapter(job.output_dir / "adapter", reporter.adapter, job.adapter, str(job.model))


class Reporter(ms.Callback):  # type: ignore[misc]  # mindspore ships no types
    """Puts the initial adapter in, checks that the base arrived, and reports each step."""

    def __init__(self, job: TrainJob, watcher: Watcher, positions: int) -> None:
        super().__init__()
        self.job = job
        self.watcher = watcher
        self.positions = positions
        self.adapter: dict[str, NDArray[np.float32]] = {}
        self.parameters: dict[str, Any] = {}
        self.evaluator: Evaluator | None = None
        self.graph: KeptGraph | None = None
        self.began = 0.0

    def on_train_begin(self, run_context: Any) -> None:
        """MindFormers trains random weights without a word: nothing starts before all are in place."""
        cell = run_context.original_args().train_network
        self.parameters = parameters_by_name(cell.network)
        put_on_adapter(self.job, self.parameters)
        resume(self.job, self._by_peft_name(), cell.optimizer)
        network = put_on_dropout(self.job, cell.gradients.network)
        cell.gradients.network = put_on_trained_positions(self.job, network, self.positions)
        if self.job.evaluation_steps:
            self.evaluator = Evaluator(self.job, cell.network)
        if self.graph:
            self.watcher.status(self.graph.told)
        self.began = time.perf_counter()

    def on_train_step_end(self, run_context: Any) -> None:
        """Report a step as it is, and keep the adapter where asked; stop on one that is not finite."""
        if self.graph:
            self.graph.compiled()
        params = run_context.original_args()
        loss, _, _, learning_rate, norm, tokens = (float(value.asnumpy()) for value in params.net_outputs)
        number = self.job.steps_done + int(params.cur_step_num)
        if not np.isfinite([loss, norm]).all():
            rows = self.job.order[number - 1].ravel().tolist()
            raise UserError(
                f"step {number}: loss and gradient norm must be finite, got {loss} and {norm} on rows {rows}; "
                "lower train.learning_rate or use backend.dtype=float32"
            )
        now = time.perf_counter()
        self.watcher.step(Step(number, loss, norm, learning_rate, int(tokens), now - self.began))
        self._keep(number, params.train_network.optimizer)
        self.began = time.perf_counter()

    def _keep(self, number: int, optimizer: Any) -> None:
        """Evaluate and write what is asked for after this step."""
        writes = self.job.rank.number == 0
        if writes and number in self.job.snapshot_steps:
            write_adapter(self.job.snapshot(number), self._adapter(), self.job.adapter, str(self.job.model))
        if self.evaluator and number in self.job.evaluation_steps:
            self.watcher.evaluated(self.evaluator.evaluate(number))
        if writes and number in self.job.checkpoint_steps:
            save(self.job, self._adapter(), optimizer, number)
            self.watcher.saved(number)

    def on_train_end(self, run_context: Any) -> None:
        """Take the adapter out under its PEFT names."""
        self.adapter = self._adapter()

    def _by_peft_name(self) -> dict[str, Any]:
        names = names_of_trained(read_model_config(self.job.model), self.job.adapter)
        return {name: self.parameters[ours] for name, ours in names.items()}

    def _adapter(self) -> dict[str, NDArray[np.float32]]:
        return adapter_tensors(self.parameters, read_model_config(self.job.model), self.job.adapter)
