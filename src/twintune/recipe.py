"""The recipe: one YAML file that says what to train, on what, how; the machine's choices are flags.

Names are those of HF TrainingArguments, PEFT LoraConfig and LLaMA-Factory, so that fingers know them.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from twintune.answer_sections import EvaluateSection, GenerateSection, ReasoningSection
from twintune.artifacts import parse_yaml, write_yaml
from twintune.errors import UserError, raise_collected
from twintune.recipe_sections import (
    BackendSection,
    DataFile,
    DataSection,
    LoraSection,
    ModelSection,
    PtuningV2Section,
    Section,
    TrainSection,
)


class Recipe(Section):
    """The whole recipe."""

    model: ModelSection
    data: DataSection
    adapter: Literal["lora", "ptuning_v2"] = "lora"
    lora: LoraSection = LoraSection()
    ptuning_v2: PtuningV2Section = PtuningV2Section()
    train: TrainSection = TrainSection()
    generate: GenerateSection = GenerateSection()
    evaluate: EvaluateSection = EvaluateSection()
    reasoning: ReasoningSection = ReasoningSection()
    backend: BackendSection = BackendSection()

    def save(self, path: Path) -> None:
        """Write the resolved recipe, every default that counts spelled out, as YAML that load_recipe reads back."""
        write_yaml(path, self.model_dump(mode="json", exclude={other_adapter(self.adapter)}))


def other_adapter(adapter: str) -> str:
    """The section that does not count."""
    return "lora" if adapter == "ptuning_v2" else "ptuning_v2"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, lay `section.key=value` overrides over it, resolve its paths against its folder.

    Raises:
        UserError: for every unreadable file, unknown key or wrong value, all at once.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _apply_override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(*(_describe(path, problem) for problem in error.errors())) from None
    raise_collected(f"{path}: {problem}" for problem in _adapter_problems(recipe))
    return _resolve_paths(recipe, path.resolve().parent)


def _adapter_problems(recipe: Recipe) -> Iterator[str]:
    """A sentence for each key that does not go together with `adapter`."""
    other = other_adapter(recipe.adapter)
    if given := getattr(recipe, other).model_fields_set:
        yield f"{other} must be left out where adapter is {recipe.adapter}, got {', '.join(sorted(given))}"
    if recipe.adapter == "lora":
        return
    settings = recipe.ptuning_v2
    if settings.prefix_projection and settings.encoder_hidden_size is None:
        yield "ptuning_v2.encoder_hidden_size must be given where ptuning_v2.prefix_projection is true, got nothing"
    refused = {
        "data.packing": (recipe.data.packing, "a prefix stands before a row, and not before each conversation in it"),
        "model.load_in_4bit": (recipe.model.load_in_4bit, "the prefix was measured on whole weights only"),
        "train.gradient_checkpointing": (
            recipe.train.gradient_checkpointing,
            "PEFT passes the prefix as a cache, which a layer that is computed again would fill twice",
        ),
    }
    for key, (asked, reason) in refused.items():
        if asked:
            yield f"{key} must be false where adapter is ptuning_v2, got true: {reason}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: the recipe must be a file that exists, got nothing there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the recipe must be a readable UTF-8 file, got: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: the recipe must be YAML, got: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: the recipe must be a mapping of sections (model, data, ...), got {tree!r}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = (part.strip() for part in name.split("."))
    if not (equals and key and all(sections) and (sections or key == "adapter")):
        raise UserError(
            f"command line: an override must be section.key=value, such as train.max_steps=10, got {override!r}"
        )
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"command line: {name} must be a YAML value, got {text!r}: {' '.join(str(error).split())}"
        ) from None
    branch = tree
    for section in sections:
        branch = branch.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UserError(f"command line: {name} must lead through sections, got a value at {section!r}")
    branch[key] = value


def _describe(path: Path, problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: {name} must be a key that twintune knows, got an unknown one{_did_you_mean(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{path}: {name} must be given, got nothing"
    if problem["type"] == "model_type":
        return f"{path}: {name} must be a mapping of keys, got {problem['input']!r}"
    rule = re.sub(r"^(Input|Value error,) should ", "", problem["msg"])
    return f"{path}: {name} must {rule}, got {problem['input']!r}"


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    section: Any = Recipe
    for part in location[:-1]:
        section = DataFile if isinstance(part, int) else section.model_fields[str(part)].annotation
    wanted = str(location[-1])
    elsewhere = [
        f"{name}.{wanted}"
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and wanted in getattr(field.annotation, "model_fields", {})
    ]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    close = difflib.get_close_matches(wanted, section.model_fields, n=1)
    if close:
        return f"; did you mean {'.'.join([*map(str, location[:-1]), close[0]])}?"
    return f"; the keys here are {', '.join(section.model_fields)}"


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths in a recipe are relative to its file; a model name that is no path there stays a name."""
    # Not resolve(): it would follow a link, and what a glob or an error message says is the name as given.
    files = [
        file.model_copy(update={"path": os.path.normpath(folder / Path(file.path).expanduser())})
        for file in recipe.data.train
    ]
    data = recipe.data.model_copy(update={"train": tuple(files)})
    tests = _absolute(recipe.evaluate.test, folder)
    evaluate = recipe.evaluate.model_copy(update={"test": tests})
    reasoning = _resolve_reasoning(recipe.reasoning, folder)
    model = recipe.model.model_copy(update={"name_or_path": _resolve_model_name(recipe.model.name_or_path, folder)})
    return recipe.model_copy(update={"data": data, "model": model, "evaluate": evaluate, "reasoning": reasoning})


def _resolve_reasoning(reasoning: ReasoningSection, folder: Path) -> ReasoningSection:
    model = reasoning.model
    if model is not None and reasoning.base_url is None:
        model = _resolve_model_name(model, folder)
    return reasoning.model_copy(update={"input": _absolute(reasoning.input, folder), "model": model})


def _absolute(paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    return tuple(os.path.normpath(folder / Path(path).expanduser()) for path in paths)


def _resolve_model_name(name: str, folder: Path) -> str:
    candidate = (folder / Path(name).expanduser()).resolve()
    looks_like_path = name.startswith((".", "/", "~"))
    return str(candidate) if looks_like_path or candidate.is_dir() else name
