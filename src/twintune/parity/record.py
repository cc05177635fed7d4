"""One side of the comparison: train a job, measure its network, answer some prompts, and keep it all in a bundle.

The lower rungs need no training and are measured also where it fails: they tell why.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import refuse_used_folder
from twintune.backends import Probe
from twintune.backends.job import TrainJob
from twintune.converters.adapter import read_adapter, write_adapter, write_initial_adapter
from twintune.converters.merged_weights import merged_weights
from twintune.converters.tokens import load_tokenizer
from twintune.converters.weights import find_weights
from twintune.errors import UserError
from twintune.parity.bundle import (
    ADAPTER,
    BASE,
    LOG,
    PIECES,
    PROBE,
    RATES,
    Bundle,
    BundleWriter,
    cross_group,
    new_bundle,
    open_bundle,
)
from twintune.parity.describe import (
    describe_run,
    describe_weights,
    flat_rows,
    pieces_of_rows,
    row_digest,
    rows_of,
)
from twintune.parity.probe_adapters import with_random_b, without_b
from twintune.parity.selection import (
    CONVERSATIONS,
    HIDDEN_NUMBERS,
    LOGIT_NUMBERS,
    Conversation,
    choose_conversations,
    choose_matrices,
    choose_positions,
    choose_rows,
    draw_rows,
    stored,
)
from twintune.parity.texts import record_texts
from twintune.recipe import Recipe
from twintune.schedule import learning_rates
from twintune.training import run_training
from twintune.training_plan import Run, decide


@dataclass(frozen=True)
class Settings:
    """How much is recorded.

    Attributes:
        steps: at most so many optimizer steps are trained; the schedule is that of the whole job.
        prompts: how many conversations are answered.
        everything: keep every row, position and matrix.
    """

    steps: int = 50
    prompts: int = 4
    everything: bool = False


def record(recipe: Recipe, output: Path, settings: Settings, peer: Bundle | None = None) -> Bundle:
    """Run one side of a recipe and write its bundle.

    Args:
        recipe: with the backend to run.
        output: a new folder.
        settings: how much is recorded.
        peer: the other side, whose final adapter is then measured here as well.

    Raises:
        UserError: for what stops a run before it begins, and for a used folder.
    """
    refuse_used_folder(output)
    if recipe.adapter != "lora":
        raise UserError(
            f"recipe: adapter must be lora for parity, got {recipe.adapter!r}; its rungs measure LoRA matrices"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as workshop:
        run = first_steps(decide(recipe, Path(workshop) / "run"), settings.steps)
        with new_bundle(output) as writer:
            Recorder(run, writer, settings).record(Path(workshop), peer)
    return open_bundle(output)


def first_steps(run: Run, steps: int) -> Run:
    """A run that ends after so many steps of its schedule, with the adapter kept after the first that moves it."""
    rates = learning_rates(run.job.schedule, run.job.optimizer.learning_rate)
    moving = int(np.flatnonzero(rates)[0]) + 1
    count = min(max(steps, moving), len(run.job.order))
    shorter: dict[str, Any] = {"order": run.job.order[:count], "evaluation_steps": (), "checkpoint_steps": ()}
    return replace(run, job=replace(run.job, **shorter, snapshot_steps=(moving,)))


def probe_job(run: Run, workshop: Path) -> TrainJob:
    """The run's job with its initial adapter written out, as a probe reads it."""
    job = replace(run.job, initial_adapter=workshop / "initial_adapter", output_dir=workshop / "probe")
    write_initial_adapter(job.initial_adapter, job.model, run.config, job.lora, job.seed)
    return job


class Recorder:
    """Measures one run and writes what it finds."""

    def __init__(self, run: Run, writer: BundleWriter, settings: Settings) -> None:
        self.run = run
        self.writer = writer
        self.settings = settings
        self.facts = describe_run(run)
        self.seed = run.recipe.train.seed

    def record(self, workshop: Path, peer: Bundle | None) -> None:
        """Write every file of the bundle."""
        self._say("reading the rows")
        conversations = self._rows()
        self._say(f"training {len(self.run.job.order)} steps")
        final = self._train()
        self._say("measuring the network: weights, logits, gradients (a graph compiles twice on MindSpore)")
        probe = self.run.framework.open_probe(probe_job(self.run, workshop))
        self._weights(probe)
        self._forward(probe, conversations)
        self._gradients(probe)
        if final is not None:
            self._final(probe, final, conversations, peer)
        del probe  # texts load the model again
        if final is not None:
            self._say(f"answering {self.settings.prompts} prompts")
            record_texts(self.run, conversations, self.settings.prompts, self.writer)
        self.writer.seal(self.facts)

    def _say(self, phase: str) -> None:
        print(f"parity, {self.run.backend.value}: {phase}", file=sys.stderr)

    def _rows(self) -> list[Conversation]:
        """Digest every row as the backend reads it, keep some whole, and choose conversations."""
        name = self.run.framework.name
        digests, lengths = [], []
        for row in rows_of(self.run.prepared, name):
            digests.append(row_digest(row))
            lengths.append(len(row.input_ids))
        order = self.run.job.order
        chosen = set(choose_rows(np.array(lengths), order, self.seed, self.settings.everything))
        drawn = draw_rows(len(digests), self.seed)
        wanted = chosen.union(drawn)
        read = {number: row for number, row in enumerate(rows_of(self.run.prepared, name)) if number in wanted}
        rows = {number: read[number] for number in sorted(chosen)}
        arrays = {"digests": np.array(digests, np.uint64), "order": order, **flat_rows(rows)}
        self.writer.write_arrays("rows", arrays)
        section = self.run.recipe.model
        tokenizer = load_tokenizer(self.run.job.model, section.pad_token, added_tokens=section.added_tokens)
        self.writer.write_json(PIECES, pieces_of_rows(rows.values(), tokenizer.decode))
        count = max(CONVERSATIONS, self.settings.prompts)
        return choose_conversations([(number, read[number]) for number in drawn], self.seed, count)

    def _train(self) -> Path | None:
        """Train; the folder of the final adapter, or None if training failed, which is noted."""
        try:
            run_training(self.run)
        except UserError as error:
            self.facts["training_failed"] = list(error.messages)
            return None
        job = self.run.job
        (self.writer.folder / LOG).write_bytes((job.output_dir / LOG).read_bytes())
        _, tensors = read_adapter(job.output_dir / ADAPTER)
        write_adapter(self.writer.folder / ADAPTER, tensors, job.lora, job.model.name)
        (step,) = job.snapshot_steps
        _, before = read_adapter(job.initial_adapter)
        _, after = read_adapter(job.snapshot(step))
        names = choose_matrices({name: tensor.size for name, tensor in after.items()}, self.seed, self._everything)
        self.facts["one_step"] = {"step": step, "after": describe_weights(after.items())}
        arrays: dict[str, NDArray[Any]] = {f"before.{name}": tensor for name, tensor in stored(before, names).items()}
        arrays |= {f"after.{name}": tensor for name, tensor in stored(after, names).items()}
        arrays[RATES] = self.run.framework.learning_rates(job)
        self.writer.write_arrays("one_step", arrays)
        return job.output_dir / ADAPTER

    @property
    def _everything(self) -> bool:
        return self.settings.everything

    def _weights(self, probe: Probe) -> None:
        self.facts["base"] = describe_weights(probe.base())
        self.facts["initial_adapter"] = describe_weights(probe.adapter().items())

    def _forward(self, probe: Probe, conversations: Sequence[Conversation]) -> None:
        """Logits and hidden states without an adapter's effect, and with the probe adapter."""
        initial = probe.adapter()
        arrays: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {}
        measured = conversations[:CONVERSATIONS]
        for adapter, tensors in ((BASE, initial), (PROBE, with_random_b(initial, self.seed))):
            probe.put_adapter(tensors)
            for number, one in enumerate(measured):
                (forward,) = probe.forward([one.ids])  # one by one: logits of a long row are large
                stages = list(forward.hidden)
                hidden = np.stack([forward.hidden[stage] for stage in stages])
                length, vocabulary = forward.logits.shape
                logit_places = self._positions(length, vocabulary, LOGIT_NUMBERS, number)
                hidden_places = self._positions(length, hidden.shape[0] * hidden.shape[2], HIDDEN_NUMBERS, number)
                arrays[f"{adapter}.{number}.logits"] = forward.logits[logit_places]
                arrays[f"{adapter}.{number}.hidden"] = hidden[:, hidden_places]
                arrays[f"positions.{number}.logits"] = logit_places
                arrays[f"positions.{number}.hidden"] = hidden_places
                self.facts["stages"] = stages
        for number, one in enumerate(conversations):
            arrays[f"ids.{number}"] = np.array(one.ids, np.int64)
        self.facts["conversations"] = [
            {"row": one.row, "start": one.start, "prompt_length": one.prompt_length} for one in conversations
        ]
        self.facts["measured_conversations"] = len(measured)
        self.writer.write_arrays("forward", arrays)

    def _positions(self, length: int, width: int, most: int, number: int) -> NDArray[np.int64]:
        return choose_positions(length, width, most, (self.seed, 4, number), self._everything)

    def _gradients(self, probe: Probe) -> None:
        """Losses and gradients of the first optimizer step's rows, with the probe adapter."""
        step = probe.gradients(self.run.job.order[0])
        sizes = {name: tensor.size for name, tensor in step.gradients.items()}
        kept = stored(step.gradients, choose_matrices(sizes, self.seed, self._everything))
        losses = {"row_losses": step.row_losses, "row_tokens": step.row_tokens}
        self.writer.write_arrays("gradients", {**kept, **losses})
        norms = {name: float(np.linalg.norm(tensor.astype(np.float64))) for name, tensor in step.gradients.items()}
        self.facts["first_step"] = {"loss": step.loss, "tokens": step.tokens, "gradient_norms": norms}

    def _final(self, probe: Probe, final: Path, conversations: Sequence[Conversation], peer: Bundle | None) -> None:
        """Logits with the final adapter, with the other side's, and of the merged weights without one.

        A base in 4 bits takes no merged weights: an adapter is merged into the base as it is stored.
        """
        lora, tensors = read_adapter(final)
        places = [
            self._positions(len(one.ids), self.run.config["vocab_size"], LOGIT_NUMBERS, number)
            for number, one in enumerate(conversations[:CONVERSATIONS])
        ]
        measured = conversations[:CONVERSATIONS]
        if peer is not None:
            self.writer.write_arrays(cross_group(peer), adapter_logits(probe, peer.folder / ADAPTER, measured, places))
        arrays = {f"final.{name}": array for name, array in adapter_logits(probe, final, measured, places).items()}
        if self.run.job.quantization is None:
            probe.put_adapter(without_b(tensors))
            probe.put_base(merged_weights(find_weights(self.run.job.model, self.run.config), lora, tensors, "float32"))
            arrays |= {f"merged.{name}": array for name, array in _logits(probe, measured, places).items()}
        self.writer.write_arrays("run", arrays)


def adapter_logits(
    probe: Probe, adapter: Path, conversations: Sequence[Conversation], places: Sequence[NDArray[np.int64]]
) -> dict[str, NDArray[np.float32]]:
    """Logits of conversations at some positions, by `NUMBER.logits`, with the adapter of a PEFT folder."""
    probe.put_adapter(read_adapter(adapter)[1])
    return _logits(probe, conversations, places)


def _logits(
    probe: Probe, conversations: Sequence[Conversation], places: Sequence[NDArray[np.int64]]
) -> dict[str, NDArray[np.float32]]:
    pairs = enumerate(zip(conversations, places, strict=True))
    return {f"{number}.logits": probe.forward([one.ids])[0].logits[place] for number, (one, place) in pairs}
