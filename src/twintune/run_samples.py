"""What the model answered before and after a run, for its report; kept in samples.json of the run folder."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from twintune.artifacts import sha256_file, write_json
from twintune.chat import load_chat, recipe_sampling
from twintune.checkpoints import find_checkpoints
from twintune.converters.adapter import WEIGHTS
from twintune.converters.prefix_adapter import is_prefix
from twintune.errors import UserError
from twintune.evaluation.questions import validation_conversations
from twintune.recipe import Recipe
from twintune.recipe_sections import DataSection
from twintune.run_record import Chosen
from twintune.sampling import Sampling

SAMPLES = "samples.json"


@dataclass(frozen=True)
class Sample:
    """One question with the model's answer before training and after it."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Asked:
    """Everything that decides the answers of a run's own adapters.

    Attributes:
        adapter_sha256: of the trained adapter.
        sampling: how tokens were picked.
        questions: in their order.
    """

    adapter_sha256: str
    sampling: Sampling
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """samples.json: what was asked, and the answers.

    Attributes:
        adapter: the folder within the run folder that gave the answers after training.
    """

    adapter: str
    asked: Asked
    samples: tuple[Sample, ...]


def find_answers(folder: Path, recipe: Recipe, machine: Chosen) -> Answered:
    """The answers of a run's initial and trained adapter, from samples.json if they are of this very adapter.

    Args:
        folder: the run folder; a run without `adapter/` answers with its newest checkpoint.
        recipe: says what to ask (generate.sample_prompts, or records of data.val_size) and how to pick tokens.
        machine: where to compute.

    Raises:
        UserError: if there is nothing to ask, no trained adapter, or what load_chat refuses.
    """
    questions = sample_questions(recipe)
    adapter = _trained_adapter(folder)
    asked = Asked(sha256_file(adapter / WEIGHTS), recipe_sampling(recipe.generate), tuple(questions))
    kept = _read(folder / SAMPLES)
    if kept is not None and kept.asked == asked:
        return kept
    print(f"answering {len(questions)} questions before and after training, for the report", file=sys.stderr)
    # LoRA's initial adapter adds nothing to the base model, and is rendered as the trained one is; a prefix does add.
    initial = None if is_prefix(adapter) else folder / "initial_adapter"
    before, after = (_answers(each, recipe, machine, asked) for each in (initial, adapter))
    samples = tuple(Sample(*texts) for texts in zip(questions, before, after, strict=True))
    answered = Answered(adapter.name, asked, samples)
    write_json(folder / SAMPLES, asdict(answered))
    return answered


def _trained_adapter(folder: Path) -> Path:
    for adapter in (folder / "adapter", *reversed(find_checkpoints(folder).values())):
        if (adapter / WEIGHTS).is_file():
            return adapter
    raise UserError(f"{folder}: must hold adapter/ or a checkpoint, got none; resume the run, or train again")


def _read(path: Path) -> Answered | None:
    """What samples.json holds; None if it is not there or not ours, as it can be made again."""
    try:
        return TypeAdapter(Answered).validate_json(path.read_bytes())
    except (OSError, ValidationError, UserError):
        return None


def _answers(adapter: Path | None, recipe: Recipe, machine: Chosen, asked: Asked) -> list[str]:
    chat = load_chat(
        recipe.model,
        adapter,
        template=recipe.data.template,
        system=recipe.data.system,
        backend=machine.backend,
        device=machine.device,
        dtype=machine.dtype,
        cache_implementation=recipe.generate.cache_implementation,
    )
    return [answer for (answer,) in chat.answer(asked.questions, asked.sampling)]


def sample_questions(recipe: Recipe) -> list[str]:
    """What a run's report asks: generate.sample_prompts, or the first questions of validation records.

    Raises:
        UserError: if that is nothing, or the records cannot be read.
    """
    section = recipe.generate
    if section.sample_prompts:
        return list(section.sample_prompts)
    if not section.num_samples:
        raise UserError("recipe: generate.num_samples must be above 0 for samples, got 0")
    if not recipe.data.val_size:
        raise UserError(
            "recipe: generate.sample_prompts must name questions, or data.val_size must be above 0, for samples, "
            "got neither"
        )
    return list(islice(_validation_questions(recipe.data), section.num_samples))


def _validation_questions(data: DataSection) -> Iterator[str]:
    """The first question of each validation record; what prepare rejects is in its rejected.jsonl."""
    for _, conversations in groupby(validation_conversations(data, left_out=[]), key=itemgetter(0)):
        _, first = next(conversations)
        yield next(message.text for message in first.messages if message.role == "human")
