"""Which base model an adapter belongs to: asked for, or told by the files beside the adapter."""

from pathlib import Path

from twintune.backends import Choice
from twintune.chat import adapter_recipe
from twintune.converters.adapter_settings import CONFIG, read_adapter_config
from twintune.errors import UserError


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
