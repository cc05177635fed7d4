"""Both backends draw the same texts with the same seed, whatever stands beside a text in its batch."""

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("mindformers", reason="the ascend extra is not installed")

from tests.tiny_models import save_tiny_model
from twintune.backends import LanguageModel, Name, load_backend
from twintune.generation import TextGenerator
from twintune.sampling import Sampling

BACKENDS: tuple[Name, ...] = ("cuda", "ascend")
PROMPTS = [[1, 99], [1, 40, 41, 42, 43, 44, 45], [1], [1, 7, 7, 120, 33], [1, 60, 61]]
DRAWN = Sampling(12, 0.9, 0.95, 40, num_return_sequences=2, seed=3, repetition_penalty=1.3, min_new_tokens=2)


class Numbers:
    """A decoder whose text is the ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("model"), "llama")
    return {
        name: load_backend(name).load_model(folder, None, pad_token_id=0, device="cpu", dtype="float32")
        for name in BACKENDS
    }


def texts(model: LanguageModel, batch_size: int, sampling: Sampling) -> list[list[str]]:
    return TextGenerator(model, Numbers(), [2, *range(10, 25)], batch_size).generate(PROMPTS, sampling)


@pytest.mark.parametrize(
    "sampling", [DRAWN, Sampling(12), Sampling(12, stop_strings=("7", "33 "))], ids=["drawn", "greedy", "stopped"]
)
def test_texts_are_those_of_the_other_backend(models: dict[str, LanguageModel], sampling: Sampling) -> None:
    cuda, ascend = (texts(models[name], 4, sampling) for name in BACKENDS)
    assert cuda == ascend == texts(models["cuda"], 99, sampling)
    assert len({len(text.split()) for group in cuda for text in group}) > 2
