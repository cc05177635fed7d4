"""Record the bundles in tests/golden/bundle-format-1, one by each backend, small enough to be kept.

    python -m tests.golden.make_bundles FOLDER

They were made by twintune 0.1.0 and are not made again: a bundle of this format must stay readable.
"""

import sys
from pathlib import Path

from tests.parity.jobs import Kind, machine, write_recipe
from twintune.parity import record, selection
from twintune.parity.cross import cross
from twintune.recipe import load_recipe

KIND = Kind("llama", {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1})

OVERRIDES = ("lora.r=2",)
SETTINGS = record.Settings(steps=10, prompts=2)


def main(folder: Path) -> None:
    """Write recipe, model and both bundles into a folder."""
    for module, name, bound in (
        (record, "LOGIT_NUMBERS", 2400),
        (record, "HIDDEN_NUMBERS", 1000),
        (record, "CONVERSATIONS", 2),
        (selection, "MATRIX_NUMBERS", 4000),
    ):
        setattr(module, name, bound)
    path = write_recipe(folder / "recipe", KIND)
    recipes = [load_recipe(path, [*machine(name), *OVERRIDES]) for name in ("cuda", "ascend")]
    first = record.record(recipes[0], folder / "cuda", SETTINGS)
    second = record.record(recipes[1], folder / "ascend", SETTINGS, first)
    cross(recipes[0], first, second)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
