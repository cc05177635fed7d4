from typing import Any

import pytest

from twintune.converters.target_modules import describe_target_modules, layers_of, resolve_target_modules
from twintune.errors import UserError

PHI: dict[str, Any] = {"model_type": "phi"}
LLAMA: dict[str, Any] = {"model_type": "llama"}


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        (("Wqkv", "fc1", "fc2", "out_proj"), ("q_proj", "k_proj", "v_proj", "fc1", "fc2", "dense")),
        (("dense", "out_proj", "v_proj", "Wqkv"), ("dense", "v_proj", "q_proj", "k_proj")),
        (layers_of(PHI), ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    ],
)
def test_old_names_of_phi_are_todays_layers(asked: tuple[str, ...], resolved: tuple[str, ...]) -> None:
    assert resolve_target_modules(PHI, asked) == resolved


def test_what_was_asked_by_an_old_name_is_told() -> None:
    assert describe_target_modules(("q_proj",), ("q_proj",)) == "q_proj"
    asked = ("Wqkv", "fc1", "out_proj")
    assert describe_target_modules(asked, resolve_target_modules(PHI, asked)) == (
        "q_proj, k_proj, v_proj, fc1, dense (Wqkv of Phi-2's remote code is q_proj, k_proj, v_proj; "
        "out_proj of Phi-2's remote code is dense)"
    )


@pytest.mark.parametrize(
    ("config", "name", "meant"),
    [
        (PHI, "o_proj", "dense"),
        (PHI, "gate_proj", "fc1"),
        (PHI, "down_proj", "fc2"),
        (LLAMA, "dense", "o_proj"),
        (LLAMA, "Wqkv", "q_proj, k_proj, v_proj"),
        (LLAMA, "out_proj", "o_proj"),
    ],
)
def test_layers_of_another_family_are_refused(config: dict[str, Any], name: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_target_modules(config, ("q_proj", name))
    assert caught.value.messages == (
        f"recipe: lora.target_modules must be linear layers of a {config['model_type']} "
        f"({', '.join(layers_of(config))}), got {name!r}; did you mean {meant}?",
    )
