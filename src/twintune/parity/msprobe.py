"""What msprobe needs to look inside a stage where two forwards differ: settings, module map, and how to run it.

msprobe is Ascend's precision debugger (the package mindstudio-probe). Parity names the stage; msprobe compares
every module in it. Keys and formats as in its documentation, "config.json" and "layer mapping":
https://gitcode.com/Ascend/msprobe/tree/master/docs
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file, new_folder, write_json, write_yaml
from twintune.converters.families import family_of
from twintune.errors import UserError
from twintune.parity.msprobe_texts import DUMP_MINDSPORE, DUMP_PYTORCH, README

LENGTH_MULTIPLE = 16  # tokens; MindFormers' graphs are compiled for such lengths
STAGE_MODULES = {
    "embed_tokens": "model.tok_embeddings",
    "norm": "model.norm_out",
    "logits": "lm_head",
}  # MindSpore's names, alike in all families


def write_msprobe(
    folder: Path, *, stage: str, config: Mapping[str, Any], row: Sequence[int], pad_token_id: int, dtype: str
) -> list[Path]:
    """Write settings for both sides, the module map, the row, two scripts and a README into a new folder.

    Args:
        folder: to make.
        stage: the first stage that differs: `embed_tokens`, `layers.N`, `norm` or `logits`.
        config: the model's config.json.
        row: token ids of a conversation that shows the difference; repeated up to a multiple of 16, so that
            neither side pads (what comes later in a row changes nothing before it).
        pad_token_id: of the two runs; MindFormers hides it wherever it stands.
        dtype: of the two runs.

    Returns:
        What was written.

    Raises:
        UserError: for a stage that the model has not, an empty row, or a folder in use.
    """
    pytorch, mindspore = stage_modules(stage, config)
    if not row:
        raise UserError(f"{folder}: the row for msprobe must have a token, got none")
    with new_folder(folder) as aside:
        write_json(aside / "config_pytorch.json", settings("dump_pytorch", pytorch))
        write_json(aside / "config_mindspore.json", settings("dump_mindspore", mindspore))
        write_yaml(aside / "layer_mapping.yaml", layer_mapping(config))
        write_json(aside / "row.json", whole_length(row))
        texts = {"dump_pytorch.py": DUMP_PYTORCH, "dump_mindspore.py": DUMP_MINDSPORE, "README.md": README}
        for name, text in texts.items():
            with new_file(aside / name) as file:
                file.write_text(_filled(text, stage=stage, dtype=dtype, pad_token_id=pad_token_id), encoding="utf-8")
    return sorted(folder.iterdir())


def settings(dump_path: str, modules: str) -> dict[str, Any]:
    """The config.json of msprobe: whole tensors of the forward of some modules.

    Args:
        dump_path: the folder that msprobe writes to.
        modules: what a module's full name must contain.
    """
    wanted = {"scope": [], "list": [modules], "data_mode": ["forward"], "summary_mode": "statistics"}
    return {"task": "tensor", "dump_path": dump_path, "rank": [], "step": [], "level": "L0", "tensor": wanted}


def stage_modules(stage: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """What the names of a stage's modules contain, in PyTorch and in MindSpore.

    Raises:
        UserError: for a stage that the model has not.
    """
    layers = config["num_hidden_layers"]
    layer = re.fullmatch(r"layers\.(\d+)", stage)
    if layer and int(layer[1]) < layers:
        return f"model.{stage}.", f"model.{stage}."
    if stage not in STAGE_MODULES:
        stages = "embed_tokens, layers.N, norm or logits"
        raise UserError(f"msprobe: the stage must be {stages} of a model of {layers} layers, got {stage!r}")
    module = STAGE_MODULES[stage]
    return f"{_top(config)[module]}.", f"{module}."


def layer_mapping(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Every module of the network for msprobe's --layer_mapping: MindFormers name to Hugging Face name."""
    mapping = _top(config)
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in _in_a_layer(config).items():
            mapping[f"model.layers.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return {"TopLayer": mapping}


def whole_length(row: Sequence[int]) -> list[int]:
    """A row repeated from its start up to the next multiple of LENGTH_MULTIPLE."""
    length = -(-len(row) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return [int(row[place % len(row)]) for place in range(length)]


def _filled(text: str, **values: str | int) -> str:
    """A text with its {name} marks filled; str.format would trip over the other braces."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _top(config: Mapping[str, Any]) -> dict[str, str]:
    """The modules outside layers, MindSpore to Hugging Face: their weights without the last part."""
    return _modules(family_of(config).top)


def _in_a_layer(config: Mapping[str, Any]) -> dict[str, str]:
    """The modules of a layer, their parents included, MindSpore to Hugging Face."""
    family = family_of(config)
    theirs, ours = family.activation
    parents = {ours.split(".")[0]: theirs.split(".")[0] for theirs, ours in family.modules.items()}
    modules = {ours: theirs for theirs, ours in family.modules.items()}
    return parents | modules | {ours: theirs} | _modules(family.norms)


def _modules(weights: Mapping[str, str]) -> dict[str, str]:
    return {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for theirs, ours in weights.items()}
