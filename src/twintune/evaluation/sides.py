"""What is scored: the base or a tuned model, on one backend, and all that decides its answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from twintune import __version__
from twintune.artifacts import sha256_file
from twintune.backends import Choice, choose_backend, load_backend
from twintune.chat import Chat, load_chat, recipe_sampling
from twintune.converters.adapter import WEIGHTS, check_adapter_settings
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.tokens import tokenizer_hash
from twintune.errors import UserError
from twintune.evaluation.answer_log import Outcome, log_path, read_log, require_same_settings
from twintune.evaluation.questions import Questions
from twintune.models import resolve_model
from twintune.recipe import Recipe
from twintune.voting import check_voting

BOTH = "both"
OF_THE_SIDE = frozenset({"backend", "device", "dtype", "adapter"})
NAMES = {"name_or_path"}  # where a model lies does not decide what it says: its files do
BACKENDS = ("cuda", "ascend")


@dataclass(frozen=True)
class Side:
    """A model on a backend.

    Attributes:
        model: the base, or the base with the adapter.
        adapter: a PEFT folder; None for the base, and for a side that another machine answered.
        backend, device, dtype: what was chosen, and why.
        settings: what decides the answers, as JSON; two runs with the same ones give the same texts.
    """

    model: Literal["base", "tuned"]
    adapter: Path | None
    backend: Choice
    device: Choice
    dtype: Choice
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as tuned-cuda; its log is answers-tuned-cuda.jsonl."""
        return f"{self.model}-{self.backend.value}"


def decide_sides(recipe: Recipe, questions: Questions, adapter: Path | None, backend: str) -> list[Side]:
    """The base, and the tuned model if there is an adapter, on one backend or on both.

    Args:
        recipe: with its template, system prompt and sampling.
        questions: what is asked.
        adapter: a PEFT folder, or None for the base alone.
        backend: auto, cuda, ascend or both.

    Raises:
        UserError: for whatever would stop the evaluation later.
    """
    check_voting(recipe.evaluate.vote, recipe.evaluate.retries, recipe_sampling(recipe.generate))
    common = _common_settings(recipe, questions)
    sides = []
    for name in BACKENDS if backend == BOTH else (backend,):
        chosen = choose_backend(name)
        framework = load_backend(chosen.value)
        device = framework.choose_device(recipe.backend.device)
        dtype = framework.choose_dtype(recipe.backend.dtype, device.value)
        machine = {"backend": chosen.value, "device": device.value, "dtype": dtype.value}
        sides.append(Side("base", None, chosen, device, dtype, common | machine | {"adapter": None}))
        if adapter is not None:
            check_adapter_settings(adapter)
            hashes = common | machine | {"adapter": _adapter_hashes(adapter)}
            sides.append(Side("tuned", adapter, chosen, device, dtype, hashes))
    return sides


def other_sides(output_dir: Path, sides: Sequence[Side], total: int) -> tuple[dict[str, list[Outcome]], list[Side]]:
    """Sides whose answers lie in the folder already, from an earlier evaluation or another machine.

    Args:
        output_dir: with logs of the same questions under the same settings, but for the machine and the adapter.
        sides: those evaluated now.
        total: questions.

    Raises:
        UserError: for a log that is broken, unfinished, or of other settings.
    """
    outcomes, others = {}, []
    own = {log_path(output_dir, side.name) for side in sides}
    for path in sorted(set(output_dir.glob("answers-*.jsonl")) - own):
        settings, answered = read_log(path)
        require_same_settings(path, settings, sides[0].settings, OF_THE_SIDE)
        if len(answered) < total:
            raise UserError(
                f"{path}: the log must answer all {total} questions, got {len(answered)}; finish it, or move it away"
            )
        backend, device, dtype = (
            Choice(settings[name], f"from {path.name}") for name in ("backend", "device", "dtype")
        )
        side = Side("tuned" if settings["adapter"] else "base", None, backend, device, dtype, settings)
        outcomes[side.name] = answered
        others.append(side)
    return outcomes, others


def load_side(side: Side, recipe: Recipe) -> Chat:
    """The chat of a side, with the recipe's own template and system prompt, as training rendered them.

    Raises:
        UserError: what load_chat raises.
    """
    chat = load_chat(
        recipe.model,
        side.adapter,
        backend=side.backend.value,
        device=side.device.value,
        dtype=side.dtype.value,
        template=recipe.data.template,
        system=recipe.data.system,
        batch_size=recipe.train.per_device_eval_batch_size,
        cache_implementation=recipe.generate.cache_implementation,
    )
    return replace(chat, split_special_tokens=recipe.data.split_special_tokens)


def _common_settings(recipe: Recipe, questions: Questions) -> dict[str, Any]:
    model = resolve_model(recipe.model)
    return {
        "twintune": __version__,
        "questions": questions.sha256,
        "weights": _weight_files(model),
        "tokenizer": tokenizer_hash(model),
        **{f"model.{name}": value for name, value in recipe.model.model_dump(mode="json", exclude=NAMES).items()},
        "data.template": recipe.data.template,
        "data.system": recipe.data.system,
        "data.split_special_tokens": recipe.data.split_special_tokens,
        **{f"generate.{name}": value for name, value in asdict(recipe_sampling(recipe.generate)).items()},
        "evaluate.vote": recipe.evaluate.vote,
        "evaluate.retries": recipe.evaluate.retries,
        "train.per_device_eval_batch_size": recipe.train.per_device_eval_batch_size,
    }


def _weight_files(model: Path) -> dict[str, Any]:
    """The config's hash, and each file of weights by its size: to read a 7B model only to hash it takes minutes."""
    files = sorted(model.glob("*.safetensors"))
    return {"config.json": sha256_file(model / "config.json")} | {file.name: file.stat().st_size for file in files}


def _adapter_hashes(adapter: Path) -> dict[str, str]:
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{adapter / WEIGHTS}: --adapter must be a PEFT adapter folder, got no weights in it")
    return {name: sha256_file(adapter / name) for name in (CONFIG, WEIGHTS)}
