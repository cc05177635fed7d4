"""The model folder that a recipe trains: the one it names, or that with resized embeddings."""

from pathlib import Path

from twintune.converters.resized_model import resized_model
from twintune.converters.tokens import load_tokenizer
from twintune.models import read_model_config, resolve_model
from twintune.recipe_sections import ModelSection


def trained_model(model: ModelSection) -> Path:
    """The folder of a recipe's model, with a row for each token where model.pad_to_multiple_of asks for it.

    Raises:
        UserError: what resolve_model, load_tokenizer and resized_model raise.
    """
    folder = resolve_model(model)
    if model.pad_to_multiple_of is None:
        return folder
    tokenizer = load_tokenizer(folder, model.pad_token, model.trust_remote_code, model.added_tokens)
    return resized_model(folder, read_model_config(folder), tokenizer, model.added_tokens, model.pad_to_multiple_of)
