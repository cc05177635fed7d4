"""Texts that a model decodes greedily, beside the logits of the whole rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.converters.target_modules import layers_of
from twintune.models import read_model_config

LOGITS = 5e-5  # float32; the two sides add up the same products in another order
PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 99], [1, *range(20, 49)]]
LATER = [1, *range(60, 77)]
NEW_TOKENS = 12


@dataclass
class Text:
    """A row with the logits after its prompt and after each new token."""

    ids: list[int]
    logits: list[NDArray[np.float32]]


def save_random_adapter(model: Path, folder: Path) -> Path:
    """LoRA on every linear layer, its B drawn too, so that it changes what the model says."""
    config = read_model_config(model)
    lora = Lora(4, 8, 0.0, layers_of(config))
    tensors = make_initial_adapter(config, lora, seed=0)
    draw = np.random.default_rng(5)
    drawn = {name: draw.normal(0, 0.1, tensor.shape).astype(np.float32) for name, tensor in tensors.items()}
    write_adapter(folder / "adapter", drawn, lora, str(model))
    return folder / "adapter"


def go_on(model: Any, texts: list[Text], steps: int) -> None:
    """Take the likeliest token of every row, some times."""
    for _ in range(steps):
        tokens = np.array([text.logits[-1].argmax() for text in texts])
        for text, token, logits in zip(texts, tokens.tolist(), model.step(tokens), strict=True):
            text.ids.append(token)
            text.logits.append(logits)


def begin(model: Any, prompts: list[list[int]], new_tokens: int) -> list[Text]:
    logits = model.start(prompts, new_tokens)
    return [Text(list(prompt), [row]) for prompt, row in zip(prompts, logits, strict=True)]


def check(model: Any, texts: list[Text]) -> None:
    """Greedy tokens and logits are those of the whole rows, computed at once."""
    for text, whole in zip(texts, model.logits([text.ids for text in texts]), strict=True):
        ours, wanted = np.array(text.logits), whole[-len(text.logits) :]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=LOGITS)
        assert (ours.argmax(1) == wanted.argmax(1)).all()
