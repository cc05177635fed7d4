"""Which linear layers of a model lora.target_modules means: today's names, and those of Phi-2's remote code."""

from collections.abc import Mapping, Sequence
from typing import Any

from twintune.converters.families import family_of
from twintune.converters.names import LINEAR_MODULES
from twintune.errors import raise_collected

OLD_NAMES = {"Wqkv": ("q_proj", "k_proj", "v_proj"), "out_proj": ("dense",)}  # transformers split Wqkv in three
OF_THE_OTHER_FAMILY = {
    "o_proj": "dense",
    "gate_proj": "fc1",
    "up_proj": "fc1",
    "down_proj": "fc2",
    "Wqkv": "q_proj, k_proj, v_proj",
    "dense": "o_proj",
    "out_proj": "o_proj",
    "fc1": "up_proj",
    "fc2": "down_proj",
}


def layers_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of linear layers that a decoder layer of this model has, by the last part of their names."""
    own = {name.split(".")[1] for name in family_of(config).modules}
    return tuple(name for name in LINEAR_MODULES if name in own)


def resolve_target_modules(config: Mapping[str, Any], asked: Sequence[str]) -> tuple[str, ...]:
    """Today's names of the layers that are asked for, each once, in the order asked.

    Args:
        config: the model's checked config.json.
        asked: lora.target_modules.

    Raises:
        UserError: for every one that is no layer of this model, with the layer that is meant most likely.
    """
    known = layers_of(config)
    old = OLD_NAMES if config["model_type"] == "phi" else {}
    raise_collected(
        f"recipe: lora.target_modules must be linear layers of a {config['model_type']} ({', '.join(known)}), "
        f"got {name!r}; did you mean {OF_THE_OTHER_FAMILY[name]}?"
        for name in asked
        if name not in known and name not in old
    )
    return tuple(dict.fromkeys(today for name in asked for today in old.get(name, (name,))))


def describe_target_modules(asked: Sequence[str], resolved: Sequence[str]) -> str:
    """The layers that get an adapter, and which of them were asked for by an old name."""
    names = ", ".join(resolved)
    old = [f"{name} of Phi-2's remote code is {', '.join(OLD_NAMES[name])}" for name in asked if name in OLD_NAMES]
    return f"{names} ({'; '.join(old)})" if old else names
