"""What an adapter's own weights do not say: its base model and, in MindFormers' files, its settings."""

from dataclasses import dataclass, replace
from pathlib import Path

from twintune.artifacts import RECIPE, sha256_file
from twintune.backends import Choice
from twintune.backends.job import Lora
from twintune.chat import adapter_recipe
from twintune.converters.adapter_export import SETTINGS
from twintune.converters.adapter_settings import CONFIG, read_adapter_config
from twintune.converters.mindformers_adapter import told_rank
from twintune.converters.names import LINEAR_MODULES
from twintune.converters.pet_config import read_pet_config
from twintune.errors import UserError
from twintune.recipe import load_recipe
from twintune.resizing import trained_model

RUN_CONFIG = "mindformers.yaml"  # what `twintune train` leaves in a run's folder, above MindFormers' own
RUN_DEPTH = 4  # folders from a checkpoint up to the run's


@dataclass(frozen=True)
class Settings:
    """What a checkpoint of LoRA matrices is, told by other files or by flags.

    Attributes:
        lora: rank, strength and layers.
        base_model: name or folder.
        source: where that comes from.
    """

    lora: Lora
    base_model: str
    source: str


def base_of(adapter: Path, asked: str | None) -> Choice:
    """The name or folder of a PEFT adapter's base, with the reason.

    Raises:
        UserError: if nothing names one.
    """
    if asked is not None:
        return Choice(asked, "as asked")
    if (recipe := adapter_recipe(adapter)) is not None:
        return Choice(recipe.model.name_or_path, "from the adapter's recipe.yaml")
    named = read_adapter_config(adapter).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError(f"{adapter / CONFIG}: base_model_name_or_path must name a model, got {named!r}; give --model")
    return Choice(named, f"from the adapter's {CONFIG}")


def settings_of(
    checkpoint: Path,
    *,
    pet_config: Path | None = None,
    model: str | None = None,
    lora_alpha: float | None = None,
    target_modules: tuple[str, ...] | None = None,
) -> Settings:
    """The settings of a MindFormers checkpoint; flags first, then the file named, else the one beside it.

    Args:
        checkpoint: the file of matrices.
        pet_config: a MindFormers YAML, or the `adapter.json` of an export.
        model: the base, in place of the one that a file names.
        lora_alpha: the strength: W + lora_alpha / r * B A.
        target_modules: the layers that have matrices, by their Hugging Face names.

    Raises:
        UserError: if nothing tells the strength, the layers or the base; none of it is guessed.
    """
    if unknown := set(target_modules or ()) - set(LINEAR_MODULES):
        raise UserError(
            f"command line: --target-modules must be of {', '.join(LINEAR_MODULES)}, got {', '.join(sorted(unknown))}"
        )
    file = pet_config or _settings_file(checkpoint)
    base = model
    if file is not None:
        said = read_pet_config(file)
        if said.sha256 not in (None, sha256_file(checkpoint)):
            raise UserError(f"{file}: must be of {checkpoint}, got another sha256; give --pet-config, or export anew")
        lora, base, source = said.lora, model or said.base_model or _base_of_run(file), str(file)
    elif lora_alpha is not None and target_modules is not None:
        lora = Lora(told_rank(checkpoint), lora_alpha, 0.0, target_modules)
        source = "command line, and the rank that the matrices have"
    else:
        raise UserError(
            f"{checkpoint}: the adapter's lora_alpha and target_modules must be known, got no {SETTINGS} beside it and "
            "no mindformers.yaml of its run; give --pet-config with the YAML it was trained by, or --lora-alpha and "
            "--target-modules"
        )
    if base is None:
        raise UserError(f"{checkpoint}: the adapter's base model must be known, got none in {source}; give --model")
    if lora_alpha is not None:
        lora = replace(lora, lora_alpha=lora_alpha)
    if target_modules is not None:
        lora = replace(lora, target_modules=target_modules)
    return Settings(lora, base, source)


def _settings_file(checkpoint: Path) -> Path | None:
    beside = checkpoint.with_name(SETTINGS)
    run = [folder / RUN_CONFIG for folder in checkpoint.resolve().parents[:RUN_DEPTH]]
    return next((path for path in (beside, *run) if path.is_file()), None)


def _base_of_run(file: Path) -> str | None:
    recipe = file.with_name(RECIPE)
    if not recipe.is_file():
        return None
    model = load_recipe(recipe).model
    return str(trained_model(model)) if model.pad_to_multiple_of else model.name_or_path
